"""Compiles CUDA C++ (with nvcc, installed or from NVIDIA's wheels) and Triton to PTX. No GPU is needed."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .launch import CACHE


class CompilerMissing(Exception):
    """There is no nvcc. The message says where it was looked for, and can be a test's reason to skip."""


@functools.cache
def find_nvcc() -> Path:
    """The nvcc of CUDA_HOME, CUDA_PATH, PATH or the nvidia-cuda-nvcc wheel. Raises CompilerMissing."""
    places = [Path(os.environ[n]) / "bin" / "nvcc" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    if on_path := shutil.which("nvcc"):
        places.append(Path(on_path))
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    places += sorted(site.glob("*/bin/nvcc"), reverse=True)
    for place in places:
        if place.exists():
            return place
    raise CompilerMissing(
        "no nvcc in CUDA_HOME or CUDA_PATH, on PATH, or in NVIDIA's wheels "
        "(nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-cuda-cccl, nvidia-cuda-runtime, nvidia-nvvm)"
    )


@functools.cache
def _version(nvcc: Path) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def _wheel_includes(nvcc: Path) -> list[Path]:
    """Header folders of the other wheels. CUDA 12's wheels have one each; CUDA 13's share nvcc's."""
    site = nvcc.parents[2]
    return sorted(site.glob("*/include")) if site.name == "nvidia" else []


def compile_cuda(
    source: str | Path,
    arch: int = 80,
    include_dirs: Sequence[str | Path] = (),
    options: Sequence[str] = (),
) -> str:
    """Compile CUDA C++ to PTX for sm_<arch>. `source` is a path, or the code itself if it contains a newline.

    Results are cached by the preprocessed source, headers included. Raises CompilerMissing if there is no
    nvcc, and RuntimeError with the compiler's message if it fails.
    """
    nvcc = find_nvcc()
    text = isinstance(source, str) and "\n" in source
    flags = [f"-arch=sm_{arch}", "-std=c++20", "-lineinfo", *options]
    flags += [f"-I{d}" for d in [*include_dirs, *_wheel_includes(nvcc)]]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        file = Path(folder) / "kernel.cu" if text else Path(source)
        if text:
            file.write_text(str(source))

        def run(*command: str) -> None:
            done = subprocess.run([nvcc, *flags, *command, str(file)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"nvcc failed on {file.name}:\n{done.stderr}{done.stdout}")

        preprocessed = Path(folder) / "kernel.ii"
        run("-E", "-Xcompiler", "-P", "-o", str(preprocessed))
        key = "\0".join([_version(nvcc), *flags, preprocessed.read_text()]).replace(folder, "")
        cached = CACHE / f"nvcc-{hashlib.sha256(key.encode()).hexdigest()[:24]}.ptx"
        if not cached.exists():
            made = Path(folder) / "kernel.ptx"
            run("-ptx", "-o", str(made))
            os.replace(made, cached)
    return cached.read_text()


def compile_triton(
    function: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any] | None = None,
    arch: int = 80,
    divisible_by_16: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Compile a @triton.jit function for sm_<arch> and return Triton's compiled kernel.

    The result has .asm["ptx"], .metadata.name, .metadata.shared and .metadata.num_warps. The kernel takes two
    pointers more than the function, for scratch memory: pass 0, 0.

    Args:
        function: the function.
        signature: the type of each run-time parameter, such as "*fp16" or "i32".
        constants: the values of the tl.constexpr parameters.
        arch: the target, such as 80.
        divisible_by_16: parameters (pointers, strides) that the launcher would find divisible by 16.
        options: num_warps, num_stages, ...
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    constants = dict(constants or {})
    names = list(function.arg_names)
    kinds = {n: "constexpr" if n in constants else signature[n] for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in divisible_by_16}
    source = ASTSource(function, signature=kinds, constexprs=constants, attrs=attributes)
    return compile(source, target=GPUTarget("cuda", arch, 32), options=options)
