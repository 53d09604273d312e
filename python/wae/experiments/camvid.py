"""The claim on road scenes, pixel by pixel: CamVid (Brostow et al. 2009) in eleven classes.

As SegNet's authors published it: 367 images to train on, 101 to choose by, 233 to test, 480 x 360.

A network at full resolution, at half of it with its scores brought back bilinearly, and with WAE around it.
All are trained by one plan; every epoch is tested on ``val``, and ``test`` is looked at once, after the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from wae.data.dataset import Dataset, DatasetError
from wae.data.input import Input, whole
from wae.data.segmentation import SegmentationFolder, segmentation_folder
from wae.models.bodies import initialize
from wae.models.network import WAENetwork
from wae.models.registry import build
from wae.training.plan import find
from wae.training.pretrained import scale_for_photos
from wae_kernels.nn import Decoder, Encoder

from .reproduce import WAE, Claim, longer

NETWORKS = ("enet", "mobilenet_deconv", "mobilenet_deconv_compensated", "pspnet_resnet18")
"""The networks that are compared, by their names in :mod:`wae.models.registry`."""

CLASSES = tuple("sky building pole road pavement tree sign fence car pedestrian cyclist (unlabelled)".split())
"""By the numbers in SegNet's labels; the last is not counted."""

SIZE = (360, 480)
HALF = "half, bilinear"


def claim(network: str = "enet", size: tuple[int, int] | None = None, times: float = 1.0) -> CamVid:
    """With the plan ``camvid``.

    Args:
        network: see :class:`CamVid`.
        size: of the images; None for :data:`SIZE`, their own.
        times: so many times the plan's epochs with labels.
    """
    return CamVid(replace(longer(find("camvid"), times), model=f"wae_{network}"), network, size or SIZE)


@dataclass(frozen=True)
class CamVid(Claim):
    """See the module."""

    network: str
    """One of :data:`NETWORKS`."""
    size: tuple[int, int]
    """Height and width of the images in pixels."""

    full = "full resolution"
    half = HALF
    timed_images: ClassVar[int] = 8
    measure: ClassVar[str] = "mean IoU"

    @cached_property
    def registered(self) -> Mapping[str, str]:
        """See :attr:`Claim.registered`."""
        return {self.full: self.network, HALF: f"{self.network}_half", WAE: f"wae_{self.network}"}

    @property
    def input(self) -> Input:
        """See :attr:`Claim.input`."""
        return whole(*self.size)

    def settings(self) -> dict[str, Any]:
        """See :meth:`Claim.settings`."""
        return {"network": self.network, "size": list(self.size)}

    def build(self, network: str) -> nn.Module:
        """See :meth:`Claim.build`."""
        model = build(self.registered[network], len(CLASSES) - 1)
        if isinstance(model, WAENetwork) and isinstance(model.encoder, Encoder):
            model.decoder = Decoder()
            model.encoder.apply(initialize)
            model.decoder.apply(initialize)
        scale_for_photos(model)
        return model

    def prepared(self, data: str | Path, folder: Path) -> str | Path:
        """See :meth:`Claim.prepared`: ``data`` holds {train,val,test}/{images,labels}."""
        for part in ("train", "val", "test"):
            self._part(data, part)
        return data

    def sets(self, data: str | Path, seed: int) -> tuple[Dataset, Dataset]:
        """See :meth:`Claim.sets`."""
        return self._part(data, "train", seed, augment=True), self._part(data, "val")

    def kept_out(self, data: str | Path) -> Dataset:
        """See :meth:`Claim.kept_out`."""
        return self._part(data, "test")

    def _part(self, data: str | Path, part: str, seed: int = 0, augment: bool = False) -> SegmentationFolder:
        if not Path(data).is_dir():
            raise DatasetError(f"{data}: there is no such folder")
        return segmentation_folder(Path(data), part, self.input, seed, augment, classes=CLASSES, keep=True)
