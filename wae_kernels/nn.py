"""The encoder and the decoder as modules.

Their layers are ordinary ``torch.nn`` convolutions, so that ``state_dict``, initialisation and optimizers
work as everywhere. The forward pass hands the layers' tensors to the fused ops. Layers that are pruned,
re-parametrised, hooked, sharded, wrapped or replaced are called instead: their tensors alone do not say what
they compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .ops import decode, encode
from .parameters import KERNEL_WIDTH, DecoderParameters, EncoderParameters
from .reference import format_of, laid_out, normalize_image

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{hooks}") for hooks in _HOOKS)


def _layer(kind: type[nn.Module], stride: int) -> tuple[type[nn.Module], tuple[Any, ...]]:
    """A layer as it is made: its type and geometry."""
    return kind, ((3, 3), (stride, stride), (1, 1), (1, 1), 1, "zeros", (0, 0))


_CONV, _BRANCH, _UPSAMPLING = _layer(nn.Conv2d, 1), _layer(nn.Conv2d, 2), _layer(nn.ConvTranspose2d, 2)
_ENCODER = {"conv1": _CONV, "conv2": _CONV, "conv3": _CONV, "low": _BRANCH, "high": _BRANCH}
_DECODER = {"low": _UPSAMPLING, "high": _UPSAMPLING, "conv1": _CONV, "conv2": _CONV, "conv3": _CONV}


def _fusible(
    module: nn.Module, layers: Mapping[str, tuple[type[nn.Module], tuple[Any, ...]]], image: Tensor
) -> list[Tensor] | None:
    """The layers' weights and biases in order, or None where the layers have to be called instead."""
    if any(_GLOBAL_HOOKS):
        return None
    on_meta = image.is_meta is True  # of an image that torch.fx only traces, it is neither
    tensors: list[Tensor] = []
    for name, (kind, geometry) in layers.items():
        layer = module._modules[name]
        if type(layer) is not kind:
            return None
        state = vars(layer)
        if "forward" in state or _has_hooks(state) or _geometry_of(state) != geometry:
            return None
        parameters = state["_parameters"]
        for parameter in (parameters.get("weight"), parameters.get("bias")):
            if parameter is None or parameter.is_meta != on_meta or not _is_plain(parameter):
                return None
            tensors.append(parameter)
    return tensors


# Spelled out, because a loop over the names takes three times as long, and every call of a module comes here.


def _has_hooks(state: Mapping[str, Any]) -> bool:
    """Whether a layer, of which this is ``vars``, has hooks around its forward or backward pass."""
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    )


def _geometry_of(state: Mapping[str, Any]) -> tuple[Any, ...]:
    """As :func:`_layer` gives it, of a layer of which this is ``vars``."""
    return (
        state["kernel_size"],
        state["stride"],
        state["padding"],
        state["dilation"],
        state["groups"],
        state["padding_mode"],
        state["output_padding"],
    )


def _is_plain(parameter: Tensor) -> bool:
    """Whether an op can take it: no shard and no quantised tensor."""
    return type(parameter) is nn.Parameter or not is_traceable_wrapper_subclass(parameter)


class Encoder(nn.Module):
    """Splits an image into ``low`` and ``high`` of half its resolution (docs/network.md).

    Args:
        width: channels of the trunk; 16 is the published network, and the one with compiled kernels.
    """

    def __init__(self, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.low = nn.Conv2d(width, 3, 3, stride=2, padding=1)
        self.high = nn.Conv2d(width, 3, 3, stride=2, padding=1)

    def forward(
        self, image: Tensor, image_scale: Tensor | None = None, image_shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(low, high)`` of a (N, 3, H, W) image; see :func:`wae_kernels.encode`."""
        tensors = _fusible(self, _ENCODER, image)
        if tensors is not None:
            return encode(image, *EncoderParameters(*tensors), image_scale, image_shift)
        dtype = next(self.parameters()).dtype
        x = normalize_image(image, dtype, image_scale, image_shift)
        for layer in (self.conv1, self.conv2, self.conv3):
            x = F.relu(layer(x))
        low, high = (laid_out(branch(x), format_of(image)) for branch in (self.low, self.high))
        return low, high


class Decoder(nn.Module):
    """Puts an image back together from ``low`` and ``high`` (docs/network.md).

    Args:
        width: channels of the trunk; 16 is the published network, and the one with compiled kernels.
    """

    def __init__(self, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.low = nn.ConvTranspose2d(3, width, 3, stride=2, padding=1)
        self.high = nn.ConvTranspose2d(3, width, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """The (N, 3, *output_size) image; see :func:`wae_kernels.decode`."""
        tensors = _fusible(self, _DECODER, low)
        if tensors is not None:
            return decode(low, high, *DecoderParameters(*tensors), output_size)
        size = list(output_size)
        x = F.relu(self.low(low, size) + self.high(high, size))
        for layer in (self.conv1, self.conv2):
            x = F.relu(layer(x))
        image: Tensor = self.conv3(x)
        return laid_out(image, format_of(low))
