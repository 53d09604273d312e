"""The losses of docs/network.md, and the measures reported beside them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wae.data.dataset import NOT_COUNTED


class TransformLoss(NamedTuple):
    """``total = reconstruction + energy_weight * energy``, three scalars that carry gradients."""

    total: Tensor
    reconstruction: Tensor
    energy: Tensor


def transform_loss(decoded: Tensor, image: Tensor, high: Tensor, energy_weight: float) -> TransformLoss:
    """The transform loss l_t = l_r + lambda * l_e.

    Args:
        decoded, image: (N, 3, H, W), in the same units.
        high: (N, 3, h, w).
        energy_weight: lambda.
    """
    reconstruction = F.mse_loss(decoded, image)
    energy = high.square().mean()
    return TransformLoss(reconstruction + energy_weight * energy, reconstruction, energy)


def class_weights(shares: Tensor, balance: float) -> Tensor:
    """``1 / ln(balance + share)`` of each class, whose shares of the pixels are ``shares``; ``balance`` is
    above 1. ENet's (Paszke et al. 2016, with 1.02)."""
    return (balance + shares).log().reciprocal()


def cross_entropy(
    scores: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """The mean cross entropy of what is counted; zero where nothing is.

    Args:
        scores: (N, classes, ...).
        labels: (N, ...) int64; :data:`wae.data.dataset.NOT_COUNTED` is not counted.
        weights: how much each class counts, (classes,); None for all the same.
        smoothing: of the labels.
    """
    total = F.cross_entropy(scores, labels, weights, reduction="sum", label_smoothing=smoothing)
    counted = labels[labels != NOT_COUNTED]
    count = counted.new_tensor(len(counted)) if weights is None else weights[counted].sum()
    return total / count.clamp(min=torch.finfo(torch.float32).tiny)


def mimic_loss(scores: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """How far ``scores`` are from a teacher's, (N, classes, ...) both: the two distributions' divergence
    (Kullback and Leibler's), both scores divided by ``temperature``, times its square, which keeps the
    gradients' size. The mean of all images, or of all pixels.
    """
    ours, theirs = (F.log_softmax(x / temperature, dim=1) for x in (scores, wanted))
    total = F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return total / ours[:, 0].numel() * temperature**2


def psnr(image: Tensor, reference: Tensor, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB: infinite where the two are equal. Any dtypes, one shape."""
    error = (image.double() - reference.double()).square().mean()
    return float(10 * torch.log10(peak**2 / error))


def energy_ratio(low: Tensor, high: Tensor) -> float:
    """Mean square of ``high`` over that of ``low`` about its mean, colour by colour.

    The mean is left out of ``low`` because a constant carries nothing; so this is larger than the plain
    ratio of mean squares, and a bound on it bounds both. Shapes (N, 3, h, w).
    """
    low = low.double()
    variance = (low - low.mean((0, 2, 3), keepdim=True)).square().mean()
    return float(high.double().square().mean() / variance)
