"""Folders of image files, one folder per class."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wae.wording import is_unicode

from .dataset import DatasetError, Draw, permuted, seeded
from .image_files import ImageFiles, OnCorrupt, held_out, transform
from .images import LONGEST, MAX_PIXELS, read_image
from .input import IMAGENET, Input
from .walk import LeftOut, find, is_hidden


class ImageFolder(ImageFiles):
    """Image files in one folder per class. Use :func:`image_folder` to create it.

    Args:
        samples: the path and the class number of each image.
        labels: the names of the classes.
        input, augment: see :func:`wae.data.image_files.transform`.
        seed, on_corrupt, max_pixels, folder, left_out: see :class:`wae.data.image_files.ImageFiles`.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        labels: Sequence[str],
        input: Input,
        augment: bool,
        seed: int,
        on_corrupt: OnCorrupt = "error",
        max_pixels: int = MAX_PIXELS,
        folder: Path | None = None,
        left_out: LeftOut | None = None,
    ) -> None:
        super().__init__(input, augment, seed, on_corrupt, max_pixels, folder, left_out)
        self.samples, self.labels = list(samples), tuple(labels)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def targets(self) -> list[int]:
        """The class number of each image."""
        return [target for _, target in self.samples]

    def renumbered(self, numbers: Sequence[int]) -> ImageFolder:
        """See :meth:`wae.data.dataset.Dataset.renumbered`."""
        other = copy.copy(self)
        other.samples = [(path, numbers[target]) for path, target in self.samples]
        other.labels = permuted(self.labels, numbers)
        return other

    def subset(self, indices: Sequence[int]) -> ImageFolder:
        """A data set of the samples at ``indices``, in that order."""
        other = copy.copy(self)
        other.samples = [self.samples[index] for index in indices]
        return other

    def _sample(self, index: int, epoch: int) -> tuple[Tensor, Tensor]:
        path, target = self.samples[index]
        image = read_image(path, self.max_pixels, LONGEST)
        with seeded(Draw.SAMPLE, self.seed, epoch, index):
            return transform(self.input, self.augment)(image), torch.tensor(target)


def image_folder(
    folder: Path,
    train: bool,
    input: Input = IMAGENET,
    augment: bool = False,
    seed: int = 0,
    on_corrupt: OnCorrupt = "error",
    max_pixels: int = MAX_PIXELS,
) -> ImageFolder:
    """The images in ``folder/train/CLASS``, or in ``folder/val/CLASS`` (``test`` if there is no ``val``).

    Each class folder is searched by :func:`wae.data.walk.find`. It may be a link that leads out of ``train``
    or ``val``. A link to a folder inside would give its images two classes and is left out.

    Args:
        folder: contains ``train`` and ``val``.
        train: open ``train`` rather than ``val``.
        input, augment, seed, on_corrupt, max_pixels: see :class:`ImageFolder`.

    Raises:
        DatasetError: a folder is missing or has no images, there are fewer than two classes, or the classes
            of ``train`` and ``val`` differ.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder")
    parts = folder / "train", folder / held_out(folder)
    chosen, other = parts if train else parts[::-1]
    if not chosen.is_dir():
        names = "train" if train else "val or test"
        raise DatasetError(f"{folder}: there is no folder {names} in it; need {names}/CLASS/IMAGE")
    left_out = LeftOut()
    labels = _classes(chosen, left_out)
    if other.is_dir() and (different := set(labels) ^ set(_classes(other, LeftOut()))):
        raise DatasetError(
            f"{folder}: {parts[0].name} and {parts[1].name} need the same classes; only one of them has "
            + ", ".join(sorted(different)[:10])
        )
    samples = [
        (path, number)
        for number, label in enumerate(labels)
        for path in _images(chosen / label, left_out, on_corrupt)
    ]
    return ImageFolder(samples, labels, input, augment, seed, on_corrupt, max_pixels, chosen, left_out)


def _classes(folder: Path, left_out: LeftOut) -> list[str]:
    """The names of the folders in it, sorted."""
    labels = []
    for entry in sorted(folder.iterdir()):
        if is_hidden(entry.name):
            left_out.hidden += 1
        elif not entry.is_dir():
            left_out.loose += 1
        elif entry.is_symlink() and _is_within(entry, folder):
            left_out.links += 1
        else:
            labels.append(entry.name)
    for label in labels:
        if not is_unicode(label):
            raise DatasetError(f"{folder}: the name of the folder {label!r} is not UTF-8; rename it")
    if not labels:
        raise DatasetError(f"{folder}: is empty; need a folder of images for each class")
    if len(labels) == 1:
        raise DatasetError(f"{folder}: has only one class, {labels[0]}; need at least two")
    return labels


def _is_within(link: Path, folder: Path) -> bool:
    """Whether ``link`` leads to ``folder``, into it, or to one of its parents."""
    target, folder = link.resolve(), folder.resolve()
    return target == folder or target in folder.parents or folder in target.parents


def _images(folder: Path, left_out: LeftOut, on_corrupt: OnCorrupt) -> list[str]:
    """The paths of a class's images."""
    before, found = str(left_out), list(find([folder], left_out))
    for file in found:
        if file.error and on_corrupt == "error":
            raise DatasetError(f"{file.path}: {file.error}")
    if not found:
        why = f" ({left_out} so far)" if str(left_out) != before else ""
        raise DatasetError(f"{folder}: there are no images in this class folder{why}")
    return [str(file.path) for file in found]
