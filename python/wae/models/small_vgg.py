"""The networks of ``wae reproduce``: small VGGs for 28 x 28 images and for photos, and WAE around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wae_kernels.nn import Decoder, Encoder
from wae_kernels.reference import normalize_image

from .around import PooledClassifier, wae_around
from .baselines import AtSize, FullResolution, HalfResolution
from .bodies import initialize
from .classifier import WAEClassifier
from .vgg16 import vgg_layers

_PHOTO_LAYERS: tuple[str | int, ...] = (32, "M", 48, 48, "M", 64, 64, "M", 128, 128, "M")
_PHOTO_SIDE = 64
_LAYERS: tuple[str | int, ...] = (32, "M", 64, 64, "M", 128, 128, "M")
_SIDE = 2  # height and width of a body's features for a 14 x 14 image; for 28 x 28 they are twice that
_WIDTH = 128  # of the classifiers' hidden layer

# They give Fashion-MNIST's training images, 0..255, zero mean and unit variance.
_SCALE = (1 / 90,) * 3
_SHIFT = (-73 / 90,) * 3


class SmallVGG(nn.Module):
    """A network for 28 x 28 images: five convolutions with BatchNorm, three max pools that round up, two FCs.

    Args:
        classes: the number of scores.
    """

    image_scale: Tensor
    image_shift: Tensor

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = small_vgg_body()
        self.classifier = _classifier(128 * (2 * _SIDE) ** 2, classes)
        self.register_buffer("image_scale", torch.tensor(_SCALE))
        self.register_buffer("image_shift", torch.tensor(_SHIFT))

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes), of ``image``: (N, 3, 28, 28), uint8 or floating point."""
        scale = self.image_scale
        image = normalize_image(image, scale.dtype, scale, self.image_shift)
        scores: Tensor = self.classifier(self.body(image))
        return scores


def small_vgg_body(divisor: int = 1) -> nn.Sequential:
    """The five convolutions with random weights: (N, 3, h, w) to (N, 128 / divisor, ceil(h/8), ceil(w/8)).

    Args:
        divisor: by what the numbers of channels are divided.
    """
    widths = [width if isinstance(width, str) else width // divisor for width in _LAYERS]
    return vgg_layers(widths, batch_norm=True, round_up=True).apply(initialize)


def small_vgg_half(classes: int = 10) -> HalfResolution:
    """The small VGG at half the resolution, 14 x 14 pixels."""
    network = nn.Sequential(small_vgg_body(), _classifier(128 * _SIDE**2, classes))
    return HalfResolution(network, _SCALE, _SHIFT)


def wae_small_vgg(classes: int = 10) -> WAEClassifier:
    """WAE around the small VGG. The bodies see 14 x 14 pixels; the high body has a quarter of the channels.

    It has a decoder, and each classifier has the form of the small VGG's.
    """
    low, high = 128 * _SIDE**2, 32 * _SIDE**2
    encoder, decoder = Encoder().apply(initialize), Decoder().apply(initialize)
    bodies = small_vgg_body(), small_vgg_body(divisor=4)
    classifiers = _classifier(low, classes), _classifier(low + high, classes)
    return WAEClassifier(encoder, *bodies, *classifiers, _SCALE, _SHIFT, decoder)


def _classifier(features: int, classes: int) -> nn.Sequential:
    layers = nn.Linear(features, _WIDTH), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(_WIDTH, classes)
    return nn.Sequential(nn.Flatten(), *layers)


# ---------------------------------------------------------------------------------------------- for photos


def small_photo_vgg_body() -> nn.Sequential:
    """Seven convolutions with BatchNorm and random weights: (N, 3, h, w) to (N, 128, h // 16, w // 16)."""
    return vgg_layers(_PHOTO_LAYERS, batch_norm=True).apply(initialize)


def small_photo_vgg(classes: int = 10) -> FullResolution:
    """A small VGG for photos of about 64 x 64, where it takes 70 M multiply-adds."""
    return FullResolution(_photo_network(classes))


def small_photo_vgg_half(classes: int = 10) -> HalfResolution:
    """:func:`small_photo_vgg` at half the resolution."""
    return HalfResolution(_photo_network(classes))


def small_photo_vgg_at(side: int, classes: int = 10) -> AtSize:
    """:func:`small_photo_vgg` on images scaled to ``side`` x ``side`` pixels."""
    return AtSize(_photo_network(classes), side)


def wae_small_photo_vgg(classes: int = 10) -> WAEClassifier:
    """WAE around :func:`small_photo_vgg`, with a decoder. The high body has a quarter of the channels."""
    encoder, decoder = Encoder().apply(initialize), Decoder().apply(initialize)
    side = _PHOTO_SIDE // 2
    return wae_around(
        small_photo_vgg_body(), classes=classes, encoder=encoder, decoder=decoder, size=(side, side)
    )


def _photo_network(classes: int) -> nn.Sequential:
    width = _PHOTO_LAYERS[-2]
    assert isinstance(width, int)
    return nn.Sequential(small_photo_vgg_body(), PooledClassifier(width, classes))
