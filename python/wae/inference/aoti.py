"""AOTInductor packages that refuse inputs they were not made for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

_ASKED_FOR = "const static bool result = env_var_value != nullptr && env_var_value[0] != '0';"
_ALWAYS = "const static bool result = true;"


def package(program: torch.export.ExportedProgram) -> bytes:
    """``program`` compiled, its weights packed. Inputs of another dtype, shape or strides are an error.

    Raises RuntimeError where this version of PyTorch generates no such checks.
    """
    file = io.BytesIO()
    options = {
        "freezing": True,  # packs the weights
        "aot_inductor.check_lowerbound": False,  # one image is as good as several
    }
    with _checks_inputs():
        torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=options)
    return file.getvalue()


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
