"""The build, and only the build: which files go into which compiled library, and with which flags.

The project's metadata is in pyproject.toml. ``WAE_NO_NATIVE=1`` leaves out the compiled libraries; the ops
then run on plain PyTorch operators. Libraries of an earlier build that this build does not make are removed.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:  # only building needs torch, describing the package does not
    if error.name != "torch":
        raise
    torch = None

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
from toolchain import (  # noqa: E402
    KEEP_LIBRARIES,
    NATIVE,
    OLDEST_PYTHON,
    OLDEST_TORCH,
    WITHOUT_NATIVE,
    require_compiler,
    version,
    wants_cuda,
)

# A CPython without the GIL has no limited API, so the library is built for that one version.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

FLAGS = ("-std=c++20", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden")


def paths(*patterns: str) -> list[str]:
    """The files that match, sorted, relative to this folder as setuptools requires."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def library(name: str, folder: str, sources: list[str], **options: Any) -> Extension:
    """The library ``wae_kernels/<name>``, from these sources and the headers of ``csrc/<folder>``."""
    headers = ("csrc/common/*", f"csrc/{folder}/**/*.h", f"csrc/{folder}/**/*.cuh", "wae_kernels/*.inc")
    return Extension(
        f"wae_kernels.{name}",
        sources=sources,
        depends=paths(*headers),
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "wae_kernels")],  # absolute: ninja runs elsewhere
        extra_link_args=["-Wl,-z,defs"] if sys.platform == "linux" else [],
        py_limited_api=LIMITED_API,
        language="c++",
        **options,
    )


def cpu_library() -> Extension:
    """The schemas of ``wae::*`` and the CPU kernels; loads beside any torch from 2.10 on.

    There is no ``-march`` here: each kernel file names the instructions that it is compiled for.
    """
    return library(
        "_C",
        "cpu",
        paths("csrc/ops.cpp", "csrc/python.cpp", "csrc/cpu/*.cpp"),
        extra_compile_args=["-O3", *FLAGS],
        libraries=["torch_cpu"],
    )


def cuda_library() -> Extension:
    """The kernels for NVIDIA GPUs; separate, because it loads only beside a torch with CUDA."""
    return library(
        "_C_cuda",
        "cuda",
        paths("csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
        define_macros=[("USE_CUDA", None)],
        extra_compile_args={
            "cxx": ["-O2", *FLAGS],
            "nvcc": ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden"],
        },
        libraries=["torch_cpu", "torch_cuda", "cudart"],
    )


def libraries() -> list[Extension]:
    """The compiled libraries that this build makes."""
    if not NATIVE:
        return []
    cuda = torch is not None and wants_cuda(torch, cpp_extension)
    return [cpu_library(), cuda_library()] if cuda else [cpu_library()]


def require_torch() -> None:
    """Exit with one sentence if there is no torch to build against."""
    oldest = "{}.{}".format(*OLDEST_TORCH)
    if torch is None:
        raise SystemExit(
            f"wae-kernels: building needs PyTorch {oldest} or newer and {sys.executable} has none; leave out "
            f"--no-build-isolation, or run `pip install torch` first, {WITHOUT_NATIVE}."
        )
    if version(torch.__version__) < OLDEST_TORCH:
        raise SystemExit(
            f"wae-kernels: building needs PyTorch {oldest} or newer, found {torch.__version__}; "
            f"run `pip install -U torch` first, {WITHOUT_NATIVE}."
        )


class BuildLibraries(cpp_extension.BuildExtension if torch else build_ext):
    """Compiles against torch's stable ABI, or says in one sentence why it cannot."""

    def run(self) -> None:
        """Check what the build needs, then build."""
        if not KEEP_LIBRARIES:
            self.remove_others()
        if not self.extensions:
            return
        require_torch()
        require_compiler()
        try:
            super().run()
        except RuntimeError as error:  # how torch says that the compiler failed
            raise SystemExit(f"wae-kernels: {error}; the compiler's messages are above.") from error

    def remove_others(self) -> None:
        """Remove libraries that earlier builds made and this one does not: they would be loaded or packed."""
        made = {Path(self.get_ext_filename(extension.name)).name for extension in self.extensions}
        for root in (Path(self.build_lib), *([ROOT] if self.inplace else [])):
            for library in (root / "wae_kernels").glob("_C*.so"):
                if library.name not in made:
                    library.unlink()

    def build_extensions(self) -> None:
        """Add what depends on where torch is installed."""
        target_version = "0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)
        for extension in self.extensions:
            extension.define_macros.append(("TORCH_TARGET_VERSION", target_version))
            is_cuda = isinstance(extension.extra_compile_args, dict)
            device = "cuda" if is_cuda else "cpu"
            flags = extension.extra_compile_args["cxx"] if is_cuda else extension.extra_compile_args
            for folder in cpp_extension.include_paths(device):
                flags += ["-isystem", folder]  # torch's warnings are not ours
            extension.library_dirs += cpp_extension.library_paths(device)
        super().build_extensions()


class Build(build):
    """Runs ``build_ext`` even if there is nothing to compile, to remove libraries of earlier builds."""

    sub_commands = [  # noqa: RUF012  declared so by setuptools
        (name, None if name == "build_ext" else condition) for name, condition in build.sub_commands
    ]


setup(
    packages=[*find_packages(include=["wae_kernels*"]), *find_packages("python")],
    package_dir={"wae": "python/wae"},
    ext_modules=libraries(),
    cmdclass={"build": Build, "build_ext": BuildLibraries},
    options={"bdist_wheel": {"py_limited_api": "cp{}{}".format(*OLDEST_PYTHON)}}
    if NATIVE and LIMITED_API
    else {},
)
