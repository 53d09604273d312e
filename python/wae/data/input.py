"""How an image becomes a network's input: its size, scaling and cropping.

The results are torchvision's, except for rounding. It is not imported, because that takes longer than one
prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wae.wording import shown

from .images import check_length, of_pillow

MAX_SIZE = 2048
"""The longest side of a network's input, in pixels. The limit keeps a small file from taking much memory."""

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
"""All but "nearest" are antialiased. "nearest" takes the pixel in the middle, as Pillow does."""

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, like Pillow's mode L


@dataclass(frozen=True)
class Input:
    """How a photo becomes a network's input. The defaults are the usual ones of evaluation on ImageNet.

    Raises ValueError if an entry cannot be used.
    """

    size: int = 224
    """Height and width of the centre crop, in pixels."""
    resize: int = 256
    """The length to which the shorter side is scaled first, in pixels."""
    grayscale: bool = False
    """All three channels become the luma."""
    interpolation: str = "bilinear"
    """One of :data:`INTERPOLATIONS`."""
    squash: bool = False
    """Both sides are scaled to ``resize``, ignoring the aspect ratio."""
    width: int | None = None
    """The width of an input that is not square, as segmentation networks have; ``size`` is then its height.
    The full image is scaled to both, so ``squash`` must be true and ``resize`` equal to ``size``."""

    def __post_init__(self) -> None:
        for name, least, most in (("size", 1, MAX_SIZE), ("resize", self.size, 2 * MAX_SIZE)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be an integer from {least} to {most}, got {shown(value)}")
        for name in ("grayscale", "squash"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {shown(getattr(self, name))}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(f"interpolation must be one of {known}, got {shown(self.interpolation)}")
        if self.width is not None:
            if type(self.width) is not int or not 1 <= self.width <= MAX_SIZE:
                raise ValueError(f"width must be an integer from 1 to {MAX_SIZE}, got {shown(self.width)}")
            if not self.squash or self.resize != self.size:
                raise ValueError("width needs squash = true and resize equal to size")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.size, self.width or self.size

    @property
    def mode(self) -> str:
        """PyTorch's name of the interpolation. What it calls "nearest" is up to half a pixel off."""
        return "nearest-exact" if self.interpolation == "nearest" else self.interpolation

    @property
    def is_whole(self) -> bool:
        """Whether the input shows the full image, with nothing cropped."""
        return self.squash and self.resize == self.size

    def of_size(self, size: int | tuple[int, int]) -> Input:
        """The same input for images of ``size``, with the same part of the image cropped.

        If the input is not square, ``size`` is the height, and the aspect ratio is kept. For a (height,
        width) the full image is scaled to that size, unless both are equal and this input is cropped.
        """
        if isinstance(size, tuple) and size[0] == size[1] and not self.is_whole:
            size = size[0]
        if isinstance(size, tuple):
            return replace(self, size=size[0], resize=size[0], squash=True, width=size[1])
        if size == self.size:
            return self
        width = None if self.width is None else max(1, round(size * self.width / self.size))
        return replace(self, size=size, resize=round(size * self.resize / self.size), width=width)


IMAGENET = Input()


class Transforms(nn.Module):
    """:func:`prepare` as a transform in the style of torchvision.

    Args:
        input: how the image is scaled and cropped.
        invert: swap light and dark.
    """

    def __init__(self, input: Input, invert: bool = False) -> None:
        super().__init__()
        self.input = input
        self.invert = invert

    def forward(self, image: Image.Image | Tensor) -> Tensor:
        """The network's input, ``(3, *input.shape)`` uint8, from a Pillow image or a (3, H, W) uint8 tensor.

        Raises TypeError for anything else, such as floats in 0..1, and ImageError as :func:`prepare` does.
        """
        given: Any = image
        if isinstance(given, Image.Image):
            given = of_pillow(given)
        elif not isinstance(given, Tensor) or given.dtype != torch.uint8 or given.shape[:-2] != (3,):
            got = f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"image must be a Pillow image or a (3, H, W) uint8 tensor, got {got}")
        return prepare(given, self.input, self.invert)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"{self.input}, invert={self.invert}"


def whole(height: int, width: int) -> Input:
    """The input that is the full image scaled to ``height`` x ``width`` pixels, ignoring its aspect ratio."""
    return Input(height, height, squash=True, width=width)


def evaluation_resize(size: int) -> int:
    """The length to which the shorter side is scaled before the centre, ``size`` x ``size``, is cropped."""
    return round(size * 8 / 7)


def prepare(image: Tensor, input: Input, invert: bool = False) -> Tensor:
    """The network's input, ``(3, *input.shape)`` uint8, made from ``image``, (3, H, W) uint8.

    Args:
        image: uint8, in any memory format.
        input: how the image is scaled and cropped.
        invert: swap light and dark.

    Raises:
        ImageError: one side is more than :data:`wae.data.images.LONGEST` times as long as the other.
    """
    check_length(*image.shape[1:])
    image = _centre(_scaled(image, input), input.shape)
    if input.grayscale:
        image = luma(image)
    return 255 - image if invert else image


def prepare_labels(labels: Tensor, input: Input) -> Tensor:
    """The labels, ``input.shape`` int64, of the pixels of an image after :func:`prepare`.

    Each is that of the pixel in the middle, which "nearest-exact" takes; "nearest" takes one up to half a
    pixel away. Of two in the middle, as where the sides are halved, it is the second.

    Args:
        labels: one for each pixel of the image, (H, W) int64, below 2^24.
        input: how the image is scaled and cropped.
    """
    size = _scaled_size(labels.shape, input)
    scaled = F.interpolate(labels[None, None].float(), size, mode="nearest-exact")
    return _centre(scaled[0], input.shape)[0].long()


def visible(pixels: Tensor, input: Input) -> Tensor:
    """The part of ``pixels``, (C, H, W), that remains in :func:`prepare`, not scaled."""
    sides = pixels.shape[1:]
    scaled = zip(sides, input.shape, _scaled_size(sides, input), strict=True)
    return _centre(pixels, [max(1, round(side * cut / size)) for side, cut, size in scaled])


def _scaled(image: Tensor, input: Input) -> Tensor:
    """``image`` with its shorter side scaled to ``resize``; with ``squash``, both sides."""
    size, antialias = _scaled_size(image.shape[1:], input), input.interpolation != "nearest"
    return F.interpolate(image[None], size, mode=input.mode, antialias=antialias)[0]


def _scaled_size(sides: Sequence[int], input: Input) -> list[int]:
    """The size, (H, W), to which an image with these sides is scaled."""
    if input.squash:
        return [input.resize, input.width or input.resize]
    return [input.resize * side // min(sides) for side in sides]


def _centre(image: Tensor, shape: Sequence[int]) -> Tensor:
    """The centre, (C, *shape), of ``image``, (C, H, W)."""
    top, left = (round((side - cut) / 2) for side, cut in zip(image.shape[1:], shape, strict=True))
    return image[:, top : top + shape[0], left : left + shape[1]]


def luma(image: Tensor) -> Tensor:
    """The luma of ``image``, (..., 3, H, W) uint8, in all three channels, of the same shape and dtype.

    It rounds to nearest. torchvision's rounds down and turns a grey of 200 into 199.
    """
    weights = torch.tensor(_LUMA, device=image.device).view(3, 1, 1)
    return (image * weights).sum(-3, keepdim=True).round().to(torch.uint8).expand(image.shape)
