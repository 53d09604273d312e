"""Counting a network's parameters and multiply-adds.

Counted are the multiplications of convolutions and matrix products, one multiply-add each, those with padding
zeros included: the published way of counting. Torch's counter counts them, ours too
(`wae_kernels.flops`).
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
    """Within it attention is made of matrix products, which are counted; fused ops are not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Count(NamedTuple):
    """A network's parameters, and its multiply-adds on one image."""

    parameters: int
    multiply_adds: int


def count(network: nn.Module, size: Shape = (224, 224)) -> Count:
    """Count ``network``'s parameters, and its multiply-adds on one image of ``size`` (H, W).

    The network runs once, in its dtype, on the device it is on, in evaluation mode, and stays as it was. One
    that was made under ``torch.device("meta")`` neither takes memory nor computes.
    """
    from torch.utils.flop_counter import FlopCounterMode  # here, as it takes long: it imports Triton

    import wae_kernels.flops  # noqa: F401  (importing it has the ops counted)

    like = next(network.parameters())
    image = torch.zeros(1, 3, *size, dtype=like.dtype, device=like.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), _plain_attention(), evaluating(network):
        network(image)
    return Count(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)
