"""ICNet: a cascade of three resolutions, with a deep network only for the lowest (Zhao et al. 2018).

::

    image -> three convolutions of stride 2 -> 1/8 ----------------------------------+-> fusion -> scores
    1/2 of it -> conv1 .. conv3_1 -> 1/16 ----------------------------+-> fusion ----+
                       1/2 of that, 1/32 -> conv3_2 .. conv5_4 -------+

The two lower branches have the layers of PSPNet50 with half the channels. They share weights and results: the
low branch does not see the image at a quarter of its resolution, but the middle branch's features, halved.
Each layer, and scaling with aligned corners, is as in the authors' published network for Cityscapes. Sizes
that 32 does not divide are rounded up on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from wae.models.bodies import initialize
from wae_kernels.checks import half_size

_POOLS = (1, 2, 3, 6)  # the sides of the pyramid's pooled features
_FUSED = 128  # channels of the fused features


def _convolution(before: int, after: int, kernel: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(before, after, kernel, stride, padding, dilation, bias=False)
    return [convolution, nn.BatchNorm2d(after)]


def _with_relu(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [*_convolution(before, after, kernel, stride), nn.ReLU(inplace=True)]


def _scaled(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=True)


def _halved(x: Tensor) -> Tensor:
    return _scaled(x, half_size(x))


class Bottleneck(nn.Module):
    """ResNet's bottleneck, with the stride in its first convolution, as in PSPNet.

    Args:
        before, after: the numbers of channels of the input and of the result.
        stride: of the first convolution.
        dilation: of the 3 x 3 convolution.
    """

    def __init__(self, before: int, after: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        inner = after // 4
        self.added = nn.Sequential(
            *_with_relu(before, inner, 1, stride),
            *_convolution(inner, inner, 3, dilation=dilation),
            nn.ReLU(inplace=True),
            *_convolution(inner, after, 1),
        )
        self.kept = (
            nn.Identity() if before == after else nn.Sequential(*_convolution(before, after, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, after, ceil(H/stride), ceil(W/stride))."""
        return F.relu(self.kept(x) + self.added(x))


def _stage(before: int, after: int, blocks: int, dilation: int) -> list[nn.Module]:
    return [Bottleneck(after if number else before, after, dilation=dilation) for number in range(blocks)]


class Pyramid(nn.Module):
    """Adds to the features their means over 1, 4, 9 and 36 regions, scaled to the features' size."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        result = x
        for side in _POOLS:
            result = result + _scaled(F.adaptive_avg_pool2d(x, side), x.shape[2:])
        return result


class CascadeFusion(nn.Module):
    """Cascade feature fusion of a coarse branch and a branch of twice its resolution.

    Args:
        coarse: the number of channels of the coarse branch's features.
        fine: the number of channels of the fine branch's features.
    """

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.coarse = nn.Sequential(*_convolution(coarse, _FUSED, 3, dilation=2))
        self.fine = nn.Sequential(*_convolution(fine, _FUSED, 1))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Map (N, coarse, H, W), scaled to the fine size, and (N, fine, H, W) to (N, 128, H, W)."""
        return F.relu(self.coarse(coarse) + self.fine(fine))


class ICNet(nn.Module):
    """ICNet with random weights: scores at the resolution of the image.

    In training mode it returns a dictionary. ``out`` is the scores; ``sub24`` and ``sub4`` are the scores of
    the two coarser branches, at the same size, for the paper's cascade label guidance.

    Args:
        classes: the number of scores of a pixel.
    """

    auxiliary: ClassVar[Mapping[str, float]] = {"sub24": 0.4, "sub4": 0.4}
    """The weights of the auxiliary scores' losses in training; that of ``out`` is 1."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.middle = nn.Sequential(
            *_with_relu(3, 32, 3, stride=2),
            *_with_relu(32, 32, 3),
            *_with_relu(32, 64, 3),
            nn.MaxPool2d(3, stride=2, padding=1),
            *_stage(64, 128, 3, dilation=1),
            Bottleneck(128, 256, stride=2),
        )
        self.low = nn.Sequential(
            *_stage(256, 256, 3, dilation=1),
            *_stage(256, 512, 6, dilation=2),
            *_stage(512, 1024, 3, dilation=4),
            Pyramid(),
            *_with_relu(1024, 256, 1),
        )
        self.full = nn.Sequential(
            *_with_relu(3, 32, 3, stride=2),
            *_with_relu(32, 32, 3, stride=2),
            *_with_relu(32, 64, 3, stride=2),
        )
        self.fusion24 = CascadeFusion(256, 256)
        self.fusion12 = CascadeFusion(_FUSED, 64)
        self.guidance4 = nn.Conv2d(256, classes, 1)
        self.guidance24 = nn.Conv2d(_FUSED, classes, 1)
        self.scores = nn.Conv2d(_FUSED, classes, 1)
        self.apply(initialize)

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Map (N, 3, H, W) to scores, (N, classes, H, W), or in training mode to the dictionary."""
        fine = self.full(image)
        middle = self.middle(_halved(image))
        low = _scaled(self.low(_halved(middle)), middle.shape[2:])
        fused24 = _scaled(self.fusion24(low, middle), fine.shape[2:])
        fused12 = self.fusion12(fused24, fine)
        size = image.shape[2:]
        quarter = _scaled(fused12, [-(-side // 4) for side in size])
        out = _scaled(self.scores(quarter), size)
        if not self.training:
            return out
        return {
            "out": out,
            "sub24": _scaled(self.guidance24(fused24), size),
            "sub4": _scaled(self.guidance4(low), size),
        }
