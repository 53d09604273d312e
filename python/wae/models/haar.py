"""The Haar wavelet transform in place of the encoder: the fixed decomposition with which WAE is compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae_kernels.reference import normalize_image

# The bands of a 2 x 2 block; divided by 2 they are orthonormal. The details have PyWavelets' order and signs:
# differences of rows, of columns, and of both.
_APPROXIMATION = ((1.0, 1.0), (1.0, 1.0))
_DETAILS = (((1.0, 1.0), (-1.0, -1.0)), ((1.0, -1.0), (1.0, -1.0)), ((1.0, -1.0), (-1.0, 1.0)))


class Haar(nn.Module):
    """Splits each colour of an image into its Haar bands, with the interface of an :class:`Encoder`.

    ``low`` has 3 channels, the approximations; ``high`` has 9, the details, three for each colour in turn.
    Both are convolutions whose weights need no gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.low = _bands(_APPROXIMATION)
        self.high = _bands(*_DETAILS)

    def forward(
        self, image: Tensor, image_scale: Tensor | None = None, image_shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(low, high)`` of ``image``, (N, 3, H, W).

        They are (N, 3, ceil(H/2), ceil(W/2)) and (N, 9, ceil(H/2), ceil(W/2)), in the weights' dtype. An odd
        last row or column is repeated, as in PyWavelets' mode "symmetric". ``image_scale`` and
        ``image_shift`` are as for :func:`wae_kernels.encode`.
        """
        image = normalize_image(image, self.low.weight.dtype, image_scale, image_shift)
        height, width = image.shape[2:]
        image = F.pad(image, (0, width % 2, 0, height % 2), mode="replicate")
        return self.low(image), self.high(image)


def _bands(*kernels: tuple[tuple[float, ...], ...]) -> nn.Conv2d:
    """Maps each of three colours to one channel per kernel. The zero bias takes a folded normalisation."""
    layer = nn.Conv2d(3, 3 * len(kernels), 2, stride=2, groups=3).requires_grad_(False)
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.zero_()
        layer.weight.copy_(torch.tensor(kernels).div(2).unsqueeze(1).repeat(3, 1, 1, 1))
    return layer
