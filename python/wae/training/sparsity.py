"""Keeping part of the weights at zero: the sparse phase of dense-sparse-dense training (arXiv 1607.04381)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured


class Masks:
    """Which weights of ``model``'s convolutions and matrices stay: all but each one's smallest.

    The smallest are set to zero at once. Made again from a model whose masks are applied, it is the same.

    Args:
        model: only what takes gradients is pruned.
        share: of the numbers of each weight that become zero, 0..1.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        rule = L1Unstructured(float(share))  # it would take an integer for a count
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        self._masks = [(weight, _mask(rule, weight.detach().contiguous())) for weight in weights]
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the masked weights to zero again, after a step of the optimizer."""
        for weight, mask in self._masks:
            weight.mul_(mask)


def _mask(rule: L1Unstructured, weight: Tensor) -> Tensor:
    mask: Tensor = rule.compute_mask(weight, torch.ones_like(weight))
    return mask
