"""The host code of the CUDA library, csrc/cuda/ops.cpp, without a GPU: CUDA's runtime is a stand-in.

:func:`libraries` builds it. A program that preloads the runtime calls :func:`start`; then ``torch.ops.wae``
runs ``ops.cpp`` for tensors on two GPUs, and the PTX machine executes what it launches. torch's own kernels
do not run there: tensors get to the GPU by copies alone, unless a program imports ``operators``.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ptx_machine
import torch
from torch.utils import cpp_extension

_HERE = Path(__file__).resolve().parent
ROOT = _HERE.parents[2]
_CAPABILITY = 80  # as in runtime.cpp
_OPS = ("encode", "decode", "encode_backward", "decode_backward", "reduce")
_MODES = ("float16", "bfloat16", "tf32", "float32", "bfloat16_plain")
_MEMORY_BYTES = 1 << 30  # of each device, as in runtime.cpp


class Built(NamedTuple):
    """The stand-in runtime, to be preloaded, and the library of ops."""

    runtime: Path
    ops: Path


def runtime() -> Path:
    """Build the stand-in runtime."""
    return _built("runtime.so", [_HERE / "runtime.cpp"], _build_runtime)


def libraries() -> Built:
    """Build both libraries."""
    host = ROOT / "csrc"
    others = [*(ROOT / "wae_kernels").glob("*.inc"), *host.glob("cuda/*.[ch]*"), *host.glob("common/*.h")]
    return Built(runtime(), _built("ops.so", [_HERE / "kernels.cpp", *others], _build_ops))


def _built(name: str, sources: Sequence[Path], build: Callable[[Path], None]) -> Path:
    """The library ``name``, built if a source, torch or this file has changed."""
    text = torch.__version__ + "".join(source.read_text() for source in sorted([Path(__file__), *sources]))
    folder = ROOT / "build" / "cuda_runtime" / hashlib.sha256(text.encode()).hexdigest()[:16]
    library = folder / name
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            build(Path(scratch) / name)
            os.replace(Path(scratch) / name, library)
    return library


def _build_runtime(library: Path) -> None:
    """Compile the runtime and, written beside ``library``, the functions that torch imports and it lacks."""
    source = _HERE / "runtime.cpp"
    others = library.with_name("others.cpp")
    _nvcc(source, "-o", library)
    missing = sorted(_imported() - _names(library, "--defined-only"))
    others.write_text("".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in missing))
    # Under this name, torch finds it in place of the driver.
    _nvcc(source, others, "-Xlinker=-soname=libcuda.so.1", "-o", library)


def _build_ops(library: Path) -> None:
    sources = ROOT / "csrc" / "cuda" / "ops.cpp", _HERE / "kernels.cpp"
    options = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Xcompiler=-fvisibility=hidden"]
    options += [f"-I{path}" for path in (ROOT / "csrc", ROOT / "wae_kernels")]
    options += [f"-isystem={path}" for path in cpp_extension.include_paths()]
    linked = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-ltorch_cuda"]
    _nvcc(*options, *sources, *linked, "-o", library)


def _nvcc(*arguments: str | Path) -> None:
    flags = ("-std=c++20", "-O1", "-shared", "-cudart=none", "-Xcompiler=-fPIC")
    _run(ptx_machine.find_nvcc(), *flags, *arguments)


def _imported() -> set[str]:
    """The functions of CUDA's runtime and driver that torch imports."""
    folder = Path(torch.__file__).parent / "lib"
    names: set[str] = _names(folder / "libcaffe2_nvrtc.so", "--undefined-only", r"\bcu[A-Z]\w+")
    for library in ("c10_cuda", "torch_cuda", "torch_cuda_linalg", "torch_python"):
        names |= _names(folder / f"lib{library}.so", "--undefined-only", r"\b(?:__)?cuda[A-Z]\w+")
    return names


def _names(library: Path, which: str, like: str = r"\w+") -> set[str]:
    return set(re.findall(like, _run("nm", "-D", which, library)))


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[:3000]}")
    return done.stdout


# ------------------------------------------------------------------------- in the program that preloads it


class Launch(NamedTuple):
    """What ``ops.cpp`` launched."""

    op: str
    mode: str
    device: int
    grid: int
    block: int
    stream: int | None


launches: list[Launch] = []
"""All launches, in order."""
_target = _CAPABILITY

_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, *[ctypes.c_int] * 3, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)


def start(built: Built) -> None:
    """Load the library of ops, and execute its launches in the PTX machine."""
    import wae_kernels  # noqa: F401  (defines the ops)

    torch.ops.load_library(built.ops)
    ctypes.CDLL(None).fake_set_launch(_execute_for(built.ops))


def set_image(present: bool) -> None:
    """Whether the library holds code for the GPUs."""
    ctypes.CDLL(None).fake_set_image(present)


def set_target(capability: int) -> None:
    """The compute capability for which the kernels are compiled."""
    global _target
    _target = capability
    ctypes.CDLL(None).fake_set_target(capability)


@functools.cache
def _execute_for(ops: Path) -> Any:
    from cuda_bindings import runner

    table = ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(str(ops)), "fake_kernels"))

    def execute(
        kernel: int, device: int, grid: int, block: int, parameters: int, shared: int, stream: int | None
    ) -> int:
        op, mode = divmod(kernel - table, len(_MODES))
        launch = Launch(_OPS[op], _MODES[mode], device, grid, block, stream)
        launches.append(launch)
        translated = runner.kernel(launch.op, "" if launch.op == "reduce" else launch.mode, _target)
        memory = ptx_machine.Memory()
        for number in range(2):  # the PTX machine's addresses of these are their own
            address = (65 + number) << 40
            array = np.ctypeslib.as_array((ctypes.c_uint8 * _MEMORY_BYTES).from_address(address))
            assert memory.address_of(array, f"the memory of GPU {number}") == address
        data = ctypes.string_at(parameters, translated.params[0].size)
        try:
            translated.launch(grid, block, [data], shared_bytes=shared, memory=memory)
        except ptx_machine.KernelError as error:
            print(error, flush=True)
            return 1
        return 0

    return _LAUNCH(execute)
