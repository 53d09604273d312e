"""Images with a class for each pixel: folders of images, and of labels stored as PNGs of class numbers.

::

    folder/classes.txt              the names of the classes, one per line, in the order of their numbers
          /train/images/NAME.jpg
          /train/labels/NAME.png    the class number of each pixel
          /val/...                  or test

Pixels of a class whose name is in brackets, such as ``(void)``, are not counted: training and testing ignore
them. The same holds for the number 255, unless it is the number of a class.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from .dataset import NOT_COUNTED, DatasetError, Draw, permuted, read_class_names, seeded
from .image_files import ImageFiles, OnCorrupt
from .images import LONGEST, MAX_PIXELS, ImageError, read_image, read_numbers
from .input import MAX_SIZE, Input, luma, prepare, prepare_labels, visible, whole
from .walk import PARTS, LeftOut, find

CLASSES = "classes.txt"
_NEVER = 255  # the number that is not counted, unless a class has it
_UNKNOWN = -1
_NAMED = 10  # classes in a line
_NUMBERS = 2**16  # the numbers that a PNG can hold
_CUT = (0.5, 1.0)  # the share of the image that an augmented one shows
_STRETCH = 0.9  # the largest change of its aspect ratio, as a factor
_NEAREST = v2.InterpolationMode.NEAREST_EXACT  # takes the pixel in the middle, as scaling of images does


class SegmentationFolder(ImageFiles):
    """Image files and the classes of their pixels. Use :func:`segmentation_folder` to create it.

    A batch is uint8 images (N, 3, H, W) and int64 labels (N, H, W), each :data:`NOT_COUNTED` or an index into
    ``labels``.

    Args:
        samples: the path of each image and that of its labels.
        classes: the names of the numbers in the files; those in brackets are not counted.
        input: how images (antialiased) and labels (nearest) are scaled, and cropped if it says so.
        augment: crop a random half to all of each image, scale it to ``input.shape``, and flip half of them;
            labels likewise. The crop is taken before the image is scaled, so that it has as much detail as a
            whole image if the file has enough pixels.
        seed: seeds the augmentation.
        on_corrupt: see :data:`OnCorrupt`. Labels that do not fit their image always raise DatasetError.
        max_pixels: see :func:`wae.data.images.read_image`.
        folder: the folder in which the images were found.
        left_out: what the search left out.
        keep: keep the decoded images and labels in memory, so that later epochs decode nothing.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, str]],
        classes: Sequence[str],
        input: Input,
        augment: bool,
        seed: int,
        on_corrupt: OnCorrupt = "error",
        max_pixels: int = MAX_PIXELS,
        folder: Path | None = None,
        left_out: LeftOut | None = None,
        keep: bool = False,
    ) -> None:
        super().__init__(input, augment, seed, on_corrupt, max_pixels, folder, left_out)
        self.samples = list(samples)
        self.labels = tuple(name for name in classes if not _is_bracketed(name))
        self._table = _table(classes)
        self._shares: Tensor | None = None
        self._kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape_of_labels(self) -> tuple[int, ...]:
        """See :class:`wae.data.image_files.ImageFiles`."""
        return self.shape

    def numbers(self) -> list[int]:
        """The number that each of ``labels`` has in the files."""
        return [int((self._table == index).nonzero()) for index in range(len(self.labels))]

    def renumbered(self, numbers: Sequence[int]) -> SegmentationFolder:
        """See :meth:`wae.data.dataset.Dataset.renumbered`."""
        other = self._unread()
        counted = self._table >= 0
        other._table = self._table.clone()
        other._table[counted] = torch.tensor(numbers, dtype=torch.int32)[self._table[counted]]
        other.labels = permuted(self.labels, numbers)
        return other

    def subset(self, indices: Sequence[int]) -> SegmentationFolder:
        """A data set of the samples at ``indices``, in that order."""
        other = self._unread()
        other.samples = [self.samples[index] for index in indices]
        return other

    def shares(self) -> Tensor:
        """The share of each class among all counted pixels, (classes,) float64.

        The first call reads every label file. Raises DatasetError if no pixel is counted, and otherwise as
        :meth:`batch` does.
        """
        if self._shares is None:
            self._shares = self._read_shares()
        return self._shares

    def missing(self) -> str:
        """One line on the classes that have no pixel; empty if all have some. See :meth:`shares`.

        Masks of 0 and 255, for example, have no pixel of the second class.
        """
        every = zip(self.labels, self.numbers(), self.shares().tolist(), strict=True)
        names = [f"{name} ({number})" for name, number, share in every if not share]
        if not names:
            return ""
        more = ", ..." if len(names) > _NAMED else ""
        never = "; pixels of 255 do not count" if self._table[_NEVER] == NOT_COUNTED else ""
        return f"{self.folder}: no label has a pixel of {', '.join(names[:_NAMED])}{more}{never}"

    def _unread(self) -> SegmentationFolder:
        """A copy that has read no file yet, because its labels will be others."""
        other = copy.copy(self)
        other._shares = None
        other._kept = None if self._kept is None else {}
        return other

    def _read_shares(self) -> Tensor:
        """See :meth:`shares`."""
        counts = torch.zeros(len(self.labels), dtype=torch.float64)
        for index in range(len(self)):
            try:
                label = self._classes_of(index)
            except ImageError:
                if self.on_corrupt == "error":
                    raise
                continue
            counts += torch.bincount(label[label >= 0], minlength=len(counts))
        if not counts.sum():
            raise DatasetError(f"{self.folder}: its labels hold no pixel that is counted")
        return counts / counts.sum()

    def _sample(self, index: int, epoch: int) -> tuple[Tensor, Tensor]:
        image, label = self._decoded(index)
        if not self.augment:
            return prepare(image, self.input), prepare_labels(label, self.input)
        with seeded(Draw.SAMPLE, self.seed, epoch, index):
            return _augmented(image, label, self.input)

    def _decoded(self, index: int) -> tuple[Tensor, Tensor]:
        """An image, (3, H, W) uint8, and its pixels' classes, (H, W) int32, in the size of the files."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        path, label_path = self.samples[index]
        image, label = read_image(path, self.max_pixels, LONGEST), self._classes_of(index)
        if label.shape != image.shape[1:]:
            (h, w), (height, width) = label.shape, image.shape[1:]
            raise DatasetError(
                f"{label_path}: has {h} x {w} pixels, and its image, {path}, {height} x {width}"
            )
        if self._kept is not None:
            self._kept[index] = image, label
        return image, label

    def _classes_of(self, index: int) -> Tensor:
        """The classes of an image's pixels, (H, W) int32, in the size of the file."""
        path = self.samples[index][1]
        numbers = read_numbers(path, self.max_pixels)
        classes = self._table[numbers]
        if (unknown := classes == _UNKNOWN).any():
            row, column = unknown.nonzero()[0].tolist()
            raise DatasetError(
                f"{path}: the pixel in row {row}, column {column} has the number {numbers[row, column]}, "
                f"which is not the number of a class: {self._known()}"
            )
        return classes

    def _known(self) -> str:
        *numbers, last = (self._table != _UNKNOWN).nonzero().flatten().tolist()
        return f"known are 0 to {numbers[-1]} and {last}"


