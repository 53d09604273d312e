"""Encoder and decoders as a user of PyTorch would write them: what the fused ops are timed against."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae_kernels.nn import Decoder, Encoder, ScoreDecoder
from wae_kernels.reference import normalize_image


class StockEncoder(Encoder):
    """The same layers and weights, run one after the other by PyTorch. ReLU works in place."""

    def forward(
        self,
        image: Tensor,
        image_scale: Tensor | None = None,
        image_shift: Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`wae_kernels.nn.Encoder.forward`, in PyTorch's memory format where none is asked for."""
        x = normalize_image(image, self.conv1.weight.dtype, image_scale, image_shift)
        x = _trunk(x, self.conv1, self.conv2, self.conv3)
        low, high = (
            part.to(dtype=dtype, memory_format=memory_format) for part in (self.low(x), self.high(x))
        )
        return low, high


class StockDecoder(Decoder):
    """The same layers and weights, run one after the other by PyTorch. ReLU works in place."""

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """As :meth:`wae_kernels.nn.Decoder.forward`."""
        size = list(output_size)
        x = self.low(low, output_size=size).add_(self.high(high, output_size=size)).relu_()
        image: Tensor = self.conv3(_trunk(x, self.conv1, self.conv2))
        return image


class StockScoreDecoder(ScoreDecoder):
    """The same layers and weights, run one after the other by PyTorch. ReLU works in place."""

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """As :meth:`wae_kernels.nn.ScoreDecoder.forward`."""
        size = list(output_size)
        x = self.low(low, output_size=size).add_(self.high(high, output_size=size)).relu_()
        scores: Tensor = self.conv2(_trunk(x, self.conv1))
        return scores


def _trunk(x: Tensor, *layers: nn.Conv2d) -> Tensor:
    for layer in layers:
        x = F.relu(layer(x), inplace=True)
    return x


def portable(network: nn.Module) -> nn.Module:
    """A copy of ``network`` on the processor, with PyTorch's operators where our ops were.

    A part that was changed, by a hook for example, stays, and calls its layers.
    """
    network = copy.deepcopy(network).cpu()
    for name, part in list(network.named_modules()):
        if not isinstance(part, (Encoder, ScoreDecoder)):
            continue
        if part.is_fused:
            network.set_submodule(name, _stock(part))
        else:  # a part whose layers are hooked calls them
            part.conv1.register_forward_hook(_unchanged)
    return network


def _unchanged(layer: nn.Module, inputs: Any, output: Any) -> None:
    """A hook that does nothing."""


def _stock(part: Encoder | ScoreDecoder) -> nn.Module:
    stock: nn.Module
    if isinstance(part, Encoder):
        stock = StockEncoder(part.conv1.out_channels)
    else:
        stock = StockScoreDecoder(part.low.in_channels, part.high.in_channels, part.conv1.out_channels)
    stock.load_state_dict(part.state_dict())
    return stock.to(part.conv1.weight).eval()
