"""WAE around a segmentation network: the network works on ``low``, and ``high`` restores the edges.

::

    image -> encoder -> low  -> norm -> low_network -> scores at half the resolution -+
                     -> high -> norm -> high_body   -> features ----------------------+-> fusion -> scores

The fusion has the form of the paper's decoder: a transposed convolution of each input, their sum, ReLU, and
3 x 3 convolutions, of which the last makes the classes' scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.errors import WaeError
from wae.models.baselines import FullResolution
from wae.models.bodies import initialize
from wae.models.evaluating import evaluating, in_the_mode_of
from wae.models.haar import Haar
from wae.models.network import SideBySide, WAENetwork, check_is_like
from wae_kernels.nn import Decoder, Encoder, ScoreDecoder

_WIDTH = 16  # channels of the high body and of the fusion, as in the encoder's trunk
_SHIFT = 4.0  # added to the scores in the fusion at its start: those of an untrained network are smaller
_RANDOM_SHARE = 0.1  # the random part of the fusion's initial weights


class SegmenterError(WaeError, ValueError):
    """A network does not score each pixel. The message gives its output and the size of the images."""


def pixel_scores(network: nn.Module, image: Tensor) -> Tensor:
    """The scores, (N, classes, H, W), of ``network`` for the pixels of ``image``, (N, 3, H, W).

    If the network returns a dictionary, as torchvision's do, they are its ``out``. Raises SegmenterError if
    it returns anything else.
    """
    result: Any = network(image)
    scores = result.get("out", result) if isinstance(result, Mapping) else result
    if not isinstance(scores, Tensor) or scores.dim() != 4 or scores.shape[2:] != image.shape[2:]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        height, width = image.shape[2:]
        raise SegmenterError(
            f"{type(network).__name__} must score each pixel of {height} x {width} images: "
            f"(N, classes, {height}, {width}), got {got}"
        )
    return scores


def doubled(scores: Tensor, size: Sequence[int]) -> Tensor:
    """``scores`` at half the resolution, upsampled bilinearly to an image of ``size``, (H, W).

    If a side is odd, the last pixel of ``scores`` is for one of the image, not two, so the second is cut off.
    """
    height, width = scores.shape[2:]
    twice = F.interpolate(scores, [2 * height, 2 * width], mode="bilinear", align_corners=False)
    return twice[:, :, : size[0], : size[1]]


class LightBody(nn.Sequential):
    """Two 3 x 3 convolutions with BatchNorm and ReLU: (N, 3, h, w) to (N, 16, h, w)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before in (3, _WIDTH):
            layers += [
                nn.Conv2d(before, _WIDTH, 3, padding=1, bias=False),
                nn.BatchNorm2d(_WIDTH),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)
        self.apply(initialize)


class Fusion(ScoreDecoder):
    """Fuses half-resolution scores and features into full-resolution scores, in the form of the decoder.

    It starts close to bilinear upsampling of the scores, the baseline, and learns the edges. From a random
    start, short trainings did not even reach the baseline (docs/road-scenes.md).

    Args:
        classes: the number of channels of the scores.
        features: the number of channels of the features.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__(classes, features, _WIDTH)
        self.apply(initialize)
        self._start_bilinear()

    @torch.no_grad()
    def _start_bilinear(self) -> None:
        """Give each class its own channel, as far as there are enough, that upsamples its scores bilinearly.

        Each score is repeated over its 2 x 2 pixels. Blurring by (1, 2, 1) / 4 in both directions makes that
        bilinear, except at the border, beyond which a convolution sees zeros. The shift keeps the scores
        above ReLU's zero. A part of the random weights stays, so that every channel has a gradient. Through
        it the shift favours some classes, which training has to undo.
        """
        for layer in (self.low, self.conv1, self.conv2):
            layer.weight *= _RANDOM_SHARE
        blur = torch.tensor([1.0, 2.0, 1.0]) / 4
        repeat = torch.tensor([0.0, 1.0, 1.0])
        own_channels = min(self.conv2.out_channels, self.conv2.in_channels)
        self.low.get_parameter("bias")[:own_channels] = _SHIFT
        for c in range(own_channels):
            self.low.weight[c, c] += torch.outer(repeat, repeat)
            self.conv1.weight[c, c] += torch.outer(blur, blur)
            self.conv2.weight[c, c, 1, 1] += 1


class _TwoResolutions(SideBySide):
    """Everything behind the encoder, shared by the classes below, which have these parts."""

    low_norm: nn.Module
    high_norm: nn.Module
    low_network: nn.Module
    high_body: nn.Module
    fusion: nn.Module

    def halves(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the fusion: scores, (N, classes, h, w), and features, (N, D, h, w)."""
        return self.both(
            lambda: pixel_scores(self.low_network, self.low_norm(low)),
            lambda: self.high_body(self.high_norm(high)),
        )

    def scores(self, low: Tensor, high: Tensor, output_size: Sequence[int]) -> Tensor:
        """The scores, (N, classes, H, W), of an image's ``low`` and ``high`` as the encoder gives them.

        ``output_size`` is the image's (H, W).
        """
        fused: Tensor = self.fusion(*self.halves(low, high), output_size)
        return fused


