"""The wavelet-like auto-encoder: from an image to ``low`` and ``high``, and back (docs/network.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wae_kernels.nn import Decoder, Encoder
from wae_kernels.parameters import KERNEL_WIDTH


class Decomposed(NamedTuple):
    """The result of :meth:`AutoEncoder.forward`."""

    image: Tensor
    """The reconstruction, (N, 3, H, W), about 0..255 like the input."""
    low: Tensor
    """(N, 3, ceil(H/2), ceil(W/2))."""
    high: Tensor
    """Of the shape of ``low``."""


class AutoEncoder(nn.Module):
    """An encoder and a decoder for images with values 0..255, uint8 or floating point.

    The encoder works on ``image * image_scale + image_shift``, by default -1..1, so that its zero padding is
    a medium grey. Scale and shift, (3,) each, are buffers and are saved with the weights.

    Args:
        width: the number of channels of the trunk. The paper's 16 has compiled kernels.
    """

    image_scale: Tensor
    image_shift: Tensor

    def __init__(self, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.decoder = Decoder(width)
        self.register_buffer("image_scale", torch.full((3,), 2 / 255))
        self.register_buffer("image_shift", torch.full((3,), -1.0))

    def decompose(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Split ``image``, (N, 3, H, W) with values 0..255, into ``(low, high)``.

        Both are (N, 3, ceil(H/2), ceil(W/2)), in the parameters' dtype. The kernel reads a uint8 image
        directly. Raises RuntimeError for anything that :func:`wae_kernels.encode` refuses.
        """
        low, high = self.encoder(image, self.image_scale, self.image_shift)
        return low, high

    def reconstruct(self, low: Tensor, high: Tensor, size: Sequence[int]) -> Tensor:
        """Reconstruct the image of ``size`` (H, W) from its ``low`` and ``high``.

        The result is (N, 3, H, W) in their dtype, about 0..255, neither clamped nor rounded: see
        :func:`to_uint8`. Raises RuntimeError for anything that :func:`wae_kernels.decode` refuses.
        """
        return reconstruct(self.decoder, low, high, size, self.image_scale, self.image_shift)

    def forward(self, image: Tensor) -> Decomposed:
        """Decompose and reconstruct ``image``, (N, 3, H, W) with values 0..255."""
        low, high = self.decompose(image)
        return Decomposed(self.reconstruct(low, high, image.shape[2:]), low, high)


def reconstruct(
    decoder: Decoder, low: Tensor, high: Tensor, size: Sequence[int], image_scale: Tensor, image_shift: Tensor
) -> Tensor:
    """The image of ``size`` (H, W) that ``decoder`` makes, with ``image_scale`` and ``image_shift`` undone.

    Args:
        decoder: the decoder.
        low, high: (N, 3, ceil(H/2), ceil(W/2)) each.
        size: (H, W) of the image.
        image_scale, image_shift: (3,) each.

    Returns:
        (N, 3, H, W), in the dtype of ``decoder``'s result.
    """
    image: Tensor = decoder(low, high, size)
    scale, shift = (t.to(image.dtype).view(1, 3, 1, 1) for t in (image_scale, image_shift))
    return (image - shift) / scale


def to_uint8(image: Tensor) -> Tensor:
    """``image`` rounded and clamped to 0..255, as uint8, which an image file can hold."""
    return image.round().clamp(0, 255).to(torch.uint8)
