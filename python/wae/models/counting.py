"""Counts a network's parameters and multiply-adds.

Each multiplication in a convolution or matrix product is one multiply-add, including those with padding
zeros, as in the paper. PyTorch's FlopCounterMode does the counting; ``wae_kernels.flops`` adds our ops to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .evaluating import evaluating

Shape = Sequence[int]


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Compute attention by matrix products, which are counted, instead of fused ops, which are not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Count(NamedTuple):
    """The size and the cost of a network."""

    parameters: int
    """The number of its parameters."""
    multiply_adds: int
    """The number of multiply-adds for one image."""


def count(network: nn.Module, size: Shape = (224, 224)) -> Count:
    """Count the parameters of ``network``, and its multiply-adds for one image of ``size`` (H, W).

    The network runs once, in evaluation mode, in its dtype and on its device, and is left unchanged. A
    network on "meta" needs no memory and computes nothing.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imported here because it imports Triton

    import wae_kernels.flops  # noqa: F401  (the import registers our ops)

    like = next(network.parameters(), torch.empty(0))
    image = torch.zeros(1, 3, *size, dtype=like.dtype, device=like.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), _plain_attention(), evaluating(network):
        network(image)
    return Count(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)
