"""Programs for ExecuTorch, PyTorch's runtime for phones and small machines; convolutions run in XNNPACK."""

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
    """The reason why no such program can be made here, for a person to read; None if nothing is."""
    if importlib.util.find_spec("executorch") is None:
        return "executorch needs packages that are not installed: `pip install executorch`"
    return None


def package(program: torch.export.ExportedProgram, says: Mapping[str, str]) -> bytes:
    """``program`` as the content of a .pte file.

    Args:
        program: of standard operators, for one number of images.
        says: what the file says of itself, each text the result of a method of that name.

    Raises EngineError where ExecuTorch is not installed.
    """
    if (reason := why_not()) is not None:
        raise EngineError(reason)
    with contextlib.redirect_stderr(io.StringIO()):  # torch's log of other packages' enumerations
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods=dict(says)
    )
    content: bytes = lowered.to_executorch().buffer
    return content


def load(content: bytes) -> Run:
    """The program as a function of its inputs, which must be contiguous: ExecuTorch reads no strides."""
    from executorch.runtime import Runtime

    program: Any = Runtime.get().load_program(content)
    method = program.load_method("forward")

    def run(*inputs: Tensor) -> Tensor:
        # the program stays with the method, which reads its weights there
        assert program is not None
        scores: Tensor = method.execute([x.contiguous() for x in inputs])[0]
        return scores.clone()

    return run
