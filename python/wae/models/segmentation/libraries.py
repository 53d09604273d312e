"""Networks of segmentation-models-pytorch (the extra ``segmentation``) in the form that is used here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

_STRIDE = 8  # of PSPNet's body, which is dilated


class AnySize(nn.Module):
    """A network that takes only sizes which ``stride`` divides, for images of any size.

    The image's last row and column are repeated, and the scores of what was added are cut off.

    Args:
        network: (N, 3, H, W) to scores of that size, or to a dictionary of such.
        stride: what divides the sizes that it takes: 32 of most of the library's, for example.
    """

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride

    def forward(self, image: Tensor) -> Any:
        """(N, 3, H, W) to what the network gives, of the same size."""
        height, width = image.shape[2:]
        added = 0, -width % self.stride, 0, -height % self.stride
        result: Any = self.network(F.pad(image, added, mode="replicate"))
        if isinstance(result, Mapping):
            return {name: scores[:, :, :height, :width] for name, scores in result.items()}
        return result[:, :, :height, :width]


class PSPNet(nn.Module):
    """The library's PSPNet on a dilated body, with the published auxiliary classifier (Zhao et al. 2017).

    For sizes that 8 divides: see :func:`pspnet`. In training it gives a dictionary: ``out``, and ``aux``, the
    scores of a classifier behind the body's last stage but one.

    Args:
        classes: number of scores of a pixel.
        body: one of the library's encoders.

    Raises ModuleNotFoundError without the library.
    """

    auxiliary: ClassVar[Mapping[str, float]] = {"aux": 0.4}
    """How much the losses of the other scores count in training, beside 1 for that of ``out``."""

    def __init__(self, classes: int, body: str = "resnet18") -> None:
        super().__init__()
        # imported here: not everybody has it, and it takes a second
        import segmentation_models_pytorch as library
        from torchvision.models.segmentation.fcn import FCNHead

        options = {"encoder_depth": 5, "output_stride": _STRIDE, "upsampling": _STRIDE}
        self.network = library.PSPNet(body, encoder_weights=None, classes=classes, **options)
        self.auxiliary_classifier = FCNHead(self.network.encoder.out_channels[-2], classes)

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """(N, 3, H, W) to (N, classes, H, W), or in training to the dictionary."""
        features = self.network.encoder(image)
        scores: Tensor = self.network.segmentation_head(self.network.decoder(features))
        if not self.training:
            return scores
        coarse = self.auxiliary_classifier(features[-2])
        return {"out": scores, "aux": F.interpolate(coarse, scores.shape[2:], mode="bilinear")}


def pspnet(classes: int, body: str = "resnet18") -> AnySize:
    """:class:`PSPNet` for images of any size, with random weights."""
    return AnySize(PSPNet(classes, body), _STRIDE)
