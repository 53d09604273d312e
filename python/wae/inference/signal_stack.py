"""The stack that a thread's signal handlers run on, and how it is kept from OpenVINO."""

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
    """Give the thread back the signal stack that it had before the block, or none.

    OpenVINO's plugin for processors gives the thread that loads it a stack of its own, large enough for the
    registers of AMX, and frees it when the plugin goes: at times with the thread still on it, for example
    when two plugins go in the order in which they came, or one goes on another thread. The next handler of a
    signal in Python, that of Ctrl-C say, then ends the process with a segmentation fault.
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
    """Of this thread on Linux: the stack's address, its flags as of ``sigaltstack(2)``, its size in bytes."""
    stack = _Stack()
    _sigaltstack()(None, ctypes.byref(stack))
    return stack.address, stack.flags, stack.bytes


@functools.cache
def _sigaltstack() -> ctypes._NamedFuncPointer:
    return ctypes.CDLL(None).sigaltstack
