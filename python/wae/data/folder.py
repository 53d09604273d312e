"""Folders of image files, one for each class."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .dataset import DatasetError, Draw, permuted, random_seed
from .images import ImageError, read_image

OnCorrupt = Literal["error", "skip"]
"""What to do about an image file that cannot be read: stop, or warn and leave the sample out."""

_LONGEST = 100
"""How many times longer than wide an image may be: what is enlarged to the other side's size stays small."""


class ImageFolder:
    """Image files in one folder per class; made by :func:`image_folder`.

    Args:
        samples: of each image the path and the class's number.
        labels: the names of the classes.
        size: height and width of what comes out, in pixels.
        resize: the shorter side's length before the centre is cut out, where nothing is augmented.
        augment: cut out 8 % to 100 % of the image at random, scale it to ``size``, and flip half of them.
        seed: of the augmentation.
        on_corrupt: see :data:`OnCorrupt`.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        labels: Sequence[str],
        size: int,
        resize: int,
        augment: bool,
        seed: int,
        on_corrupt: OnCorrupt = "error",
    ) -> None:
        from torchvision.transforms import v2

        if not 1 <= size <= resize:
            raise DatasetError(f"size and resize: need 1 <= size <= resize, got {size} and {resize}")
        if on_corrupt not in ("error", "skip"):
            raise DatasetError(f"on_corrupt: need 'error' or 'skip', got {on_corrupt!r}")
        self.samples, self.labels = list(samples), tuple(labels)
        self.size, self.seed, self.on_corrupt = size, seed, on_corrupt
        self._transform = v2.Compose(
            [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
            if augment
            else [v2.Resize(resize), v2.CenterCrop(size)]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Dataset.batch`. It is empty, (0, 3, size, size) and (0,), where all files are left out.

        Raises ImageError where a file cannot be used and ``on_corrupt`` is "error".
        """
        images, targets = [], []
        for index in indices:
            path, target = self.samples[index]
            try:
                images.append(self._image(path, index, epoch))
                targets.append(target)
            except ImageError as error:
                if self.on_corrupt == "error":
                    raise
                warnings.warn(f"{error}; the image is left out", stacklevel=2)
        none = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.stack(images) if images else none, torch.tensor(targets, dtype=torch.int64)

    def renumbered(self, numbers: Sequence[int]) -> ImageFolder:
        """See :meth:`wae.data.dataset.Dataset.renumbered`."""
        other = copy.copy(self)
        other.samples = [(path, numbers[target]) for path, target in self.samples]
        other.labels = permuted(self.labels, numbers)
        return other

    def _image(self, path: str, index: int, epoch: int) -> Tensor:
        image = read_image(path)
        short, long = sorted(image.shape[1:])
        if long > _LONGEST * short:
            raise ImageError(f"{path}: {long} x {short} pixels is too long an image")
        # Not torch.manual_seed: it would set the GPU's generator too, which fork_rng does not put back here.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(random_seed(Draw.SAMPLE, self.seed, epoch, index))
            transformed: Tensor = self._transform(image)
        return transformed


def image_folder(
    folder: Path,
    train: bool,
    size: int = 224,
    resize: int = 256,
    seed: int = 0,
    augment: bool = False,
    on_corrupt: OnCorrupt = "error",
) -> ImageFolder:
    """The images ``folder/train/CLASS/*``, or ``folder/val/CLASS/*`` (``test`` will do for ``val``).

    Args:
        folder: holds the two.
        train: which of the two.
        size, resize, seed, augment, on_corrupt: see :class:`ImageFolder`.

    Raises:
        DatasetError: a folder is missing or has no images, there are fewer than two classes, or the two
            do not have the same classes.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder")
    learnt, held_out = folder / "train", folder / ("val" if (folder / "val").is_dir() else "test")
    chosen, other = (learnt, held_out) if train else (held_out, learnt)
    if not chosen.is_dir():
        names = "train" if train else "val or test"
        raise DatasetError(f"{folder}: there is no folder {names} in it; need {names}/CLASS/IMAGE")
    labels = _classes(chosen)
    if other.is_dir() and (different := set(labels) ^ set(_classes(other))):
        raise DatasetError(
            f"{folder}: {learnt.name} and {held_out.name} need the same classes; only one of them has "
            + ", ".join(sorted(different)[:10])
        )
    numbers = {label: number for number, label in enumerate(labels)}
    samples = make_dataset(str(chosen), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    if empty := sorted(set(range(len(labels))) - {number for _, number in samples}):
        raise DatasetError(f"{chosen / labels[empty[0]]}: there are no images in this class's folder")
    return ImageFolder(samples, labels, size, resize, augment, seed, on_corrupt)


def _classes(folder: Path) -> list[str]:
    """The names of the folders in it, sorted."""
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not labels:
        raise DatasetError(f"{folder}: is empty; need a folder of images for each class")
    if len(labels) == 1:
        raise DatasetError(f"{folder}: has the one class {labels[0]}; need at least two to tell apart")
    return labels


def evaluation_resize(size: int) -> int:
    """What an image's shorter side is scaled to before its centre, ``size`` x ``size``, is cut out."""
    return round(size * 8 / 7)