def segmentation_folder(
    folder: Path,
    part: str,
    size: Input | None = None,
    seed: int = 0,
    augment: bool = False,
    on_corrupt: OnCorrupt = "error",
    max_pixels: int = MAX_PIXELS,
    classes: Sequence[str] | None = None,
    keep: bool = False,
) -> SegmentationFolder:
    """The images in ``folder/part/images`` and their labels, with the same names, in ``folder/part/labels``.

    :func:`wae.data.walk.find` searches for the images, also in subfolders.

    Args:
        folder: see the module.
        part: ``train``, ``val`` or ``test``.
        size: of the samples (:func:`wae.data.input.whole`); None for that of the first image.
        seed, augment, on_corrupt, max_pixels, keep: see :class:`SegmentationFolder`.
        classes: the names by number; None for those in ``classes.txt``.

    Raises:
        DatasetError: a folder or ``classes.txt`` is missing or empty, an image has no labels, or two images
            share a label file.
        ImageError: the first image, which determines the size, cannot be read.
    """
    classes = read_classes(folder) if classes is None else classes
    images, labels, left_out = folder / part / "images", folder / part / "labels", LeftOut()
    for needed in (images, labels):
        if not needed.is_dir():
            raise DatasetError(f"{needed}: there is no such folder")
    samples: dict[str, str] = {}  # the image of each label file
    for path, error, _ in find([images], left_out):
        if error:
            raise DatasetError(f"{path}: {error}")
        label = (labels / path.relative_to(images)).with_suffix(".png")
        if not label.exists():
            raise DatasetError(f"{label}: there is no such file; it needs the labels of {path}")
        if other := samples.get(str(label)):
            raise DatasetError(f"{label}: is the label file of two images, {other} and {path}")
        samples[str(label)] = str(path)
    if not samples:
        raise DatasetError(f"{images}: there are no images" + (f" ({left_out})" if str(left_out) else ""))
    if size is None:
        size = _size_of(next(iter(samples.values())), max_pixels)
    pairs = [(path, label) for label, path in samples.items()]
    return SegmentationFolder(
        pairs, classes, size, augment, seed, on_corrupt, max_pixels, images, left_out, keep
    )


