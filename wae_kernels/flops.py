"""The floating-point operations of the ops: importing this makes torch's ``FlopCounterMode`` count them.

Only ``wae_kernels.triton`` imports this module, to count its own ops too: torch's counter imports Triton.

Operations are counted as torch counts those of its own convolutions: two for each multiply-add, including
those with padding zeros, and none for ReLU, bias, scale and shift. A backward pass counts the gradients that
it computes (one convolution for that of the input, one for that of the weight), not the intermediates that
our kernels recompute.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .checks import half_of
from .parameters import DecoderParameters, EncoderParameters, ScoreDecoderParameters, one_by_one

_Shape = Sequence[int]
_ops: Any = torch.ops.wae

# A formula takes the op's arguments, with shapes in place of tensors, and the shapes of the results by name.


def _layers(weights: Sequence[_Shape], batch: int, size: Sequence[int]) -> int:
    """Layers with these weights whose results (if they are transposed: whose inputs) have this size."""
    return 2 * batch * prod(size) * sum(map(prod, weights))


def _passes(need_input: bool, need_parameters: bool) -> int:
    """How often a backward pass runs the layers: for gradients of activations, and for those of weights."""
    return int(need_input or need_parameters) + int(need_parameters)


@register_flop_formula([_ops.encode, _ops.encode_int8])
@one_by_one
def encode(image: _Shape, parameters: EncoderParameters, *_others: object, **_: object) -> int:
    """The formula of ``wae::encode``; as it is registered, it takes tensors too."""
    p: Any = parameters
    batch, _channels, height, width = image
    half = half_of(height), half_of(width)
    full = _layers((p.conv1_weight, p.conv2_weight, p.conv3_weight), batch, (height, width))
    return full + _layers((p.low_weight, p.high_weight), batch, half)


@register_flop_formula(_ops.encode_backward)
def _encode_backward(grad_low: _Shape, grad_high: _Shape, *others: Any, **_: object) -> int:
    *inputs, need_image, need_parameters, need_scale = others
    return _passes(need_image or need_scale, need_parameters) * int(encode(*inputs))


def _decoded(low: _Shape, parameters: Any, output_size: Sequence[int]) -> int:
    batch, _channels, *half = low
    full = _layers((*parameters.trunk[::2], parameters.last[0]), batch, output_size)
    return full + _layers((parameters.low_weight, parameters.high_weight), batch, half)


@register_flop_formula(_ops.decode)
@one_by_one
def decode(
    low: _Shape, high: _Shape, parameters: DecoderParameters, output_size: Sequence[int], **_: object
) -> int:
    """The formula of ``wae::decode``; see :func:`encode`."""
    return _decoded(low, parameters, output_size)


@register_flop_formula(_ops.decode_backward)
def _decode_backward(grad_image: _Shape, *others: Any, **_: object) -> int:
    *inputs, need_input, need_parameters = others
    return _passes(need_input, need_parameters) * int(decode(*inputs, grad_image[2:]))


@register_flop_formula(_ops.decode_scores)
@one_by_one
def _decode_scores(
    low: _Shape, high: _Shape, parameters: ScoreDecoderParameters, output_size: Sequence[int], **_: object
) -> int:
    return _decoded(low, parameters, output_size)


@register_flop_formula(_ops.decode_scores_backward)
def _decode_scores_backward(grad_scores: _Shape, *others: Any, **_: object) -> int:
    *inputs, need_input, need_parameters = others
    return _passes(need_input, need_parameters) * int(_decode_scores(*inputs, grad_scores[2:]))


@register_flop_formula(_ops.conv3x3)
def _conv3x3(image: _Shape, packed: _Shape, bias: Any, out_channels: int, *_relu: bool, **_: object) -> int:
    batch, channels, *size = image
    return _layers([(out_channels, channels, 3, 3)], batch, size)
