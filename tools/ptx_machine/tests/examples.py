"""The PTX of examples.cu, stored so that the tests need no nvcc. As a script, it regenerates examples.ptx."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from ptx_machine import Module, compile_cuda, load

SOURCE = Path(__file__).with_name("examples.cu")
STORED = Path(__file__).with_name("examples.ptx")


def compiled() -> str:
    """The PTX from this machine's nvcc, without names of folders. Raises CompilerMissing if there is none."""
    return re.sub(r'(?m)^(\s*\.file\s+\d+) ".*/', r'\1 "', compile_cuda(SOURCE, 80))


def compiler(text: str) -> str:
    """The line that names the compiler in the text of a PTX file."""
    return re.findall(r"(?m)^// Cuda compilation tools.*", text)[0]


def fresh_module() -> Module:
    """The stored module, freshly loaded, for tests that write to its variables."""
    return load(STORED.read_text())


@functools.cache
def shared_module() -> Module:
    """The stored module, loaded once, for tests that only launch."""
    return fresh_module()


if __name__ == "__main__":
    STORED.write_text(compiled())
