"""Encoder and decoder, ours and stock, with seeded weights; their inputs and expected results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wae.models.stock import StockDecoder, StockEncoder
from wae_kernels.checks import half_of
from wae_kernels.nn import Decoder, Encoder

from .comparison import tensors
from .devices import EXACT, Inputs, Setting

OURS = "wae-kernels"
SIZE = 224
_AT_ONCE = 8  # images that the float64 reference computes at once, to save memory


class FixedSize(nn.Module):
    """A decoder, of images or scores, for one output size: it takes only tensors, as exporters require."""

    def __init__(self, decoder: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.size = size

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(low, high, self.size)
        return decoded


def pair(op: str, setting: Setting) -> tuple[nn.Module, nn.Module]:
    """(ours, stock) for "encode" or "decode", with the same weights."""
    torch.manual_seed(0)
    ours, stock = (Encoder(), StockEncoder()) if op == "encode" else (Decoder(), StockDecoder())
    stock.load_state_dict(ours.state_dict())
    if op == "decode":
        ours, stock = FixedSize(ours, (SIZE, SIZE)), FixedSize(stock, (SIZE, SIZE))
    where = (setting.device.torch, setting.precision.dtype)
    return ours.eval().to(*where), stock.eval().to(*where)


def inputs(op: str, setting: Setting) -> Inputs:
    """Images, or ``low`` and ``high`` of the same number of images."""
    drawn = (images(setting.batch, SIZE),) if op == "encode" else branches(setting.batch, SIZE)
    return tuple(x.to(setting.device.torch, setting.precision.dtype) for x in drawn)


def images(batch: int, size: int) -> Tensor:
    """(batch, 3, size, size), unit variance."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def branches(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """``low`` and ``high`` for images of this size."""
    half = images(batch, half_of(size))
    return half, half.flip(0, 3)


# ----------------------------------------------------------------------------------------- expected results


@torch.no_grad()
def results(stock: nn.Module, given: Inputs) -> list[Tensor]:
    """The results of ``stock`` in float64."""
    wide = copy.deepcopy(stock).double()
    with EXACT.allowed():
        parts = [tensors(wide(*(x.double() for x in part))) for part in _parts(given)]
    return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


def gradients(
    module: nn.Module, given: Inputs, upstream: Sequence[Tensor], autocast: torch.dtype | None = None
) -> list[Tensor]:
    """The gradients of the inputs, then of the parameters, given ``upstream`` gradients of the results."""
    leaves = [x.detach().requires_grad_() for x in given]
    with torch.autocast(given[0].device.type, autocast, enabled=autocast is not None):
        outputs = tensors(module(*leaves))
    upstream = [up.to(out.dtype) for up, out in zip(upstream, outputs, strict=True)]
    return list(torch.autograd.grad(outputs, [*leaves, *module.parameters()], upstream))


def wide_gradients(stock: nn.Module, given: Inputs, upstream: Sequence[Tensor]) -> list[Tensor]:
    """:func:`gradients` in float64."""
    wide = copy.deepcopy(stock).double()
    with EXACT.allowed():
        parts = [
            gradients(wide, tuple(x.double() for x in part), [x.double() for x in up])
            for part, up in zip(_parts(given), _parts(tuple(upstream)), strict=True)
        ]
    join: list[Callable[[list[Tensor]], Tensor]] = [torch.cat] * len(given)
    join += [lambda pieces: torch.stack(pieces).sum(0)] * (len(parts[0]) - len(given))
    return [f(list(pieces)) for f, pieces in zip(join, zip(*parts, strict=True), strict=True)]


def _parts(given: Inputs) -> list[Inputs]:
    return list(zip(*(x.split(_AT_ONCE) for x in given), strict=True))
