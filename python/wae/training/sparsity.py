"""Keeps part of the weights at zero: the sparse phase of dense-sparse-dense training (arXiv 1607.04381)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured


class Masks:
    """Masks over the convolutions and matrices of ``model`` that zero the smallest numbers of each.

    They are zeroed immediately. Masks created from a model to which masks were applied are the same.

    Args:
        model: only parameters that require gradients are pruned.
        share: the share of each weight tensor that becomes zero, 0..1.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        rule = L1Unstructured(float(share))  # an integer would mean a count
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        self._masks = [(weight, _mask(rule, weight.detach().contiguous())) for weight in weights]
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the masked weights to zero again after a step of the optimizer."""
        for weight, mask in self._masks:
            weight.mul_(mask)


def _mask(rule: L1Unstructured, weight: Tensor) -> Tensor:
    mask: Tensor = rule.compute_mask(weight, torch.ones_like(weight))
    return mask
