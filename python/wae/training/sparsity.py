"""Keeps part of the weights at zero: the sparse phase of dense-sparse-dense training (arXiv 1607.04381)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Masks:
    """Masks over the convolutions and matrices of ``model`` that zero the smallest numbers of each.

    They are zeroed immediately. Masks created from a model that was trained with masks are the same.

    Args:
        model: only parameters that require gradients are pruned.
        share: the share of each weight tensor that becomes zero, 0..1.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        self._masks = [(weight, _mask(weight.detach(), share)) for weight in weights]
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the masked weights to zero again after a step of the optimizer."""
        for weight, mask in self._masks:
            weight.mul_(mask)


def _mask(weight: Tensor, share: float) -> Tensor:
    """Zeros for this share of the numbers, smallest first, and ones for the others.

    Of equal numbers the first ones are taken. A linear start leaves many zeros, of which some may be masked
    and some not. Those that are still zero after some training come after the masked ones.
    """
    mask = torch.ones_like(weight, memory_format=torch.contiguous_format)
    smallest = weight.abs().flatten().argsort(stable=True)[: round(share * weight.numel())]
    mask.view(-1)[smallest] = 0
    return mask
