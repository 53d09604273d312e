"""WAE-VGG16 as published (docs/network.md), from torchvision's definition of VGG16."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from wae_kernels.nn import Encoder

from .bodies import initialize
from .classifier import FlatClassifier, WAEClassifier

_SIDE = 4  # of the features that the bodies make of a 112 x 112 image


def vgg16_body(divisor: int = 1) -> nn.Sequential:
    """VGG16's 13 convolutions: (N, 3, h, w) to (N, 512 / divisor, ceil(h/32), ceil(w/32)).

    The parameters have the names and, where ``divisor`` is 1, the shapes of ``torchvision.models.vgg16()
    .features``, whose weights can be loaded into it. Its max pools round up, unlike torchvision's.

    Args:
        divisor: what the published numbers of channels are divided by.
    """
    body: nn.Sequential = make_layers([c if isinstance(c, str) else c // divisor for c in cfgs["D"]])
    for layer in body:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return body


def wae_vgg16(
    classes: int = 1000,
    encoder: Encoder | None = None,
    image_scale: Sequence[float] = (1.0, 1.0, 1.0),
    image_shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> WAEClassifier:
    """WAE-VGG16 with random weights, for images of 224 x 224 (193 to 256 pixels a side fit as well).

    Args:
        classes: number of scores.
        encoder: a trained one; None for a random one.
        image_scale, image_shift: see :class:`WAEClassifier`. By default the image is taken as it is,
            0..255. The published model takes blue, green, red; ``wae import-caffe`` turns it to red, green,
            blue.
    """
    low_body, high_body = vgg16_body(), vgg16_body(divisor=4)
    for body in (low_body, high_body):
        body.apply(initialize)
    low_features, high_features = 512 * _SIDE**2, 128 * _SIDE**2
    return WAEClassifier(
        Encoder() if encoder is None else encoder,
        low_body,
        high_body,
        FlatClassifier(low_features, 1024, classes),
        FlatClassifier(low_features + high_features, 2048, classes),
        image_scale,
        image_shift,
    )
