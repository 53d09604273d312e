"""What a build needs besides Python packages, checked before gigabytes are downloaded in vain.

Used by setup.py, by the build backend and, as a program, by the Makefile.
"""

from __future__ import annotations

import glob
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
ENVIRONMENT_GB = 8.0  # `du -s --si` of the Makefile's .venv with a CUDA build of PyTorch
DOWNLOADS = 0.4  # of that: the compressed wheels, in pip's temporary folder until all are downloaded
CACHES = ("ccache", "sccache")
CXX20_PROGRAM = "#include <concepts>\n#include <span>\ntemplate <std::integral T> T f(std::span<T>);\n"


def switch(name: str, *others: str) -> str:
    """The environment variable ``name``: "0" (also if empty or unset), "1" or one of ``others``.

    Raises SystemExit for any other value.
    """
    value = os.environ.get(name) or "0"
    if value not in ("0", "1", *others):
        raise SystemExit(f"wae-kernels: {name} must be 0 or 1, got {value!r}.")
    return value


_NO_NATIVE = switch("WAE_NO_NATIVE", "later")
NATIVE = _NO_NATIVE == "0"
KEEP_LIBRARIES = _NO_NATIVE == "later"  # set by the Makefile, which runs `build_ext` later if needed
WITHOUT_NATIVE = "or set WAE_NO_NATIVE=1 to install without the compiled kernels"


def version(text: str) -> tuple[int, int]:
    """The major and minor version: ``(2, 14)`` for ``2.14.1+cu130``."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def compiler_of(cxx: str) -> str:
    """The program that ``CXX`` names.

    torch takes all of ``CXX`` as one program's name, and adds a compiler cache on its own.
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
    """Exit with a message if no C++20 compiler works; otherwise set ``CXX`` to the one to use.

    setuptools links with the compiler that built Python, and torch compiles with ``c++``. ``CXX`` makes them
    use the same one.

    Raises:
        SystemExit: setuptools and pip show it without pages of traceback, unlike any other exception.
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
    """A warning for each disk that may be too small for what ``environment`` does not hold yet.

    These are not errors: a PyTorch without CUDA takes much less, and only pip knows which one it will
    download.
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
                f"{needed:.1f} GB more; free some space, set TMPDIR to another disk, or use a PyTorch "
                "without CUDA (docs/install.md)."
            )


def _is_toolkit(folder: str) -> bool:
    parts = (("bin", "nvcc"), ("include", "cuda_runtime_api.h"))
    return all(os.path.exists(os.path.join(folder, *part)) for part in parts)


def _nvcc_version(toolkit: str) -> tuple[int, int]:
    nvcc = os.path.join(toolkit, "bin", "nvcc")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return version(text.partition("release ")[2].partition(",")[0])


def find_toolkit(guess: str | None, wanted: str) -> str | None:
    """The folder of the CUDA toolkit to build with: ``CUDA_HOME`` if it is set, else one for CUDA ``wanted``.

    Of those that are found, the first one is the answer if none has the major version of ``wanted``.

    Args:
        guess: torch's own, which is right most often, but may be a folder that only has a link to nvcc.
        wanted: the version of CUDA that torch was built with.
    """
    places = [guess, USUAL_CUDA_HOME]
    if not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")):
        others = sorted(glob.glob(f"{USUAL_CUDA_HOME}-*"), reverse=True)
        places += [f"{USUAL_CUDA_HOME}-{wanted}", *others]
    found = [place for place in places if place and _is_toolkit(place)]
    fitting = (f for f in found if _nvcc_version(f)[0] == version(wanted)[0])
    return next(fitting, next(iter(found), None))


def wants_cuda(torch: Any, cpp_extension: Any) -> bool:
    """Whether to build the CUDA library: if there is a torch with CUDA, an nvcc and a GPU.

    ``FORCE_CUDA=1`` builds it without a GPU, for the architectures in ``TORCH_CUDA_ARCH_LIST`` or, if that is
    not set, for all supported ones that nvcc knows. ``WAE_NO_CUDA=1`` skips it.

    Raises:
        SystemExit: it is forced but cannot be built, nvcc and torch have different major versions of CUDA, or
            one of these variables is neither 0 nor 1.
    """
    forced, left_out = switch("FORCE_CUDA") == "1", switch("WAE_NO_CUDA") == "1"
    if left_out:
        return False
    toolkit = torch.version.cuda and find_toolkit(cpp_extension.CUDA_HOME, torch.version.cuda)
    if toolkit is None:
        if forced:
            missing = "no CUDA toolkit was found (set CUDA_HOME to its folder)"
            what = "this PyTorch has no CUDA" if torch.version.cuda is None else missing
            raise SystemExit(f"wae-kernels: FORCE_CUDA=1 asks for the CUDA library, but {what}.")
        return False
    if not (forced or torch.cuda.is_available()):
        return False
    cpp_extension.CUDA_HOME = toolkit
    found, wanted = _nvcc_version(toolkit), version(torch.version.cuda)
    if found[0] != wanted[0]:
        raise SystemExit(
            f"wae-kernels: nvcc belongs to CUDA {found[0]} but PyTorch to CUDA {wanted[0]}; set CUDA_HOME to "
            f"a CUDA {wanted[0]} toolkit, or set WAE_NO_CUDA=1 to build without the CUDA kernels."
        )
    if not torch.cuda.is_available():  # if there is one, torch builds for it
        ours = CUDA_ARCHITECTURES if found >= (12, 8) else CUDA_ARCHITECTURES[:5]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(ours) + "+PTX")
    return True


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        needed, found = (".".join(map(str, v[:2])) for v in (OLDEST_PYTHON, sys.version_info))
        raise SystemExit(f"wae-kernels: needs Python {needed} or newer, this is {found}; set PYTHON=...")
    if NATIVE:
        require_compiler()
    for folder in sys.argv[1:]:
        for warning in space_warnings(Path(folder), Path(tempfile.gettempdir())):
            print(warning, flush=True)
