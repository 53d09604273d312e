"""Protects the stack on which a thread's signal handlers run from OpenVINO."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux's ``stack_t``."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t))


@contextmanager
def kept() -> Iterator[None]:
    """Restore, after the block, the signal stack that the thread had before it, or none.

    OpenVINO's CPU plugin gives the thread that loads it a new signal stack, large enough for the registers of
    AMX, and frees that stack when the plugin is unloaded. The thread may still be set to use it, for example
    if two plugins are unloaded in the order in which they were loaded, or one is unloaded on another thread.
    The next signal that Python handles, such as Ctrl-C, then ends the process with a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    before = current()
    try:
        yield
    finally:
        if current() != before:
            address, flags, size = before
            _sigaltstack()(ctypes.byref(_Stack(address, flags, size)), None)


def current() -> tuple[int | None, int, int]:
    """This thread's signal stack on Linux: its address, its flags (see ``sigaltstack(2)``), its bytes."""
    stack = _Stack()
    _sigaltstack()(None, ctypes.byref(stack))
    return stack.address, stack.flags, stack.bytes


@functools.cache
def _sigaltstack() -> ctypes._NamedFuncPointer:
    return ctypes.CDLL(None).sigaltstack
