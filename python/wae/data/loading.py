"""Opens data sets by name, and loads their samples in batches, in any number of processes.

Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from wae.wording import counted, first_line

from .crops import Crops
from .dataset import Dataset, DatasetError, Draw, InMemory, random_seed
from .folder import ImageFolder, image_folder
from .idx import fashion_mnist, holds_fashion_mnist
from .image_files import ImageFiles, OnCorrupt, held_out
from .images import MAX_PIXELS, ImageError
from .input import Input, evaluation_resize, whole
from .photos import digits
from .segmentation import SegmentationFolder, holds_segmentation, segmentation_folder
from .shards import Shards, is_sharded, shards

_FILES_OF_WORKER = 8  # that the main process opens at most: 2 pipes of 2 ends, and 2 batches of 2 tensors
_FILES = 16  # that it opens besides, or that a worker opens; 6 were counted
_NAMED = "fashion-mnist", "digits"


def open_dataset(
    source: str | Path,
    train: bool,
    augment: bool,
    seed: int,
    size: int | tuple[int, int] | Input | None = None,
    on_corrupt: OnCorrupt = "error",
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Open the data set that a user named.

    Args:
        source: one of

            - "fashion-mnist" or "digits",
            - a folder with Fashion-MNIST's IDX files,
            - a folder with train/ and val/ as for :func:`image_folder`,
            - a folder with a class for each pixel, as in :mod:`wae.data.segmentation`,
            - a pattern or folder of shards, as for :func:`wae.data.shards.shards`.
        train: open the training part rather than the test part.
        augment, seed, on_corrupt, max_pixels: see :class:`InMemory`, :class:`ImageFolder` and
            :class:`SegmentationFolder`.
        size: of the images in pixels. None means 28 for the two named sets and 224 for a folder of images.
            Images of a folder are resized to 8/7 of ``size`` before the centre is cropped (256 for 224).
            Images with a class for each pixel are scaled in full: to (height, width), to a square, or (None)
            to the size of the first one. An :class:`Input` specifies completely how a file becomes an image.

    Raises:
        DatasetError: there is no such data set, or it cannot be used; or ``source`` is a name, and also a
            folder of images in the current one.
        ValueError: no input can have this ``size``: see :class:`wae.data.input.Input`.
    """
    folder = Path(source)
    if source in _NAMED and (folder / "train").is_dir():
        raise DatasetError(
            f"{source}: is the name of a data set, and here also of a folder of images, which is ./{source}"
        )
    fashion = source == "fashion-mnist"
    holds_idx = holds_fashion_mnist(folder)
    side = size.size if isinstance(size, Input) else size
    if (fashion or holds_idx or source == "digits") and side not in (None, 28):
        raise DatasetError(f"size: the images of {source} are 28 pixels wide; omit --size, got {side}")
    if fashion or holds_idx:
        return fashion_mnist(folder if holds_idx else None, train, augment, seed)
    if source == "digits":
        return digits(train, augment, seed)
    if not is_sharded(source) and not folder.is_dir():
        raise DatasetError(f"{source}: is neither a folder, nor shards, nor one of fashion-mnist, digits")
    if holds_segmentation(folder):
        if size is not None and not isinstance(size, Input):
            size = whole(*((size, size) if isinstance(size, int) else size))
        part = "train" if train else held_out(folder)
        return segmentation_folder(folder, part, size, seed, augment, on_corrupt, max_pixels)
    if isinstance(size, tuple):
        raise DatasetError(f"{source}: --size HEIGHTxWIDTH is for images with a class for each pixel")
    if not isinstance(size, Input):
        size = 224 if size is None else size
        size = Input(size, evaluation_resize(size))
    if is_sharded(source):
        return shards(str(source), train, size, augment, seed, on_corrupt, max_pixels)
    return image_folder(folder, train, size, augment, seed, on_corrupt, max_pixels)


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What identifies a data set, as JSON data: the number of images, the labels, and depending on its kind

    - :class:`InMemory`: the image size, and SHA-256 of the pixels and of the targets;
    - :class:`ImageFolder`: the image size, and SHA-256 of the files' paths relative to their common folder
      and of the targets. No file is opened;
    - :class:`SegmentationFolder`: the same without targets, plus the label numbers used in the files unless
      they are 0, 1, ...;
    - :class:`Shards`: the image size, the names of the shards, and SHA-256 of the images' positions in them
      and of the targets;
    - :class:`Crops`: the size of a crop, and SHA-256 of the images' pixels.
    """
    known: dict[str, Any] = {"number of images": len(dataset), "labels": list(dataset.labels)}
    if isinstance(dataset, InMemory):
        known["image size"] = list(dataset.images.shape[2:])
        known["pixels"] = _sha256(dataset.images.numpy())
        known["targets"] = _sha256(dataset.targets.contiguous().numpy())
    elif isinstance(dataset, (ImageFolder, SegmentationFolder)):
        paths, targets = zip(*dataset.samples, strict=True)
        first, last = os.path.dirname(min(paths)), os.path.dirname(max(paths))  # a single file keeps its name
        common = len(os.path.commonpath([first, last]))
        known["image size"] = list(dataset.shape)
        known["file names"] = _sha256(os.fsencode("\0".join(path[common:] for path in paths)))
        if isinstance(dataset, ImageFolder):
            known["targets"] = _sha256(np.array(targets, np.int64))
        elif (numbers := dataset.numbers()) != list(range(len(numbers))):
            known["numbers of the labels"] = numbers
    elif isinstance(dataset, Shards):
        known["image size"] = list(dataset.shape)
        known["shards"] = [path.name for path in dataset.paths]
        known["places in shards"] = _sha256(np.stack((dataset.shard, dataset.offset, dataset.bytes)))
        known["targets"] = _sha256(dataset.targets)
    elif isinstance(dataset, Crops):
        known["crop"] = dataset.crop
        known["pixels"] = [_sha256(image.contiguous().numpy()) for image in dataset.images]
    return known


def _sha256(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


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
    device: torch.device | str = "cpu",
    most: int | None = None,
) -> Batches:
    """The batches of one epoch, (images, labels) as :meth:`Dataset.batch` returns them.

    Args:
        dataset: what to read.
        batch: samples per step, over all processes.
        epoch: determines the order together with ``seed``.
        seed: seeds the order.
        shuffle: read in random order rather than in that of the data set.
        rank: which of the ``world`` processes this is. It takes samples rank, rank + world, ... of each
            batch, so that together the processes take the batch that a single one would take.
        world: the number of processes that share a batch.
        workers: processes that read ahead for this one; with 0, this process reads on demand.
        drop_last: leave out the last batch if it is not full. Otherwise every sample comes exactly once, and
            if the last batch has fewer samples than ``world``, the higher ranks get one batch less.
        device: where the batches are used. For a GPU they are in pinned memory, from which they are copied
            while the CPU goes on.
        most: the largest number of batches; None for all.

    Raises:
        ValueError: a number is out of range, ``world`` does not divide ``batch``, or several processes would
            get unequal shares of a shuffled batch, which would bias the mean of their gradients.
        DatasetError: there are not enough samples for a single batch (with ``drop_last``).
    """
    if batch < 1 or world < 1 or batch % world:
        raise ValueError(f"batch: need a multiple of world (1 or more), got batch {batch}, world {world}")
    if not 0 <= rank < world:
        raise ValueError(f"rank: need 0..{world - 1}, got {rank}")
    if workers < 0 or epoch < 0:
        raise ValueError(f"workers and epoch: need 0 or more, got {workers} and {epoch}")
    if drop_last and len(dataset) < batch:
        raise DatasetError(f"{counted(len(dataset), 'image')} cannot fill one batch of {batch}")
    if shuffle and not drop_last and len(dataset) % batch % world:
        raise ValueError(
            f"drop_last: need True, because {world} processes cannot share the last batch equally"
        )
    if shuffle:
        random = torch.Generator().manual_seed(random_seed(Draw.ORDER, seed, epoch))
        order = torch.randperm(len(dataset), generator=random)
    else:
        order = torch.arange(len(dataset))
    steps = len(dataset) // batch + (not drop_last and len(dataset) % batch > rank)
    steps = steps if most is None else min(steps, most)
    pinned = torch.device(device).type == "cuda"  # it makes this process a user of the GPU
    return Batches(dataset, epoch, _Shares(order, batch, rank, world, steps), workers, pinned)


def to_device(images: Tensor, device: torch.device | str) -> Tensor:
    """``images``, (N, 3, H, W), on ``device`` and in channels_last, in which networks run fastest."""
    return images.to(device, memory_format=torch.channels_last, non_blocking=True)


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
    """The result of :func:`batches`: it has a length and can be iterated over repeatedly.

    Raises:
        ImageError, DatasetError: while iterating, as the data set does, whichever process reads; or the
            workers need more open files or shared memory than they can have.
    """

    def __init__(self, dataset: Dataset, epoch: int, shares: _Shares, workers: int, pinned: bool) -> None:
        self._reader, self._shares = _Reader(dataset, epoch), shares
        self._workers, self._pinned = workers, pinned
        self.failed: list[str] = []
        """One line for each file left out so far in the latest pass, with its name and the reason."""

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._workers:
            _allow_files(self._workers)
        loader: DataLoader[Any] = DataLoader(
            self._reader,  # type: ignore[arg-type]  # its index is a list of indices
            batch_size=None,
            sampler=self._shares,
            collate_fn=_as_it_is,
            num_workers=self._workers,
            worker_init_fn=_leave_interrupts,
            pin_memory=self._pinned,
            # Otherwise it draws from the global generator, which would change all other randomness.
            generator=torch.Generator(),
        )
        self.failed = []
        for read in loader:
            if isinstance(read, Exception):
                raise read
            images, labels, failed = read
            self.failed += failed
            yield images, labels


class _Reader:
    """Reads one batch, in this process or a worker, and returns errors so that the caller can raise them."""

    def __init__(self, dataset: Dataset, epoch: int) -> None:
        self.dataset, self.epoch = dataset, epoch

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor, list[str]] | Exception:
        try:
            if isinstance(self.dataset, ImageFiles):
                images, labels, failed = self.dataset.read(indices, self.epoch)
            else:
                images, labels, failed = *self.dataset.batch(indices, self.epoch), []
            if get_worker_info() is not None:
                _share(images, labels)
            return images, labels, failed
        except (ImageError, DatasetError) as error:
            return error


def _allow_files(workers: int) -> None:
    """Raise this process's limit of open files if ``workers`` need more and the system permits it.

    Each tensor that a worker has read is an open file until it is freed. If a worker can open no more, it
    drops a batch, for which the main process waits forever. So DatasetError is raised before any starts.
    """
    needed = len(os.listdir("/dev/fd")) + _FILES + _FILES_OF_WORKER * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DatasetError(
            f"workers: {workers} may need {needed} open files, and the limit is {hard} (`ulimit -n`); fewer "
            "workers need fewer"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _share(*tensors: Tensor) -> None:
    """Move tensors that a worker has read into the shared memory by which they reach the main process.

    PyTorch would do it in a thread. If there is no room, that thread drops the batch, and the main process
    waits for it forever.
    """
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        raise DatasetError(
            f"workers: the shared memory, /dev/shm, has no room for their batches ({first_line(error)}); "
            "fewer workers or a smaller batch need less, and `docker run --shm-size` gives more"
        ) from None


def _as_it_is(read: Any) -> Any:
    return read


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process. The training process handles it and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
