"""The baselines with which the paper compares WAE.

The paper's "Decomposition+CNN" has no constructor here. It is the WAE network itself, trained without the
reconstruction constraint (no stage 1, and gamma 0 in stage 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae_kernels.reference import normalize_image

from .bodies import initialize, torchvision_network, widen_input
from .classifier import FlatClassifier, WAEClassifier
from .haar import Haar
from .network import numbers_like
from .vgg16 import vgg16_body


class FullResolution(nn.Module):
    """A network on images with values 0..255, at full resolution.

    Args:
        network: maps normalised images, (N, 3, H, W), to scores.
        image_scale, image_shift: three numbers each. The network sees ``image * scale + shift``.
    """

    image_scale: Tensor
    image_shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        image_scale: Sequence[float] = (1.0, 1.0, 1.0),
        image_shift: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        self.network = network
        like = next(network.parameters(), torch.empty(0))
        self.register_buffer("image_scale", numbers_like("image_scale", image_scale, like))
        self.register_buffer("image_shift", numbers_like("image_shift", image_shift, like))

    def forward(self, image: Tensor) -> Tensor:
        """The scores of ``image``: (N, 3, H, W), uint8 or floating point."""
        scores: Tensor = self.network(self._normalized(image))
        return scores

    def _normalized(self, image: Tensor) -> Tensor:
        scale = self.image_scale
        return normalize_image(image, scale.dtype, scale, self.image_shift)


class HalfResolution(FullResolution):
    """A network on the image at half resolution: the mean of each 2 x 2 block.

    At an odd edge it is the mean of the pixels that are there. The paper does not say how it makes the small
    image. The mean is half the approximation band that the low body of Wavelet+CNN sees, so the two baselines
    differ only in the details.

    Args: as for :class:`FullResolution`; the network takes (N, 3, ceil(H/2), ceil(W/2)).
    """

    def forward(self, image: Tensor) -> Tensor:
        """The scores of ``image``: (N, 3, H, W), uint8 or floating point."""
        scores: Tensor = self.network(F.avg_pool2d(self._normalized(image), 2, ceil_mode=True))
        return scores


class AtSize(FullResolution):
    """A network on the image scaled to another size (bilinear, antialiased).

    Args:
        network: maps (N, 3, side, side) to scores.
        side: height and width of the scaled image in pixels.
        image_scale, image_shift: see :class:`FullResolution`.
    """

    def __init__(
        self,
        network: nn.Module,
        side: int,
        image_scale: Sequence[float] = (1.0, 1.0, 1.0),
        image_shift: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__(network, image_scale, image_shift)
        self.side = side

    def forward(self, image: Tensor) -> Tensor:
        """The scores of ``image``: (N, 3, H, W), uint8 or floating point."""
        scaled = F.interpolate(
            self._normalized(image), size=(self.side, self.side), mode="bilinear", antialias=True
        )
        scores: Tensor = self.network(scaled)
        return scores


def vgg16_half(classes: int = 1000) -> HalfResolution:
    """VGG16 at half resolution, with random weights, for images of 224 x 224 ("VGG16 at 112" in the paper).

    Its pools round up, as those of WAE-VGG16 do, so the classifier, which has VGG16's width, gets 4 x 4
    features. The number of multiply-adds is the published one.
    """
    body = vgg16_body().apply(initialize)
    return HalfResolution(nn.Sequential(body, FlatClassifier(512 * 4 * 4, 4096, classes)))


def resnet50_half(classes: int = 1000) -> HalfResolution:
    """torchvision's ResNet50 at half resolution, with random weights."""
    return HalfResolution(torchvision_network("resnet50", num_classes=classes))


def wavelet_cnn(model: WAEClassifier) -> WAEClassifier:
    """Wavelet+CNN: ``model`` with the Haar transform in place of the encoder. Changes and returns ``model``.

    The low body sees the 3 approximation bands. The high body sees all 9 detail bands, and its first
    convolution is replaced by one of 9 channels with random weights. The paper does not say how it feeds the
    details; this is our choice. Both normalisations are new, and the decoder is removed.

    Raises:
        ValueError: the high body has no convolution that takes three channels.
    """
    like = next(model.low_body.parameters())
    model.encoder, model.decoder = Haar().to(like).train(model.training), None
    for name, branch in (("low_norm", model.encoder.low), ("high_norm", model.encoder.high)):
        setattr(model, name, nn.BatchNorm2d(branch.out_channels, affine=False).to(like).train(model.training))
    widen_input(model.high_body, model.encoder.high.out_channels)
    return model
