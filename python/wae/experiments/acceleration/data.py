"""The images of an acceleration, at the size that a network takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from wae.data.dataset import DatasetError, InMemory
from wae.data.folder import ImageFolder
from wae.data.input import Input
from wae.data.loading import open_dataset
from wae.data.segmentation import SegmentationFolder
from wae.data.shards import Shards

from .settings import AccelerationError, Settings

SAMPLE = 64
"""How many training images are used if a few are enough."""

_MOST_CLASSES = 1_000_000

Images: TypeAlias = ImageFolder | Shards | InMemory
Loader: TypeAlias = Iterable[tuple[Tensor, Tensor]]
"""Yields images, (N, 3, H, W) uint8, and labels, (N,) int64; for example a DataLoader."""


class Sets(NamedTuple):
    """The images at the size that a network takes."""

    training: Images
    """Augmented."""
    plain: Images
    """The training images, prepared as for testing."""
    test: Images

    @property
    def flips(self) -> bool:
        """Whether training flips images, so that an image and its mirror image mean the same."""
        data = self.training
        return not isinstance(data, InMemory) or (data.augment and data.flip)  # files are always flipped


def in_memory(training: Loader, test: Loader) -> tuple[InMemory, InMemory]:
    """All that the loaders yield, with the classes that occur in either of them. Raises DatasetError."""
    read = [_read(loader, f"the {part} loader") for loader, part in ((training, "training"), (test, "test"))]
    classes = [str(number) for number in range(1 + max(int(labels.max()) for _, labels in read))]
    if len(classes) < 2:
        raise DatasetError("data: the loaders must yield labels of two or more classes, got only 0")
    one, other = (InMemory(images, labels, classes, False, 0) for images, labels in read)
    return one, other


def _read(loader: Iterable[Any], name: str) -> tuple[Tensor, Tensor]:
    """All images of a loader, and all labels. Raises DatasetError, which names the loader and the batch."""
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise DatasetError(f"data: {name} must yield images and labels, got {type(loader).__name__}")
    batches: list[tuple[Tensor, Tensor]] = []
    for number, batch in enumerate(loader, 1):
        where = f"in batch {number} of {name}"
        parts = batch if isinstance(batch, (tuple, list)) else [batch]
        dims = [part.dim() if isinstance(part, Tensor) else None for part in parts]
        if dims != [4, 1]:
            got = ", ".join(
                type(part).__name__ if dim is None else f"{tuple(part.shape)}"
                for part, dim in zip(parts, dims, strict=True)
            )
            raise DatasetError(
                f"data: a loader must yield images (N, 3, H, W) and labels (N,), got {got} {where}"
            )
        batches.append(_checked(parts[0], parts[1], where))
    if not sum(len(labels) for _, labels in batches):
        raise DatasetError(f"data: a loader must yield images and labels, but {name} yields nothing")
    shapes = {" x ".join(map(str, images.shape[1:])) for images, _ in batches}
    if len(shapes) > 1:
        raise DatasetError(
            f"data: a loader must yield images of one size, got {' and '.join(sorted(shapes))} from {name}"
        )
    images, labels = map(torch.cat, zip(*batches, strict=True))
    return images, labels


def _checked(images: Tensor, labels: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Copies of the images and labels of a batch on the CPU, the labels as int64. Raises DatasetError.

    They are copies because a loader may fill the same memory with its next batch.
    """
    if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise DatasetError(
            f"data: images must be (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype} {where}"
        )
    if len(images) != len(labels):
        raise DatasetError(
            f"data: each image needs a label, got {len(images)} images and {len(labels)} labels {where}"
        )
    numbers = labels.double()
    wrong = ~((numbers >= 0) & (numbers < _MOST_CLASSES) & (numbers == numbers.floor()))  # NaN too
    if wrong.any():
        raise DatasetError(
            f"data: labels must be whole numbers from 0 to {_MOST_CLASSES - 1:,}, because each class gets a "
            f"name; got {labels[wrong][0].item()} {where}"
        )
    return images.to("cpu", copy=True), labels.to("cpu", torch.int64, copy=True)


def open_sets(settings: Settings, input: Input | None) -> Sets:
    """The images, prepared as ``input`` says, with the classes in the data's order."""
    s = settings
    if isinstance(s.data, tuple):
        training, test = s.data
        return Sets(training, training.plain(), test)
    found = [
        open_dataset(s.data, train, augment, s.seed, input, s.on_corrupt, s.max_pixels)
        for train, augment in ((True, True), (True, False), (False, False))
    ]
    if isinstance(found[0], SegmentationFolder):
        raise AccelerationError(f"{s.data}: has classes of pixels; only classifiers are accelerated")
    return Sets(*found)  # type: ignore[arg-type]  # all three have the same type


def sets_for(settings: Settings, input: Input, numbers: Sequence[int]) -> Sets:
    """As :func:`open_sets`, with class ``i`` renumbered to ``numbers[i]``.

    Raises DatasetError if images in memory do not have the size of ``input``.
    """
    sets = Sets(*(data.renumbered(numbers) for data in open_sets(settings, input)))
    for data in sets:
        if isinstance(data, InMemory) and set(data.images.shape[2:]) != {input.size}:
            height, width = data.images.shape[2:]
            raise DatasetError(
                f"data: needs images of {input.size} x {input.size}, got {height} x {width}; see input_size"
            )
    return sets
