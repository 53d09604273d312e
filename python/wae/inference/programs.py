"""torch.export programs, for any number of images, that say nothing about the machine that made them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn


def exported(
    module: nn.Module, inputs: Sequence[Tensor], dynamic_shapes: Any = None, strict: bool = False
) -> torch.export.ExportedProgram:
    """``module`` as :func:`torch.export.export` makes it, without the stack traces, which name files."""
    program = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic_shapes, strict=strict)
    for part in program.graph_module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def as_bytes(program: torch.export.ExportedProgram, extra: Mapping[str, str] | None = None) -> bytes:
    """The file of ``program``, with ``extra`` files in it by their names.

    PyTorch, which would write it itself, ends the whole process where the disk is full.
    """
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=dict(extra or {}))
    return file.getvalue()


def any_batch(inputs: Sequence[Tensor]) -> tuple[dict[int, Any], ...]:
    """The dynamic shapes of ``inputs``: the first dimension, the same for all, may change between calls."""
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in inputs)


def several(inputs: Sequence[Tensor]) -> list[Tensor]:
    """``inputs`` of at least two images: exporters take a first dimension of 1 for a constant."""
    return [x if x.shape[0] > 1 else torch.cat((x, x)) for x in inputs]
