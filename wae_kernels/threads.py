"""The threads that the ops run on."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch

from . import _load


@contextmanager
def sleeping() -> Iterator[None]:
    """Within it what the calling thread runs on the processor leaves no thread behind that takes time.

    PyTorch's threads (OpenMP's) wait for their next work in a loop, for milliseconds, on cores that somebody
    else may need meanwhile: another engine, say. In this block the forward ops' compiled kernels share their
    work with helpers instead that sleep in between, together as many threads as :func:`torch.get_num_threads`
    said before. The helpers start when they are first needed, and end with the calling thread. On Linux they
    keep off the core that it runs on, where they need all the others. All other operators, PyTorch's too, run
    on the calling thread alone.

    The block holds for the calling thread only, which has as many threads after it as before, also if
    :func:`torch.set_num_threads` was called inside. So do not suspend a generator or a coroutine in it. A
    function that contains it cannot be compiled whole by :func:`torch.compile`; one that is called in it can.
    """
    library, threads = _load.CPU.library, torch.get_num_threads()
    set_sleeping = library.wae_cpu_sleeping_threads if library is not None else int
    set_openmp = _function(None, "omp_set_num_threads")
    set_mkl = _function(torch._C.__file__, "MKL_Set_Num_Threads_Local")  # 0: as OpenMP
    before, mkl_before = set_sleeping(0), set_mkl(0)
    try:
        set_sleeping(before or threads)
        set_openmp(1)
        yield
    finally:
        set_mkl(mkl_before)
        set_openmp(threads)
        set_sleeping(before)


@functools.cache
def _function(library: str | None, name: str) -> Callable[[int], int]:
    """A function that sets a number of the calling thread alone, unlike :func:`torch.set_num_threads`.

    ``library`` is the file that has it, itself or by the libraries that it needs; None for all that have been
    loaded for everyone. Where nothing has it, what is returned does nothing.
    """
    try:
        return cast(Callable[[int], int], getattr(ctypes.CDLL(library), name))
    except (OSError, TypeError, AttributeError):  # TypeError: on Windows
        return int
