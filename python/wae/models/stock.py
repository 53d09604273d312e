"""The encoder and the decoders as a PyTorch user would write them: the baseline for the fused ops."""

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
    """An encoder whose layers PyTorch runs one after the other. ReLU works in place."""

    def forward(
        self,
        image: Tensor,
        image_scale: Tensor | None = None,
        image_shift: Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`wae_kernels.nn.Encoder.forward`. By default PyTorch chooses the memory format."""
        x = normalize_image(image, self.conv1.weight.dtype, image_scale, image_shift)
        x = _trunk(x, self.conv1, self.conv2, self.conv3)
        low, high = (
            part.to(dtype=dtype, memory_format=memory_format) for part in (self.low(x), self.high(x))
        )
        return low, high


class StockDecoder(Decoder):
    """A decoder whose layers PyTorch runs one after the other. ReLU works in place."""

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """See :meth:`wae_kernels.nn.Decoder.forward`."""
        size = list(output_size)
        x = self.low(low, output_size=size).add_(self.high(high, output_size=size)).relu_()
        image: Tensor = self.conv3(_trunk(x, self.conv1, self.conv2))
        return image


class StockScoreDecoder(ScoreDecoder):
    """A score decoder whose layers PyTorch runs one after the other. ReLU works in place."""

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """See :meth:`wae_kernels.nn.ScoreDecoder.forward`."""
        size = list(output_size)
        x = self.low(low, output_size=size).add_(self.high(high, output_size=size)).relu_()
        scores: Tensor = self.conv2(_trunk(x, self.conv1))
        return scores


def _trunk(x: Tensor, *layers: nn.Conv2d) -> Tensor:
    for layer in layers:
        x = F.relu(layer(x), inplace=True)
    return x


def portable(network: nn.Module) -> nn.Module:
    """A copy of ``network`` on the CPU, with PyTorch's operators in place of our ops.

    A part that was changed, for example by a hook, is kept, and calls its layers.
    """
    network = copy.deepcopy(network).cpu()
    for name, part in list(network.named_modules()):
        if not isinstance(part, (Encoder, ScoreDecoder)):
            continue
        if part.is_fused:
            network.set_submodule(name, _stock(part))
        else:  # a hook on a layer makes the part call its layers
            part.conv1.register_forward_hook(_unchanged)
    return network


def _unchanged(layer: nn.Module, inputs: Any, output: Any) -> None:
    """A forward hook that does nothing."""


def _stock(part: Encoder | ScoreDecoder) -> nn.Module:
    stock: nn.Module
    if isinstance(part, Encoder):
        stock = StockEncoder(part.conv1.out_channels)
    else:
        stock = StockScoreDecoder(part.low.in_channels, part.high.in_channels, part.conv1.out_channels)
    stock.to(part.conv1.weight).load_state_dict(part.state_dict())  # torch's default dtype would round them
    return stock.eval()
