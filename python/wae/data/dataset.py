"""The interface of data sets, their random numbers, and images held in memory.

All randomness is a pure function of the seed, the epoch and the index of the sample. A run therefore does not
depend on its batch size, the number of its processes, or where it was resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wae.errors import WaeError
from wae.wording import reason

NOT_COUNTED = -100
"""The label of a pixel that is ignored in training and testing: PyTorch's default ``ignore_index``."""


class DatasetError(WaeError, ValueError):
    """A data set that cannot be used. The message names the file or folder and says why."""


class Dataset(Protocol):
    """Labelled images, addressed by index."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, indexed by their numbers."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Contiguous uint8 images (N, 3, H, W) and int64 labels (N,).

        A segmentation data set has labels (N, H, W), one per pixel; :data:`NOT_COUNTED` marks pixels that
        belong to no class. A sample is the same in any batch of the epoch. It is missing only if its file
        cannot be read and such files are to be left out.
        """

    def renumbered(self, numbers: Sequence[int]) -> Dataset:
        """The same samples with class ``i`` renumbered to ``numbers[i]``; ``numbers`` is a permutation."""

    def plain(self) -> Dataset:
        """The same samples without augmentation."""


class Draw(IntEnum):
    """What random numbers are drawn for.

    It is part of their seed, so that no two purposes share a sequence.
    """

    ORDER = 1
    SHIFTS = 2
    SAMPLE = 3
    CROPS = 4


def random_seed(purpose: Draw, seed: int, *rest: int) -> int:
    """A seed of 32 well-mixed bits.

    More would be lost, because torch's generator uses only 32 bits of a seed.
    """
    return int(np.random.SeedSequence([purpose, seed % 2**64, *rest]).generate_state(1)[0])


@contextmanager
def seeded(purpose: Draw, *numbers: int) -> Iterator[None]:
    """In this block torch's default CPU generator is seeded with these numbers: see :func:`random_seed`."""
    # Not torch.manual_seed: it would seed the GPU's generator too, which fork_rng does not restore here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(random_seed(purpose, *numbers))
        yield


def spread(total: int, wanted: int) -> Tensor:
    """``wanted`` evenly spaced integers in 0..``total`` - 1, int64; all of them if there are no more."""
    return torch.arange(total) if total <= wanted else torch.arange(wanted) * total // wanted


def _rounds(total: int, count: int) -> Iterator[list[int]]:
    """All numbers below ``total``, each once: first those of :func:`spread`, then their successors, ..."""
    first = spread(total, count)
    ends = torch.cat((first[1:], torch.tensor([total])))
    for shift in range(int((ends - first).max())):
        yield (first + shift)[first + shift < ends].tolist()


def by_class(targets: Sequence[int] | NDArray[Any] | Tensor) -> Tensor:
    """The numbers of all samples, class by class, given their ``targets``; each class in its own order."""
    return torch.as_tensor(targets).argsort(stable=True)


def _order(data: Dataset, count: int) -> Tensor:
    """The numbers of all samples, in an order where ``count`` equal steps find most classes.

    That is the order of ``data`` unless classes take turns: every tenth sample of ten classes is of one.
    """
    targets = torch.as_tensor(getattr(data, "targets", ()))  # not if pixels have labels
    found = targets[spread(len(targets), count)].unique()
    misses = len(found) < min(count, len(targets.unique()))
    return by_class(targets) if misses else torch.arange(len(data))


def sample(data: Dataset, count: int) -> tuple[Tensor, Tensor]:
    """``count`` samples, evenly spaced over ``data``, or all if it has fewer: see :meth:`Dataset.batch`.

    If that would leave out classes, they are evenly spaced over the samples in the order of their classes.

    If files that cannot be read are to be left out, others are tried in their place, so there are fewer
    samples only if no more can be read. Raises DatasetError if none can be read.
    """
    found: list[tuple[Tensor, Tensor]] = []
    order = _order(data, count)
    for numbers in _rounds(len(data), count):
        found.append(data.batch(order[numbers].tolist(), 0))
        if sum(len(images) for images, _ in found) >= count:
            break
    readable = [batch for batch in found if len(batch[0])]
    if not readable:
        where = getattr(data, "folder", None) or "data"
        raise DatasetError(f"{where}: none of the {len(data)} images tried can be read{_first_failure(data)}")
    images, labels = (torch.cat(part) for part in zip(*readable, strict=True))
    taken = spread(len(images), count)
    return images[taken], labels[taken]


