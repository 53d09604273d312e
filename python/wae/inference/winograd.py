"""3 x 3 convolutions in Winograd's form: the engine ``winograd`` of :mod:`wae.inference.engines`.

Libraries for processors compute a float32 convolution directly. Winograd's F(4x4, 3x3) needs a quarter of the
multiplications (docs/kernels.md); the op ``wae::conv3x3`` does it, with bias and ReLU, on weights that are
packed once.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from wae.models.plain import is_plain
from wae_kernels.nn import Encoder, ScoreDecoder

from .tracing import put, traced

_FEW_CHANNELS = 3  # so many the op convolves directly
_LEAST_CHANNELS = 16  # what it works on at a time else; with fewer, most of its work would be on zeros


class Convolution(nn.Module):
    """``convolution``, 3 x 3 with stride and padding 1, for inference; with ``relu``, that behind it too."""

    packed: Tensor
    out_channels: int

    def __init__(self, convolution: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        for name in nn.Conv2d.__constants__:  # in_channels, stride, ...: which modules ask for
            setattr(self, name, getattr(convolution, name))
        self.register_buffer("packed", torch.ops.wae.conv3x3_pack(convolution.weight.detach()))
        self.bias = None if convolution.bias is None else nn.Parameter(convolution.bias.detach(), False)
        self.relu, self._shape = relu, convolution.weight.shape

    @property
    def weight(self) -> Tensor:
        """In its shape, dtype and device, which modules ask for, but of NaN: to compute with it shows."""
        return self.packed.new_full((), torch.nan).expand(self._shape)

    def forward(self, input: Tensor) -> Tensor:  # PyTorch's name, by which it may be called
        """(N, C, h, w) float32 to (N, K, h, w), channels_last."""
        y: Tensor = torch.ops.wae.conv3x3(input, self.packed, self.bias, self.out_channels, self.relu)
        return y


def replaced(network: nn.Module) -> nn.Module:
    """A copy of ``network``, in evaluation mode, with a :class:`Convolution` in place of all that it can be.

    A ReLU becomes part of the convolution before it, where nothing else reads that one's result and torch.fx
    can trace the module that holds the two.
    """
    with torch.autocast("cpu", enabled=False):  # weights are packed as they are
        return _replaced(copy.deepcopy(network)).eval()


def _replaced(network: nn.Module) -> nn.Module:
    for holder, name, part, trace in list(_traceable(network)):
        layers = _join(trace)
        if holder is None:
            network = trace
        elif not put(part, layers):
            setattr(holder, name, trace)
    for parent in [module for module in network.modules() if not _is_an_op(module)]:
        for name, child in list(parent.named_children()):
            if fits(child):
                setattr(parent, name, Convolution(child, relu=False))
    return network


def fits(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether ``wae::conv3x3`` can compute ``layer``, and is fast at its number of input channels."""
    return (
        type(layer) is nn.Conv2d
        and is_plain(layer)
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.weight.dtype == torch.float32
        and not _FEW_CHANNELS < layer.in_channels < _LEAST_CHANNELS
    )


def _traceable(module: nn.Module) -> Iterator[tuple[nn.Module | None, str, nn.Module, fx.GraphModule]]:
    """The largest parts of ``module`` that hold convolutions and torch.fx can trace: their places, they
    themselves, and their traces."""
    parts: list[tuple[nn.Module | None, str, nn.Module]] = [(None, "", module)]
    while parts:
        holder, name, part = parts.pop()
        if isinstance(part, nn.Conv2d) or not any(isinstance(m, nn.Conv2d) for m in part.modules()):
            continue  # tracing a convolution itself would look into it
        if _is_an_op(part):
            continue
        trace = traced(part)
        if trace is None:
            parts += [(part, *child) for child in part.named_children()]
        else:
            yield holder, name, part, trace


def _is_an_op(part: nn.Module) -> bool:
    """Whether a call of ``part`` is one op of ours on its layers' weights: they stay as they are."""
    return isinstance(part, (Encoder, ScoreDecoder)) and part.is_fused


def _join(part: fx.GraphModule) -> dict[str, nn.Module | None]:
    """Make one module of each convolution in ``part`` that runs once and the ReLU behind it.

    The result has the layers that do so in the module that was traced; and "", None, where no layers do: for
    a ReLU that is a function, or runs elsewhere too.
    """
    layers: dict[str, nn.Module | None] = {}
    for node in part.graph.find_nodes(op="call_module"):
        layer = part.get_submodule(str(node.target))
        if type(layer) is nn.Identity and is_plain(layer) and node.args:  # where a norm was folded
            node.replace_all_uses_with(node.args[0])
            part.graph.erase_node(node)
    calls = Counter(node.target for node in part.graph.nodes if node.op == "call_module")
    for node in list(part.graph.nodes):
        if node.op != "call_module" or calls[node.target] > 1 or len(node.users) != 1:
            continue
        convolution, after = part.get_submodule(node.target), next(iter(node.users))
        if fits(convolution) and _is_relu(part, after):
            joined = Convolution(convolution, relu=True)
            layers[node.target] = joined
            if after.op == "call_module" and calls[after.target] == 1:
                layers[str(after.target)] = nn.Identity().eval()
            else:
                layers[""] = None
            part.set_submodule(node.target, joined)
            after.replace_all_uses_with(node)
            part.graph.erase_node(after)
    part.recompile()
    return layers


def _is_relu(part: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        relu = part.get_submodule(str(node.target))
        return type(relu) is nn.ReLU and is_plain(relu)
    return node.target in (F.relu, torch.relu, "relu", "relu_")
