"""BatchNorm folded away: a network in the form that it has for inference."""

from __future__ import annotations

import copy
import logging
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils import fusion

from wae.models.network import WAENetwork, fold_normalization

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_log = logging.getLogger(__name__)


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, its BatchNorms folded into the layers before them.

    In a network that torch.fx cannot trace they stay: compilers find most of them later.
    """
    if not isinstance(model, WAENetwork):
        return _fold_layers(copy.deepcopy(model)).eval()
    folded = fold_normalization(model)
    for name in folded.bodies:
        setattr(folded, name, _fold_layers(getattr(folded, name)))
    return folded.eval()  # what torch.fx makes is in training mode


def _fold_layers(network: nn.Module) -> nn.Module:
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:  # any that the network's own code raises when it is traced
        _log.debug("BatchNorm stays in %s: %s", type(network).__name__, error)
        return network
    modules = dict(traced.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        layer, before = modules.get(str(node.target)), node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(layer, _NORMS) or not isinstance(before, fx.Node):
            continue
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        # one that runs twice, or whose result something else reads, must stay as it is
        if convolution is None or calls[id(convolution)] > 1 or len(before.users) > 1:
            continue
        fused = _fused(convolution, layer)
        if fused is not None:
            traced.set_submodule(str(before.target), fused)
            modules[str(before.target)] = fused
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


@torch.no_grad()
def _fused(layer: nn.Module, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> nn.Module | None:
    """``norm`` after ``layer`` as one layer; None where that cannot be."""
    if norm.running_mean is None:  # it normalises by the batch's own statistics
        return None
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return fusion.fuse_conv_bn_eval(layer, norm)
    if isinstance(layer, nn.Linear):
        return fusion.fuse_linear_bn_eval(layer, norm)
    return None
