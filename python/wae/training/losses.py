"""The losses of docs/network.md, and the quality measures reported with them."""

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
    """The transform loss l_t = l_r + lambda * l_e of the paper (arXiv 1712.07493).

    Args:
        decoded, image: (N, 3, H, W) floating point, in the same units.
        high: (N, 3, h, w) floating point.
        energy_weight: lambda.
    """
    decoded, image, high = map(_exact, (decoded, image, high))
    reconstruction = F.mse_loss(decoded, image)
    energy = high.square().mean()
    return TransformLoss(reconstruction + energy_weight * energy, reconstruction, energy)


def _exact(x: Tensor) -> Tensor:
    """``x`` in float32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def class_weights(shares: Tensor, balance: float) -> Tensor:
    """``1 / ln(balance + share)`` for each class, as in ENet (Paszke et al. 2016, with 1.02).

    Args:
        shares: (classes,) floating point, the share of each class among the pixels.
        balance: above 1.
    """
    return (balance + shares).log().reciprocal()


def weight_of(labels: Tensor, weights: Tensor | None = None) -> float:
    """The number of counted labels, or the sum of their ``weights``: see :func:`cross_entropy`."""
    counted = labels[labels != NOT_COUNTED]
    return float(len(counted) if weights is None else weights[counted].sum())


def cross_entropy(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    whole: float | None = None,
) -> Tensor:
    """The mean cross entropy over all counted labels, a scalar; zero if there are none.

    Args:
        scores: (N, classes, ...) floating point.
        labels: (N, ...) int64; :data:`wae.data.dataset.NOT_COUNTED` is ignored.
        weights: the weight of each class, (classes,); None for equal weights.
        smoothing: label smoothing, 0..1.
        whole: what the sum is divided by, at least 0; None for :func:`weight_of` these labels.
    """
    total = F.cross_entropy(scores, labels, weights, reduction="sum", label_smoothing=smoothing)
    whole = weight_of(labels, weights) if whole is None else whole
    return total / max(whole, torch.finfo(torch.float32).tiny)


def mimic_loss(scores: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """The distance of ``scores`` from those of a teacher, the loss of knowledge distillation; a scalar.

    It is the Kullback-Leibler divergence of the two distributions after both scores are divided by
    ``temperature``, times its square, which keeps the size of the gradients (Hinton et al., arXiv
    1503.02531). It is averaged over all images or all pixels.

    Args:
        scores: (N, classes, ...) floating point.
        wanted: the teacher's scores, of the same shape.
        temperature: above 0.
    """
    # Autocast on a CPU would compute the logarithms in 16 bits, whose rounding hides the distance of a
    # student that is near its teacher.
    ours, theirs = (F.log_softmax(_exact(x) / temperature, dim=1) for x in (scores, wanted))
    total = F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return total / ours[:, 0].numel() * temperature**2


def psnr(image: Tensor, reference: Tensor, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB, infinite if the two are equal.

    They have the same shape and any dtypes.
    """
    error = (image.double() - reference.double()).square().mean()
    return float(10 * torch.log10(peak**2 / error))


def energy_ratio(low: Tensor, high: Tensor) -> float:
    """The mean square of ``high`` divided by the mean variance of the channels of ``low``; both (N, 3, h, w).

    The mean of ``low`` is subtracted because a constant carries no information. The result is therefore at
    least the plain ratio of mean squares, and a bound on it bounds both.
    """
    low = low.double()
    variance = (low - low.mean((0, 2, 3), keepdim=True)).square().mean()
    return float(high.double().square().mean() / variance)
