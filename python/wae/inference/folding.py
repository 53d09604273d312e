"""BatchNorm folded away: a network in the form that it has for inference."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wae.models.network import WAENetwork, fold_normalization
from wae.models.plain import is_plain

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_log = logging.getLogger(__name__)


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, its BatchNorms folded into the convolutions before them.

    In a network that torch.fx cannot trace its parts are folded, each by itself. What is hooked, pruned or
    the like stays, as does a norm behind such a convolution: compilers find most of them later.
    """
    if not isinstance(model, WAENetwork):
        return _fold_layers(copy.deepcopy(model).eval()).eval()
    folded = fold_normalization(model)
    for name in folded.bodies:
        setattr(folded, name, _fold_layers(getattr(folded, name)))
    return folded.eval()  # what torch.fx makes is in training mode


@torch.no_grad()
def _fold_layers(network: nn.Module) -> nn.Module:
    """``network``, changed; where torch.fx can trace it, its graph, in which no norm is called any more.

    The network itself is changed too, and keeps its class: a module around it may read its attributes.
    """
    if not any(isinstance(part, _NORMS) for part in network.modules()):
        return network
    traced = _traced(network)
    if traced is None:
        for part in network.children():
            _fold_layers(part)
        return network
    called = {x: traced.get_submodule(str(x.target)) for x in traced.graph.nodes if x.op == "call_module"}
    calls = Counter(map(id, called.values()))
    for node, norm in called.items():
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before not in called:
            continue
        # one that runs twice, or whose result something else reads, must stay as it is
        if calls[id(called[before])] > 1 or calls[id(norm)] > 1 or len(before.users) > 1:
            continue
        fused = _fused(called[before], norm)
        rest = None if fused is None else _without_norm(norm)
        if fused is None or rest is None:
            continue
        called[before] = fused
        for module in (network, traced):
            module.set_submodule(str(before.target), fused)
            module.set_submodule(str(node.target), rest)
        if isinstance(rest, nn.Identity):
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _traced(network: nn.Module) -> fx.GraphModule | None:
    """By torch.fx; None where it cannot, for it traces the class's own forward, and no hooks around that."""
    if not is_plain(network):
        return None
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # any that the network's own code raises when it is traced
        _log.debug("%s is folded part by part: %s", type(network).__name__, error)
        return None
    return fx.GraphModule(network, graph)


class _Tracer(fx.Tracer):
    """Norms are layers, whoever wrote them: timm's have an activation in them."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _NORMS) or super().is_leaf_module(module, name)


def _fused(convolution: nn.Module, norm: nn.Module) -> nn.Module | None:
    """``convolution`` with ``norm`` in its weights; None where that cannot be."""
    if not isinstance(convolution, _CONVOLUTIONS + _TRANSPOSED) or not isinstance(norm, _NORMS):
        return None
    if norm.running_mean is None:  # it normalises by the batch's own statistics
        return None
    if not is_plain(convolution) or not is_plain(norm):
        return None
    transposed = isinstance(convolution, _TRANSPOSED)
    if transposed and convolution.groups > 1:  # torch takes the channels of the results for all in one group
        return None
    return fuse_conv_bn_eval(convolution, norm, transposed)


def _without_norm(norm: nn.Module) -> nn.Module | None:
    """What ``norm`` does besides: nothing, or the layers that its class adds behind. None: more than that."""
    if type(norm) in _NORMS:
        return nn.Identity()
    traced = _traced(norm)
    if traced is None:
        return None
    for node in reversed(traced.graph.nodes):
        if node.target is torch._assert:  # what it reads is read by nothing else
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    chain = [node for node in traced.graph.nodes if node.op != "get_attr"]
    image, first, *layers, _ = chain
    in_a_row = all(after.args[0] is node for node, after in pairwise(chain)) and len(image.users) == 1
    if not in_a_row or first.target is not F.batch_norm or any(node.op != "call_module" for node in layers):
        return None
    behind = [traced.get_submodule(node.target) for node in layers]
    return nn.Sequential(*(layer for layer in behind if type(layer) is not nn.Identity))