def _first_failure(data: Dataset) -> str:
    """For files: what is wrong with the first one, as the end of a sentence."""
    read = getattr(data, "read", None)
    return f"; the first: {read([0], 0)[2][0]}" if read else ""


def permuted(labels: Sequence[str], numbers: Sequence[int]) -> tuple[str, ...]:
    """``labels`` reordered: the one at index ``i`` moves to index ``numbers[i]``."""
    return tuple(label for _, label in sorted(zip(numbers, labels, strict=True)))


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in the order of their numbers: the lines of the file, without empty ones at its end.

    Raises DatasetError if the file cannot be read or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({reason(error)})") from None
    return tuple(line.strip() for line in text.rstrip().split("\n"))


class InMemory:
    """Images of the same size, held in memory and augmented batch by batch.

    Args:
        images: (M, C, H, W) uint8, C = 1 or 3; :meth:`batch` repeats a single channel three times.
        targets: (M,) int64, indices into ``labels``.
        labels: the names of the classes.
        augment: shift by up to ``pad`` pixels in each direction (filled with zeros), and flip left to right.
        seed: seeds the augmentation.
        pad: in pixels, at least 0.
        flip: flip half of the images when augmenting. Not for digits, for example, which flipping changes.

    Raises:
        DatasetError: the shapes, dtypes or values are not as above.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        labels: Sequence[str],
        augment: bool,
        seed: int,
        pad: int = 2,
        flip: bool = True,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise DatasetError(
                f"images: need (M, 1 or 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
            )
        if targets.dtype != torch.int64 or targets.shape != images.shape[:1]:
            raise DatasetError(
                f"targets: need ({len(images)},) int64, got {tuple(targets.shape)} {targets.dtype}"
            )
        if not len(images):
            raise DatasetError("images: need at least one, got none")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= len(labels):
            raise DatasetError(f"targets: need 0..{len(labels) - 1}, got {low}..{high}")
        if pad < 0:
            raise DatasetError(f"pad: need 0 or more, got {pad}")
        self.images = images.contiguous()
        self.targets = targets
        self.labels = tuple(labels)
        self.augment, self.seed, self.pad, self.flip = augment, seed, pad, flip
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """See :meth:`Dataset.batch`. Raises IndexError if an index is out of range."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[chosen]
        if self.augment:
            images = self._augmented(images, chosen, epoch)
        return images.expand(-1, 3, -1, -1).contiguous(), self.targets[chosen]

    def renumbered(self, numbers: Sequence[int]) -> InMemory:
        """See :meth:`Dataset.renumbered`."""
        other = copy.copy(self)
        other.targets = torch.tensor(numbers)[self.targets]
        other.labels = permuted(self.labels, numbers)
        return other

    def named(self, labels: Sequence[str]) -> InMemory:
        """The same samples with other names of the classes."""
        other = copy.copy(self)
        other.labels = tuple(labels)
        return other

    def plain(self) -> InMemory:
        """See :meth:`Dataset.plain`."""
        other = copy.copy(self)
        other.augment = False
        return other

    def subset(self, indices: Sequence[int]) -> InMemory:
        """A data set of the samples at ``indices``, in that order."""
        other = copy.copy(self)
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        other.images, other.targets, other._drawn = self.images[chosen], self.targets[chosen], None
        return other

    def _augmented(self, images: Tensor, chosen: Tensor, epoch: int) -> Tensor:
        shifts, flipped = (table[chosen] for table in self._draws(epoch))
        height, width = images.shape[2:]
        # Every position of the window on the padded image is a view; each image picks one.
        windows = F.pad(images, [self.pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
        shifted = windows[torch.arange(len(images)), :, shifts[:, 0], shifts[:, 1]]
        return torch.where(flipped[:, None, None, None], shifted.flip(3), shifted)

    def _draws(self, epoch: int) -> tuple[Tensor, Tensor]:
        """For every sample, where its window begins, (M, 2) int64, and whether it is flipped, (M,) bool."""
        if self._drawn is None or self._drawn[0] != epoch:
            random = torch.Generator().manual_seed(random_seed(Draw.SHIFTS, self.seed, epoch))
            shifts = torch.randint(2 * self.pad + 1, (len(self), 2), generator=random)
            flipped = torch.randint(2, (len(self),), generator=random).bool() & self.flip
            self._drawn = epoch, shifts, flipped
        return self._drawn[1:]
