"""Programs for ExecuTorch, PyTorch's runtime for phones and small devices. Convolutions run in XNNPACK."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .engines import EngineError, Run


def why_not() -> str | None:
    """A sentence that says why no program can be made here; None if one can."""
    if importlib.util.find_spec("executorch") is None:
        return "executorch needs packages that are not installed: `pip install executorch`"
    return None


def package(program: torch.export.ExportedProgram, says: Mapping[str, str]) -> bytes:
    """Lower ``program`` to the content of a ``.pte`` file.

    Args:
        program: a program of standard operators, for a fixed batch size.
        says: the file's metadata: each entry becomes a method of that name, which returns the text.

    Raises:
        EngineError: ExecuTorch is not installed.
    """
    if (reason := why_not()) is not None:
        raise EngineError(reason)
    with contextlib.redirect_stderr(io.StringIO()):  # torch logs a warning for each enum that this registers
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods=dict(says)
    )
    content: bytes = lowered.to_executorch().buffer
    return content


def load(content: bytes) -> Run:
    """Load a ``.pte`` file as a function of its inputs, which returns the first output.

    The function makes its inputs contiguous, because ExecuTorch reads no strides.
    """
    from executorch.runtime import Runtime

    program: Any = Runtime.get().load_program(content)
    method = program.load_method("forward")

    def run(*inputs: Tensor) -> Tensor:
        # keeps the program alive: the method reads its weights from it
        assert program is not None
        scores: Tensor = method.execute([x.contiguous() for x in inputs])[0]
        return scores.clone()

    return run
