"""Requirements of a build beyond Python packages, asked before gigabytes are downloaded in vain.

Shared by setup.py, by the build backend and, as a program, by the Makefile.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
COMPILERS = "g++ 11, clang 14 or newer"
CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # the last two from CUDA 12.8 on
USUAL_CUDA_HOME = "/usr/local/cuda"
ENVIRONMENT_GB = 8.0  # `du -s --si` of the Makefile's .venv, with a PyTorch for CUDA
DOWNLOADS = 0.4  # of that, in pip's temporary folder until all are there: the wheels, which are compressed
CACHES = ("ccache", "sccache")
CXX20_PROGRAM = "#include <concepts>\n#include <span>\ntemplate <std::integral T> T f(std::span<T>);\n"


def switch(name: str, *others: str) -> str:
    """What the environment variable ``name`` says: 0 (also where it is empty or unset), 1 or another.

    Raises SystemExit where it is neither 0, 1 nor one of ``others``.
    """
    value = os.environ.get(name) or "0"
    if value not in ("0", "1", *others):
        raise SystemExit(f"wae-kernels: {name} must be 0 or 1, got {value!r}.")
    return value


_NO_NATIVE = switch("WAE_NO_NATIVE", "later")
NATIVE = _NO_NATIVE == "0"
KEEP_LIBRARIES = _NO_NATIVE == "later"  # the Makefile's: `build_ext` follows when needed
WITHOUT_NATIVE = "or set WAE_NO_NATIVE=1 to install without the compiled kernels"


def version(text: str) -> tuple[int, int]:
    """Major and minor: ``(2, 14)`` for ``2.14.1+cu130``."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def compiler_of(cxx: str) -> str:
    """The program that ``CXX`` names.

    torch takes all of ``CXX`` for the name of one, and puts a cache before it by itself.
    """
    words = shlex.split(cxx)
    if len(words) > 1 and Path(words[0]).name in CACHES:
        del words[0]
    if len(words) != 1:
        raise SystemExit(
            f"wae-kernels: CXX must name one program, got {cxx!r}; put options into CFLAGS, {WITHOUT_NATIVE}."
        )
    return words[0]


def require_compiler() -> None:
    """Leave with one sentence where no C++20 compiler works; else let ``CXX`` name the one to use.

    setuptools links with the compiler that built Python and torch compiles with ``c++``: ``CXX`` makes
    them agree.

    Raises:
        SystemExit: unlike any other exception, setuptools and pip show it without pages of traceback.
    """
    cxx = os.environ.get("CXX")
    candidates = [compiler_of(cxx)] if cxx else ["g++", "clang++", "c++"]
    found = next(filter(shutil.which, candidates), None)
    if found is None:
        raise SystemExit(
            f"wae-kernels: no C++ compiler found (looked for {', '.join(candidates)}); "
            f"install one ({COMPILERS}), set CXX to its path, {WITHOUT_NATIVE}."
        )
    test = [found, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(test, input=CXX20_PROGRAM, text=True, capture_output=True, check=False).returncode:
        raise SystemExit(
            f"wae-kernels: the C++ compiler {found!r} cannot compile C++20; "
            f"install another ({COMPILERS}), set CXX to its path, {WITHOUT_NATIVE}."
        )
    os.environ["CXX"] = found


def _size_gb(folder: Path) -> float:
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files) / 1e9


def space_warnings(environment: Path, temporary: Path) -> Iterator[str]:
    """One sentence for each disk that may be too small for what ``environment`` does not hold yet.

    No error: a PyTorch without CUDA takes much less, and only pip knows which one it will fetch.
    """
    wanted = max(ENVIRONMENT_GB - _size_gb(environment), 0)
    disks: dict[int, dict[str, float]] = {}
    for folder, needed in ((environment, wanted), (temporary, wanted * DOWNLOADS)):
        disks.setdefault(folder.stat().st_dev, {})[str(folder.resolve())] = needed
    for folders in disks.values():
        free, needed = shutil.disk_usage(next(iter(folders))).free / 1e9, sum(folders.values())
        if free < needed:
            yield (
                f"wae-kernels: warning: {free:.1f} GB are free for {' and '.join(folders)}, which may need "
                f"{needed:.1f} GB more; make room, set TMPDIR to another disk, or take a PyTorch without "
                "CUDA (docs/install.md)."
            )


def _is_toolkit(folder: str) -> bool:
    parts = (("bin", "nvcc"), ("include", "cuda_runtime_api.h"))
    return all(os.path.exists(os.path.join(folder, *part)) for part in parts)


def wants_cuda(torch: Any, cpp_extension: Any) -> bool:
    """Whether to build the CUDA library: where a torch with CUDA, nvcc and a GPU are found.

    ``FORCE_CUDA=1`` builds it without a GPU, for the architectures of ``TORCH_CUDA_ARCH_LIST`` or else for
    all of ours that nvcc knows. ``WAE_NO_CUDA=1`` leaves it out.

    Raises:
        SystemExit: it is forced and cannot be built, nvcc and torch are of different CUDA majors, or one of
            these variables is neither 0 nor 1.
    """
    forced, left_out = switch("FORCE_CUDA") == "1", switch("WAE_NO_CUDA") == "1"
    if left_out:
        return False
    toolkit = next((f for f in (cpp_extension.CUDA_HOME, USUAL_CUDA_HOME) if f and _is_toolkit(f)), None)
    if torch.version.cuda is None or toolkit is None:
        if forced:
            missing = "no CUDA toolkit was found (set CUDA_HOME to the folder of one)"
            what = "this PyTorch has no CUDA" if torch.version.cuda is None else missing
            raise SystemExit(f"wae-kernels: FORCE_CUDA=1 asks for the CUDA library, but {what}.")
        return False
    if not (forced or torch.cuda.is_available()):
        return False
    cpp_extension.CUDA_HOME = toolkit  # torch's guess may be the folder of a mere link to nvcc
    nvcc = os.path.join(toolkit, "bin", "nvcc")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = version(text.partition("release ")[2].partition(",")[0])
    wanted = version(torch.version.cuda)
    if found[0] != wanted[0]:
        raise SystemExit(
            f"wae-kernels: nvcc is of CUDA {found[0]} and PyTorch of CUDA {wanted[0]}; set CUDA_HOME to a "
            f"CUDA {wanted[0]} toolkit, or WAE_NO_CUDA=1 to leave the CUDA kernels out."
        )
    if not torch.cuda.is_available():  # else torch builds for the GPU that is here
        ours = CUDA_ARCHITECTURES if found >= (12, 8) else CUDA_ARCHITECTURES[:5]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(ours) + "+PTX")
    return True


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        needed, found = (".".join(map(str, v[:2])) for v in (OLDEST_PYTHON, sys.version_info))
        raise SystemExit(f"wae-kernels: Python {needed} or newer is needed, this is {found}; set PYTHON=...")
    if NATIVE:
        require_compiler()
    for folder in sys.argv[1:]:
        for warning in space_warnings(Path(folder), Path(tempfile.gettempdir())):
            print(warning, flush=True)
