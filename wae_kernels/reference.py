"""The ops in plain PyTorch operators: the oracle of the tests, and the fallback.

Every backend is compared with these functions in float64. They run on any device and dtype, trace to standard
operators (which ONNX export needs), and take the arguments of ``torch.ops.wae.*`` in the same order. The
layers are defined in docs/network.md. Gradients are written out and not left to autograd, because an op's
kernel runs below autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import (
    DEPTH,
    IN_16_BITS,
    PANEL,
    check_conv3x3,
    check_conv3x3_pack,
    check_decode,
    check_decode_backward,
    check_decode_scores,
    check_decode_scores_backward,
    check_encode,
    check_encode_backward,
    check_encode_int8,
    check_int8_numbers,
    half_size,
    packed_shape,
)
from .parameters import DecoderParameters, EncoderParameters, ScoreDecoderParameters, one_by_one

_AnyDecoder = DecoderParameters | ScoreDecoderParameters

_convolution_backward = torch.ops.aten.convolution_backward


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels of a (N, C, H, W) tensor are its innermost dimension in memory.

    Only the strides decide, so that slices of a channels_last tensor count too. A tensor whose channels are
    broadcast (stride 0) does not.
    """
    column = tensor.stride(3)
    return bool(column > 1 and 0 < tensor.stride(1) < column)  # a 1 decides even where sizes depend on data


def format_of(tensor: Tensor) -> torch.memory_format:
    """The memory format that an op's outputs take from ``tensor``."""
    return torch.channels_last if is_channels_last(tensor) else torch.contiguous_format


