"""BatchNorm folded away: a network in the form that it has for inference."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wae.models.network import WAENetwork, fold_normalization
from wae.models.plain import is_plain

from .tracing import traced

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, its BatchNorms folded into the convolutions before them.

    In a network that torch.fx cannot trace they stay, as do those that are hooked, pruned or the like, or
    behind such a convolution: compilers find most of them later.
    """
    if not isinstance(model, WAENetwork):
        return _fold_layers(copy.deepcopy(model)).eval()
    folded = fold_normalization(model)
    for name in folded.bodies:
        setattr(folded, name, _fold_layers(getattr(folded, name)))
    return folded.eval()  # what torch.fx makes is in training mode


@torch.no_grad()
def _fold_layers(network: nn.Module) -> nn.Module:
    trace = traced(network)
    if trace is None:
        return network
    called = {x: trace.get_submodule(str(x.target)) for x in trace.graph.nodes if x.op == "call_module"}
    calls = Counter(map(id, called.values()))
    for node, norm in called.items():
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before not in called:
            continue
        # one that runs twice, or whose result something else reads, must stay as it is
        if calls[id(called[before])] > 1 or len(before.users) > 1:
            continue
        fused = _fused(called[before], norm)
        if fused is None:
            continue
        called[before] = fused
        trace.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        trace.graph.erase_node(node)
    trace.delete_all_unused_submodules()
    trace.recompile()
    return trace


def _fused(convolution: nn.Module, norm: nn.Module) -> nn.Module | None:
    """``norm`` after ``convolution`` as one layer; None where that cannot be."""
    if not isinstance(convolution, _CONVOLUTIONS) or not isinstance(norm, _NORMS):
        return None
    if norm.running_mean is None:  # it normalises by the batch's own statistics
        return None
    if not is_plain(convolution) or not is_plain(norm):
        return None
    return fuse_conv_bn_eval(convolution, norm)
