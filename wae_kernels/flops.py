"""The floating-point operations of the ops: importing this makes torch's ``FlopCounterMode`` count them.

The package does not import this module, because torch's counter imports Triton.

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


def _trunk(weights: Sequence[_Shape], batch: int, size: Sequence[int]) -> int:
    return 2 * batch * prod(size) * sum(map(prod, weights))


@one_by_one
def _encode(image: _Shape, parameters: EncoderParameters, *_others: object) -> int:
    p: Any = parameters  # shapes in place of the op's tensors
    batch, _, height, width = image
    half = half_of(height), half_of(width)
    full = _trunk((p.conv1_weight, p.conv2_weight, p.conv3_weight), batch, (height, width))
    return full + _trunk((p.low_weight, p.high_weight), batch, half)


@one_by_one
def _decode(low: _Shape, high: _Shape, parameters: DecoderParameters, output_size: Sequence[int]) -> int:
    return _decoded(low, parameters, output_size)


@one_by_one
def _decode_scores(
    low: _Shape, high: _Shape, parameters: ScoreDecoderParameters, output_size: Sequence[int]
) -> int:
    return _decoded(low, parameters, output_size)


def _decoded(low: _Shape, p: Any, output_size: Sequence[int]) -> int:
    batch, _, *half = low
    full = _trunk((*p.trunk[::2], p.last[0]), batch, output_size)
    return full + _trunk((p.low_weight, p.high_weight), batch, half)


def _passes(need_input: bool, need_parameters: bool) -> int:
    """How often a backward pass runs the layers: for gradients of activations, and for those of weights."""
    return int(need_input or need_parameters) + int(need_parameters)


def _register() -> None:
    ops: Any = torch.ops.wae

    @register_flop_formula(ops.encode)
    def encode(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return int(_encode(*shapes))

    @register_flop_formula(ops.encode_int8)
    def encode_int8(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return int(_encode(*shapes))

    @register_flop_formula(ops.decode)
    def decode(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return int(_decode(*shapes))

    @register_flop_formula(ops.decode_scores)
    def decode_scores(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return int(_decode_scores(*shapes))

    @register_flop_formula(ops.encode_backward)
    def encode_backward(low: _Shape, high: _Shape, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
        *inputs, need_image, need_parameters, need_scale = shapes
        return _passes(need_image or need_scale, need_parameters) * int(_encode(*inputs))

    @register_flop_formula(ops.decode_backward)
    def decode_backward(image: _Shape, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
        *inputs, need_input, need_parameters = shapes
        return _passes(need_input, need_parameters) * int(_decode(*inputs, image[2:]))

    @register_flop_formula(ops.decode_scores_backward)
    def decode_scores_backward(scores: _Shape, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
        *inputs, need_input, need_parameters = shapes
        return _passes(need_input, need_parameters) * int(_decode_scores(*inputs, scores[2:]))

    @register_flop_formula(ops.conv3x3)
    def conv3x3(
        image: _Shape, packed: _Shape, bias: Any, out_channels: int, *_: Any, out_shape: Any = None, **__: Any
    ) -> int:
        batch, channels, height, width = image
        return 2 * batch * height * width * 9 * channels * out_channels


_register()
