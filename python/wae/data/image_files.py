"""Samples in image files, which are read on demand: what folders, segmentation folders and shards share."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .dataset import Dataset, DatasetError
from .images import ImageError
from .input import Input, luma, prepare
from .walk import LeftOut

_Files = TypeVar("_Files", bound="ImageFiles")

OnCorrupt = Literal["error", "skip"]
"""What to do about an image file that cannot be read: raise, or leave the sample out and report it."""


class ImageFiles(ABC):
    """Samples in files, which are read on demand.

    Args:
        input: how an image becomes a sample; its ``shape`` is that of the samples.
        augment: change the samples at random, in every epoch anew.
        seed: seeds the augmentation.
        on_corrupt: see :data:`OnCorrupt`.
        max_pixels: see :func:`wae.data.images.read_image`.
        folder: the folder in which the images were found.
        left_out: what the search left out.

    Raises:
        DatasetError: ``on_corrupt`` is neither of the two.
    """

    labels: tuple[str, ...]
    """The names of the classes."""

    @property
    def shape_of_labels(self) -> tuple[int, ...]:
        """The shape of a sample's label, which is a number, or of its labels, one for each pixel."""
        return ()

    def __init__(
        self,
        input: Input,
        augment: bool,
        seed: int,
        on_corrupt: OnCorrupt,
        max_pixels: int,
        folder: Path | None,
        left_out: LeftOut | None,
    ) -> None:
        if on_corrupt not in ("error", "skip"):
            raise DatasetError(f"on_corrupt: need 'error' or 'skip', got {on_corrupt!r}")
        self.input, self.shape, self.augment, self.seed = input, input.shape, augment, seed
        self.on_corrupt, self.max_pixels = on_corrupt, max_pixels
        self.folder, self.left_out = folder, left_out or LeftOut()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _sample(self, index: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The image, (3, H, W) uint8, and its int64 label or labels."""

    def plain(self: _Files) -> _Files:
        """See :meth:`Dataset.plain`. What is kept in memory is shared."""
        other = copy.copy(self)
        other.augment = False
        return other

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Dataset.batch`. It is empty, with the same shapes otherwise, if all files are left out.

        Raises ImageError if a file cannot be used and ``on_corrupt`` is "error".
        """
        images, targets, _ = self.read(indices, epoch)
        return images, targets

    def read(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor, list[str]]:
        """As :meth:`batch`, plus one line for each file that was left out, with its name and the reason."""
        tried = [self._tried(index, epoch) for index in indices]
        failed = [line for line in tried if isinstance(line, str)]
        samples = [sample for sample in tried if not isinstance(sample, str)]
        if not samples:
            none = torch.empty(0, 3, *self.shape, dtype=torch.uint8)
            return none, torch.empty(0, *self.shape_of_labels, dtype=torch.int64), failed
        images, targets = (torch.stack(part) for part in zip(*samples, strict=True))
        return images, targets, failed

    def _tried(self, index: int, epoch: int) -> tuple[Tensor, Tensor] | str:
        """The sample, or a line that says why it is left out."""
        try:
            return self._sample(index, epoch)
        except ImageError as error:
            if self.on_corrupt == "error":
                raise
            return str(error)


def held_out(folder: Path) -> str:
    """The part that a training is tested on: ``val``, or ``test`` if there is no ``val``."""
    return "val" if (folder / "val").is_dir() else "test"


def left_out_of(data: Dataset) -> str:
    """One line on what the search for the files of ``data`` left out; empty if nothing."""
    return f"{data.folder}: {data.left_out}" if isinstance(data, ImageFiles) and str(data.left_out) else ""


@cache
def transform(input: Input, augment: bool) -> Callable[[Tensor], Tensor]:
    """The function that turns an image, (3, H, W) uint8, into a sample, (3, h, w) uint8.

    Args:
        input: how to scale and crop. With ``augment`` only its size, interpolation and grayscale are used.
        augment: crop a random 8 % to 100 % of the image, scale it to ``input.shape``, and flip half of them.
    """
    from torchvision.transforms import v2

    if not augment:
        return partial(prepare, input=input)
    scaled = v2.InterpolationMode(input.mode)
    augmentation = [v2.RandomResizedCrop(input.shape, interpolation=scaled), v2.RandomHorizontalFlip()]
    made: Callable[[Tensor], Tensor] = v2.Compose([*augmentation, *([luma] if input.grayscale else [])])
    return made
