"""What the ops accept, said once for Python: the fake kernels and the reference check through here.

``csrc/common/checks.h`` states the same rules, in the same words, for the compiled kernels, which must
not read a byte before they have checked; ``tests/kernels/test_bad_input.py`` holds the two to each other.
Everything here works on symbolic sizes, so that ``torch.compile`` and ``torch.export`` check too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .parameters import DecoderParameters, EncoderParameters, Parameters

ANY_WIDTH = -1
"""Stands for the network's width in the tables below: conv1_weight's first size."""

ENCODER_SHAPES: dict[str, tuple[int, ...]] = {
    "conv1_weight": (ANY_WIDTH, 3, 3, 3),
    "conv1_bias": (ANY_WIDTH,),
    "conv2_weight": (ANY_WIDTH, ANY_WIDTH, 3, 3),
    "conv2_bias": (ANY_WIDTH,),
    "conv3_weight": (ANY_WIDTH, ANY_WIDTH, 3, 3),
    "conv3_bias": (ANY_WIDTH,),
    "low_weight": (3, ANY_WIDTH, 3, 3),
    "low_bias": (3,),
    "high_weight": (3, ANY_WIDTH, 3, 3),
    "high_bias": (3,),
}

DECODER_SHAPES: dict[str, tuple[int, ...]] = {
    "low_weight": (3, ANY_WIDTH, 3, 3),
    "low_bias": (ANY_WIDTH,),
    "high_weight": (3, ANY_WIDTH, 3, 3),
    "high_bias": (ANY_WIDTH,),
    "conv1_weight": (ANY_WIDTH, ANY_WIDTH, 3, 3),
    "conv1_bias": (ANY_WIDTH,),
    "conv2_weight": (ANY_WIDTH, ANY_WIDTH, 3, 3),
    "conv2_bias": (ANY_WIDTH,),
    "conv3_weight": (3, ANY_WIDTH, 3, 3),
    "conv3_bias": (3,),
}

PANEL, DEPTH = 16, 32
"""Output and input channels that lie together in a packed 3x3 weight."""


def packed_shape(out_channels: int, channels: int) -> tuple[int, int, int]:
    """The shape that ``wae::conv3x3_pack`` gives a weight (out_channels, channels, 3, 3).

    Three dimensions, so that ``module.to(memory_format=torch.channels_last)`` leaves a buffer as it is.
    """
    return ((out_channels + PANEL - 1) // PANEL, channels, 9 * PANEL)


def half_of(size: int) -> int:
    """The size of ``low`` and ``high`` for an image's height or width."""
    return (size + 1) // 2


def half_size(image: Tensor) -> tuple[int, int]:
    """The height and width of ``low`` and ``high`` for an image."""
    return half_of(image.shape[-2]), half_of(image.shape[-1])


FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _require(condition: bool, op: str, message: str) -> None:
    if not condition:
        raise RuntimeError(f"wae::{op}: {message}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(sizes: Sequence[object]) -> str:
    return "(" + ", ".join(str(size) for size in sizes) + ")"


def _check_dense(op: str, name: str, tensor: Tensor) -> None:
    _require(tensor.layout == torch.strided, op, f"{name} must be a dense tensor, got {tensor.layout}")


def _check_image_like(op: str, name: str, tensor: Tensor) -> None:
    """A batch of pictures: dense, rank 4, 3 channels, at least one pixel."""
    _check_dense(op, name, tensor)
    _require(
        tensor.dim() == 4,
        op,
        f"{name} must have 4 dimensions (batch, 3, height, width), got {tensor.dim()}",
    )
    _require(tensor.shape[1] == 3, op, f"{name} must have 3 channels, got {tensor.shape[1]}")
    _require(
        tensor.shape[2] >= 1 and tensor.shape[3] >= 1,
        op,
        f"{name} must be at least 1 x 1 pixels, got {tensor.shape[2]} x {tensor.shape[3]}",
    )


def _check_like(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """The device and dtype of ``tensor`` are those of ``like``."""
    _require(
        tensor.device == like.device,
        op,
        f"{name} must be on {like_name}'s device {like.device}, got {tensor.device}",
    )
    _require(
        tensor.dtype == like.dtype,
        op,
        f"{name} must be {_name(like.dtype)} like {like_name}, got {_name(tensor.dtype)}",
    )


def _check_parameters(
    op: str, shapes: Mapping[str, tuple[int, ...]], parameters: Parameters, like_name: str, like: Tensor
) -> None:
    first = parameters.conv1_weight
    width = first.shape[0] if first.dim() == 4 else 0
    _require(width >= 1, op, f"conv1_weight must have shape (width, ..., 3, 3), got {_shape(first.shape)}")
    for (name, pattern), tensor in zip(shapes.items(), parameters, strict=True):
        wanted = tuple(width if size == ANY_WIDTH else size for size in pattern)
        _check_dense(op, name, tensor)
        _require(
            tensor.dim() == len(wanted)
            and all(got == want for got, want in zip(tensor.shape, wanted, strict=True)),
            op,
            f"{name} must have shape {_shape(wanted)}, got {_shape(tensor.shape)}",
        )
        _check_like(op, name, tensor, like_name, like)


def _check_floating(op: str, name: str, tensor: Tensor) -> None:
    _require(
        tensor.dtype in FLOATING,
        op,
        f"{name} must be float32, float16, bfloat16 or float64, got {_name(tensor.dtype)}",
    )


def check_encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None,
    image_shift: Tensor | None,
    op: str = "encode",
) -> None:
    """Raise ``RuntimeError`` unless the arguments fit ``wae::encode``.

    Args:
        image: (N, 3, H, W), uint8 or the parameters' dtype.
        parameters: the ten tensors.
        image_scale, image_shift: three floating-point numbers each, or None.
        op: the name that the message begins with.
    """
    _check_image_like(op, "image", image)
    first = parameters.conv1_weight
    if image.dtype == torch.uint8:
        _check_floating(op, "conv1_weight", first)
        _require(
            first.device == image.device,
            op,
            f"conv1_weight must be on image's device {image.device}, got {first.device}",
        )
        _check_parameters(op, ENCODER_SHAPES, parameters, "conv1_weight", first)
    else:
        _require(
            image.dtype in FLOATING,
            op,
            f"image must be uint8, float32, float16, bfloat16 or float64, got {_name(image.dtype)}",
        )
        _check_parameters(op, ENCODER_SHAPES, parameters, "image", image)
    for name, tensor in (("image_scale", image_scale), ("image_shift", image_shift)):
        if tensor is None:
            continue
        _check_dense(op, name, tensor)
        _require(
            tensor.dim() == 1 and tensor.shape[0] == 3,
            op,
            f"{name} must have shape (3), got {_shape(tensor.shape)}",
        )
        _check_floating(op, name, tensor)
        _require(
            tensor.device == image.device,
            op,
            f"{name} must be on image's device {image.device}, got {tensor.device}",
        )


def check_decode(
    low: Tensor,
    high: Tensor,
    parameters: DecoderParameters,
    output_size: Sequence[int],
    op: str = "decode",
    size_name: str = "output_size",
) -> None:
    """Raise ``RuntimeError`` unless the arguments fit ``wae::decode``.

    Args:
        low, high: (N, 3, h, w), the same shape and dtype.
        parameters: the ten tensors of ``DECODER_SHAPES``, in that order.
        output_size: (H, W) with ceil(H/2) = h and ceil(W/2) = w.
        op: the name that the message begins with.
        size_name: the argument that gives the size.
    """
    _check_image_like(op, "low", low)
    _check_floating(op, "low", low)
    _check_image_like(op, "high", high)
    _require(
        all(a == b for a, b in zip(high.shape, low.shape, strict=True)),
        op,
        f"high must have shape {_shape(low.shape)}, got {_shape(high.shape)}",
    )
    _check_like(op, "high", high, "low", low)
    _check_parameters(op, DECODER_SHAPES, parameters, "low", low)
    _require(
        len(output_size) == 2, op, f"output_size must be (height, width), got {len(output_size)} numbers"
    )
    for name, got, half in zip(("height", "width"), output_size, low.shape[2:], strict=True):
        _require(
            half_of(got) == half,  # one comparison: an `or` would make torch.export decide which holds
            op,
            f"{size_name}'s {name} must be {2 * half - 1} or {2 * half} "
            f"for a low of {name} {half}, got {got}",
        )


def _check_float32(op: str, name: str, tensor: Tensor) -> None:
    _require(tensor.dtype == torch.float32, op, f"{name} must be float32, got {_name(tensor.dtype)}")


def check_conv3x3_pack(weight: Tensor) -> None:
    """Raise ``RuntimeError`` unless ``weight`` is (out_channels, channels, 3, 3), float32."""
    op = "conv3x3_pack"
    _check_dense(op, "weight", weight)
    _require(
        weight.dim() == 4 and min(weight.shape[:2]) >= 1 and weight.shape[2] == weight.shape[3] == 3,
        op,
        f"weight must have shape (out_channels, channels, 3, 3), got {_shape(weight.shape)}",
    )
    _check_float32(op, "weight", weight)


def check_conv3x3(input: Tensor, packed: Tensor, bias: Tensor | None, out_channels: int) -> None:
    """Raise ``RuntimeError`` unless the arguments fit ``wae::conv3x3``.

    Args:
        input: (N, channels, H, W), float32.
        packed: what ``wae::conv3x3_pack`` made of the weight (out_channels, channels, 3, 3).
        bias: (out_channels,), or None.
        out_channels: that of the weight.
    """
    op = "conv3x3"
    _check_dense(op, "input", input)
    _require(
        input.dim() == 4,
        op,
        f"input must have 4 dimensions (batch, channels, height, width), got {input.dim()}",
    )
    _require(input.shape[1] >= 1, op, f"input must have at least 1 channel, got {input.shape[1]}")
    _require(
        input.shape[2] >= 1 and input.shape[3] >= 1,
        op,
        f"input must be at least 1 x 1 pixels, got {input.shape[2]} x {input.shape[3]}",
    )
    _check_float32(op, "input", input)
    _require(out_channels >= 1, op, f"out_channels must be at least 1, got {out_channels}")
    wanted = {"packed": packed_shape(out_channels, input.shape[1]), "bias": (out_channels,)}
    for name, tensor in (("packed", packed), ("bias", bias)):
        if tensor is None:
            continue
        _check_dense(op, name, tensor)
        _require(
            tensor.dim() == len(wanted[name])
            and all(got == want for got, want in zip(tensor.shape, wanted[name], strict=True)),
            op,
            f"{name} must have shape {_shape(wanted[name])}, got {_shape(tensor.shape)}",
        )
        _check_like(op, name, tensor, "input", input)
        if name == "packed":
            _require(tensor.is_contiguous(), op, "packed must be contiguous, as conv3x3_pack returns it")


def _check_gradient(op: str, name: str, gradient: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Raise ``RuntimeError`` unless an incoming gradient has the shape, dtype and device of its output."""
    _check_dense(op, name, gradient)
    _require(
        gradient.dim() == len(shape)
        and all(got == want for got, want in zip(gradient.shape, shape, strict=True)),
        op,
        f"{name} must have shape {_shape(shape)}, got {_shape(gradient.shape)}",
    )
    _check_like(op, name, gradient, "conv1_weight", like)


def check_encode_backward(
    grad_low: Tensor,
    grad_high: Tensor,
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None,
    image_shift: Tensor | None,
) -> None:
    """Raise ``RuntimeError`` unless the arguments fit ``wae::encode_backward``."""
    op = "encode_backward"
    check_encode(image, parameters, image_scale, image_shift, op=op)
    half = (image.shape[0], 3, *half_size(image))
    _check_gradient(op, "grad_low", grad_low, half, parameters.conv1_weight)
    _check_gradient(op, "grad_high", grad_high, half, parameters.conv1_weight)


def check_decode_backward(
    grad_image: Tensor, low: Tensor, high: Tensor, parameters: DecoderParameters
) -> None:
    """Raise ``RuntimeError`` unless the arguments fit ``wae::decode_backward``."""
    op = "decode_backward"
    _check_image_like(op, "grad_image", grad_image)
    output_size = grad_image.shape[2:]
    check_decode(low, high, parameters, output_size, op=op, size_name="grad_image")
    _check_gradient(op, "grad_image", grad_image, (low.shape[0], 3, *output_size), parameters.conv1_weight)
