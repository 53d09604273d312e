"""examples.cu as PTX, kept beside it so that the tests need no nvcc. Run as a script, it writes it again."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from ptx_machine import Module, compile_cuda, load

SOURCE = Path(__file__).with_name("examples.cu")
STORED = Path(__file__).with_name("examples.ptx")


def compiled() -> str:
    """Its PTX from today's nvcc, without the folders of this machine. Raises CompilerMissing."""
    return re.sub(r'(?m)^(\s*\.file\s+\d+) ".*/', r'\1 "', compile_cuda(SOURCE, 80))


def compiler(text: str) -> str:
    """The line of a PTX text that names its compiler."""
    return re.findall(r"(?m)^// Cuda compilation tools.*", text)[0]


def fresh_module() -> Module:
    """Freshly loaded, for tests that write its variables."""
    return load(STORED.read_text())


@functools.cache
def shared_module() -> Module:
    """The same, for tests that only launch."""
    return fresh_module()


if __name__ == "__main__":
    STORED.write_text(compiled())
