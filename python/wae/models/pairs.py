"""A network as its users have it, paired with WAE around it."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn

from wae_kernels.checks import half_of

from .around import wae_around
from .baselines import FullResolution
from .bodies import standard_body, without_classifier
from .classifier import WAEClassifier
from .last_layer import example_scores
from .own import own_network
from .registry import NetworkError, builder

_CLASSES = 1000  # ImageNet's
KNOWN = "a NAME in torchvision or timm, small_vgg, or MODULE:FUNCTION of your own"
"""The networks that have a pair, for an error."""


class Pair(NamedTuple):
    """A network and WAE around it, in evaluation mode and with the same number of classes."""

    name: str
    """The ``source`` of :func:`pair`."""
    stock: nn.Module
    wae: WAEClassifier

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Both networks, as "stock" and "wae"."""
        return {"stock": self.stock, "wae": self.wae}


def pair(source: str, size: tuple[int, int] = (224, 224)) -> Pair:
    """The network that ``source`` names, and WAE around it. Named networks have random weights.

    Sets the seed of torch's random numbers to 0, so that the weights are the same in every call.

    Args:
        source: the name of a classifier in torchvision or timm, or ``small_vgg``; or ``module:function``,
            which is imported (also from the current folder) and called without arguments. It returns the
            network, which keeps its weights; its classifier must have one of torchvision's names: see
            :func:`wae.models.bodies.without_classifier`.
        size: (H, W) of the images.

    Raises:
        NetworkError: there is no such network, or WAE cannot be built around it.
    """
    torch.manual_seed(0)
    try:
        stock, wae = (_own if ":" in source else _named)(source, size)
    except NetworkError:
        raise
    except (ValueError, ModuleNotFoundError) as error:
        raise NetworkError(f"WAE cannot be built around {source}: {error}") from error
    return Pair(source, stock.eval(), wae.eval())


def _named(name: str, size: tuple[int, int]) -> tuple[nn.Module, WAEClassifier]:
    make, make_wae = builder(name), builder(f"wae_{name}", size)
    if make is not None and make_wae is not None:
        stock, wae = make(_CLASSES), make_wae(_CLASSES)
        if not isinstance(wae, WAEClassifier):
            raise NetworkError(f"{name} scores pixels; a classifier is needed: {KNOWN}")
        return (stock.network if isinstance(stock, FullResolution) else stock), wae
    try:
        body = standard_body(name)
    except (ValueError, ModuleNotFoundError):
        raise NetworkError(f"there is no network {name}; need {KNOWN}") from None
    import timm

    return timm.create_model(name, num_classes=_CLASSES), wae_around(body, classes=_CLASSES)


def _own(source: str, size: tuple[int, int]) -> tuple[nn.Module, WAEClassifier]:
    stock = own_network(source)
    body = without_classifier(copy.deepcopy(stock))
    classes = example_scores(stock, size).shape[1]
    height, width = size
    return stock, wae_around(body, classes=classes, size=(half_of(height), half_of(width)))
