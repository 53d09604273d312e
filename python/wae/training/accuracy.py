"""The accuracy of a network on a data set, from counts that add up over batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.data.dataset import Dataset
from wae.data.loading import batches, to_device
from wae.data.segmentation import SegmentationFolder
from wae.models.evaluating import evaluating
from wae.models.segmentation import networks as segmentation

from .processes import gathered, rank_and_world, summed


class Accuracy(NamedTuple):
    """The accuracy of a classifier on a data set."""

    top1: float
    """Share of the images whose highest score is that of the correct class, 0..1."""
    top5: float
    """Share of the images whose five highest scores include that of the correct class, 0..1."""
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

    def columns(self, classes: int) -> dict[str, str]:
        """The errors in percent for a table, by column title. Five classes or fewer have no top-5 error."""
        top1, top5 = (f"{100 * (1 - share):.2f} %" for share in (self.top1, self.top5))
        return {"top-1 error": top1, "top-5 error": top5 if classes > 5 else ""}

    def __str__(self) -> str:
        return f"top-1 accuracy {100 * self.top1:.2f} %"


class PixelAccuracy(NamedTuple):
    """The accuracy of a segmentation network on a data set. Pixels that are not counted are ignored."""

    mean_iou: float
    """Intersection over union, averaged over the classes, 0..1. A class that neither occurs nor is predicted
    is left out."""
    pixels: float
    """Share of the pixels whose highest score is that of the correct class, 0..1."""
    mean_class: float
    """That share among the pixels of a class, averaged over the classes that occur."""
    loss: float
    """Mean cross entropy per pixel."""
    images: int

    @property
    def score(self) -> float:
        """The number that networks are compared by: ``mean_iou``."""
        return self.mean_iou

    @property
    def measure(self) -> str:
        """The name of :attr:`score`."""
        return "mean IoU"

    def columns(self, classes: int) -> dict[str, str]:
        """The shares in percent for a table, by column title."""
        return {"mean IoU": f"{100 * self.mean_iou:.2f} %", "pixel accuracy": f"{100 * self.pixels:.2f} %"}

    def __str__(self) -> str:
        return f"mean IoU {100 * self.mean_iou:.2f} %, pixel accuracy {100 * self.pixels:.2f} %"


class Counts(Protocol):
    """Accumulates counts over batches of scores."""

    total: Tensor
    """Float64 counts on the CPU, which may be summed over processes."""

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch: float scores (N, classes, ...) and int64 labels (N, ...), on the same device."""

    def result(self) -> Accuracy | PixelAccuracy:
        """The accuracy. Raises ValueError if nothing was counted."""


def counts_for(data: Dataset) -> Counts:
    """Counts, all zero, for the kind of labels that ``data`` has."""
    return _Pixels(len(data.labels)) if isinstance(data, SegmentationFolder) else _Images()


def check_kind(name: str, data: Dataset) -> None:
    """Raise ValueError if the network scores images but the data label pixels, or vice versa."""
    pixels = isinstance(data, SegmentationFolder)
    if pixels != bool(segmentation.builder(name)):
        network, labels = (
            ("a classifier", "each pixel") if pixels else ("a segmentation network", "each image")
        )
        raise ValueError(f"{name} is {network}, but the data have a class for {labels}")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Dataset,
    batch: int = 256,
    device: torch.device | str = "cpu",
    workers: int = 0,
    left_out: Callable[[Sequence[str]], None] | None = None,
    advance: Callable[[int], None] | None = None,
    counts: Counts | None = None,
) -> Accuracy | PixelAccuracy:
    """The accuracy of ``model`` on ``data``, a :class:`PixelAccuracy` if the data label pixels.

    If torch.distributed is set up, all processes share the work, and each returns the same result.

    Args:
        model: scores uint8 images (N, 3, H, W); on ``device``.
        data: the images and labels.
        batch: images per step of each process.
        device: where to compute.
        workers: processes that load data, per process.
        left_out: called with one line for each image file that could not be read, in any process.
        advance: called with the number of images of each step, over all processes.
        counts: accumulates the counts; None for those that the accuracy needs.

    Raises:
        ImageError, DatasetError: an image or label cannot be used.
        ValueError: there is no image, or no pixel that is counted.
    """
    counts = counts_for(data) if counts is None else counts
    rank, world = rank_and_world()
    together = batch * world
    loader = batches(data, together, 0, 0, False, rank, world, workers, device=device)
    with evaluating(model):
        for step, (images, labels) in enumerate(loader):
            if advance is not None:
                advance(min(together, len(data) - step * together))
            if not len(labels):
                continue
            counts.add(model(to_device(images, device)).float(), labels.to(device))
    failed = gathered(loader.failed)
    if left_out is not None:
        left_out(failed)
    counts.total = summed(counts.total)
    return counts.result()


class _Images:
    """Counts correct images, images with the correct class among the best five, the loss, and all images."""

    def __init__(self) -> None:
        self.total = torch.zeros(4, dtype=torch.float64)

    def add(self, scores: Tensor, labels: Tensor) -> None:
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(scores, labels, reduction="sum")
        counts = best[:, 0].sum(), best.sum(), loss, labels.new_tensor(len(labels))
        self.total[:4] += torch.stack([count.double() for count in counts]).cpu()
        self._add_best(best[:, 0], labels)

    def _add_best(self, right: Tensor, labels: Tensor) -> None:
        """Hook for subclasses, given which images are correct, (N,) bool, and their labels."""

    def result(self) -> Accuracy:
        top1, top5, loss, images = self.total[:4].tolist()
        if not images:
            raise ValueError("the test set must hold at least one image")
        return Accuracy(top1 / images, top5 / images, loss / images, int(images))


class ByClass(_Images):
    """Counts for an :class:`Accuracy`, followed by the correct images and all images of each class."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.total = torch.zeros(4 + 2 * classes, dtype=torch.float64)

    def _add_best(self, right: Tensor, labels: Tensor) -> None:
        counts = [torch.bincount(some, minlength=self.classes) for some in (labels[right], labels)]
        self.total[4:] += torch.cat(counts).cpu()

    def by_class(self) -> list[dict[str, int]]:
        """For each class the number of its images, ``of``, and of the correct ones among them, ``right``."""
        counts = self.total[4:].long().view(2, self.classes)
        return [{"right": right, "of": of} for right, of in counts.T.tolist()]


class _Pixels:
    """A confusion matrix with one row per correct class, followed by the loss and the number of images."""

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
            float(iou.nanmean()),  # a class without pixels has 0 / 0
            float(right.sum() / pixels),
            float((right / of_class).nanmean()),
            loss / float(pixels),
            int(images),
        )
