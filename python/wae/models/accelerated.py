"""WAE around a trained network: its body becomes the low body, its last linear layer the low classifier.

The fusion classifier starts at zero. So before any training the scores are those of the network itself on an
image of half the size, provided that ``low`` is such an image.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.wording import shown
from wae_kernels.checks import half_of
from wae_kernels.nn import Decoder, Encoder
from wae_kernels.reference import normalize_image

from .around import PooledClassifier
from .bodies import feature_channels
from .classifier import WAEClassifier
from .evaluating import in_the_mode_of
from .last_layer import split_last_linear
from .light_cnn import high_body
from .network import WAENetwork
from .positions import fit_to


@dataclass(frozen=True)
class Form:
    """What the name of an accelerated network leaves open. Raises ValueError for an entry out of range."""

    size: int
    """Height and width of its images in pixels, 2 to 2048; the bodies see half of each."""
    factor: int = 4
    """By what the channels of the high body are divided, 1 to 64: see
    :func:`wae.models.light_cnn.high_body`."""

    def __post_init__(self) -> None:
        for name, least, most in (("size", 2, 2048), ("factor", 1, 64)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be an integer from {least} to {most}, got {shown(value)}")

    @property
    def half(self) -> tuple[int, int]:
        """(h, w) of ``low`` and ``high`` in pixels."""
        return (half_of(self.size),) * 2


def accelerated(network: nn.Module, form: Form) -> WAEClassifier:
    """WAE around a copy of ``network``, with a decoder and a random encoder.

    The result has the dtype and the device of the network's last layer, and the network's mode, training or
    evaluation.

    Args:
        network: a classifier that ends in a linear layer, (N, 3, H, W) to (N, classes).
        form: the size of the images and the factor of the high body.

    Raises:
        ValueError: the network does not run on images of half the size, or does not end in a linear layer.
    """
    body, linear = split_last_linear(fit_to(copy.deepcopy(network), form.half), form.half)
    light = high_body(body, form.factor, form.half)
    classes, features = linear.weight.shape
    low_classifier = PooledClassifier(features, classes)
    low_classifier.load_state_dict(_with_bias(linear))
    fusion_classifier = PooledClassifier(features + feature_channels(light, form.half), classes)
    nn.init.zeros_(fusion_classifier.weight)
    nn.init.zeros_(fusion_classifier.bias)
    like = linear.weight
    model = WAEClassifier(
        Encoder().to(like),
        body,
        light,
        low_classifier.to(like),
        fusion_classifier.to(like),
        decoder=Decoder().to(like),
    )
    return in_the_mode_of(body, model)


def _with_bias(linear: nn.Linear) -> dict[str, Tensor]:
    weight, bias = linear.weight, getattr(linear, "bias", None)  # a state_dict splits parametrised ones
    return {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}


@torch.no_grad()
def show_small_image(model: WAENetwork, images: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Set the normalisation of ``low`` so that the low network sees the small image that it was trained on.

    ``low`` is assumed to be a small image in other units. A gain and an offset for each colour are fitted, by
    least squares, so that they map ``low`` to the means of the 2 x 2 blocks of ``images * scale + shift``.
    The normalisation of ``high`` gets the statistics of ``high`` on ``images``.

    Args:
        model: the network whose two normalisations are set.
        images: (N, 3, H, W) uint8.
        scale, shift: those of the original network, (3,) each.

    Raises:
        ValueError: ``low`` is no small image: a colour is not positively correlated with it.
    """
    low, high = (part.double() for part in model.decompose(images))
    wanted = normalize_image(images, torch.float64, scale, shift)
    small = F.avg_pool2d(wanted, 2, ceil_mode=True)
    mean, centre = (x.mean((0, 2, 3), keepdim=True) for x in (low, small))
    covariance, variance = ((low - mean) * x for x in (small - centre, low - mean))
    gain = covariance.sum((0, 2, 3)) / variance.sum((0, 2, 3)).clamp_min(1e-30)
    if not bool((gain > 0).all()):
        raise ValueError("the auto-encoder's low is not a small image in the same colours")
    for norm, average, variance in (
        (model.low_norm, mean.flatten() - centre.flatten() / gain, gain.square().reciprocal()),
        (model.high_norm, high.mean((0, 2, 3)), high.var((0, 2, 3))),
    ):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(average)
        norm.running_var.copy_(variance - norm.eps * (norm is model.low_norm))
