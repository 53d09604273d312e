"""The build, and only the build: which files make which compiled library, and with which flags.

Everything that describes the project stands in pyproject.toml. ``WAE_NO_NATIVE=1`` leaves the compiled
libraries out; the ops then run on plain PyTorch operators.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:  # describing the package needs no torch, only building it does
    if error.name != "torch":
        raise
    cpp_extension = None

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)
OLDEST_PYTHON = "cp310"
NATIVE = os.environ.get("WAE_NO_NATIVE", "0") in ("", "0")
# A CPython without the GIL has no limited API; there the library is built for that one version.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

WITHOUT_NATIVE = "or set WAE_NO_NATIVE=1 to install without the compiled kernels"
CXX20_PROGRAM = "#include <concepts>\n#include <span>\ntemplate <std::integral T> T f(std::span<T>);\n"
COMPILERS = "g++ 11, clang 14 or newer"


def paths(*patterns: str) -> list[str]:
    """The files that match, sorted, relative to this folder (setuptools wants them so)."""
    return sorted(str(path) for pattern in patterns for path in Path().glob(pattern))


def cpu_library() -> Extension:
    """The schemas of ``wae::*`` and the processor's kernels; loads beside any torch from 2.10 on.

    There is no ``-march`` here: a kernel file names the instructions it is compiled for.
    """
    return Extension(
        "wae_kernels._C",
        sources=paths("csrc/ops.cpp", "csrc/cpu/*.cpp"),
        depends=paths("csrc/common/*", "csrc/cpu/*.h", "wae_kernels/schemas.inc"),
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "wae_kernels")],  # absolute: ninja runs elsewhere
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"],
        libraries=["torch_cpu"],
        extra_link_args=["-Wl,-z,defs"] if sys.platform == "linux" else [],
        py_limited_api=LIMITED_API,
        language="c++",
    )


class BuildLibraries(cpp_extension.BuildExtension if cpp_extension else build_ext):
    """Compiles against torch's stable ABI, or says in one sentence why it cannot."""

    def run(self) -> None:
        """Check what the build needs, then build."""
        if not self.extensions:
            return
        if reason := why_no_torch() or why_no_compiler():
            # SystemExit, because setuptools prints a page of traceback and advice for anything else
            raise SystemExit(f"wae-kernels: {reason}, {WITHOUT_NATIVE}.")
        try:
            super().run()
        except RuntimeError as error:  # torch's way to say that the compiler failed
            raise SystemExit(f"wae-kernels: {error}; the compiler's messages stand above.") from error

    def build_extensions(self) -> None:
        """Add what depends on where torch lies."""
        target_version = f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
        for extension in self.extensions:
            extension.define_macros.append(("TORCH_TARGET_VERSION", target_version))
            for folder in cpp_extension.include_paths():
                extension.extra_compile_args += ["-isystem", folder]  # torch's warnings are not ours
            extension.library_dirs += cpp_extension.library_paths()
        super().build_extensions()


def why_no_torch() -> str:
    """Why this environment's torch cannot be built against; empty if it can."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    if cpp_extension is None:
        return (
            f"building needs PyTorch {oldest} or newer and {sys.executable} has none; "
            "leave out --no-build-isolation, or run `pip install torch` first"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        found = torch.__version__
        return f"building needs PyTorch {oldest} or newer, found {found}; run `pip install -U torch`"
    return ""


def why_no_compiler() -> str:
    """Why there is no usable C++ compiler; empty if there is, and ``CXX`` then names it.

    setuptools links with the compiler that built Python and torch compiles with ``c++``: ``CXX`` makes
    them agree.
    """
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    found = next((c for c in candidates if shutil.which(shlex.split(c)[0])), None)
    if found is None:
        return (
            f"no C++ compiler found (looked for {', '.join(candidates)}); "
            f"install one ({COMPILERS}), set CXX to its path"
        )
    test = [*shlex.split(found), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(test, input=CXX20_PROGRAM, text=True, capture_output=True, check=False).returncode:
        return (
            f"the C++ compiler {found!r} cannot compile C++20; install another ({COMPILERS}), set CXX to it"
        )
    os.environ["CXX"] = found
    return ""


setup(
    packages=[*find_packages(include=["wae_kernels*"]), *find_packages("python")],
    package_dir={"wae": "python/wae"},
    ext_modules=[cpu_library()] if NATIVE else [],
    cmdclass={"build_ext": BuildLibraries},
    options={"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}} if NATIVE and LIMITED_API else {},
)
