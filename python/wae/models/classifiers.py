"""Every classifier that can be trained, saved and evaluated, by its name.

Besides those in :data:`NETWORKS` there are four forms of each classifier NAME of torchvision:

- ``NAME``: itself, on images of 0..255,
- ``NAME_half``: at half the resolution,
- ``wae_NAME``: WAE around it,
- ``wavelet_NAME``: the same with the Haar transform in the encoder's place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision import models

from .around import wae_around
from .baselines import FullResolution, HalfResolution, vgg16_half, wavelet_cnn
from .classifier import WAEClassifier
from .resnet50 import wae_resnet50
from .small_vgg import SmallVGG, small_vgg_half, wae_small_vgg
from .vgg16 import wae_vgg16

Builder = Callable[[int], nn.Module]
"""Makes a network with random weights for a number of classes."""

_SEVERAL_OUTPUTS = {"googlenet", "inception_v3"}  # in training


def small_vgg(classes: int = 10) -> SmallVGG:
    """The small VGG, at full resolution."""
    return SmallVGG(classes)


NETWORKS: dict[str, Builder] = {
    build.__name__: build
    for build in (wae_vgg16, wae_resnet50, wae_small_vgg, small_vgg, small_vgg_half, vgg16_half)
}
"""The networks with a constructor of their own."""


def builder(name: str) -> Builder | None:
    """The constructor of the network called ``name``; None where there is none."""
    if name in NETWORKS:
        return NETWORKS[name]
    kind, _, base = name.partition("_")
    if kind == "wavelet":
        around = builder(f"wae_{base}")
        return None if around is None else partial(_wavelet, around)
    for stem, make in ((name, _full), (name.removesuffix("_half"), _half), (name.removeprefix("wae_"), _wae)):
        if stem in torchvision_names():
            return partial(make, stem)
    return None


def torchvision_names() -> list[str]:
    """The classifiers of torchvision that can be trained here: those with one output."""
    return [name for name in models.list_models(module=models) if name not in _SEVERAL_OUTPUTS]


def _full(name: str, classes: int) -> nn.Module:
    return FullResolution(models.get_model(name, num_classes=classes))


def _half(name: str, classes: int) -> nn.Module:
    return HalfResolution(models.get_model(name, num_classes=classes))


def _wae(name: str, classes: int) -> nn.Module:
    return wae_around(name, classes=classes)


def _wavelet(around: Builder, classes: int) -> nn.Module:
    model = around(classes)
    assert isinstance(model, WAEClassifier)
    return wavelet_cnn(model)
