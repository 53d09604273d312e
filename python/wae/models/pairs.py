"""A network as its users have it, paired with WAE around it."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from wae.wording import first_line
from wae_kernels.checks import half_of

from .accelerated import scores_of_one
from .around import wae_around
from .baselines import FullResolution
from .bodies import standard_body, without_classifier
from .classifier import WAEClassifier
from .plain import unwrapped
from .registry import NetworkError, builder

_CLASSES = 1000  # ImageNet's
_FINAL = {
    BasePruningMethod: "torch.nn.utils.prune.remove makes the pruning final",
    WeightNorm: "torch.nn.utils.remove_weight_norm makes the weights final, and networks with "
    "torch.nn.utils.parametrizations.weight_norm are taken as they are",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm makes the weights final, and networks with "
    "torch.nn.utils.parametrizations.spectral_norm are taken as they are",
}
"""Hooks that compute weights, and what to do about each, for an error."""

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
        size: (H, W) of the images that the function's network takes.

    Raises:
        NetworkError: there is no such network, or WAE cannot be built around it.
    """
    torch.manual_seed(0)
    try:
        stock, wae = _own(source, size) if ":" in source else _named(source)
    except NetworkError:
        raise
    except (ValueError, ModuleNotFoundError) as error:
        raise NetworkError(f"WAE cannot be built around {source}: {error}") from error
    return Pair(source, stock.eval(), wae.eval())


def _named(name: str) -> tuple[nn.Module, WAEClassifier]:
    make, make_wae = builder(name), builder(f"wae_{name}")
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


def own_network(source: str) -> nn.Module:
    """A copy of the network that ``module:function`` returns, called without arguments.

    Raises NetworkError if it cannot be called or returns no module, and as :func:`own_copy` does.
    """
    module, _, function = source.partition(":")
    if os.getcwd() not in sys.path:  # console scripts leave it out
        sys.path.append(os.getcwd())
    try:
        stock = getattr(importlib.import_module(module), function)()
    except Exception as error:  # the user's own code may raise anything
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise NetworkError(f"{source} cannot be called: {kind}{first_line(error)}") from error
    if not isinstance(stock, nn.Module):
        raise NetworkError(f"{source} must return a torch.nn.Module, got {type(stock).__name__}")
    return own_copy(source, stock)


def own_copy(name: str, network: nn.Module) -> nn.Module:
    """A copy of a user's ``network`` in float32, on the CPU, without wrappers.

    Raises NetworkError, which starts with ``name``, if the network cannot be copied or no file could hold it.
    """
    plain: nn.Module = unwrapped(network)
    if any(isinstance(module, torch.jit.ScriptModule) for module in plain.modules()):
        raise NetworkError(
            f"{name} must consist of Python modules, got a TorchScript module: pass the network as it was "
            "before torch.jit.script or torch.jit.trace"
        )
    try:
        copied = copy.deepcopy(plain).cpu().float()
    except Exception as error:  # pruned weights are computed from others; meta tensors have no values
        raise NetworkError(f"{name} cannot be copied: {first_line(error)}{_way_to_copy(plain)}") from error
    for key, value in copied.state_dict().items():
        if not isinstance(value, Tensor):
            raise NetworkError(
                f"{name} must have only tensors in its state, got {key}: {type(value).__name__}"
            )
    return copied


def _way_to_copy(network: nn.Module) -> str:
    """How computed weights become parameters, for the end of a sentence; "" if there is no known hook."""
    hooks = [hook for module in network.modules() for hook in module._forward_pre_hooks.values()]
    for kind, way in _FINAL.items():
        if any(isinstance(hook, kind) for hook in hooks):
            return f"; {way}"
    return ""


def _own(source: str, size: tuple[int, int]) -> tuple[nn.Module, WAEClassifier]:
    stock = own_network(source)
    body = without_classifier(copy.deepcopy(stock))
    classes = scores_of_one(stock, size).shape[1]
    height, width = size
    return stock, wae_around(body, classes=classes, size=(half_of(height), half_of(width)))
