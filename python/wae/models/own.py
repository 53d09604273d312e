"""A user's own network: what ``module:function`` returns, copied."""

from __future__ import annotations

import copy
import importlib
import os
import sys

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from wae.wording import first_line

from .plain import unwrapped
from .registry import NetworkError

_FINAL = {
    BasePruningMethod: "torch.nn.utils.prune.remove makes the pruning final",
    WeightNorm: "torch.nn.utils.remove_weight_norm makes the weights final, and networks with "
    "torch.nn.utils.parametrizations.weight_norm are taken as they are",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm makes the weights final, and networks with "
    "torch.nn.utils.parametrizations.spectral_norm are taken as they are",
}
"""Hooks that compute weights, and what to do about each, for an error."""


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
