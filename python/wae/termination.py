"""How signals end a process. SIGTERM, by which schedulers and parents end it, is handled as Ctrl-C is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit status after Ctrl-C."""

_LATER = 0.05  # seconds


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within this block SIGTERM raises :class:`Terminated`, once: later ones do not disturb the cleaning up.

    Neither that nor Ctrl-C is raised within the import of an extension module, but behind it. Without effect
    in another thread than the main one, and on a signal that has a handler or is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not _sent_again(number, frame):
            signal.default_int_handler(number, frame)

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child, which has nothing to clean up
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        if not _sent_again(number, frame):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise Terminated

    with (
        _handled(signal.SIGINT, signal.default_int_handler, interrupt),
        _handled(signal.SIGTERM, signal.SIG_DFL, terminate),
    ):
        yield


@contextmanager
def _handled(number: int, usual: Any, handler: Any) -> Iterator[None]:
    """Within this block ``handler`` gets the signal, where it would be the ``usual`` one."""
    if signal.getsignal(number) != usual:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, usual)


def _sent_again(number: int, frame: FrameType | None) -> bool:
    """Whether the signal came in the import of an extension module, and so is sent again a little later.

    There pybind11 makes an ImportError of what is raised, and PyTorch goes on as if there were no Triton.
    """
    while frame and not isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
        frame = frame.f_back
    if frame:
        threading.Timer(_LATER, os.kill, (os.getpid(), number)).start()
    return frame is not None


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Within this block Ctrl-C ends the process at once, in one line. For the imports of a start.

    There is nothing to clean up yet, and a KeyboardInterrupt within an import may abort a library's C++.
    Without effect in another thread than the main one, and where SIGINT has a handler or is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        print("wae: interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    with _handled(signal.SIGINT, signal.default_int_handler, end):
        yield


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
