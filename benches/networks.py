"""The networks under test, with seeded weights, and the inputs they are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wae.models.stock import StockDecoder, StockEncoder
from wae_kernels.nn import Decoder, Encoder

OURS = "wae-kernels"


class FixedSize(nn.Module):
    """A decoder for one output size, so that it takes tensors only, as exporters want it."""

    def __init__(self, decoder: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.size = size

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        image: Tensor = self.decoder(low, high, self.size)
        return image


def encoders(device: torch.device) -> tuple[nn.Module, nn.Module]:
    """(ours, stock), with the same weights."""
    torch.manual_seed(0)
    return _twins(Encoder().eval(), StockEncoder().eval(), device)


def decoders(device: torch.device, size: tuple[int, int]) -> tuple[nn.Module, nn.Module]:
    """(ours, stock), with the same weights."""
    torch.manual_seed(0)
    ours, stock = _twins(Decoder().eval(), StockDecoder().eval(), device)
    return FixedSize(ours, size), FixedSize(stock, size)


def _twins(ours: nn.Module, stock: nn.Module, device: torch.device) -> tuple[nn.Module, nn.Module]:
    stock.load_state_dict(ours.state_dict())
    return ours.to(device), stock.to(device)


def images(batch: int, size: int, device: torch.device) -> Tensor:
    """(batch, 3, size, size), unit variance."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)


def branches(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``low`` and ``high`` for images of this size."""
    half = (size + 1) // 2
    return images(batch, half, device), images(batch, half, device).flip(0, 3)
