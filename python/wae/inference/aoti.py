"""AOTInductor packages that reject inputs they were not compiled for, and hold no paths of this machine."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

_ASKED_FOR = "const static bool result = env_var_value != nullptr && env_var_value[0] != '0';"
_ALWAYS = "const static bool result = true;"


def package(program: torch.export.ExportedProgram, metadata: Mapping[str, str] | None = None) -> bytes:
    """Compile ``program`` and pack its weights; return the content of a ``.pt2`` file.

    The loaded package raises an error for inputs of another dtype, shape or strides.

    Args:
        program: a torch.export program.
        metadata: entries to add to what ``get_metadata()`` of the loaded package returns.

    Raises:
        RuntimeError: this version of PyTorch generates other input checks than this code knows.
    """
    file = io.BytesIO()
    options = {
        "freezing": True,  # packs the weights
        "aot_inductor.check_lowerbound": False,  # a single image is allowed too
        "aot_inductor.metadata": dict(metadata or {}),
    }
    with _checks_inputs(), _without_paths():
        torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=options)
    return _without_sources(file)


@contextmanager
def _without_paths() -> Iterator[None]:
    """Strip this machine's folders from the source names in the compiled code's assertions."""
    from torch._inductor import cpp_builder
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folders = (str(Path(torch.__file__).parents[1]), cache_dir())
    flags = ["g0", *(f"ffile-prefix-map={folder}/=" for folder in folders)]
    usual = cpp_builder._get_optimization_cflags

    def changed(*arguments: Any, **options: Any) -> tuple[list[str], list[str]]:
        compiling, linking = usual(*arguments, **options)
        return [*compiling, *flags], linking

    with mock.patch.object(cpp_builder, "_get_optimization_cflags", changed):
        yield


def _without_sources(package: io.BytesIO) -> bytes:
    """The package without its generated C++, which names folders; nothing reads it after compilation."""
    smaller = io.BytesIO()
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(smaller, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".cpp"):
                new.writestr(entry, old.read(entry))
    return smaller.getvalue()


@contextmanager
def _checks_inputs() -> Iterator[None]:
    """Run the generated input checks always; PyTorch runs them only if an environment variable is set."""
    # imported here because it takes a second, and loading a package compiles nothing
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    generate = CppWrapperCpu.generate_input_output_runtime_checks
    changed: list[bool] = []

    def changing(wrapper: Any) -> None:
        generate(wrapper)
        for line in wrapper.prefix._lines:
            if isinstance(line, str) and _ASKED_FOR in line:
                wrapper.prefix._lines[wrapper.prefix._lines.index(line)] = line.replace(_ASKED_FOR, _ALWAYS)
                changed.append(True)

    with mock.patch.object(CppWrapperCpu, "generate_input_output_runtime_checks", changing):
        yield
    if not changed:
        raise RuntimeError(
            f"PyTorch {torch.__version__} generates other input checks than this version of wae knows"
        )
