"""SIGTERM, by which schedulers and parents end a process, is handled as Ctrl-C is, cleaning up included."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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


def end_with_parent() -> None:
    """Have this process, started by :mod:`multiprocessing`, terminated when its parent is gone."""
    parent, process = multiprocessing.parent_process(), os.getpid()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(process, signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
