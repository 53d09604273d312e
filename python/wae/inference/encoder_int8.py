"""An int8 encoder, which ``precision="int8"`` puts in front of the engine. Its scales come from images.

docs/network.md describes the arithmetic and what each scale stands for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wae_kernels
from wae.errors import WaeError
from wae_kernels import backends
from wae_kernels.checks import MOST_BIAS
from wae_kernels.nn import Encoder
from wae_kernels.parameters import KERNEL_WIDTH
from wae_kernels.reference import normalize_image, to_bytes

from .engines import Prepared
from .engines.int8 import ByteInput
from .front import Front
from .precision import name_of
from .timing import interleaved

_TIMED = 0.3  # seconds for the timing of both encoders

_log = logging.getLogger(__name__)


class QuantizationError(WaeError, ValueError):
    """The encoder cannot be quantized."""


class Int8Encoder(nn.Module):
    """An encoder that computes uint8 images in int8 if the CPU has a kernel for it.

    Floating-point images, and all images on other CPUs, go to the float32 encoder. The buffers are zeros
    until :func:`quantize` fills them.

    Args:
        exact: the float32 encoder; an :class:`wae_kernels.nn.Encoder` of width 16.
    """

    image_padding: Tensor
    shift: Tensor
    multiplier: Tensor
    scale: Tensor

    def __init__(self, exact: Encoder) -> None:
        super().__init__()
        self.exact = exact
        width = exact.conv1.out_channels
        for name, layer in exact.named_children():
            for kind, dtype in (("weight", torch.int8), ("bias", torch.int32)):
                shape = layer.get_parameter(kind).shape
                self.register_buffer(f"{name}_{kind}", torch.zeros(shape, dtype=dtype))
        self.register_buffer("image_padding", torch.zeros(3, dtype=torch.uint8))
        self.register_buffer("shift", torch.zeros(3, width, dtype=torch.int32))
        self.register_buffer("multiplier", torch.zeros(3, width, dtype=torch.int16))
        self.register_buffer("scale", torch.zeros(2, 3, dtype=torch.float32))

    def forward(
        self, image: Tensor, image_scale: Tensor | None = None, image_shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(low, high)``, (N, 3, ceil(H/2), ceil(W/2)) float32 each, of ``image``, (N, 3, H, W).

        ``image_scale`` and ``image_shift`` must be those it was quantized with.
        """
        if image.dtype != torch.uint8 or not backends.int8_runs(image.device):
            low, high = self.exact(image, image_scale, image_shift)
            return low, high
        return wae_kernels.encode_int8(image, *self.numbers())

    def numbers(self) -> list[Tensor]:
        """The op's arguments after the image. (``buffers()`` would take 15 us to walk all modules.)"""
        return cast(list[Tensor], [*self._buffers.values()])


class ByteEncoder(nn.Module):
    """An int8 encoder that returns the bytes with which an engine computes.

    Args:
        encoder: the encoder that returns float32.
        inputs: the engine's descriptions of ``low`` and ``high`` as bytes.
    """

    low_zero_point: Tensor
    high_zero_point: Tensor
    scale: Tensor
    step: Tensor

    def __init__(self, encoder: Int8Encoder, inputs: Sequence[ByteInput]) -> None:
        super().__init__()
        self.encoder = encoder
        step = torch.tensor([[each.scale] for each in inputs], dtype=torch.float32)
        self.register_buffer("step", step)
        self.register_buffer("scale", encoder.scale / step)
        for name, each in zip(("low", "high"), inputs, strict=True):
            zero_point = torch.full((3,), each.zero_point, dtype=each.dtype)
            self.register_buffer(f"{name}_zero_point", zero_point)

    def forward(
        self, image: Tensor, image_scale: Tensor | None = None, image_shift: Tensor | None = None
    ) -> Sequence[Tensor]:
        """``(low, high)``, each uint8 or int8, of ``image``: see :meth:`Int8Encoder.forward`."""
        zero_points = self.low_zero_point, self.high_zero_point
        if image.dtype == torch.uint8 and backends.int8_runs(image.device):
            numbers = self.encoder.numbers()[:-1]  # all but the float32 scale
            numbers += [self.scale, *zero_points]
            return wae_kernels.encode_int8(image, *numbers)
        exact = self.encoder(image, image_scale, image_shift)
        return [
            to_bytes(x / step, zero_point)
            for x, step, zero_point in zip(exact, self.step, zero_points, strict=True)
        ]


def hand_bytes_over(front: Front, prepared: Prepared) -> None:
    """Make an int8 encoder in ``front`` hand its bytes to the engine, if the engine can take bytes."""
    if isinstance(front.encoder, Int8Encoder) and (inputs := prepared.take_bytes()):
        front.encoder = ByteEncoder(front.encoder, inputs)


