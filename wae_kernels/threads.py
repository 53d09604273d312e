"""Control over the threads that the ops run on."""

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
    """A context in which CPU work of the calling thread leaves no thread behind that spins.

    After each operator PyTorch's threads (OpenMP's) wait for more work in a loop, for milliseconds, on cores
    that another inference engine, for example, may need. In this context the compiled kernels of the forward
    ops share their work with helper threads that sleep between calls. Together with the caller these are as
    many threads as :func:`torch.get_num_threads` returned before. Helpers start when they are first needed
    and end with the calling thread. On Linux, if they need all other cores, they keep off the core of the
    calling thread. All other operators, including PyTorch's, run on the calling thread alone.

    The context applies to the calling thread only, and restores its number of threads at the end, even if
    :func:`torch.set_num_threads` was called inside. Therefore do not suspend a generator or a coroutine in
    it. :func:`torch.compile` cannot compile a function that contains this context without a graph break; it
    can compile one that is called in it.
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
    """The function ``name``, which sets a thread count of the calling thread only; a no-op if there is none.

    ``library`` is the file that has it, itself or through the libraries that it needs; None for the libraries
    that have been loaded globally.
    """
    try:
        return cast(Callable[[int], int], getattr(ctypes.CDLL(library), name))
    except (OSError, TypeError, AttributeError):  # TypeError: on Windows
        return int
