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
    said before. The helpers start when they are first needed, and end with the calling thread. All other
    operators, PyTorch's too, run on the calling thread alone.
    """
    library, threads = _load.CPU.library, torch.get_num_threads()
    sleeping_threads = library.wae_cpu_sleeping_threads if library is not None else int
    before = sleeping_threads(0)
    sleeping_threads(before or threads)
    _set_openmp_threads()(1)
    try:
        yield
    finally:
        _set_openmp_threads()(threads)
        sleeping_threads(before)


@functools.cache
def _set_openmp_threads() -> Callable[[int], object]:
    """OpenMP's omp_set_num_threads: of the calling thread alone, unlike :func:`torch.set_num_threads`."""
    try:
        return cast(Callable[[int], object], ctypes.CDLL(None).omp_set_num_threads)
    except (OSError, TypeError, AttributeError):  # TypeError: on Windows
        return lambda threads: None
