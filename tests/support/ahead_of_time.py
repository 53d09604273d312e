"""Compiles Triton kernels without a GPU, for the arguments of a real launch."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chips
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend
from triton.runtime.jit import create_function_from_signature

from wae_kernels.triton.launch import THREAD_REGISTERS, Launch
from wae_kernels.triton.plan import Tile

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for one target, and the arguments of its PTX by name."""

    kernel: Any
    arguments: dict[str, Any]

    @property
    def ptx(self) -> str:
        return str(self.kernel.asm["ptx"])

    @functools.cached_property
    def resources(self) -> dict[str, int]:
        """REG, STACK, LOCAL: a thread's registers, and its bytes of stack and of local memory (spills)."""
        text = self._inspect("cuobjdump", "--dump-resource-usage")
        return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", text)}

    @functools.cached_property
    def instructions(self) -> Counter[str]:
        """How often each SASS instruction occurs, by the first word of its name."""
        words = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w+)", self._inspect("nvdisasm", "-c"))
        return Counter(words)

    def assert_within(self, tile: Tile, arch: int, element_bytes: int) -> None:
        """Check that there are no spills, and no more registers and shared memory than plans assume.

        Triton before 3.8 spills a little. For it, plans assume that a thread has all possible registers.
        """
        assert self.resources["STACK"] <= (64 if THREAD_REGISTERS else 0), self.resources
        assert self.resources["LOCAL"] == 0, self.resources
        assert THREAD_REGISTERS or not self.instructions.keys() & {"LDL", "STL"}
        assert self.resources["REG"] <= max(tile.registers, THREAD_REGISTERS), self.resources
        shared = self.kernel.metadata.shared
        assert shared <= min(tile.shared_bytes(element_bytes), 1024 * chips.OF_BLOCK[arch])

    def _inspect(self, tool: str, option: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.kernel.asm["cubin"])
            file.flush()
            command = [TOOLS / tool, option, file.name]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compile_launch(kernel: Any, launch: Launch, arch: int) -> Compiled:
    """Compile ``kernel`` for sm_<arch> exactly as Triton would at this launch.

    Triton specialises a kernel for its arguments: types, integers that are 1, addresses divisible by 16. Its
    own functions determine this here, as they do at a launch.
    """
    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {**launch.options, "debug": False, "instrumentation_mode": ""}
    bound, specialization, options = bind(*launch.arguments, **keywords)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = compile(source, target=target, options=options.__dict__)
    arguments = {name: bound[name] for name, kind in signature.items() if kind != "constexpr"}
    return Compiled(compiled, arguments)