def _size_of(path: str, max_pixels: int) -> Input:
    height, width = read_image(path, max_pixels, LONGEST).shape[1:]
    if max(height, width) > MAX_SIZE:
        raise DatasetError(
            f"{path}: has {height} x {width} pixels, more than {MAX_SIZE} along a side: set --size"
        )
    return whole(height, width)


def holds_segmentation(folder: Path) -> bool:
    """Whether the folder has the layout described above. A ``classes.txt`` alone is not enough.

    Raises DatasetError if only the ``classes.txt`` is missing.
    """
    found = [[(folder / part / name).is_dir() for name in ("images", "labels")] for part in PARTS]
    if (folder / CLASSES).is_file():
        return any(map(any, found))
    if any(map(all, found)):
        raise DatasetError(f"{folder / CLASSES}: is missing; it needs the name of each class, one per line")
    return False


def read_classes(folder: Path) -> tuple[str, ...]:
    """The class names in ``classes.txt``, in the order of their numbers.

    Raises DatasetError if the file cannot be read, or its names are empty, repeated, too few or too many.
    """
    path = folder / CLASSES
    names = read_class_names(path)
    counted = [name for name in names if not _is_bracketed(name)]
    if "" in names or len(set(names)) < len(names) or len(counted) < 2 or len(names) > _NUMBERS:
        raise DatasetError(
            f"{path}: needs the names of two or more classes, one per line, each once, none empty; "
            "names in brackets do not count"
        )
    return names


def _is_bracketed(name: str) -> bool:
    return name.startswith("(") and name.endswith(")")


def _table(classes: Sequence[str]) -> Tensor:
    """Maps each number that a file can hold to the index of a counted class: (65536,) int32."""
    table = torch.full((_NUMBERS,), _UNKNOWN, dtype=torch.int32)
    table[_NEVER] = NOT_COUNTED
    index = 0
    for number, name in enumerate(classes):
        table[number] = NOT_COUNTED if _is_bracketed(name) else index
        index += not _is_bracketed(name)
    return table


def _augmented(image: Tensor, label: Tensor, input: Input) -> tuple[Tensor, Tensor]:
    """The same random part of an image, (3, H, W), and of its labels, (H, W); half of both are flipped.

    The image is cropped before it is scaled: a part of a scaled image would have less detail than the images
    in evaluation. torchvision's own transforms scale masks with the older "nearest", which shifts them by up
    to half a pixel against the image.
    """
    image, label = visible(image, input), visible(label[None], input)
    ratio = image.shape[2] / image.shape[1]
    crop = v2.RandomResizedCrop(input.shape, _CUT, (ratio * _STRETCH, ratio / _STRETCH))
    part = crop.make_params([image])
    scaled = v2.InterpolationMode(input.mode)
    image = transforms.resized_crop(image, **part, size=crop.size, interpolation=scaled)
    label = transforms.resized_crop(label, **part, size=crop.size, interpolation=_NEAREST)[0].long()
    if input.grayscale:
        image = luma(image)
    if torch.rand(()) < 0.5:
        image, label = image.flip(2), label.flip(1)
    return image.contiguous(), label.contiguous()
