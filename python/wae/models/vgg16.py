"""WAE-VGG16 as published (docs/network.md). Its low body has the parameters of torchvision's VGG16.

torchvision itself is not imported, because the import takes longer than a prediction by a small network.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from wae_kernels.nn import Encoder

from .bodies import initialize
from .classifier import FlatClassifier, WAEClassifier

_SIDE = 4  # height and width of the bodies' features for a 112 x 112 image
_WIDTHS = (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M")


def vgg_layers(
    widths: Sequence[int | str], batch_norm: bool = False, round_up: bool = False
) -> nn.Sequential:
    """VGG's 3 x 3 convolutions with ReLU and 2 x 2 max pools: (N, 3, h, w) to features, (N, C, h', w').

    The parameters have the names of ``features`` in torchvision's VGGs, and PyTorch's default
    initialisation.

    Args:
        widths: the output channels of each convolution; "M" is a max pool.
        batch_norm: put BatchNorm behind every convolution.
        round_up: round odd sizes up in the pools, so that the last row and column are kept.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=round_up))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
        channels = width
    return nn.Sequential(*layers)


def vgg16_body(divisor: int = 1) -> nn.Sequential:
    """VGG16's 13 convolutions: (N, 3, h, w) to (N, 512 / divisor, ceil(h/32), ceil(w/32)).

    The parameters have the names of ``torchvision.models.vgg16().features``. If ``divisor`` is 1 they have
    its shapes too, and its weights can be loaded. The max pools round up, unlike torchvision's.

    Args:
        divisor: by what the published numbers of channels are divided.
    """
    return vgg_layers([w if isinstance(w, str) else w // divisor for w in _WIDTHS], round_up=True)


def wae_vgg16(
    classes: int = 1000,
    encoder: Encoder | None = None,
    image_scale: Sequence[float] = (1.0, 1.0, 1.0),
    image_shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> WAEClassifier:
    """WAE-VGG16 with random weights, for images of 224 x 224 (193 to 256 pixels a side fit as well).

    Args:
        classes: the number of scores.
        encoder: a trained encoder; None for a random one.
        image_scale, image_shift: see :class:`WAEClassifier`. By default the image is not changed, 0..255. The
            published model takes blue, green, red; ``wae import-caffe`` converts it to red, green, blue.
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
