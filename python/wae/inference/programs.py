"""torch.export programs, for any number of images, without paths of the machine that made them."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map


def exported(
    module: nn.Module, inputs: Sequence[Tensor], dynamic_shapes: Any = None, strict: bool = False
) -> torch.export.ExportedProgram:
    """Export ``module`` by :func:`torch.export.export`, and remove the stack traces, which name files."""
    program = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic_shapes, strict=strict)
    for part in program.graph_module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def as_bytes(program: torch.export.ExportedProgram, extra: Mapping[str, str] | None = None) -> bytes:
    """The content of the file of ``program``, with ``extra`` files, by name, in it.

    PyTorch does not write the file itself, because it would end the process if the disk is full.
    """
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=dict(extra or {}))
    return file.getvalue()


def any_batch(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """The dynamic shapes of the module's ``inputs``, whose first dimensions may vary together."""
    batch = {0: torch.export.Dim("batch")}
    bound = inspect.signature(module.forward).bind(*inputs)  # a forward(*images) has a tuple of them
    return tuple(tree_map(lambda _: batch, given) for given in bound.arguments.values())


def several(inputs: Sequence[Tensor]) -> list[Tensor]:
    """``inputs`` with at least two images, because exporters treat a first dimension of 1 as a constant."""
    return [x if x.shape[0] > 1 else torch.cat((x, x)) for x in inputs]
