"""What a build needs beyond Python packages, asked before gigabytes are downloaded in vain.

Shared by setup.py, by the build backend and, as a program, by the Makefile.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
COMPILERS = "g++ 11, clang 14 or newer"
CXX20_PROGRAM = "#include <concepts>\n#include <span>\ntemplate <std::integral T> T f(std::span<T>);\n"

NATIVE = os.environ.get("WAE_NO_NATIVE", "0") in ("", "0")
WITHOUT_NATIVE = "or set WAE_NO_NATIVE=1 to install without the compiled kernels"


def version(text: str) -> tuple[int, int]:
    """Major and minor: ``(2, 14)`` for ``2.14.1+cu130``."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def require_compiler() -> None:
    """Leave with one sentence where no C++20 compiler works; else let ``CXX`` name the one to use.

    setuptools links with the compiler that built Python and torch compiles with ``c++``: ``CXX`` makes
    them agree.

    Raises:
        SystemExit: unlike any other exception, setuptools and pip show it without pages of traceback.
    """
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    found = next((c for c in candidates if shutil.which(shlex.split(c)[0])), None)
    if found is None:
        raise SystemExit(
            f"wae-kernels: no C++ compiler found (looked for {', '.join(candidates)}); "
            f"install one ({COMPILERS}), set CXX to its path, {WITHOUT_NATIVE}."
        )
    test = [*shlex.split(found), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(test, input=CXX20_PROGRAM, text=True, capture_output=True, check=False).returncode:
        raise SystemExit(
            f"wae-kernels: the C++ compiler {found!r} cannot compile C++20; "
            f"install another ({COMPILERS}), set CXX to its path, {WITHOUT_NATIVE}."
        )
    os.environ["CXX"] = found


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        needed, found = (".".join(map(str, v[:2])) for v in (OLDEST_PYTHON, sys.version_info))
        raise SystemExit(f"wae-kernels: Python {needed} or newer is needed, this is {found}; set PYTHON=...")
    if NATIVE:
        require_compiler()
