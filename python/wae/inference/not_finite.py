"""Scores of images that are not finite: NaN in every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def finite_images(inputs: Sequence[Tensor], finite: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Which images have finite ``inputs``, (N,) bool. Call it before the network, which may change its input.

    Args:
        inputs: floating-point tensors, (N, ...) each.
        finite: returns which images of one of ``inputs`` are finite, (N,) bool; None for PyTorch's operators.
    """
    found = [finite(x) if finite else x.isfinite().flatten(1).all(1) for x in inputs]
    return torch.stack(found).all(0)


def nan_where_not_finite(scores: Tensor, are_finite: Tensor) -> Tensor:
    """``scores``, (N, ...), with NaN for every image that is not finite, according to :func:`finite_images`.

    The ReLU and the pooling of several engines turn NaN into a number, and a broken image would get ordinary
    scores.
    """
    return torch.where(are_finite.view(-1, *[1] * (scores.dim() - 1)), scores, torch.nan)


def finite_by_numpy(x: Tensor) -> Tensor:
    """Which images of ``x``, (N, 3, H, W) on the CPU, are finite, (N,) bool.

    NumPy runs on the calling thread only. PyTorch's other threads would spin afterwards, on cores that an
    engine needs for the next call.
    """
    numbers = x.float() if x.dtype == torch.bfloat16 else x  # NumPy has no bfloat16
    return torch.from_numpy(np.isfinite(numbers.detach().numpy()).all((1, 2, 3)))
