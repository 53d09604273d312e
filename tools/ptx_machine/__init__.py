"""Runs compiled GPU code (PTX from nvcc or Triton) on the CPU and checks every memory access.

    from ptx_machine import compile_cuda, load, poisoned      # with tools/ on the path

    module = load(compile_cuda("csrc/cuda/encode.cu", arch=80, include_dirs=["csrc"]))
    kernel = module["encode_kernel"]                # exact name, or a part of only one kernel's name
    low = poisoned((n, 3, h, w), torch.float16)     # a fresh output, full of NaN
    counts = kernel.launch(grid=(4, 2, n), block=256, args=[image, low, h, w, 0.5], shared_bytes=40_000)

args: arrays (numpy, or torch on the CPU) for pointers; int, float or numpy scalars; bytes for a struct that
is passed by value. For pointers inside a struct:

    memory = Memory()
    params = struct.pack("<QQii", memory.address_of(image, "image"), memory.address_of(low, "low"), h, w)
    kernel.launch(grid, block, [params], memory=memory)

`module.data[name]` holds the bytes of `__device__` and `__constant__` variables. For Triton:

    compiled = compile_triton(function, {"x": "*fp16", "n": "i32"}, {"BLOCK": 64}, num_warps=4)
    kernel = load(compiled.asm["ptx"])[compiled.metadata.name]
    kernel.launch(grid, 32 * compiled.metadata.num_warps, [x, n, 0, 0], shared_bytes=compiled.metadata.shared)

launch returns Counts: bytes, sectors, shared-memory wavefronts, tensor and FMA instructions, barriers. It
raises KernelError for an access that is out of bounds or misaligned, a read of uninitialised shared memory, a
race between barriers, a missing cp.async wait, an aligned instruction in divergent code, or a deadlock. The
message names the access, the buffer, the thread, the PTX line and the CUDA line.

UnknownInstruction names an instruction that the translator does not support. A test can skip with
CompilerMissing (no nvcc) or why_not() (no g++, or another CPU or system) as the reason. README.md says what
this proves and what it cannot.
"""

from .compilers import CompilerMissing, compile_cuda, compile_triton, find_nvcc
from .launch import Counts, KernelError, Memory, Module, load, poisoned, why_not
from .parse import PtxError
from .translate import UnknownInstruction

__all__ = [
    "CompilerMissing",
    "Counts",
    "KernelError",
    "Memory",
    "Module",
    "PtxError",
    "UnknownInstruction",
    "compile_cuda",
    "compile_triton",
    "find_nvcc",
    "load",
    "poisoned",
    "why_not",
]
