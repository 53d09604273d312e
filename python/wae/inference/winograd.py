"""3 x 3 convolutions by Winograd's algorithm: the engine ``winograd`` of :mod:`wae.inference.engines`.

CPU libraries compute a float32 convolution directly. Winograd's F(4x4, 3x3) needs a quarter of the
multiplications (docs/kernels.md). The op ``wae::conv3x3`` implements it, with bias and ReLU, on weights that
are packed once.
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

_FEW_CHANNELS = 3  # up to this number of input channels the op convolves directly
_LEAST_CHANNELS = 16  # the op works on this number at a time; with fewer, most of its work would be on zeros


class Convolution(nn.Module):
    """A 3 x 3 convolution with stride and padding 1, for inference.

    Args:
        convolution: the layer whose weights it packs, in float32.
        relu: apply ReLU to the result.
    """

    packed: Tensor
    out_channels: int

    def __init__(self, convolution: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        for name in nn.Conv2d.__constants__:  # in_channels, stride, ...: other modules may read them
            setattr(self, name, getattr(convolution, name))
        self.register_buffer("packed", torch.ops.wae.conv3x3_pack(convolution.weight.detach()))
        self.bias = None if convolution.bias is None else nn.Parameter(convolution.bias.detach(), False)
        self.relu, self._shape = relu, convolution.weight.shape

    @property
    def weight(self) -> Tensor:
        """A weight of the original shape, dtype and device, which other modules may read.

        All its values are NaN, so that nobody computes with it unnoticed.
        """
        return self.packed.new_full((), torch.nan).expand(self._shape)

    def forward(self, input: Tensor) -> Tensor:  # PyTorch's name: callers may pass it by keyword
        """Map (N, C, h, w) float32 to (N, K, h, w) float32, channels_last."""
        y: Tensor = torch.ops.wae.conv3x3(input, self.packed, self.bias, self.out_channels, self.relu)
        return y


def replaced(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in evaluation mode, with a :class:`Convolution` in place of each layer that fits.

    A ReLU becomes part of the convolution before it if nothing else reads that convolution's result and
    torch.fx can trace the module that holds both.
    """
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
    """Whether ``wae::conv3x3`` can compute ``layer``, and is fast with its number of input channels."""
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
    """The largest parts of ``module`` that hold convolutions and that torch.fx can trace.

    Yields the module that holds the part (None for ``module`` itself), the part's name in it, the part, and
    its trace.
    """
    parts: list[tuple[nn.Module | None, str, nn.Module]] = [(None, "", module)]
    while parts:
        holder, name, part = parts.pop()
        if isinstance(part, nn.Conv2d) or not any(isinstance(m, nn.Conv2d) for m in part.modules()):
            continue  # the trace of a convolution would show its inside, not a call of it
        if _is_an_op(part):
            continue
        trace = traced(part)
        if trace is None:
            parts += [(part, *child) for child in part.named_children()]
        else:
            yield holder, name, part, trace


def _is_an_op(part: nn.Module) -> bool:
    """Whether a call of ``part`` is one op of ours on the weights of its layers, which must then stay."""
    return isinstance(part, (Encoder, ScoreDecoder)) and part.is_fused


def _join(part: fx.GraphModule) -> dict[str, nn.Module | None]:
    """Join each convolution in ``part`` that runs once with the ReLU behind it, in one module.

    Returns:
        The layers that would do the same in the traced module itself, by the names of the layers they
        replace. It has an entry "" of None if no layers can: a ReLU is a function, or runs elsewhere too.
    """
    layers: dict[str, nn.Module | None] = {}
    for node in part.graph.find_nodes(op="call_module"):
        layer = part.get_submodule(str(node.target))
        if type(layer) is nn.Identity and is_plain(layer) and node.args:  # a norm was folded here
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
