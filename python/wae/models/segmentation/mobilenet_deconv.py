"""A MobileNet with five transposed convolutions and skip connections, which restore the resolution in steps.

The body is that of MobileNet-V1 (Howard et al. 2017, table 1). In the ``compensated`` form each pointwise
convolution computes half the channels, and their negatives are appended before the ReLU (CReLU, Shang et al.
2016).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = (
    (64,),
    (128, 128),
    (256, 256),
    (512, 512, 512, 512, 512, 512),
    (1024, 1024),
)
"""Output channels of the separable convolutions. The first one of each later stage has stride 2."""
_FIRST = 32
_UP = (128, 64, 32, 16, 16)
"""Output channels of the transposed convolutions: a quarter of the body's at that resolution, at least 16."""


class Pointwise(nn.Module):
    """A 1 x 1 convolution with BatchNorm and ReLU.

    Args:
        before, channels: the numbers of channels of the input and of the result.
        compensated: compute half of ``channels``, which must be even, and append their negatives.
    """

    def __init__(self, before: int, channels: int, compensated: bool) -> None:
        super().__init__()
        self.compensated = compensated
        computed = channels // 2 if compensated else channels
        self.convolution = nn.Conv2d(before, computed, 1, bias=False)
        self.norm = nn.BatchNorm2d(computed)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, channels, H, W)."""
        x = self.norm(self.convolution(x))
        return F.relu(torch.cat((x, -x), 1) if self.compensated else x)


def _separable(before: int, channels: int, stride: int, compensated: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before, bias=False),
        nn.BatchNorm2d(before),
        nn.ReLU(inplace=True),
        Pointwise(before, channels, compensated),
    )


class Up(nn.Module):
    """A transposed convolution of stride 2, concatenated with the body's features at that resolution.

    Args:
        before, channels: the numbers of channels of the input and of the transposed convolution's result.
    """

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        """Map (N, before, ceil(H/2), ceil(W/2)) and (N, C, H, W) to (N, channels + C, H, W)."""
        up = self.norm(self.up(x, output_size=list(skipped.shape[2:])))
        return torch.cat((F.relu(up), skipped), 1)


class MobileNetDeconv(nn.Module):
    """The network with random weights: scores at the resolution of the image.

    Args:
        classes: the number of scores of a pixel.
        compensated: use the compensated form: see the module.
    """

    def __init__(self, classes: int, compensated: bool = False) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv2d(3, _FIRST, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(_FIRST),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        before = _FIRST
        for number, widths in enumerate(_STAGES):
            layers = [stem] if number == 0 else []
            strides = [1 if number == 0 else 2, *(1 for _ in widths[1:])]
            for (last, channels), stride in zip(pairwise((before, *widths)), strides, strict=True):
                layers.append(_separable(last, channels, stride, compensated))
            self.stages.append(nn.Sequential(*layers))
            before = widths[-1]
        self.ups = nn.ModuleList()
        skips = (*(widths[-1] for widths in _STAGES[-2::-1]), 3)
        for channels, skipped in zip(_UP, skips, strict=True):
            self.ups.append(Up(before, channels))
            before = channels + skipped
        self.scores = nn.Conv2d(before, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 3, H, W) to scores, (N, classes, H, W)."""
        reached = [image]
        for stage in self.stages:
            reached.append(stage(reached[-1]))
        x = reached.pop()
        for up in self.ups:
            x = up(x, reached.pop())
        scores: Tensor = self.scores(x)
        return scores
