"""How signals end a process.

SIGTERM, which schedulers and parent processes send, and SIGHUP, which a closed terminal sends, are handled
like Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit status after Ctrl-C."""

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_LATER = 0.05  # seconds until a deferred signal is sent again


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def terminable() -> Iterator[None]:
    """In this block SIGTERM or SIGHUP raises :class:`Terminated`; later ones do not interrupt the clean-up.

    During the import of an extension module, neither this nor Ctrl-C is raised until the import has ended. If
    one is raised where Python ignores exceptions, such as in a destructor, it is raised again after that.
    The block has no effect outside the main thread, or on a signal that already has a handler or is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, is_ending, report = os.getpid(), False, sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not _sent_again(number, frame):
            signal.default_int_handler(number, frame)

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal is_ending
        if os.getpid() != owner:  # a forked child process, which has nothing to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not is_ending and not _sent_again(number, frame):  # a service manager sends both
            is_ending = True
            # It may have ended workers that load data too, for which PyTorch's handler raises an error.
            of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if of_children is not None:  # a handler that is not Python's cannot be put back
                handled.callback(signal.signal, signal.SIGCHLD, of_children)
            raise Terminated(number)

    def ignored(exception: sys.UnraisableHookArgs) -> None:
        nonlocal is_ending
        if not isinstance(exception.exc_value, KeyboardInterrupt):
            report(exception)
            return
        is_ending = False
        _send_later(getattr(exception.exc_value, "number", signal.SIGINT))

    with ExitStack() as handled:
        sys.unraisablehook = ignored
        handled.callback(setattr, sys, "unraisablehook", report)
        handled.enter_context(_handled(signal.SIGINT, signal.default_int_handler, interrupt))
        for number in _ENDING:
            handled.enter_context(_handled(number, signal.SIG_DFL, terminate))
        yield


@contextmanager
def _handled(number: int, usual: Any, handler: Any) -> Iterator[None]:
    """In this block ``handler`` receives the signal, provided that the ``usual`` handler was installed."""
    if signal.getsignal(number) != usual:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, usual)


def _sent_again(number: int, frame: FrameType | None) -> bool:
    """Whether the signal arrived during the import of an extension module; if so, send it again later.

    If an exception were raised there, pybind11 would turn it into an ImportError, and PyTorch would carry on
    as if Triton were not installed.
    """
    while frame and not isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
        frame = frame.f_back
    if frame:
        _send_later(number)
    return frame is not None


def _send_later(number: int) -> None:
    threading.Timer(_LATER, os.kill, (os.getpid(), number)).start()


@contextmanager
def ended_at_once() -> Iterator[None]:
    """In this block Ctrl-C ends the process immediately, with a one-line message. For start-up imports.

    There is nothing to clean up yet, and a KeyboardInterrupt during an import may abort a library's C++ code.
    The block has no effect outside the main thread, or if SIGINT already has a handler or is ignored.
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
    """Send SIGTERM to this process, which :mod:`multiprocessing` started, when its parent has ended."""
    import multiprocessing  # not at the top: a command imports this module first

    parent, process = multiprocessing.parent_process(), os.getpid()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(process, signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
