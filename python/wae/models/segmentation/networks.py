"""The segmentation networks by name, in three forms (:mod:`wae.models.registry`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from .enet import ENet
from .icnet import ICNet
from .libraries import pspnet
from .mobilenet_deconv import MobileNetDeconv
from .segmenter import FullResolutionSegmenter, HalfResolutionSegmenter, wae_segmenter

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "enet": ENet,
    "mobilenet_deconv": MobileNetDeconv,
    "mobilenet_deconv_compensated": partial(MobileNetDeconv, compensated=True),
    "icnet": ICNet,
    "pspnet_resnet18": pspnet,
}
"""The networks that are not torchvision's: constructors, with random weights, for a number of classes."""

CLASSES, SIDE = 21, 520
"""The classes of Pascal VOC, and the shorter side of its images, for which torchvision's were published."""


def builder(name: str) -> Callable[[int], nn.Module] | None:
    """The constructor, for a number of classes, of the network called ``name``; None if there is none."""
    from torchvision import models  # imported here because it takes long

    forms = (name, _full), (name.removesuffix("_half"), _half), (name.removeprefix("wae_"), _wae)
    for stem, form in forms:
        if stem in NETWORKS or stem in models.list_models(module=models.segmentation):
            return partial(form, stem)
    return None


def network(name: str, classes: int) -> nn.Module:
    """The network ``name`` itself, ours or torchvision's, with random weights, for normalised images.

    Raises ModuleNotFoundError if it needs a library that is not installed.
    """
    if name in NETWORKS:
        return NETWORKS[name](classes)
    from torchvision import models

    made: nn.Module = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return made


def _full(name: str, classes: int) -> nn.Module:
    return FullResolutionSegmenter(network(name, classes))


def _half(name: str, classes: int) -> nn.Module:
    return HalfResolutionSegmenter(network(name, classes))


def _wae(name: str, classes: int) -> nn.Module:
    return wae_segmenter(network(name, classes))
