"""Keeps libraries from using some instructions, to measure as on a CPU that does not have them.

All libraries read environment variables (``LIMITS``), except ONNX Runtime, which has no such setting. It uses
AVX-512 if the operating system saves these registers, which it asks with the instruction XGETBV. With
``WAE_BENCH_ONNXRUNTIME=avx2`` this instruction is overwritten in the loaded library, in this process only, by
code that reports only the registers of AVX.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
from importlib.util import find_spec
from pathlib import Path

from wae.experiments import machine

LIMITS = (*machine.LIMITS, "WAE_BENCH_ONNXRUNTIME")
"""A result means little without the values of these variables."""

_ASK = bytes.fromhex("31c9 0f01d0")  # xor ecx, ecx; xgetbv: eax tells which registers are saved
_ANSWER = bytes.fromhex("31c9 6a0758")  # xor ecx, ecx; push 7; pop rax: x87, SSE and AVX


def apply() -> None:
    """Limit ONNX Runtime if the environment says so. Call this before importing it.

    Raises:
        RuntimeError: it cannot be limited on this platform, or in this version.
    """
    wanted = os.environ.get("WAE_BENCH_ONNXRUNTIME")
    if not wanted or find_spec("onnxruntime") is None:
        return
    if wanted != "avx2":
        raise RuntimeError(f"WAE_BENCH_ONNXRUNTIME must be avx2, got {wanted!r}")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise RuntimeError("WAE_BENCH_ONNXRUNTIME works on Linux and x86-64 only")
    library = _library()
    ctypes.CDLL(str(library))  # now it is mapped, but none of its code has executed XGETBV yet
    if sum(_overwrite(begin, end) for begin, end in _code(library)) == 0:
        raise RuntimeError(f"found no XGETBV to overwrite in {library.name}")


def _library() -> Path:
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (found,) = Path(spec.submodule_search_locations[0], "capi").glob("onnxruntime_pybind11_state*.so")
    return found


def _code(library: Path) -> list[tuple[int, int]]:
    """The address ranges of the library's code in this process."""
    lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    parts = [fields[0] for fields in lines if fields[-1] == str(library) and "x" in fields[1]]
    return [(int(part.partition("-")[0], 16), int(part.partition("-")[2], 16)) for part in parts]


def _overwrite(begin: int, end: int) -> int:
    """Overwrite each XGETBV between two addresses, and return how many there were."""
    libc = ctypes.CDLL(None, use_errno=True)

    def protect(mode: int) -> None:
        if libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mode) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    protect(mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    found = _find(begin, end)
    for place in found:
        ctypes.memmove(place, _ANSWER, len(_ANSWER))
    protect(mmap.PROT_READ | mmap.PROT_EXEC)
    return len(found)


def _find(begin: int, end: int) -> list[int]:
    """The addresses of XGETBV between two addresses.

    The code is read in small pieces. Freeing one large block would make the C library keep such blocks, and
    PyTorch would be faster than in a process without limits.
    """
    piece, overlap = 1 << 16, len(_ASK) - 1
    return [
        start + found.start()
        for start in range(begin, end, piece)
        for found in re.finditer(re.escape(_ASK), ctypes.string_at(start, min(piece + overlap, end - start)))
    ]
