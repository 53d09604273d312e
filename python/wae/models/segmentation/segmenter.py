"""WAE around a network that scores pixels: it works on ``low``, and edges come back from ``high``.

::

    image -> encoder -> low  -> norm -> low_network -> scores at half the resolution -+
                     -> high -> norm -> high_body   -> features ----------------------+-> fusion -> scores

The fusion has the form of the paper's decoder: a transposed convolution of each, summed, ReLU, and 3x3
convolutions, the last one to the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.errors import WaeError
from wae.models.autoencoder import reconstruct
from wae.models.baselines import FullResolution
from wae.models.bodies import initialize
from wae.models.evaluating import evaluating
from wae_kernels.nn import Decoder, Encoder

_WIDTH = 16  # channels of the high body and of the fusion, as of the encoder's trunk


class SegmenterError(WaeError, ValueError):
    """A network does not score each pixel. The message says what it made, and of what."""


def pixel_scores(network: nn.Module, image: Tensor) -> Tensor:
    """The scores, (N, classes, H, W), that ``network`` gives the pixels of ``image``, (N, 3, H, W).

    A dictionary, which torchvision's networks return, has them as ``out``. Raises SegmenterError for another
    shape.
    """
    result: Any = network(image)
    scores = result["out"] if isinstance(result, Mapping) else result
    if not isinstance(scores, Tensor) or scores.dim() != 4 or scores.shape[2:] != image.shape[2:]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        height, width = image.shape[2:]
        raise SegmenterError(
            f"{type(network).__name__} must score each pixel of {height} x {width} images: "
            f"(N, classes, {height}, {width}), got {got}"
        )
    return scores


class LightBody(nn.Sequential):
    """Two 3x3 convolutions with BatchNorm and ReLU: (N, 3, h, w) to (N, channels, h, w).

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int = _WIDTH) -> None:
        layers: list[nn.Module] = []
        for before in (3, channels):
            layers += [
                nn.Conv2d(before, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)
        self.apply(initialize)


class Fusion(nn.Module):
    """Half-resolution scores and features to scores at full resolution, in the form of the decoder.

    Args:
        classes: channels of the scores.
        features: channels of the features.
        width: channels in between.
    """

    def __init__(self, classes: int, features: int, width: int = _WIDTH) -> None:
        super().__init__()
        self.low = nn.ConvTranspose2d(classes, width, 3, stride=2, padding=1)
        self.high = nn.ConvTranspose2d(features, width, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, classes, 3, padding=1)
        self.apply(initialize)

    def forward(self, scores: Tensor, features: Tensor, output_size: Sequence[int]) -> Tensor:
        """(N, classes, h, w) and (N, features, h, w) to (N, classes, H, W); ``output_size`` is (H, W)."""
        size = list(output_size)
        x = F.relu(self.low(scores, output_size=size) + self.high(features, output_size=size))
        fused: Tensor = self.conv2(F.relu(self.conv1(x)))
        return fused


class WAESegmenter(nn.Module):
    """Scores of the pixels of an image of any size, from its ``low`` and ``high``.

    Args:
        encoder: splits the image.
        low_network: scores each pixel of ``low``: see :func:`pixel_scores`. Used as it is.
        high_body: (N, 3, h, w) to (N, D, h, w).
        fusion: brings both to full resolution.
        image_scale, image_shift: three numbers each; the image becomes ``image * scale + shift`` first.
        decoder: the encoder's, for :meth:`reconstruct`; None where nothing is to be reconstructed.
    """

    image_scale: Tensor
    image_shift: Tensor

    def __init__(
        self,
        encoder: Encoder,
        low_network: nn.Module,
        high_body: nn.Module,
        fusion: Fusion,
        image_scale: Sequence[float] = (1.0, 1.0, 1.0),
        image_shift: Sequence[float] = (0.0, 0.0, 0.0),
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.low_norm = nn.BatchNorm2d(encoder.low.out_channels, affine=False)
        self.high_norm = nn.BatchNorm2d(encoder.high.out_channels, affine=False)
        self.low_network = low_network
        self.high_body = high_body
        self.fusion = fusion
        self.register_buffer("image_scale", torch.tensor(image_scale))
        self.register_buffer("image_shift", torch.tensor(image_shift))

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), of ``image``: (N, 3, H, W), uint8 or the parameters' dtype.

        Raises SegmenterError where the low network does not score each pixel of ``low``.
        """
        return self.scores(*self.decompose(image), image.shape[2:])

    def decompose(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(low, high)`` of ``image``, both (N, 3, ceil(H/2), ceil(W/2)), before the normalisations."""
        low, high = self.encoder(image, self.image_scale, self.image_shift)
        return low, high

    def scores(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """The scores, (N, classes, H, W), of what :meth:`decompose` gave; ``output_size`` is (H, W)."""
        coarse = pixel_scores(self.low_network, self.low_norm(low))
        fused: Tensor = self.fusion(coarse, self.high_body(self.high_norm(high)), output_size)
        return fused

    def reconstruct(self, low: Tensor, high: Tensor, size: Sequence[int]) -> Tensor:
        """The image of ``size`` (H, W) that ``low`` and ``high`` came from, with scale and shift undone.

        Raises RuntimeError without a decoder.
        """
        if self.decoder is None:
            raise RuntimeError("the model has no decoder: give WAESegmenter one, or set model.decoder")
        return reconstruct(self.decoder, low, high, size, self.image_scale, self.image_shift)


def wae_segmenter(
    network: nn.Module,
    encoder: Encoder | None = None,
    image_scale: Sequence[float] = (1.0, 1.0, 1.0),
    image_shift: Sequence[float] = (0.0, 0.0, 0.0),
    decoder: Decoder | None = None,
    size: tuple[int, int] = (64, 64),
) -> WAESegmenter:
    """WAE around any network that scores pixels.

    Args:
        network: images to scores: see :func:`pixel_scores`. Used as it is; it sees a quarter of the pixels.
        encoder: a trained one; None for a random one.
        image_scale, image_shift, decoder: see :class:`WAESegmenter`.
        size: (h, w) of the image that ``network`` runs on once, so that its classes are known.

    Raises SegmenterError where it does not score each pixel.
    """
    like = next(network.parameters())
    image = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    with torch.no_grad(), evaluating(network):
        coarse = pixel_scores(network, image)
    return WAESegmenter(
        Encoder() if encoder is None else encoder,
        network,
        LightBody(),
        Fusion(coarse.shape[1], _WIDTH),
        image_scale,
        image_shift,
        decoder,
    ).to(like)


class HalfResolutionSegmenter(FullResolution):
    """The baseline: the network on the mean of each 2 x 2 block, its scores brought back bilinearly.

    Args: as for :class:`wae.models.baselines.FullResolution`; the network scores pixels.
    """

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), of ``image``: (N, 3, H, W), uint8 or floating point."""
        half = F.avg_pool2d(self._normalized(image), 2, ceil_mode=True)
        return F.interpolate(
            pixel_scores(self.network, half), image.shape[2:], mode="bilinear", align_corners=False
        )
