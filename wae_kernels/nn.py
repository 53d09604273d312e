"""The encoder and the decoder as modules.

Their layers are ordinary ``torch.nn`` convolutions, so that ``state_dict``, initialisation, pruning and
optimizers work as everywhere; the forward pass hands the layers' tensors to the fused ops.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .ops import decode, encode
from .parameters import KERNEL_WIDTH, DecoderParameters, EncoderParameters


def _tensors(*layers: nn.Conv2d | nn.ConvTranspose2d) -> list[Tensor]:
    tensors: list[Tensor] = []
    for layer in layers:
        assert layer.bias is not None  # every layer of the networks has one
        tensors += [layer.weight, layer.bias]
    return tensors


class Encoder(nn.Module):
    """Splits an image into ``low`` and ``high`` of half its resolution (docs/network.md).

    Args:
        width: channels of the trunk; 16 is the published network, and the one with compiled kernels.
    """

    def __init__(self, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.low = nn.Conv2d(width, 3, 3, stride=2, padding=1)
        self.high = nn.Conv2d(width, 3, 3, stride=2, padding=1)

    def forward(
        self, image: Tensor, image_scale: Tensor | None = None, image_shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(low, high)`` of a (N, 3, H, W) image; see :func:`wae_kernels.encode`."""
        tensors = _tensors(self.conv1, self.conv2, self.conv3, self.low, self.high)
        return encode(image, *EncoderParameters(*tensors), image_scale, image_shift)


class Decoder(nn.Module):
    """Puts an image back together from ``low`` and ``high`` (docs/network.md).

    Args:
        width: channels of the trunk; 16 is the published network, and the one with compiled kernels.
    """

    def __init__(self, width: int = KERNEL_WIDTH) -> None:
        super().__init__()
        self.low = nn.ConvTranspose2d(3, width, 3, stride=2, padding=1)
        self.high = nn.ConvTranspose2d(3, width, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """The (N, 3, *output_size) image; see :func:`wae_kernels.decode`."""
        tensors = _tensors(self.low, self.high, self.conv1, self.conv2, self.conv3)
        return decode(low, high, *DecoderParameters(*tensors), output_size)
