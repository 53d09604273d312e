"""The encoder and the decoders as modules.

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
from torch.nn import Parameter
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_wrapper

from .ops import decode, decode_scores, encode
from .parameters import KERNEL_WIDTH, DecoderParameters, EncoderParameters, ScoreDecoderParameters
from .reference import format_of, laid_out, normalize_image

_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


_KERNEL, _PADDING = (3, 3), (1, 1)  # the same objects in all layers, which makes comparing them faster
_PARAMETER = {Parameter}

_Layers = tuple[tuple[str, type[nn.Module], tuple[Any, ...]], ...]
"""A module's layers as they are made: name, type, and what :func:`_state` gives."""


def _layers(**layers: tuple[type[nn.Module], int]) -> _Layers:
    """3x3 layers with padding 1, without hooks, of these types and strides."""
    return tuple(
        (name, kind, (_KERNEL, (stride, stride), _PADDING, (1, 1), 1, "zeros", (0, 0), {}, {}, {}, {}))
        for name, (kind, stride) in layers.items()
    )


_CONV, _BRANCH, _UPSAMPLING = (nn.Conv2d, 1), (nn.Conv2d, 2), (nn.ConvTranspose2d, 2)
_ENCODER = _layers(conv1=_CONV, conv2=_CONV, conv3=_CONV, low=_BRANCH, high=_BRANCH)
_DECODER = _layers(low=_UPSAMPLING, high=_UPSAMPLING, conv1=_CONV, conv2=_CONV, conv3=_CONV)
_SCORE_DECODER = _layers(low=_UPSAMPLING, high=_UPSAMPLING, conv1=_CONV, conv2=_CONV)


def _fusible(module: nn.Module, layers: _Layers, image: Tensor) -> list[Tensor] | None:
    """The layers' weights and biases in order, or None where the layers have to be called instead."""
    if any(_GLOBAL_HOOKS):
        return None
    modules = module._modules
    tensors: list[Any] = []
    for name, kind, as_made in layers:
        layer = modules[name]
        variables = layer.__dict__
        if type(layer) is not kind or "forward" in variables or _state(variables) != as_made:
            return None
        parameters = variables["_parameters"]
        if "weight" not in parameters or "bias" not in parameters:  # pruned, or re-parametrised
            return None
        tensors += (parameters["weight"], parameters["bias"])
    if {*map(type, tensors)} != _PARAMETER and any(t is None or is_wrapper(t) for t in tensors):
        return None
    # The op refuses meta parameters for a real image. Of one that torch.fx only traces, is_meta is no bool.
    if image.is_meta is True and not all(t.is_meta for t in tensors):
        return None
    return tensors


def _state(variables: Mapping[str, Any]) -> tuple[Any, ...]:
    """The geometry and the hooks of a layer with these ``vars``.

    Spelled out, because every call of a module comes here: a loop over the names takes three times the time,
    and torch.compile does not take ``operator.itemgetter``.
    """
    return (
        variables["kernel_size"],
        variables["stride"],
        variables["padding"],
        variables["dilation"],
        variables["groups"],
        variables["padding_mode"],
        variables["output_padding"],
        variables["_forward_hooks"],
        variables["_forward_pre_hooks"],
        variables["_backward_hooks"],
        variables["_backward_pre_hooks"],
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_as_made(module: nn.Module, kind: type[nn.Module], layers: _Layers) -> bool:
    """Whether ``module`` computes what its tensors say: as ``kind``, without hooks, by unchanged layers."""
    variables = vars(module)
    first = next(module.parameters(), None)  # a replica of DataParallel has none
    return (
        first is not None
        and type(module).forward is kind.forward
        and "forward" not in variables
        and not any(variables[hooks] for hooks in _HOOKS)
        and _fusible(module, layers, first) is not None
    )


class Encoder(nn.Module):
    """Splits an image into ``low`` and ``high`` of half its resolution (docs/network.md).

    Args:
        width: channels of the trunk; 16 is the published network, and the one with compiled kernels.
    """

    def __init__(self, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, _KERNEL, padding=_PADDING)
        self.conv2 = nn.Conv2d(width, width, _KERNEL, padding=_PADDING)
        self.conv3 = nn.Conv2d(width, width, _KERNEL, padding=_PADDING)
        self.low = nn.Conv2d(width, 3, _KERNEL, stride=2, padding=_PADDING)
        self.high = nn.Conv2d(width, 3, _KERNEL, stride=2, padding=_PADDING)

    @property
    def is_fused(self) -> bool:
        """Whether a call is the op on the layers' tensors, and nothing else.

        So it is where the module and every layer are as they were made: without hooks, for example.
        """
        return _is_as_made(self, Encoder, _ENCODER)

    def forward(
        self, image: Tensor, image_scale: Tensor | None = None, image_shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(low, high)`` of a (N, 3, H, W) image; see :func:`wae_kernels.encode`."""
        tensors = _fusible(self, _ENCODER, image)
        if tensors is not None:
            return encode(image, *EncoderParameters(*tensors), image_scale, image_shift)
        # A replica of DataParallel has no parameters: its layers have plain tensors.
        dtype = next(self.parameters(), getattr(self.conv1, "weight", image)).dtype
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
        self.low = nn.ConvTranspose2d(3, width, _KERNEL, stride=2, padding=_PADDING)
        self.high = nn.ConvTranspose2d(3, width, _KERNEL, stride=2, padding=_PADDING)
        self.conv1 = nn.Conv2d(width, width, _KERNEL, padding=_PADDING)
        self.conv2 = nn.Conv2d(width, width, _KERNEL, padding=_PADDING)
        self.conv3 = nn.Conv2d(width, 3, _KERNEL, padding=_PADDING)

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """The (N, 3, H, W) image of ``output_size`` (H, W); see :func:`wae_kernels.decode`."""
        tensors = _fusible(self, _DECODER, low)
        if tensors is not None:
            return decode(low, high, *DecoderParameters(*tensors), output_size)
        size = list(output_size)
        x = F.relu(self.low(low, size) + self.high(high, size))
        for layer in (self.conv1, self.conv2):
            x = F.relu(layer(x))
        image: Tensor = self.conv3(x)
        return laid_out(image, format_of(low))


class ScoreDecoder(nn.Module):
    """Brings class scores to full resolution with the help of features (docs/network.md).

    Args:
        classes: channels of the scores.
        features: channels of the features.
        width: channels in between; 16 has the compiled kernels, with up to 32 classes and features.
    """

    def __init__(self, classes: int, features: int, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.low = nn.ConvTranspose2d(classes, width, _KERNEL, stride=2, padding=_PADDING)
        self.high = nn.ConvTranspose2d(features, width, _KERNEL, stride=2, padding=_PADDING)
        self.conv1 = nn.Conv2d(width, width, _KERNEL, padding=_PADDING)
        self.conv2 = nn.Conv2d(width, classes, _KERNEL, padding=_PADDING)

    @property
    def is_fused(self) -> bool:
        """See :attr:`Encoder.is_fused`."""
        return _is_as_made(self, ScoreDecoder, _SCORE_DECODER)

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """The (N, classes, H, W) scores of ``output_size`` (H, W); see :func:`wae_kernels.decode_scores`."""
        tensors = _fusible(self, _SCORE_DECODER, low)
        if tensors is not None:
            return decode_scores(low, high, *ScoreDecoderParameters(*tensors), output_size)
        size = list(output_size)
        x = F.relu(self.low(low, size) + self.high(high, size))
        scores: Tensor = self.conv2(F.relu(self.conv1(x)))
        return laid_out(scores, format_of(low))
