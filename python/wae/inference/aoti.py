"""AOTInductor packages that refuse inputs they were not made for, and say nothing about this machine."""

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
    """``program`` compiled, its weights packed. Inputs of another dtype, shape or strides are an error.

    ``metadata`` is what ``get_metadata()`` of the loaded package gives, besides its own entries.

    Raises RuntimeError where this version of PyTorch generates no such checks.
    """
    file = io.BytesIO()
    options = {
        "freezing": True,  # packs the weights
        "aot_inductor.check_lowerbound": False,  # one image is as good as several
        "aot_inductor.metadata": dict(metadata or {}),
    }
    with _checks_inputs(), _without_paths():
        torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=options)
    return _without_sources(file)


@contextmanager
def _without_paths() -> Iterator[None]:
    """The compiled code's assertions name source files: without the folders of this machine."""
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
    """The package without its generated C++, which names folders and, being compiled, is not read again."""
    smaller = io.BytesIO()
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(smaller, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".cpp"):
                new.writestr(entry, old.read(entry))
    return smaller.getvalue()


@contextmanager
def _checks_inputs() -> Iterator[None]:
    """PyTorch generates the checks always, but has them run only where an environment variable says so."""
    # imported here: it takes a second, and to load what was saved nothing is compiled
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
        raise RuntimeError(f"PyTorch {torch.__version__} generates other checks of inputs than known here")
