"""Counting a network's parameters and multiply-adds.

Counted are the multiplications of convolutions and matrix products, one multiply-add each, those with padding
zeros included: the published way of counting. Torch's counter counts them; it is taught the fused ops here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from wae_kernels.checks import half_of

Shape = Sequence[int]


class Count(NamedTuple):
    """A network's parameters, and its multiply-adds on one image."""

    parameters: int
    multiply_adds: int


def count(network: nn.Module, size: Shape = (224, 224)) -> Count:
    """Count ``network``'s parameters, and its multiply-adds on one image of ``size`` (H, W).

    The network runs once, on the device it is on. One that was made under ``torch.device("meta")`` neither
    takes memory nor computes.
    """
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, *size, device=device))
    return Count(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)


@register_flop_formula(torch.ops.wae.encode)
def _encode_flops(
    image: Shape,
    conv1: Shape,
    conv1_bias: Shape,
    conv2: Shape,
    conv2_bias: Shape,
    conv3: Shape,
    conv3_bias: Shape,
    low: Shape,
    low_bias: Shape,
    high: Shape,
    high_bias: Shape,
    *affine: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    batch, _, height, width = image
    half = half_of(height) * half_of(width)
    full_resolution = (prod(conv1) + prod(conv2) + prod(conv3)) * height * width
    return 2 * batch * (full_resolution + (prod(low) + prod(high)) * half)


@register_flop_formula(torch.ops.wae.decode)
def _decode_flops(
    low: Shape,
    high: Shape,
    low_weight: Shape,
    low_bias: Shape,
    high_weight: Shape,
    high_bias: Shape,
    conv1: Shape,
    conv1_bias: Shape,
    conv2: Shape,
    conv2_bias: Shape,
    conv3: Shape,
    conv3_bias: Shape,
    output_size: Sequence[int],
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    batch, _, height, width = low
    full_resolution = (prod(conv1) + prod(conv2) + prod(conv3)) * prod(output_size)
    return 2 * batch * (full_resolution + (prod(low_weight) + prod(high_weight)) * height * width)
