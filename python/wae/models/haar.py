"""The Haar wavelet transform in the encoder's place: the fixed decomposition that WAE is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae_kernels.reference import normalize_image

# The bands of a 2 x 2 block; halved, they are orthonormal. The order of the details, and their signs, are
# PyWavelets': differences of rows, of columns, and of both.
_APPROXIMATION = ((1.0, 1.0), (1.0, 1.0))
_DETAILS = (((1.0, 1.0), (-1.0, -1.0)), ((1.0, -1.0), (1.0, -1.0)), ((1.0, -1.0), (-1.0, 1.0)))


class Haar(nn.Module):
    """Splits an image into its Haar bands, each colour by itself, with an :class:`Encoder`'s interface.

    ``low``: 3 channels, the approximation. ``high``: 9 channels, the details, three of each colour in turn.
    Both are convolutions whose weights the optimizer leaves alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.low = _bands(_APPROXIMATION)
        self.high = _bands(*_DETAILS)

    def forward(
        self, image: Tensor, image_scale: Tensor | None = None, image_shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(low, high)``, (N, 3, ceil(H/2), ceil(W/2)) and (N, 9, the same), of a (N, 3, H, W) image.

        An odd last row or column is repeated, as PyWavelets' mode "symmetric" does. The results have the
        weights' dtype; ``image_scale`` and ``image_shift`` are as for :func:`wae_kernels.encode`.
        """
        image = normalize_image(image, self.low.weight.dtype, image_scale, image_shift)
        height, width = image.shape[2:]
        image = F.pad(image, (0, width % 2, 0, height % 2), mode="replicate")
        return self.low(image), self.high(image)


def _bands(*kernels: tuple[tuple[float, ...], ...]) -> nn.Conv2d:
    """Each of three colours to one channel per kernel. The bias, of zero, takes a folded normalisation."""
    layer = nn.Conv2d(3, 3 * len(kernels), 2, stride=2, groups=3).requires_grad_(False)
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.zero_()
        layer.weight.copy_(torch.tensor(kernels).div(2).unsqueeze(1).repeat(3, 1, 1, 1))
    return layer