def put_where_faster(front: Front, images: Tensor, samples: Sequence[Tensor]) -> dict[str, Any]:
    """Give ``front`` an int8 encoder if there is a kernel for it and it is faster than the float32 encoder.

    Args:
        front: the front of a network on the CPU.
        images: the images of a call, on which both encoders are timed.
        samples: batches of images that give the scales.

    Returns:
        ``precision``, that of the encoder that is used; and ``seconds``, the median of both encoders by
        precision, if they were timed. Empty if there is no encoder.
    """
    exact = front.encoder
    if exact is None:
        return {}
    if (
        type(exact) is not Encoder
        or not exact.is_fused  # hooks, for example, cannot run within the int8 op
        or exact.conv1.out_channels != KERNEL_WIDTH
        or front.like.dtype != torch.float32
        or images.dtype != torch.uint8
        or any(sample.dtype != torch.uint8 for sample in samples)
        or not backends.int8_runs(front.device)
    ):
        return {"precision": name_of(front.like.dtype)}
    affine = front.image_scale, front.image_shift
    try:
        quantized = quantize(exact, *affine, largest_activations(exact, *affine, samples))
    except QuantizationError as error:
        _log.info("the encoder stays in float32: %s", error)
        return {"precision": "float32"}
    timings = interleaved(
        {"float32": partial(exact, images, *affine), "int8": partial(quantized, images, *affine)}, _TIMED
    )
    seconds = {name: timing.median for name, timing in timings.items()}
    if seconds["int8"] < seconds["float32"]:
        front.encoder = quantized
    return {"precision": min(seconds, key=lambda name: seconds[name]), "seconds": seconds}


@torch.no_grad()
def largest_activations(
    encoder: Encoder, image_scale: Tensor | None, image_shift: Tensor | None, images: Iterable[Tensor]
) -> list[float]:
    """The largest outputs of conv1, conv2 and conv3, after their ReLUs.

    Args:
        encoder: a float32 encoder.
        image_scale, image_shift: the arguments that it is called with, (3,) each or None.
        images: batches of images, (N, 3, H, W).
    """
    largest = [0.0, 0.0, 0.0]
    for batch in images:
        x = normalize_image(batch, torch.float32, image_scale, image_shift)
        for number, layer in enumerate(_trunk(encoder)):
            x = F.relu(layer(x))
            largest[number] = max(largest[number], float(x.amax()))
    return largest


@torch.no_grad()
def quantize(
    encoder: Encoder,
    image_scale: Tensor | None,
    image_shift: Tensor | None,
    largest: Sequence[float],
) -> Int8Encoder:
    """Quantize ``encoder`` to int8.

    Args:
        encoder: a float32 encoder.
        image_scale, image_shift: the arguments that it is called with, (3,) each or None; they become part of
            the weights.
        largest: the result of :func:`largest_activations`. Larger activations saturate.

    Raises:
        QuantizationError: no byte represents the 0 with which the normalised image is padded.
    """
    scale, shift = (
        torch.full((3,), default) if t is None else t.detach()
        for t, default in ((image_scale, 1.0), (image_shift, 0.0))
    )
    padding = (-shift.double() / scale.double()).round()
    if not ((padding >= 0) & (padding <= 255)).all():
        raise QuantizationError(
            f"no byte represents 0 with image_scale {scale.tolist()} and image_shift {shift.tolist()}"
        )
    result = Int8Encoder(encoder)
    result.image_padding.copy_(padding)
    inputs, offset = scale.double(), shift.double()  # a byte represents byte * inputs + offset
    for number, layer in enumerate(_trunk(encoder)):
        sums = _round(result, f"conv{number + 1}", layer, inputs, offset)
        result.shift[number], result.multiplier[number], inputs = _requantization(sums, largest[number])
        offset = torch.zeros_like(inputs)
    for number, name in enumerate(("low", "high")):
        result.scale[number] = _round(result, name, encoder.get_submodule(name), inputs, offset)
    return result


def _round(result: Int8Encoder, name: str, layer: Any, inputs: Tensor, offset: Tensor) -> Tensor:
    """Round ``layer`` to integers in ``result``; return what 1 in its sums stands for, by output channel."""
    weight = layer.weight.double() * inputs.view(1, -1, 1, 1)
    bias = layer.bias.double() + layer.weight.double().sum((2, 3)) @ offset
    # a channel with little or nothing but a bias, as training may leave it, takes its scale from the bias
    scale = torch.maximum(weight.abs().amax((1, 2, 3)) / 127, bias.abs().clamp_min(1e-30) / MOST_BIAS)
    result.get_buffer(f"{name}_weight").copy_((weight / scale.view(-1, 1, 1, 1)).round())
    result.get_buffer(f"{name}_bias").copy_((bias / scale).round())
    return scale


def _requantization(scale: Tensor, largest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Shift and multiplier that map ``largest`` to about 255, and the scale of the resulting bytes.

    The multiplier is rounded down. The scale is computed from the rounded multiplier, so it is exact.
    """
    sums = (largest / scale).clamp_min(1)  # these become 255
    shift = (sums / (2**15 - 1)).log2().ceil().clamp(0, 30)
    multiplier = (255 * 2 ** (15 + shift) / sums).floor().clamp(1, 2**15 - 1)
    return shift, multiplier, scale * 2 ** (15 + shift) / multiplier


def _trunk(encoder: Encoder) -> tuple[nn.Conv2d, ...]:
    return encoder.conv1, encoder.conv2, encoder.conv3
