"""Gradient problems: an op, its tensors by name, a gradient of each output, and the expected gradients.

The expected gradients come from autograd through the reference's forward passes. These are ordinary PyTorch
operators, so the result is independent of the explicit formulas of ``wae::*_backward``, including the
reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from cases import (
    CLASSES,
    FEATURES,
    LAYOUTS,
    Cell,
    affine,
    decoder,
    encoder,
    halved,
    image_of,
    kink_free_decoder,
    kink_free_encoder,
    score_decoder,
    widened,
)
from torch import Tensor

from wae_kernels import reference
from wae_kernels.checks import DECODER_SHAPES, ENCODER_SHAPES, SCORE_DECODER_SHAPES

REFERENCES: dict[str, Callable[..., Any]] = {
    "encode": reference.encode,
    "decode": reference.decode,
    "decode_scores": reference.decode_scores,
}
MARGIN = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.5}
"""The least distance of activations from the kink of ReLU: far more than the rounding error of each dtype."""


@dataclass(frozen=True)
class Problem:
    """An op, its tensors by name, its other arguments, and a gradient of each output."""

    op: str
    inputs: dict[str, Tensor | None]
    rest: Sequence[Any]
    incoming: Sequence[Tensor]

    @property
    def differentiable(self) -> list[str]:
        return [n for n, t in self.inputs.items() if t is not None and t.is_floating_point()]

    @property
    def tensors(self) -> list[Tensor]:
        return [*(t for t in self.inputs.values() if t is not None), *self.incoming]

    def outputs(self, function: Callable[..., Any] | None = None, **leaves: Tensor) -> tuple[Tensor, ...]:
        """The results of the op (or ``function``) for the inputs, some of them replaced by ``leaves``."""
        function = function or getattr(torch.ops.wae, self.op)
        out = function(*{**self.inputs, **leaves}.values(), *self.rest)
        return out if isinstance(out, tuple) else (out,)

    def gradients(
        self, wanted: Iterable[str] | None = None, function: Callable[..., Any] | None = None
    ) -> dict[str, Tensor]:
        """The gradients of the ``wanted`` inputs by name; by default, of all that can have one."""
        names = self.differentiable if wanted is None else list(wanted)
        leaves = {name: self.inputs[name].detach().requires_grad_() for name in names}
        outputs = self.outputs(function, **leaves)
        return dict(
            zip(names, torch.autograd.grad(outputs, list(leaves.values()), self.incoming), strict=True)
        )

    def expected(self) -> dict[str, Tensor]:
        """All gradients, from autograd through the reference in float64."""
        return self.widened().gradients(function=REFERENCES[self.op])

    def widened(self) -> Problem:
        """This problem in float64, for the oracle."""
        inputs = dict(zip(self.inputs, widened(list(self.inputs.values())), strict=True))
        return replace(self, inputs=inputs, incoming=widened(self.incoming))

    def kink_free(self, margin: float) -> Problem:
        """This problem with biases that keep all activations at least ``margin`` from the kink of ReLU."""
        values = list(self.inputs.values())
        if self.op == "encode":
            x = reference.normalize_image(values[0], values[1].dtype, *values[11:])
            values[1:11] = kink_free_encoder(values[1:11], x, margin)
        else:
            values[2:] = kink_free_decoder(values[2:], *values[:2], *self.rest, margin)
        return replace(self, inputs=dict(zip(self.inputs, values, strict=True)))


def with_float32_parameters(problem: Problem) -> Problem:
    """A decoder's problem with its parameters converted to float32."""
    images = ("low", "high")
    inputs = {name: t if name in images else t.float() for name, t in problem.inputs.items()}
    return replace(problem, inputs=inputs)


def noise(batch: int, size: Sequence[int], dtype: torch.dtype, device: str, channels: int = 3) -> Tensor:
    """An image or gradient with mean 1, so that sums over its pixels do not cancel."""
    x = image_of(batch, *size, dtype, device, channels)
    return x if dtype == torch.uint8 else x + 1


def make(
    op: str,
    cell: Cell,
    size: tuple[int, int] = (13, 18),
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    layout: str = "nchw",
    gradient_layout: str = "nchw",
    width: int = 16,
    scale_shift: tuple[bool, bool] = (True, True),
    channels: tuple[int, int] = (CLASSES, FEATURES),
) -> Problem:
    """A random problem with no activation near the kink of ReLU; ``channels`` are for ``decode_scores``."""
    of_bytes = dtype == torch.uint8
    parameter_dtype = torch.float32 if of_bytes else dtype
    half = halved(size)
    input_size, output_size = (size, half) if op == "encode" else (half, size)
    inputs, outputs = (["image"], 2) if op == "encode" else (["low", "high"], 1)
    channels = channels if op == "decode_scores" else (3, 3)
    images = [
        LAYOUTS[layout](noise(batch, input_size, dtype, cell.device, n))
        for _, n in zip(inputs, channels, strict=False)
    ]
    incoming = [
        LAYOUTS[gradient_layout](noise(batch, output_size, parameter_dtype, cell.device, channels[0]))
        for _ in range(outputs)
    ]
    named: dict[str, Tensor | None] = dict(zip(inputs, images, strict=True))
    if op == "encode":
        named.update(zip(ENCODER_SHAPES, encoder(parameter_dtype, cell.device, width), strict=True))
        wide = torch.promote_types(parameter_dtype, torch.float32)
        pair = affine(wide, cell.device, of_bytes=of_bytes)
        for name, tensor, is_given in zip(("image_scale", "image_shift"), pair, scale_shift, strict=True):
            named[name] = tensor if is_given else None
        problem = Problem(op, named, [], incoming)
    else:
        if op == "decode":
            named.update(zip(DECODER_SHAPES, decoder(dtype, cell.device, width), strict=True))
        else:
            parameters = score_decoder(dtype, cell.device, width, *channels)
            named.update(zip(SCORE_DECODER_SHAPES, parameters, strict=True))
        problem = Problem(op, named, [size], incoming)
    return problem.kink_free(MARGIN[parameter_dtype]) if batch else problem
