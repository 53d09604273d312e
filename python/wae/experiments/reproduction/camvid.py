"""The claim on segmentation of road scenes: CamVid (Brostow et al. 2009) in eleven classes.

The data is SegNet's version: 367 training, 101 validation and 233 test images of 360 x 480 pixels.

It compares a network at full resolution, at half the resolution with its scores upsampled bilinearly, and
with WAE around it. The last two are also trained a second way: initialised from the trained first one and
distilled from it. All share one plan. Every epoch is tested on ``val``, and ``test`` once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from wae.data.dataset import Dataset, DatasetError
from wae.data.input import Input, whole
from wae.data.segmentation import SegmentationFolder, segmentation_folder
from wae.experiments import panels
from wae.inference.maps import colours
from wae.storage.checkpoint import load_classifier
from wae.training.plan import find

from .claim import WAE, Job, built_for_photos, longer
from .fine_tuned import FINE_TUNED, FineTuned, fine_tuned
from .results import weights_path

NETWORKS = ("enet", "mobilenet_deconv", "mobilenet_deconv_compensated", "pspnet_resnet18")
"""The networks that are compared, by their names in :mod:`wae.models.registry`."""

CLASSES = tuple("sky building pole road pavement tree sign fence car pedestrian cyclist (unlabelled)".split())
"""In the order of the numbers in SegNet's labels. The last is not counted."""

SIZE = (360, 480)
HALF = "half, bilinear"
_SEEDS = 10  # that are searched for weights to draw a picture with
_SHOWN = 3  # images in the picture, if the test set has that many


def claim(network: str = "enet", size: tuple[int, int] | None = None, times: float = 1.0) -> CamVid:
    """The claim for ``network``, with the plan ``camvid``.

    Args:
        network: see :class:`CamVid`.
        size: height and width of the images; None for their own, :data:`SIZE`.
        times: factor for the plan's epochs with labels.
    """
    # The training keeps its statistics, because a result also has the accuracy with re-estimated ones.
    plan = replace(longer(find("camvid"), times), model=f"wae_{network}", remeasure_norms=False)
    return CamVid(plan, network, size or SIZE)


@dataclass(frozen=True)
class CamVid(FineTuned):
    """See the module."""

    network: str
    """One of :data:`NETWORKS`."""
    size: tuple[int, int]
    """Height and width of the images in pixels."""

    full = "full resolution"
    half = HALF
    timed_images: ClassVar[int] = 8
    measure: ClassVar[str] = "mean IoU"
    remeasures: ClassVar[bool] = True

    @cached_property
    def registered(self) -> Mapping[str, str]:
        """See :attr:`Claim.registered`."""
        full, half, wae = self.network, f"{self.network}_half", f"wae_{self.network}"
        return {self.full: full, HALF: half, WAE: wae, fine_tuned(HALF): half, FINE_TUNED: wae}

    @property
    def input(self) -> Input:
        """See :attr:`Claim.input`."""
        return whole(*self.size)

    def settings(self) -> dict[str, Any]:
        """See :meth:`Claim.settings`."""
        return {"network": self.network, "size": list(self.size)}

    def build(self, network: str) -> nn.Module:
        """See :meth:`Claim.build`."""
        return built_for_photos(self.registered[network], len(CLASSES) - 1)

    def parts(self, data: str | Path) -> Mapping[str, Dataset]:
        """See :meth:`Claim.parts`."""
        return {part: self._part(data, part) for part in ("train", "val", "test")}

    def prepared(self, data: str | Path, folder: Path) -> str | Path:
        """See :meth:`Claim.prepared`: ``data`` holds {train,val,test}/{images,labels}."""
        self.parts(data)
        return data

    def sets(self, data: str | Path, seed: int) -> tuple[Dataset, Dataset]:
        """See :meth:`Claim.sets`."""
        return self._part(data, "train", seed, augment=True), self._part(data, "val")

    def held_out(self, data: str | Path) -> Dataset:
        """See :meth:`Claim.held_out`."""
        return self._part(data, "test")

    @torch.no_grad()
    def picture(self, data: str | Path, folder: Path) -> Image.Image | None:
        """Test images, their true classes, and those predicted by the networks trained from scratch.

        Uses the first seed that has the weights of all these networks; None if there is none, or no ``data``.
        """
        from_scratch = [name for name in self.registered if self.needs(name) is None]
        seeds = (
            {name: weights_path(folder, Job(name, seed)) for name in from_scratch} for seed in range(_SEEDS)
        )
        files = next((of for of in seeds if all(file.exists() for file in of.values())), None)
        if files is None:
            return None
        try:
            test = self._part(data, "test")
        except DatasetError:  # a table of finished trainings needs no data
            return None
        count = min(_SHOWN, len(test))
        images, labels = test.batch([len(test) * number // count for number in range(count)], epoch=0)
        found = {name: load_classifier(file).eval()(images).argmax(1) for name, file in files.items()}
        not_counted = torch.zeros(1, 3, dtype=torch.uint8)  # comes last, where the label -1 selects it
        palette = torch.cat([colours(len(test.labels)), not_counted])
        maps = {"truth": labels.clamp(min=-1), **found}
        zoom = panels.zoom_of(images[0])
        columns = [[panels.labelled("image", panels.draw(image, zoom)) for image in images]]
        for name, classes in maps.items():
            drawn = palette[classes].permute(0, 3, 1, 2)
            columns.append([panels.labelled(name, panels.draw(image, zoom)) for image in drawn])
        names = dict(zip((*test.labels, "not counted"), palette.tolist(), strict=True))
        return panels.joined([*columns, [panels.legend(names)]])

    def _part(self, data: str | Path, part: str, seed: int = 0, augment: bool = False) -> SegmentationFolder:
        if not Path(data).is_dir():
            raise DatasetError(f"{data}: there is no such folder")
        return segmentation_folder(Path(data), part, self.input, seed, augment, classes=CLASSES, keep=True)
