"""ENet: a large encoder and a small decoder for real-time segmentation (Paszke et al. 2016).

It follows the paper's table 1 block by block. A size that is odd in some block is rounded up there, and the
decoder restores it; the paper's sizes are divisible by 8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_REDUCTION = 4  # of the channels inside a bottleneck
_DROPOUT = (0.01, 0.1)  # the probability that a channel is dropped: in the first stage, and in later ones


def _after(channels: int) -> nn.Sequential:
    """The layers after every convolution inside a bottleneck."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels))


class Initial(nn.Module):
    """13 filters and the pooled image: (N, 3, H, W) to (N, 16, ceil(H/2), ceil(W/2))."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.after = _after(16)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        joined: Tensor = self.after(torch.cat((self.convolution(image), self.pool(image)), 1))
        return joined


class Bottleneck(nn.Module):
    """``main`` between two 1 x 1 convolutions, added to the input, with the same number of channels.

    Args:
        main: maps (N, channels / 4, H, W) to the same shape.
        channels: the number of channels of the input, a multiple of 4.
        dropout: the probability that a channel of what is added is zeroed.
    """

    def __init__(self, main: nn.Module, channels: int, dropout: float) -> None:
        super().__init__()
        inner = channels // _REDUCTION
        self.added = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            _after(inner),
            main,
            _after(inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Dropout2d(dropout),
        )
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        result: Tensor = self.activation(x + self.added(x))
        return result


class Pooled(NamedTuple):
    """The result of a :class:`Halving`, with what a :class:`Doubling` needs to undo it."""

    features: Tensor
    """(N, channels, ceil(H/2), ceil(W/2))."""
    indices: Tensor
    """The positions of the largest of each 2 x 2 pixels."""
    size: torch.Size
    """The shape of the input, (N, before, H, W)."""


class Halving(nn.Module):
    """A bottleneck of stride 2: its input is pooled and padded with channels of zeros.

    Args:
        before: the number of channels of the input, a multiple of 4.
        channels: the number of channels of the result, at least ``before``.
        dropout: see :class:`Bottleneck`.
    """

    def __init__(self, before: int, channels: int, dropout: float) -> None:
        super().__init__()
        inner = before // _REDUCTION
        self.more = channels - before
        self.added = nn.Sequential(
            nn.Conv2d(before, inner, 2, stride=2, bias=False),
            _after(inner),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            _after(inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Dropout2d(dropout),
        )
        self.pool = nn.MaxPool2d(2, return_indices=True, ceil_mode=True)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Pooled:
        """Map (N, before, H, W) to (N, channels, ceil(H/2), ceil(W/2))."""
        pooled, indices = self.pool(x)
        even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        features = self.activation(F.pad(pooled, (0, 0, 0, 0, 0, self.more)) + self.added(even))
        return Pooled(features, indices, x.shape)


class Doubling(nn.Module):
    """A bottleneck that undoes a :class:`Halving`: each pixel goes to where the largest was.

    Args:
        before: the number of channels of the input, a multiple of 4.
        channels: the number of channels of the result.
        dropout: see :class:`Bottleneck`.
    """

    def __init__(self, before: int, channels: int, dropout: float) -> None:
        super().__init__()
        inner = before // _REDUCTION
        self.narrow = nn.Sequential(nn.Conv2d(before, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.unpool = nn.MaxUnpool2d(2)
        self.before = nn.Sequential(nn.Conv2d(before, inner, 1, bias=False), _after(inner))
        self.up = nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, bias=False)
        self.behind = nn.Sequential(
            _after(inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Dropout2d(dropout),
        )
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor, pooled: Pooled) -> Tensor:
        """Map (N, before, ceil(H/2), ceil(W/2)) to (N, channels, H, W), the size of ``pooled``."""
        size = list(pooled.size[2:])
        kept = self.unpool(self.narrow(x), pooled.indices, output_size=size)
        result: Tensor = self.activation(kept + self.behind(self.up(self.before(x), output_size=size)))
        return result


def _plain(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False)


def _dilated(channels: int, dilation: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)


def _asymmetric(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, (5, 1), padding=(2, 0), bias=False),
        nn.Conv2d(channels, channels, (1, 5), padding=(0, 2), bias=False),
    )


def _context() -> list[nn.Module]:
    """The eight convolutions of stages 2 and 3, with growing receptive fields."""
    inner = 128 // _REDUCTION
    kinds = (_plain, 2, _asymmetric, 4, _plain, 8, _asymmetric, 16)
    return [_dilated(inner, kind) if isinstance(kind, int) else kind(inner) for kind in kinds]


class ENet(nn.Module):
    """ENet with random weights: scores at the resolution of the image.

    Args:
        classes: the number of scores of a pixel.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, later = _DROPOUT
        self.initial = Initial()
        self.halving1 = Halving(16, 64, first)
        self.stage1 = nn.Sequential(*(Bottleneck(_plain(16), 64, first) for _ in range(4)))
        self.halving2 = Halving(64, 128, later)
        self.stage2 = nn.Sequential(*(Bottleneck(main, 128, later) for main in _context()))
        self.stage3 = nn.Sequential(*(Bottleneck(main, 128, later) for main in _context()))
        self.doubling4 = Doubling(128, 64, later)
        self.stage4 = nn.Sequential(*(Bottleneck(_plain(16), 64, later) for _ in range(2)))
        self.doubling5 = Doubling(64, 16, later)
        self.stage5 = Bottleneck(_plain(4), 16, later)
        self.scores = nn.ConvTranspose2d(16, classes, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 3, H, W) to scores, (N, classes, H, W)."""
        pooled1 = self.halving1(self.initial(image))
        pooled2 = self.halving2(self.stage1(pooled1.features))
        context = self.stage3(self.stage2(pooled2.features))
        half = self.stage4(self.doubling4(context, pooled2))
        features = self.stage5(self.doubling5(half, pooled1))
        scores: Tensor = self.scores(features, output_size=list(image.shape[2:]))
        return scores
