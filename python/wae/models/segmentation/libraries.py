"""Networks from segmentation-models-pytorch (the extra ``segmentation``), adapted to this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

_STRIDE = 8  # of PSPNet's dilated body


class AnySize(nn.Module):
    """Makes a network that takes only sizes divisible by ``stride`` take images of any size.

    The image is padded by repeating its last row and column, and the scores of the padding are cut off.
    Auxiliary scores may be coarser than the image: they are scaled to it bilinearly before they are cut.

    Args:
        network: maps (N, 3, H, W) to scores of that size, or to a dictionary of such scores.
        stride: the number that divides the sizes it takes, 32 for most of the library's networks.
    """

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride
        self.auxiliary: Mapping[str, float] = getattr(network, "auxiliary", {})
        """The weights of the network's auxiliary scores, if it has any: see :class:`PSPNet`."""

    def forward(self, image: Tensor) -> Any:
        """Map (N, 3, H, W) to what the network returns, at the size (H, W)."""
        height, width = image.shape[2:]
        padded = F.pad(image, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        result: Any = self.network(padded)
        if not isinstance(result, Mapping):
            return result[:, :, :height, :width]
        scores = dict(result)
        for name in self.auxiliary.keys() & scores.keys():
            scores[name] = F.interpolate(scores[name], padded.shape[2:], mode="bilinear")
        return {name: one[:, :, :height, :width] for name, one in scores.items()}


class PSPNet(nn.Module):
    """The library's PSPNet on a dilated body, with the published auxiliary classifier (Zhao et al. 2017).

    It takes sizes divisible by 8; :func:`pspnet` takes any. In training mode it returns a dictionary: ``out``
    is the scores; ``aux`` is those of a classifier behind the body's last stage but one, at the same size.

    Args:
        classes: the number of scores of a pixel.
        body: the name of one of the library's encoders.

    Raises:
        ModuleNotFoundError: the library is not installed.
    """

    auxiliary: ClassVar[Mapping[str, float]] = {"aux": 0.4}
    """The weights of the auxiliary scores' losses in training; that of ``out`` is 1."""

    def __init__(self, classes: int, body: str = "resnet18") -> None:
        super().__init__()
        # imported here because it is optional and takes a second
        import segmentation_models_pytorch as library
        from torchvision.models.segmentation.fcn import FCNHead

        options = {"encoder_depth": 5, "output_stride": _STRIDE, "upsampling": _STRIDE}
        self.network = library.PSPNet(body, encoder_weights=None, classes=classes, **options)
        self.auxiliary_classifier = FCNHead(self.network.encoder.out_channels[-2], classes)

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Map (N, 3, H, W) to scores, (N, classes, H, W), or in training mode to the dictionary."""
        features = self.network.encoder(image)
        scores: Tensor = self.network.segmentation_head(self.network.decoder(features))
        if not self.training:
            return scores
        coarse = self.auxiliary_classifier(features[-2])
        return {"out": scores, "aux": F.interpolate(coarse, scores.shape[2:], mode="bilinear")}


def pspnet(classes: int, body: str = "resnet18") -> AnySize:
    """:class:`PSPNet` with random weights, for images of any size."""
    return AnySize(PSPNet(classes, body), _STRIDE)
