"""How an image becomes a network's input: the size, and how it is scaled and cut.

With torchvision's results, but for rounding, and without importing it: that takes longer than one prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wae.wording import shown

from .images import check_length, of_pillow

MAX_SIZE = 2048
"""Pixels of a side of a network's input; more would be a way to make a small file take much memory."""

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
"""All but the last are antialiased."""

_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601, as Pillow's mode L


@dataclass(frozen=True)
class Input:
    """How a photo becomes a network's input; the defaults are those of ImageNet's evaluation.

    Raises ValueError where an entry is not usable.
    """

    size: int = 224
    """Height and width in pixels, cut out of the middle."""
    resize: int = 256
    """The length to which the shorter side is scaled first."""
    grayscale: bool = False
    """The three colours become their luma, three times."""
    interpolation: str = "bilinear"
    """One of :data:`INTERPOLATIONS`."""
    squash: bool = False
    """Both sides are scaled to ``resize``, whatever their ratio."""
    width: int | None = None
    """Where the input is not square, its width; ``size`` is its height, and the whole image is scaled to
    both: ``squash`` is true, and ``resize`` is ``size``. Inputs of networks that score pixels are such."""

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
                raise ValueError("width needs squash, and resize must be size")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.size, self.width or self.size

    @property
    def is_whole(self) -> bool:
        """Whether the whole image is seen: nothing of it is cut off."""
        return self.squash and self.resize == self.size

    def of_size(self, size: int | tuple[int, int]) -> Input:
        """The same for images of ``size``, with the same part of the image cut off.

        Of an input that is not square ``size`` is the height, and the ratio stays. To a (height, width) the
        whole image is scaled.
        """
        if isinstance(size, tuple):
            return replace(self, size=size[0], resize=size[0], squash=True, width=size[1])
        if size == self.size:
            return self
        width = None if self.width is None else max(1, round(size * self.width / self.size))
        return replace(self, size=size, resize=round(size * self.resize / self.size), width=width)


IMAGENET = Input()


class Transforms(nn.Module):
    """:func:`prepare` in torchvision's form of a transform.

    Args:
        input: how the image is scaled and cut.
        invert: make light dark and dark light.
    """

    def __init__(self, input: Input, invert: bool = False) -> None:
        super().__init__()
        self.input = input
        self.invert = invert

    def forward(self, image: Image.Image | Tensor) -> Tensor:
        """(3, *input.shape) uint8, of an image of Pillow or (3, H, W) uint8.

        Raises TypeError for anything else, as numbers 0..1, and as :func:`prepare`.
        """
        given: Any = image
        if isinstance(given, Image.Image):
            given = of_pillow(given)
        elif not isinstance(given, Tensor) or given.dtype != torch.uint8 or given.shape[:-2] != (3,):
            got = f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"image must be one of Pillow, or a tensor (3, H, W) of uint8, got {got}")
        return prepare(given, self.input, self.invert)

    def extra_repr(self) -> str:
        """How the image is scaled and cut."""
        return f"{self.input}, invert={self.invert}"


def whole(height: int, width: int) -> Input:
    """The whole image scaled to ``height`` x ``width`` pixels, whatever its ratio."""
    return Input(height, height, squash=True, width=width)


def prepare(image: Tensor, input: Input, invert: bool = False) -> Tensor:
    """The network's input, (3, *input.shape) uint8, of ``image``, (3, H, W) uint8.

    Args:
        input: how the image is scaled and cut.
        invert: make light dark and dark light.

    Raises:
        ImageError: the image is more than a hundred times longer than wide.
    """
    check_length(*image.shape[1:])
    image = _scaled(image, input)
    top, left = (round((side - cut) / 2) for side, cut in zip(image.shape[1:], input.shape, strict=True))
    image = image[:, top : top + input.shape[0], left : left + input.shape[1]]
    if input.grayscale:
        image = luma(image)
    return 255 - image if invert else image


def _scaled(image: Tensor, input: Input) -> Tensor:
    """``image``, whose shorter side, or with ``squash`` each side, becomes so many pixels long."""
    shorter = min(image.shape[1:])
    size = [input.resize * side // shorter for side in image.shape[1:]]
    if input.squash:
        size = [input.resize, input.width or input.resize]
    antialias = input.interpolation != "nearest"
    return F.interpolate(image[None], size, mode=input.interpolation, antialias=antialias)[0]


def luma(image: Tensor) -> Tensor:
    """The luma of ``image``, (3, H, W) uint8, three times.

    torchvision's rounds down, and makes 199 of a grey of 200.
    """
    return (image * torch.tensor(_LUMA).view(3, 1, 1)).sum(0).round().to(torch.uint8).expand(3, -1, -1)
