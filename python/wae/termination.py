"""How signals end a process. SIGTERM, by which schedulers and parents end it, is handled as Ctrl-C is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit status after Ctrl-C."""


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within this block SIGTERM raises :class:`Terminated`, once: later ones do not disturb the cleaning up.

    Without effect in another thread than the main one, and where SIGTERM has a handler or is ignored.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child, which has nothing to clean up
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Within this block Ctrl-C ends the process at once, in one line. For the imports of a start.

    There is nothing to clean up yet, and a KeyboardInterrupt within an import may abort a library's C++.
    Without effect in another thread than the main one, and where SIGINT has a handler or is ignored.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        print("wae: interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_with_parent() -> None:
    """Have this process, started by :mod:`multiprocessing`, terminated when its parent is gone."""
    import multiprocessing  # not above: this module is the first that a command imports

    parent, process = multiprocessing.parent_process(), os.getpid()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(process, signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
