"""Labelled images for training and evaluation, in batches of uint8.

Three kinds: Fashion-MNIST, scikit-learn's digits (both held in memory), and a folder of image files.
Whatever is random is a pure function of the seed, the epoch and the sample's number. So a run does not
depend on the size of its batches, the number of its processes, or where it was resumed. Nothing is ever
downloaded.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import signal
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from wae.errors import WaeError

from .photos import ImageError, read_image

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class DatasetError(WaeError, ValueError):
    """A data set that cannot be used. The message names the file or folder and says why."""


class Dataset(Protocol):
    """Labelled images that can be asked for by number."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, by number."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Uint8 images (N, 3, H, W), contiguous, and int64 labels (N,).

        A sample is the same in any batch of the epoch. It can be missing only where the data set was told
        to leave out files that cannot be read.
        """


# A draw's purpose is part of what seeds it, so that no two purposes share their random numbers.
_ORDER, _SHIFTS, _SAMPLE = 1, 2, 3


def _random_seed(purpose: int, seed: int, *rest: int) -> int:
    """32 well-mixed bits; more would be lost, for torch's generator takes no more from a seed."""
    return int(np.random.SeedSequence([purpose, seed % 2**64, *rest]).generate_state(1)[0])


class InMemory:
    """Images of one size, held in memory, augmented a batch at a time.

    Args:
        images: (M, C, H, W) uint8; one colour (C = 1) is handed out as three equal ones.
        targets: (M,) int64, indices into ``labels``.
        labels: the names of the classes.
        augment: shift by up to ``pad`` pixels in each direction (zeros come in), and flip left to right.
        seed: of the augmentation.
        pad: in pixels.
        flip: whether to flip half of the images; digits, say, do not stay what they are.

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
            raise DatasetError("images: there are none")
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
        """See :meth:`Dataset.batch`. Raises IndexError where an index is out of range."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[chosen]
        if self.augment:
            images = self._augmented(images, chosen, epoch)
        return images.expand(-1, 3, -1, -1).contiguous(), self.targets[chosen]

    def _augmented(self, images: Tensor, chosen: Tensor, epoch: int) -> Tensor:
        shifts, flipped = (table[chosen] for table in self._draws(epoch))
        height, width = images.shape[2:]
        # Every place that the window can take on the padded image is a view; each image picks one.
        windows = F.pad(images, [self.pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
        shifted = windows[torch.arange(len(images)), :, shifts[:, 0], shifts[:, 1]]
        return torch.where(flipped[:, None, None, None], shifted.flip(3), shifted)

    def _draws(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Of every sample: where its window begins, (M, 2), and whether it is flipped, (M,)."""
        if self._drawn is None or self._drawn[0] != epoch:
            random = torch.Generator().manual_seed(_random_seed(_SHIFTS, self.seed, epoch))
            shifts = torch.randint(2 * self.pad + 1, (len(self), 2), generator=random)
            flipped = torch.randint(2, (len(self),), generator=random).bool() & self.flip
            self._drawn = epoch, shifts, flipped
        return self._drawn[1:]


class _IdxFile(NamedTuple):
    name: str
    shape: tuple[int, ...]
    sha256: str
    """Of the file without compression."""


_FASHION_MNIST = {
    True: (
        _IdxFile(
            "train-images-idx3-ubyte",
            (60_000, 28, 28),
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        _IdxFile(
            "train-labels-idx1-ubyte",
            (60_000,),
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    False: (
        _IdxFile(
            "t10k-images-idx3-ubyte",
            (10_000, 28, 28),
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        _IdxFile(
            "t10k-labels-idx1-ubyte",
            (10_000,),
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


def fashion_mnist(folder: Path | None, train: bool, augment: bool, seed: int) -> InMemory:
    """Fashion-MNIST: clothes in 28x28 grey pixels, 60,000 to train on and 10,000 to test, 10 classes.

    Args:
        folder: holds the four IDX files, each plain or as .gz; None for :data:`FASHION_MNIST_FOLDER`.
        train: the 60,000 or the 10,000.
        augment: flip half of the pictures left to right. They are centred, and not shifted: trainings of a
            few epochs are the worse for it (docs/reproduction.md).
        seed: of the augmentation.

    Raises:
        DatasetError: a file is missing, broken, or not the published one (SHA-256).
    """
    images, targets = (_published(folder or FASHION_MNIST_FOLDER, file) for file in _FASHION_MNIST[train])
    return InMemory(images[:, None], targets.long(), FASHION_MNIST_LABELS, augment, seed, pad=0)


def _published(folder: Path, file: _IdxFile) -> Tensor:
    path = _idx_path(folder, file.name)
    if path is None:
        raise DatasetError(
            f"{folder}: there is no {file.name} or {file.name}.gz; install Debian's package "
            "dataset-fashion-mnist, or name a folder that holds the four IDX files of Fashion-MNIST"
        )
    content = _read_idx(path, file.shape)
    digest = hashlib.sha256(_idx_header(file.shape))
    digest.update(content.data)
    if digest.hexdigest() != file.sha256:
        raise DatasetError(f"{path}: this is not the published file (its SHA-256 differs)")
    return torch.from_numpy(content)


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _idx_header(shape: tuple[int, ...]) -> bytes:
    """Two zeros, 8 for unsigned bytes, the number of dimensions; then each of them, big-endian."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of an IDX file, plain or .gz, that must have this shape.

    As the shape is known, no more is ever read than it takes, whatever the file says of itself.

    Raises:
        DatasetError: the file cannot be read, is no IDX file of this shape, is cut short or too long.
    """
    header, size = _idx_header(shape), int(np.prod(shape))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = file.read(len(header))
            content = bytearray(file.read(size + 1)) if found == header else bytearray()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: the file is broken or cannot be read ({error})") from None
    if found != header:
        wanted = " x ".join(map(str, shape))
        raise DatasetError(f"{path}: this is not an IDX file of {wanted} bytes (its header differs)")
    if len(content) != size:
        have = "more" if len(content) > size else f"{len(content):,}"
        raise DatasetError(f"{path}: its header announces {size:,} bytes, but there are {have}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def digits(train: bool, augment: bool, seed: int) -> InMemory:
    """The 1,797 handwritten digits inside scikit-learn, 8x8 pixels enlarged to 28x28 (bilinear).

    The first 1,500 are to train on, the last 297 to test. Shifts are by up to 2 pixels; nothing is flipped.
    """
    from sklearn.datasets import load_digits

    bundled = load_digits()
    part = slice(None, 1500) if train else slice(1500, None)
    small = torch.from_numpy(bundled.images[part]).float()[:, None] * (255 / 16)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    targets = torch.from_numpy(bundled.target[part]).long()
    return InMemory(images.round().to(torch.uint8), targets, "0123456789", augment, seed, flip=False)


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

    def _image(self, path: str, index: int, epoch: int) -> Tensor:
        image = read_image(path)
        short, long = sorted(image.shape[1:])
        if long > _LONGEST * short:
            raise ImageError(f"{path}: {long} x {short} pixels is too long an image")
        # Not torch.manual_seed: it would set the GPU's generator too, which fork_rng does not put back here.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_random_seed(_SAMPLE, self.seed, epoch, index))
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


def open_dataset(
    source: str | Path,
    train: bool,
    augment: bool,
    seed: int,
    size: int | None = None,
    on_corrupt: OnCorrupt = "error",
) -> Dataset:
    """The data set that a user named.

    Args:
        source: "fashion-mnist", "digits", or a folder: with Fashion-MNIST's IDX files, or with train/ and
            val/ as for :func:`image_folder`.
        train: the part to train on, or the part to test.
        augment, seed, on_corrupt: see :class:`InMemory` and :class:`ImageFolder`.
        size: of the images in pixels. None is 28 for the two named sets and 224 for a folder of images; these
            are resized to 8/7 of it before the centre is cut out (256 for 224).

    Raises:
        DatasetError: there is no such data set, or it cannot be used.
    """
    folder = Path(source)
    fashion = source == "fashion-mnist"
    holds_idx = any(_idx_path(folder, file.name) for part in _FASHION_MNIST.values() for file in part)
    if (fashion or holds_idx or source == "digits") and size not in (None, 28):
        raise DatasetError(f"size: the images of {source} are 28 pixels wide, got {size}")
    if fashion or holds_idx:
        return fashion_mnist(None if fashion else folder, train, augment, seed)
    if source == "digits":
        return digits(train, augment, seed)
    if not folder.is_dir():
        raise DatasetError(f"{source}: is neither a folder nor one of fashion-mnist, digits")
    size = 224 if size is None else size
    return image_folder(folder, train, size, evaluation_resize(size), seed, augment, on_corrupt)


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What tells one data set from another, for JSON: the number of images, the labels, and by the kind

    - :class:`InMemory`: the image size, and SHA-256 of pixels and targets;
    - :class:`ImageFolder`: the image size, and SHA-256 of the files' paths, from the folder that holds all,
      and of targets. No file is opened.
    """
    known: dict[str, Any] = {"number of images": len(dataset), "labels": list(dataset.labels)}
    if isinstance(dataset, InMemory):
        known["image size"] = list(dataset.images.shape[2:])
        known["pixels"] = _sha256(dataset.images.numpy())
        known["targets"] = _sha256(dataset.targets.contiguous().numpy())
    elif isinstance(dataset, ImageFolder):
        paths, targets = zip(*dataset.samples, strict=True)
        common = len(os.path.commonpath([min(paths), max(paths)]))
        known["image size"] = [dataset.size, dataset.size]
        known["file names"] = _sha256(os.fsencode("\0".join(path[common:] for path in paths)))
        known["targets"] = _sha256(np.array(targets, np.int64))
    return known


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def evaluation_resize(size: int) -> int:
    """What an image's shorter side is scaled to before its centre, ``size`` x ``size``, is cut out."""
    return round(size * 8 / 7)


def batches(
    dataset: Dataset,
    batch: int,
    epoch: int,
    seed: int,
    shuffle: bool,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    drop_last: bool = False,
) -> Batches:
    """One epoch's batches, (images, labels) as :meth:`Dataset.batch` gives them.

    Args:
        dataset: what to read.
        batch: samples per step of all processes together.
        epoch: with ``seed`` it decides the order.
        seed: of the order.
        shuffle: else the order is the data set's.
        rank: which of the ``world`` processes this is. It takes samples rank, rank + world, ... of each
            batch, so that together the processes take the batch that a single one would.
        world: how many processes share a batch.
        workers: processes that read ahead for this one; 0 reads when asked.
        drop_last: leave out the last batch where it is not full. Without it every sample comes exactly
            once, and where the last batch has fewer samples than ``world``, the ranks beyond get one
            batch less.

    Raises:
        ValueError: a number is out of range, or ``world`` does not divide ``batch``; several processes
            would get unequal shares of a shuffled batch, which unbalances the mean of their gradients.
        DatasetError: there are not enough samples for a single batch (with ``drop_last``).
    """
    if batch < 1 or world < 1 or batch % world:
        raise ValueError(f"batch: need a multiple of world (1 or more), got batch {batch}, world {world}")
    if not 0 <= rank < world:
        raise ValueError(f"rank: need 0..{world - 1}, got {rank}")
    if workers < 0 or epoch < 0:
        raise ValueError(f"workers and epoch: need 0 or more, got {workers} and {epoch}")
    if drop_last and len(dataset) < batch:
        raise DatasetError(f"{len(dataset)} images do not fill one batch of {batch}")
    if shuffle and not drop_last and len(dataset) % batch % world:
        raise ValueError(f"drop_last: needed here, {world} processes cannot share the last batch equally")
    if shuffle:
        random = torch.Generator().manual_seed(_random_seed(_ORDER, seed, epoch))
        order = torch.randperm(len(dataset), generator=random)
    else:
        order = torch.arange(len(dataset))
    steps = len(dataset) // batch + (not drop_last and len(dataset) % batch > rank)
    return Batches(dataset, epoch, _Shares(order, batch, rank, world, steps), workers)


class _Shares:
    """The indices that one rank takes in each step."""

    def __init__(self, order: Tensor, batch: int, rank: int, world: int, steps: int) -> None:
        self.order, self.batch, self.rank, self.world, self.steps = order, batch, rank, world, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.steps):
            yield self.order[step * self.batch : (step + 1) * self.batch][self.rank :: self.world].tolist()


class Batches:
    """What :func:`batches` returns: has a length, and can be gone through again and again.

    Raises:
        ImageError, DatasetError: while reading, the data set's own, whichever process read.
    """

    def __init__(self, dataset: Dataset, epoch: int, shares: _Shares, workers: int) -> None:
        self._reader, self._shares = _Reader(dataset, epoch), shares
        self._epoch, self._workers = epoch, workers

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            self._reader,  # type: ignore[arg-type]  # takes a list of indices for an index
            batch_size=None,
            sampler=self._shares,
            collate_fn=_as_it_is,
            num_workers=self._workers,
            worker_init_fn=_leave_interrupts,
            pin_memory=torch.cuda.is_available(),
            # Else it draws from the global generator, and what else is random would depend on it.
            generator=torch.Generator(),
        )
        missing = 0
        for indices, read in zip(self._shares, loader, strict=True):
            if isinstance(read, Exception):
                raise read
            images, labels, told = read
            for message in told:
                _warn_once(message)
            missing += len(indices) - len(labels)
            yield images, labels
        if missing:
            warnings.warn(f"epoch {self._epoch}: {missing:,} images could not be read", stacklevel=2)


class _Reader:
    """Reads one batch, here or in a worker; hands errors and warnings over to whoever asked for it."""

    def __init__(self, dataset: Dataset, epoch: int) -> None:
        self.dataset, self.epoch = dataset, epoch

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor, list[str]] | Exception:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                images, labels = self.dataset.batch(indices, self.epoch)
            except (ImageError, DatasetError) as error:
                return error
        return images, labels, [str(warning.message) for warning in told]


def _as_it_is(read: Any) -> Any:
    return read


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process; the one that trains decides, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
