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
from wae.models.baselines import FullResolution
from wae.models.bodies import initialize
from wae.models.evaluating import evaluating, in_the_mode_of
from wae.models.haar import Haar
from wae.models.network import SideBySide, WAENetwork
from wae_kernels.nn import Decoder, Encoder, ScoreDecoder

_WIDTH = 16  # channels of the high body and of the fusion, as of the encoder's trunk
_SHIFT = 4.0  # of the scores within the fusion at its start: an untrained network's are within it
_RANDOM_SHARE = 0.1  # of the fusion's start


class SegmenterError(WaeError, ValueError):
    """A network does not score each pixel. The message says what it made, and of what."""


def pixel_scores(network: nn.Module, image: Tensor) -> Tensor:
    """The scores, (N, classes, H, W), that ``network`` gives the pixels of ``image``, (N, 3, H, W).

    A dictionary, which torchvision's networks return, has them as ``out``. Raises SegmenterError for anything
    else.
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


class Fusion(ScoreDecoder):
    """Half-resolution scores and features to scores at full resolution, in the form of the decoder.

    It starts close to bilinear upsampling of the scores, the baseline, and learns the edges: from a random
    start, short trainings did not even reach the baseline (docs/road-scenes.md).

    Args:
        classes: channels of the scores.
        features: channels of the features.
        width: channels in between.
    """

    def __init__(self, classes: int, features: int, width: int = _WIDTH) -> None:
        super().__init__(classes, features, width)
        self.apply(initialize)
        self._start_bilinear()

    @torch.no_grad()
    def _start_bilinear(self) -> None:
        """Give each class a channel of its own (as many as there are) that upsamples its scores bilinearly.

        Each score is repeated over its 2 x 2 pixels, and blurring that by (1, 2, 1) / 4 each way is bilinear
        (but at the border, beyond which a convolution sees zeros). The shift keeps scores above ReLU's zero.
        A share of the random start stays, so that every channel has a gradient; by it the shift favours some
        classes, which training has to undo.
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
    """Everything behind the encoder, for the two modules below that have these parts."""

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
    """Scores of the pixels of an image of any size, from its ``low`` and ``high``.

    Args:
        encoder, image_scale, image_shift, decoder: see :class:`wae.models.network.WAENetwork`.
        low_network: scores each pixel of ``low``: see :func:`pixel_scores`. Used as it is.
        high_body: (N, 3, h, w) to (N, D, h, w).
        fusion: brings both to full resolution.
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

        Raises SegmenterError where the low network does not score each pixel of ``low``.
        """
        return self.scores(*self.decompose(image), image.shape[2:])

    def behind_encoder(self, size: Sequence[int]) -> PixelsBehindEncoder:
        """See :class:`wae.models.network.WAENetwork`."""
        return PixelsBehindEncoder(self, size)


class PixelsBehindEncoder(_TwoResolutions):
    """``model`` from ``low`` and ``high`` on, with the same modules: what an inference engine runs.

    Args:
        model: whose parts these are.
        size: (H, W) of the images.
    """

    def __init__(self, model: WAESegmenter, size: Sequence[int]) -> None:
        super().__init__()
        self.low_norm, self.high_norm = model.low_norm, model.high_norm
        self.low_network, self.high_body, self.fusion = model.low_network, model.high_body, model.fusion
        self.size = tuple(size)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """The scores, (N, classes, H, W)."""
        return self.scores(low, high, self.size)


class BeforeFusion(_TwoResolutions):
    """``behind`` without its fusion, for engines other than PyTorch, where the fusion runs as our op.

    Args:
        behind: whose parts these are.
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
    """WAE around any network that scores pixels.

    It is in the mode of ``network``, training or evaluation, and what is made beside that has its dtype (that
    of its first parameter) and is on its device. What is given is used as it is, no copy, and stays as it is.

    Args:
        network: images to scores: see :func:`pixel_scores`. It sees a quarter of the pixels.
        encoder: a trained one; None for a random one.
        image_scale, image_shift, decoder: see :class:`WAESegmenter`.
        size: (h, w) of the image that ``network`` runs on once, so that its classes are known.

    Raises:
        SegmenterError: ``network`` does not score each pixel.
        ValueError: ``encoder`` or ``decoder`` is not of its dtype or not on its device.
    """
    like = next(network.parameters())
    for name, given in (("encoder", encoder), ("decoder", decoder)):
        _check_is_like(name, given, like)
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


def _check_is_like(name: str, given: nn.Module | None, network: Tensor) -> None:
    own = network if given is None else next(given.parameters(), network)
    if (own.dtype, own.device) != (network.dtype, network.device):
        raise ValueError(
            f"{name} is {own.dtype} on {own.device} and the network {network.dtype} on {network.device}; "
            f"bring it there first: {name}.to({str(network.device)!r}, {network.dtype})"
        )


class FullResolutionSegmenter(FullResolution):
    """The network itself, on the normalised image: a module that returns its scores alone.

    Args: as for :class:`wae.models.baselines.FullResolution`; the network scores pixels.
    """

    def forward(self, image: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), of ``image``: (N, 3, H, W), uint8 or floating point."""
        return pixel_scores(self.network, self._normalized(image))


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