def laid_out(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A dense copy of ``tensor`` in this memory format.

    ``contiguous`` is not enough: if sizes of 1 make several strides valid it keeps the tensor's own, from
    which the next op might infer another format.
    """
    if memory_format == torch.channels_last and (
        torch.compiler.is_dynamo_compiling()  # it cannot trace the call in the next line
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # vmap cannot clone to channels_last
    ):
        return tensor.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
    return tensor.clone(memory_format=memory_format)


def empty_halves(
    image: Tensor, dtype: torch.dtype, memory_format: torch.memory_format | None = None
) -> tuple[Tensor, Tensor]:
    """Uninitialised ``low`` and ``high`` of an image, in its memory format or in ``memory_format``."""
    shape, layout = (image.shape[0], 3, *half_size(image)), memory_format or format_of(image)
    low, high = (torch.empty(shape, dtype=dtype, device=image.device, memory_format=layout) for _ in range(2))
    return low, high


def empty_decoded(low: Tensor, output_size: Sequence[int]) -> Tensor:
    """An uninitialised result of a decoder, in the dtype and memory format of ``low``."""
    shape = (*low.shape[:2], *output_size)
    return torch.empty(shape, dtype=low.dtype, device=low.device, memory_format=format_of(low))


def cast(value: Any, dtype: torch.dtype) -> Any:
    """``value`` in this dtype if it is a floating-point tensor other than float64, else unchanged."""
    if not isinstance(value, Tensor) or value.dtype in (dtype, torch.float64):
        return value
    return value.to(dtype) if value.is_floating_point() else value


def read_by(own: torch.dtype, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """``low`` and ``high`` in the dtype in which a decoder with parameters of dtype ``own`` computes."""
    if own == torch.float32 and low.dtype in IN_16_BITS and high.dtype == low.dtype:
        return low.float(), high.float()
    return low, high


def given_as(low: Tensor, decoded: Tensor) -> Tensor:
    """A decoder's result in the memory format of ``low`` and, unless autocast chose another, in its dtype."""
    if decoded.dtype == torch.float32 and low.dtype in IN_16_BITS:
        decoded = decoded.to(low.dtype)
    return laid_out(decoded, format_of(low))


def normalize_image(
    image: Tensor, dtype: torch.dtype, image_scale: Tensor | None, image_shift: Tensor | None
) -> Tensor:
    """``image * image_scale + image_shift`` per channel, in float32 or wider, then cast to ``dtype``.

    Args:
        image: (N, 3, H, W), of real numbers in any dtype.
        dtype: of the result.
        image_scale, image_shift: (3,) each; None stands for 1 and 0.

    Raises:
        RuntimeError: the image is complex: a cast would drop its imaginary part.
    """
    if isinstance(image, Tensor) and image.is_complex():  # type: ignore[redundant-expr]  # torch.fx's proxies
        raise RuntimeError(f"image must have real numbers, got {image.dtype}")
    if image_scale is None and image_shift is None:
        return image.to(dtype)
    wide = image.to(torch.promote_types(dtype, torch.float32))
    if image_scale is not None:
        wide = wide * image_scale.to(wide.dtype).view(1, 3, 1, 1)
    if image_shift is not None:
        wide = wide + image_shift.to(wide.dtype).view(1, 3, 1, 1)
    return wide.to(dtype)


def _trunk(x: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of consecutive ``conv k3 s1 p1 + ReLU`` layers; ``layers`` is weight, bias, weight, ..."""
    outputs = []
    for weight, bias in zip(layers[0::2], layers[1::2], strict=True):
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
        outputs.append(x)
    return outputs


@one_by_one
def encode(
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None = None,
    image_shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> tuple[Tensor, Tensor]:
    """The encoder, from an image to its half-resolution ``low`` and ``high``: :func:`wae_kernels.encode`."""
    p = parameters
    check_encode(image, p, image_scale, image_shift, dtype, memory_format)
    x = normalize_image(image, p.conv1_weight.dtype, image_scale, image_shift)
    features = _trunk(x, p[:6])[-1]  # p.trunk, a property: torch.compile of 2.10 cannot read it
    low = F.conv2d(features, p.low_weight, p.low_bias, stride=2, padding=1)
    high = F.conv2d(features, p.high_weight, p.high_bias, stride=2, padding=1)
    layout = memory_format or format_of(image)
    return laid_out(low.to(dtype or low.dtype), layout), laid_out(high.to(dtype or high.dtype), layout)


def _requantized(sums: Tensor, shift: Tensor, multiplier: Tensor) -> Tensor:
    """int64 sums requantized to bytes; docs/network.md defines the arithmetic."""
    shift, multiplier = shift.long().view(1, -1, 1, 1), multiplier.long().view(1, -1, 1, 1)
    short = ((sums + ((1 << shift) >> 1)) >> shift).clamp(-(2**15), 2**15 - 1)
    return ((short * multiplier + 2**14) >> 15).clamp(0, 255)


def to_bytes(steps: Tensor, zero_point: Tensor) -> Tensor:
    """``round(steps) + zero_point``, ties to even, clamped to the range of the zero point's dtype.

    Args:
        steps: (N, C, H, W), floating point.
        zero_point: (C,), uint8 or int8.
    """
    limits = torch.iinfo(zero_point.dtype)
    shifted = steps.round() + zero_point.view(1, -1, 1, 1)
    return shifted.clamp(limits.min, limits.max).to(zero_point.dtype)


@one_by_one
def encode_int8(
    image: Tensor,
    parameters: EncoderParameters,
    image_padding: Tensor,
    shift: Tensor,
    multiplier: Tensor,
    scale: Tensor,
    low_zero_point: Tensor | None = None,
    high_zero_point: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The int8 encoder. See :func:`wae_kernels.encode_int8`.

    It computes in float64, which holds every sum exactly; not every device has convolutions of integers.
    """
    p = parameters
    zero_points = low_zero_point, high_zero_point
    check_encode_int8(image, p, image_padding, shift, multiplier, scale, *zero_points)
    check_int8_numbers(p, shift, multiplier, scale)

    def sums(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        return F.conv2d(x.double(), weight.double(), bias.double(), stride, padding).long()

    edge = image_padding.view(1, 3, 1, 1)
    x = F.pad(image.short() - edge, (1, 1, 1, 1)) + edge
    for layer, (weight, bias) in enumerate(zip(p.trunk[0::2], p.trunk[1::2], strict=True)):
        padding = 0 if layer == 0 else 1  # the image is padded already
        x = _requantized(sums(x, weight, bias, 1, padding), shift[layer], multiplier[layer])
    results = []
    branches = ((p.low_weight, p.low_bias), (p.high_weight, p.high_bias))
    for branch, (weight, bias) in enumerate(branches):
        result = sums(x, weight, bias, 2, 1).float() * scale[branch].view(1, 3, 1, 1)
        if (zero_point := zero_points[branch]) is not None:
            result = to_bytes(result, zero_point)
        results.append(laid_out(result, format_of(image)))
    return results[0], results[1]


def _upsample(low: Tensor, high: Tensor, p: _AnyDecoder, output_size: Sequence[int]) -> Tensor:
    """The decoder's first layer: the sum of two transposed convolutions, then ReLU."""
    padding = _output_padding(low, output_size)
    up_low = F.conv_transpose2d(low, p.low_weight, p.low_bias, stride=2, padding=1, output_padding=padding)
    up_high = F.conv_transpose2d(
        high, p.high_weight, p.high_bias, stride=2, padding=1, output_padding=padding
    )
    return F.relu(up_low + up_high)


def _output_padding(low: Tensor, output_size: Sequence[int]) -> list[int]:
    return [size - (2 * half - 1) for size, half in zip(output_size, low.shape[2:], strict=True)]


@one_by_one
def decode(
    low: Tensor,
    high: Tensor,
    parameters: DecoderParameters,
    output_size: Sequence[int],
) -> Tensor:
    """The decoder, from ``low`` and ``high`` back to an image. See :func:`wae_kernels.decode`."""
    check_decode(low, high, parameters, output_size)
    return _decoded(low, high, parameters, output_size)


@one_by_one
def decode_scores(
    low: Tensor, high: Tensor, parameters: ScoreDecoderParameters, output_size: Sequence[int]
) -> Tensor:
    """The decoder of class scores. See :func:`wae_kernels.decode_scores`."""
    check_decode_scores(low, high, parameters, output_size)
    return _decoded(low, high, parameters, output_size)


def _decoded(low: Tensor, high: Tensor, p: _AnyDecoder, output_size: Sequence[int]) -> Tensor:
    wide_low, wide_high = read_by(p.conv1_weight.dtype, low, high)
    trunk, last = p[4:-2], p[-2:]  # p.trunk and p.last are properties: torch.compile of 2.10 cannot read them
    features = _trunk(_upsample(wide_low, wide_high, p, output_size), trunk)[-1]
    return given_as(low, F.conv2d(features, *last, padding=1))


def _conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    need_x: bool,
    need_parameters: bool,
    stride: int = 1,
    transposed: bool = False,
    output_padding: Sequence[int] = (0, 0),
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a 3x3 convolution with padding 1: of input, weight and bias; None if not needed."""
    gradients: tuple[Tensor, Tensor, Tensor] = _convolution_backward(
        grad,
        x,
        weight,
        [weight.shape[1] if transposed else weight.shape[0]],
        [stride, stride],
        [1, 1],
        [1, 1],
        transposed,
        list(output_padding),
        1,
        [need_x, need_parameters, need_parameters],
    )
    return gradients


def _relu_backward(grad: Tensor, output: Tensor) -> Tensor:
    """The gradient of a ReLU's input, with NaN exactly where autograd has it; a masked product differs."""
    masked: Tensor = torch.ops.aten.threshold_backward(grad, output, 0)
    return masked


def _trunk_backward(
    grad: Tensor, inputs: Sequence[Tensor], outputs: Sequence[Tensor], layers: Sequence[Tensor], **needs: bool
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of ``_trunk``: of its input, and of its layers (weight, bias, weight, ...)."""
    gradients: list[Tensor] = []
    for i in reversed(range(len(outputs))):
        masked = _relu_backward(grad, outputs[i])
        need_x = i > 0 or needs["need_x"]
        grad, d_weight, d_bias = _conv_backward(
            masked, inputs[i], layers[2 * i], need_x=need_x, need_parameters=needs["need_parameters"]
        )
        gradients = [d_weight, d_bias, *gradients]
    return grad, gradients


def _owned(
    tensor: Tensor | None, like: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """A gradient as the op returns it: dense, or without elements if there is none."""
    if tensor is None:
        return like.new_empty(0)
    return laid_out(tensor, memory_format)


def _gradient_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype in which gradients are computed: float32 for 16-bit parameters on a CPU, as in the kernels.

    Rounding an activation before its ReLU could change which side of zero it is on. Also, oneDNN's bfloat16
    weight gradients of images one pixel wide contain uninitialised memory (torch 2.10 to 2.14).
    """
    return torch.float32 if parameter.is_cpu and parameter.dtype in IN_16_BITS else parameter.dtype


def _affine_gradients(
    grad: Tensor, image: Tensor, image_scale: Tensor | None, image_shift: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of scale and shift, given that of ``image * image_scale + image_shift``; None of None."""
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    d_scale = d_shift = None
    if image_scale is not None:
        d_scale = (wide * image).sum((0, 2, 3), dtype=torch.float64).to(image_scale.dtype)
    if image_shift is not None:
        d_shift = wide.sum((0, 2, 3), dtype=torch.float64).to(image_shift.dtype)
    return d_scale, d_shift


@one_by_one
def encode_backward(
    grad_low: Tensor,
    grad_high: Tensor,
    image: Tensor,
    parameters: EncoderParameters,
    image_scale: Tensor | None,
    image_shift: Tensor | None,
    need_image: bool,
    need_parameters: bool,
    need_scale: bool,
) -> tuple[Tensor, ...]:
    """The gradients of :func:`encode`, from its inputs alone: the intermediates are recomputed.

    Returns:
        13 tensors: the gradients of the image, of the ten parameters in order, of image_scale and of
        image_shift. Those that are not needed have no elements.
    """
    check_encode_backward(grad_low, grad_high, image, parameters, image_scale, image_shift)

    like = parameters.conv1_weight
    compute_dtype = _gradient_dtype(like)
    p = EncoderParameters(*(cast(t, compute_dtype) for t in parameters))
    need_image = need_image and image.is_floating_point()
    need_scale = need_scale and (image_scale is not None or image_shift is not None)
    x = normalize_image(image, compute_dtype, image_scale, image_shift)
    outputs = _trunk(x, p.trunk)
    d_low, d_high = (
        _conv_backward(
            cast(grad, compute_dtype),
            outputs[-1],
            weight,
            need_x=True,
            need_parameters=need_parameters,
            stride=2,
        )
        for grad, weight in ((grad_low, p.low_weight), (grad_high, p.high_weight))
    )
    grad_x, d_layers = _trunk_backward(
        d_low[0] + d_high[0],
        [x, *outputs[:-1]],
        outputs,
        p.trunk,
        need_x=need_image or need_scale,
        need_parameters=need_parameters,
    )
    grad_image = normalize_image(grad_x, image.dtype, image_scale, None) if need_image else None
    affine = image_scale, image_shift
    d_affine = _affine_gradients(grad_x, image, *affine) if need_scale else (None, None)
    d_parameters = (*d_layers, *d_low[1:], *d_high[1:])
    return (
        _owned(grad_image, like, format_of(image)),
        *(_owned(cast(g, like.dtype), like) for g in d_parameters),
        *(_owned(g, like if t is None else t) for g, t in zip(d_affine, affine, strict=True)),
    )


@one_by_one
def decode_backward(
    grad_image: Tensor,
    low: Tensor,
    high: Tensor,
    parameters: DecoderParameters,
    need_input: bool,
    need_parameters: bool,
) -> tuple[Tensor, ...]:
    """The gradients of :func:`decode`, from its inputs alone: the intermediates are recomputed.

    Returns:
        12 tensors: the gradients of ``low`` and ``high``, and of the ten parameters in order. Those that are
        not needed have no elements.
    """
    check_decode_backward(grad_image, low, high, parameters)
    return _decoded_backward(grad_image, low, high, parameters, need_input, need_parameters)


@one_by_one
def decode_scores_backward(
    grad_scores: Tensor,
    low: Tensor,
    high: Tensor,
    parameters: ScoreDecoderParameters,
    need_input: bool,
    need_parameters: bool,
) -> tuple[Tensor, ...]:
    """The gradients of :func:`decode_scores`, from its inputs alone: the intermediates are recomputed.

    Returns:
        10 tensors: the gradients of ``low`` and ``high``, and of the eight parameters in order. Those that
        are not needed have no elements.
    """
    check_decode_scores_backward(grad_scores, low, high, parameters)
    return _decoded_backward(grad_scores, low, high, parameters, need_input, need_parameters)


def _decoded_backward(
    grad: Tensor,
    low: Tensor,
    high: Tensor,
    parameters: _AnyDecoder,
    need_input: bool,
    need_parameters: bool,
) -> tuple[Tensor, ...]:
    """A decoder's gradients, in the dtypes of their tensors."""
    output_size, layout = grad.shape[2:], format_of(low)
    compute_dtype = _gradient_dtype(parameters.conv1_weight)
    wide_low, wide_high = cast(low, compute_dtype), cast(high, compute_dtype)
    p = type(parameters)(*(cast(t, compute_dtype) for t in parameters))
    grad = cast(grad, compute_dtype)
    start = _upsample(wide_low, wide_high, p, output_size)
    outputs = _trunk(start, p.trunk)
    grad, *d_last = _conv_backward(grad, outputs[-1], p.last[0], need_x=True, need_parameters=need_parameters)
    grad, d_layers = _trunk_backward(
        grad, [start, *outputs[:-1]], outputs, p.trunk, need_x=True, need_parameters=need_parameters
    )
    masked = _relu_backward(grad, start)
    branches = [
        _conv_backward(
            masked,
            x,
            weight,
            need_x=need_input,
            need_parameters=need_parameters,
            stride=2,
            transposed=True,
            output_padding=_output_padding(low, output_size),
        )
        for x, weight in ((wide_low, p.low_weight), (wide_high, p.high_weight))
    ]
    d_inputs = [_owned(cast(d[0], low.dtype), low, layout) for d in branches]
    own = parameters.conv1_weight
    d_parameters = (*branches[0][1:], *branches[1][1:], *d_layers, *d_last)
    return (*d_inputs, *(_owned(cast(g, own.dtype), own) for g in d_parameters))


# ------------------------------------------------------------------------------------------ a 3x3 layer


def _filter_scale(device: torch.device) -> Tensor:
    """(3, 3): the divisors of the packed filter taps; ``csrc/cpu/winograd_filter.h`` explains them."""
    scale = torch.tensor([24.0, 12.0, 6.0], dtype=torch.float32, device=device)
    return scale[:, None] * scale


def conv3x3_pack(weight: Tensor) -> Tensor:
    """A 3x3 layer's weight packed for :func:`conv3x3`: panels of 16 output channels, with scaled taps.

    Args:
        weight: (out_channels, channels, 3, 3), float32, the layout of ``torch.nn.Conv2d``.

    Returns:
        (ceil(out_channels / 16), channels, 144), float32. In memory it has the order in which the kernel
        reads it: [blocks of 32 channels][panels of 16 out_channels][channel][ky][kx][out_channel], with zeros
        beyond out_channels.

    Raises:
        RuntimeError: the weight has another shape or dtype.
    """
    check_conv3x3_pack(weight)
    panels, channels, numbers = packed_shape(*weight.shape[:2])
    scaled = weight / _filter_scale(weight.device)
    filled = F.pad(scaled, (0, 0, 0, 0, 0, 0, 0, panels * PANEL - weight.shape[0]))
    by_panel = filled.reshape(panels, PANEL, channels, 9).permute(0, 2, 3, 1)
    return torch.cat([part.flatten() for part in by_panel.split(DEPTH, 1)]).view(panels, channels, numbers)


def _unpack(packed: Tensor, out_channels: int) -> Tensor:
    """The weight from which :func:`conv3x3_pack` made ``packed``, up to rounding."""
    panels, channels, numbers = packed.shape
    depths = [min(DEPTH, channels - first) for first in range(0, channels, DEPTH)]
    parts = packed.flatten().split([depth * panels * numbers for depth in depths])
    by_panel = torch.cat([part.view(panels, -1, 3, 3, PANEL) for part in parts], 1)
    weight = by_panel.permute(0, 4, 1, 2, 3).reshape(-1, channels, 3, 3)[:out_channels]
    return weight * _filter_scale(packed.device)


def conv3x3(
    input: Tensor, packed: Tensor, bias: Tensor | None, out_channels: int, relu: bool = False
) -> Tensor:
    """A 3x3 convolution with stride 1 and padding 1, optionally with ReLU; for inference.

    Args:
        input: (N, channels, H, W), float32, any strides.
        packed: the weight, packed by :func:`conv3x3_pack`.
        bias: (out_channels,), float32, or None.
        out_channels: of the weight.
        relu: whether to apply ReLU to the outputs.

    Returns:
        (N, out_channels, H, W), float32, in channels_last.

    Raises:
        RuntimeError: an argument does not fit; the message names it.
    """
    check_conv3x3(input, packed, bias, out_channels)
    output = F.conv2d(input, _unpack(packed, out_channels), bias, padding=1)
    return laid_out(output.relu() if relu else output, torch.channels_last)
