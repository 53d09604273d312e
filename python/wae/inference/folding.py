"""Folds BatchNorm into the convolutions of a network, for inference."""

from __future__ import annotations

import copy
import inspect
import logging
from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wae.difference import relative_difference
from wae.models.network import WAENetwork, fold_normalization
from wae.models.plain import is_plain

from .precision import tolerance
from .tracing import put, traced

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_UNCHANGED = ("ndim", "shape", "dtype", "device")  # attributes of a result that folding does not change
_log = logging.getLogger(__name__)


def fold(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``model`` for inference, with BatchNorms folded into the convolutions before them.

    If torch.fx cannot trace the network, its parts are folded separately. If folding changes the scores of
    ``images``, (N, 3, H, W), the copy is not folded (the two normalisations of a WAE network are, into its
    encoder). A layer with a hook, pruned weights or the like is never folded, nor is a norm behind one.
    Compilers find most of the remaining norms later.
    """
    unfolded, folded = _copy(model), _folded(_copy(model))
    return folded if _has_the_scores_of(unfolded, folded, images) else unfolded


def _copy(model: nn.Module) -> nn.Module:
    return fold_normalization(model) if isinstance(model, WAENetwork) else copy.deepcopy(model).eval()


def _folded(network: nn.Module) -> nn.Module:
    """``network``, or a WAE network's two bodies, folded in place or replaced by their graphs."""
    if not isinstance(network, WAENetwork):
        return _fold_layers(network).eval()  # torch.fx makes modules in training mode
    for name in network.bodies:
        setattr(network, name, _fold_layers(getattr(network, name)))
    return network.eval()


@torch.no_grad()
def _has_the_scores_of(model: nn.Module, folded: nn.Module, images: Tensor) -> bool:
    try:
        expected = model(images.clone())  # cloned because a network may change its input
        difference = relative_difference(folded(images.clone()), expected)
    # a network may do more with a part than call it, update its buffers, or not take this number of images
    except Exception as error:
        _log.debug("%s is not folded: %s", type(model).__name__, error)
        return False
    return difference <= tolerance(expected.dtype, expected.device)


@torch.no_grad()
def _fold_layers(network: nn.Module) -> nn.Module:
    """The folded graph of ``network``; if it cannot be traced, ``network`` with its parts folded."""
    trace = traced(network)
    if trace is not None:
        _fold_graph(trace)
        return trace
    for name, part in list(network.named_children()):
        setattr(network, name, _fold_part(part))
    return network


def _fold_part(part: nn.Module) -> nn.Module:
    """``part``, folded. It keeps its class if possible, because the network may read its attributes."""
    trace = traced(part)
    if trace is None:
        return _fold_layers(part)
    layers = _fold_graph(trace)
    return part if put(part, layers) else trace


def _fold_graph(trace: fx.GraphModule) -> dict[str, nn.Module | None]:
    """Fold ``trace`` and remove the folded norms from it.

    Returns:
        The layers that would fold the traced network itself, by the names of the layers they replace. A value
        is None if no layer can: the norm is a function, or runs elsewhere too.
    """
    called = {x: trace.get_submodule(str(x.target)) for x in trace.graph.nodes if x.op == "call_module"}
    calls = Counter(map(id, called.values()))
    read = {id(_holder(trace, x)) for x in trace.graph.nodes if x.op == "get_attr"}
    layers: dict[str, nn.Module | None] = {}
    for node in list(trace.graph.nodes):
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before not in called:
            continue
        # a convolution must stay if it runs twice, or something else reads its result or its weights
        if calls[id(called[before])] > 1 or _readers(before) > 1 or id(called[before]) in read:
            continue
        norm = _norm(trace, node)
        fused = None if norm is None else _fused(called[before], norm)
        if fused is None:
            continue
        once = node in called and calls[id(called[node])] == 1
        layers |= {str(before.target): fused, str(node.target): nn.Identity().eval() if once else None}
        called[before] = fused
        trace.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        trace.graph.erase_node(node)
    trace.delete_all_unused_submodules()
    trace.recompile()
    return layers


def _readers(node: fx.Node) -> int:
    """How many nodes read the values of ``node``: timm's norms read the number of its dimensions too."""
    return sum(not (user.target is getattr and user.args[1] in _UNCHANGED) for user in node.users)


class _Norm(NamedTuple):
    """The arguments by which :func:`torch.nn.functional.batch_norm` normalises."""

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def _norm(trace: fx.GraphModule, node: fx.Node) -> _Norm | None:
    """What ``node`` normalises by; None unless it is a BatchNorm layer or function and nothing more."""
    if node.op == "call_module":
        layer = trace.get_submodule(str(node.target))
        if not isinstance(layer, _NORMS) or not is_plain(layer):
            return None
        given = {name: getattr(layer, name) for name in _Norm._fields}
    elif node.target is F.batch_norm:  # timm's layers call it
        bound = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
        bound.apply_defaults()
        if bound.arguments["training"] is not False:
            return None
        given = {name: _constant(trace, bound.arguments[name]) for name in _Norm._fields}
    else:
        return None
    if given["running_mean"] is None:  # it normalises by the statistics of the batch
        return None
    return None if any(isinstance(x, fx.Node) for x in given.values()) else _Norm(**given)


def _constant(trace: fx.GraphModule, argument: Any) -> Any:
    """The tensor that ``argument`` refers to; ``argument`` itself if it refers to none."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return argument
    return getattr(_holder(trace, argument), str(argument.target).rpartition(".")[2])


def _holder(trace: fx.GraphModule, tensor: fx.Node) -> nn.Module:
    """The module that holds the parameter or buffer ``tensor``."""
    return trace.get_submodule(str(tensor.target).rpartition(".")[0])


def _fused(convolution: nn.Module, norm: _Norm) -> nn.Module | None:
    """``convolution`` with ``norm`` folded into its weights; None if that is not possible."""
    if not isinstance(convolution, _CONVOLUTIONS + _TRANSPOSED) or not is_plain(convolution):
        return None
    transposed = isinstance(convolution, _TRANSPOSED)
    if transposed and convolution.groups > 1:  # PyTorch's function assumes one group
        return None
    fused = copy.deepcopy(convolution)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        fused.weight,
        fused.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transposed,
    )
    return fused
