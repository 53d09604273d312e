"""torch.export programs that say nothing about the machine that they were made on."""

from __future__ import annotations

from collections.abc import Sequence
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
