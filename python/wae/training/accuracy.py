"""How well a network does on a data set: counts that add up over batches and processes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wae.data.dataset import Dataset
from wae.data.segmentation import SegmentationFolder
from wae.models.segmentation import networks as segmentation


class Accuracy(NamedTuple):
    """How a classifier does on a data set."""

    top1: float
    """Share of the images whose best score is the right class's, 0..1."""
    top5: float
    """Share of those for which it is among the five best."""
    loss: float
    """Mean cross entropy."""
    images: int

    @property
    def score(self) -> float:
        """The number that networks are compared by: ``top1``."""
        return self.top1

    @property
    def measure(self) -> str:
        """The name of :attr:`score`."""
        return "top-1 accuracy"

    def columns(self) -> dict[str, str]:
        """For a table: the errors in percent, by the columns' titles."""
        return {
            f"top-{k} error": f"{100 * (1 - share):.2f} %" for k, share in ((1, self.top1), (5, self.top5))
        }

    def __str__(self) -> str:
        return f"top-1 accuracy {100 * self.top1:.2f} %"


class PixelAccuracy(NamedTuple):
    """How a network that scores pixels does on a data set. Pixels that are not counted are left out."""

    mean_iou: float
    """Mean over the classes of intersection over union, 0..1: of all pixels that are of the class or taken
    for it, the share that is both. Classes of which there are no such pixels are left out."""
    pixels: float
    """Share of the pixels whose best score is the right class's, 0..1."""
    mean_class: float
    """Mean over the classes of that share."""
    loss: float
    """Mean cross entropy of a pixel."""
    images: int

    @property
    def score(self) -> float:
        """The number that networks are compared by: ``mean_iou``."""
        return self.mean_iou

    @property
    def measure(self) -> str:
        """The name of :attr:`score`."""
        return "mean IoU"

    def columns(self) -> dict[str, str]:
        """For a table: the shares in percent, by the columns' titles."""
        return {"mean IoU": f"{100 * self.mean_iou:.2f} %", "pixels right": f"{100 * self.pixels:.2f} %"}

    def __str__(self) -> str:
        return f"mean IoU {100 * self.mean_iou:.2f} %, {100 * self.pixels:.2f} % of the pixels right"


class Counts(Protocol):
    """Counts over batches of scores."""

    total: Tensor
    """Float64 numbers, which may be summed over processes."""

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch: scores (N, classes, ...), int64 labels (N, ...), on one device."""

    def result(self) -> Accuracy | PixelAccuracy:
        """Raises ValueError where nothing was counted."""


def counts_for(data: Dataset) -> Counts:
    """Zeros, for the kind of labels that ``data`` has."""
    return _Pixels(len(data.labels)) if isinstance(data, SegmentationFolder) else _Images()


def check_kind(name: str, data: Dataset) -> None:
    """Raise ValueError where the network scores images and the data labels pixels, or the reverse."""
    pixels = isinstance(data, SegmentationFolder)
    if pixels != bool(segmentation.builder(name)):
        whole, each = "an image as a whole", "each pixel"
        scored, labelled = (whole, each) if pixels else (each, whole)
        raise ValueError(f"{name} scores {scored}, and the data has a class for {labelled}")


class _Images:
    """Right ones, right ones among the best five, the loss, all."""

    def __init__(self) -> None:
        self.total = torch.zeros(4, dtype=torch.float64)

    def add(self, scores: Tensor, labels: Tensor) -> None:
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(scores, labels, reduction="sum")
        counts = best[:, 0].sum(), best.sum(), loss, labels.new_tensor(len(labels))
        self.total[:4] += torch.stack([count.double() for count in counts]).cpu()
        self._add_best(best[:, 0], labels)

    def _add_best(self, right: Tensor, labels: Tensor) -> None:
        """Count further: which images are right, (N,) bool, and their labels."""

    def result(self) -> Accuracy:
        top1, top5, loss, images = self.total[:4].tolist()
        if not images:
            raise ValueError("the test set must hold at least one image")
        return Accuracy(top1 / images, top5 / images, loss / images, int(images))


class ByClass(_Images):
    """As for an accuracy; behind that the right ones of each class, and all of each."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.total = torch.zeros(4 + 2 * classes, dtype=torch.float64)

    def _add_best(self, right: Tensor, labels: Tensor) -> None:
        counts = [torch.bincount(some, minlength=self.classes) for some in (labels[right], labels)]
        self.total[4:] += torch.cat(counts).cpu()

    def by_class(self) -> list[dict[str, int]]:
        """For each class its images, ``of``, and those of them that are classified rightly, ``right``."""
        counts = self.total[4:].long().view(2, self.classes)
        return [{"right": right, "of": of} for right, of in counts.T.tolist()]


class _Pixels:
    """A confusion matrix, row by row the right class; behind it the loss, and the images."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.total = torch.zeros(classes**2 + 2, dtype=torch.float64)

    def add(self, scores: Tensor, labels: Tensor) -> None:
        counted = labels >= 0
        pairs = labels[counted] * self.classes + scores.argmax(1)[counted]
        matrix = torch.bincount(pairs, minlength=self.classes**2).double()
        loss = F.cross_entropy(scores, labels, reduction="sum").double()
        self.total += torch.cat((matrix, loss[None], loss.new_tensor([len(labels)]))).cpu()

    def result(self) -> PixelAccuracy:
        matrix = self.total[:-2].view(self.classes, self.classes)
        loss, images = self.total[-2:].tolist()
        if not (pixels := matrix.sum()):
            raise ValueError("the test set must hold at least one pixel that is counted")
        right, of_class, taken_for_it = matrix.diag(), matrix.sum(1), matrix.sum(0)
        iou = right / (of_class + taken_for_it - right)
        return PixelAccuracy(
            float(iou.nanmean()),  # 0 / 0 is that of a class without pixels
            float(right.sum() / pixels),
            float((right / of_class).nanmean()),
            loss / float(pixels),
            int(images),
        )