class WAESegmenter(_TwoResolutions, WAENetwork):
    """Scores the pixels of an image of any size, from its ``low`` and ``high``.

    Args:
        encoder, image_scale, image_shift, decoder: see :class:`wae.models.network.WAENetwork`.
        low_network: a network that scores each pixel of ``low``: see :func:`pixel_scores`. Used as it is.
        high_body: maps (N, 3, h, w) to (N, D, h, w).
        fusion: fuses both results into scores at full resolution.
    """

    bodies = ("low_network", "high_body")

    def __init__(
        self,
        encoder: Encoder | Haar,
        low_network: nn.Module,
        high_body: nn.Module,
        fusion: Fusion,
        image_scale: Sequence[float] = (1.0, 1.0, 1.0),
        image_shift: Sequence[float] = (0.0, 0.0, 0.0),
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(encoder, image_scale, image_shift, decoder)
        self.low_network = low_network
        self.high_body = high_body
        self.fusion = fusion

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), of ``image``: (N, 3, H, W), uint8 or the parameters' dtype.

        Raises SegmenterError if the low network does not score each pixel of ``low``.
        """
        return self.scores(*self.decompose(image), image.shape[2:])

    def behind_encoder(self, size: Sequence[int]) -> PixelsBehindEncoder:
        """See :class:`wae.models.network.WAENetwork`."""
        return PixelsBehindEncoder(self, size)


class PixelsBehindEncoder(_TwoResolutions):
    """The part of ``model`` behind the encoder, with the same modules: what an inference engine runs.

    Args:
        model: the network whose parts it uses.
        size: (H, W) of the images.
    """

    def __init__(self, model: WAESegmenter, size: Sequence[int]) -> None:
        super().__init__()
        self.low_norm, self.high_norm = model.low_norm, model.high_norm
        self.low_network, self.high_body, self.fusion = model.low_network, model.high_body, model.fusion
        self.size = tuple(size)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), of ``low`` and ``high``, (N, 3, h, w) each."""
        return self.scores(low, high, self.size)


class BeforeFusion(_TwoResolutions):
    """``behind`` without its fusion, for engines other than PyTorch's: our op runs the fusion behind them.

    Args:
        behind: the module whose parts it uses.
    """

    def __init__(self, behind: PixelsBehindEncoder) -> None:
        super().__init__()
        self.low_norm, self.high_norm = behind.low_norm, behind.high_norm
        self.low_network, self.high_body = behind.low_network, behind.high_body

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Scores and features at half the resolution as one tensor, (N, classes + D, h, w)."""
        return torch.cat(self.halves(low, high), 1)


def wae_segmenter(
    network: nn.Module,
    encoder: Encoder | None = None,
    image_scale: Sequence[float] = (1.0, 1.0, 1.0),
    image_shift: Sequence[float] = (0.0, 0.0, 0.0),
    decoder: Decoder | None = None,
    size: tuple[int, int] = (64, 64),
) -> WAESegmenter:
    """WAE around any segmentation network.

    The new parts have the dtype and the device of the network's first parameter. The result has the network's
    mode, training or evaluation. The arguments become its parts without being copied or changed.

    Args:
        network: maps images to scores: see :func:`pixel_scores`. It sees a quarter of the pixels.
        encoder: a trained encoder; None for a random one.
        image_scale, image_shift, decoder: see :class:`WAESegmenter`.
        size: (h, w) of an image on which ``network`` runs once, to find the number of classes.

    Raises:
        SegmenterError: ``network`` does not score each pixel.
        ValueError: ``encoder`` or ``decoder`` has another dtype or device than ``network``.
    """
    like = next(network.parameters())
    for name, given in (("encoder", encoder), ("decoder", decoder)):
        check_is_like(name, given, like)
    image = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    with torch.no_grad(), evaluating(network):
        coarse = pixel_scores(network, image)
    model = WAESegmenter(
        Encoder().to(like) if encoder is None else encoder,
        network,
        LightBody().to(like),
        Fusion(coarse.shape[1], _WIDTH).to(like),
        image_scale,
        image_shift,
        decoder,
    )
    return in_the_mode_of(network, model)


class FullResolutionSegmenter(FullResolution):
    """The network itself, on the normalised image. It returns only the scores, no dictionary.

    Args: as for :class:`wae.models.baselines.FullResolution`; the network scores pixels.
    """

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), of ``image``: (N, 3, H, W), uint8 or floating point."""
        return pixel_scores(self.network, self._normalized(image))


class HalfResolutionSegmenter(FullResolution):
    """The baseline: the network on the mean of each 2 x 2 block, with its scores upsampled bilinearly.

    Args: as for :class:`wae.models.baselines.FullResolution`; the network scores pixels.
    """

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), of ``image``: (N, 3, H, W), uint8 or floating point."""
        half = F.avg_pool2d(self._normalized(image), 2, ceil_mode=True)
        return doubled(pixel_scores(self.network, half), image.shape[2:])
