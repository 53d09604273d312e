"""Fashion-MNIST, read from its four IDX files. Nothing is ever downloaded."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wae.wording import reason

from .dataset import DatasetError, InMemory

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


class _IdxFile(NamedTuple):
    name: str
    shape: tuple[int, ...]
    sha256: str
    """Hash of the uncompressed file."""


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
    """Fashion-MNIST: greyscale images of clothes, 28 x 28 pixels, 60,000 for training and 10,000 for testing.

    It has 10 classes (Xiao et al., arXiv 1708.07747).

    Args:
        folder: contains the four IDX files, each plain or as .gz; None for :data:`FASHION_MNIST_FOLDER`.
        train: open the training images rather than the test images.
        augment: flip half of the images left to right. They are centred and not shifted, because shifts make
            trainings of a few epochs worse (docs/fashion-mnist.md).
        seed: seeds the augmentation.

    Raises:
        DatasetError: a file is missing, damaged, or not the published one (SHA-256).
    """
    images, targets = (_published(folder or FASHION_MNIST_FOLDER, file) for file in _FASHION_MNIST[train])
    return InMemory(images[:, None], targets.long(), FASHION_MNIST_LABELS, augment, seed, pad=0)


def holds_fashion_mnist(folder: Path) -> bool:
    """Whether at least one of the four files is in ``folder``."""
    return any(_idx_path(folder, file.name) for part in _FASHION_MNIST.values() for file in part)


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
    """Two zero bytes, 8 for unsigned bytes, the number of dimensions, then each dimension; big-endian."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The content of an IDX file, plain or .gz, which must have this shape.

    Because the shape is known, never more than its bytes are read, whatever the file claims.

    Raises:
        DatasetError: the file cannot be read, is not an IDX file of this shape, or is truncated or too long.
    """
    header, size = _idx_header(shape), int(np.prod(shape))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = file.read(len(header))
            content = bytearray(file.read(size + 1)) if found == header else bytearray()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: the file is damaged or cannot be read ({reason(error)})") from None
    if found != header:
        wanted = " x ".join(map(str, shape))
        raise DatasetError(f"{path}: this is not an IDX file of {wanted} bytes (its header differs)")
    if len(content) != size:
        have = "more" if len(content) > size else f"{len(content):,}"
        raise DatasetError(f"{path}: its header announces {size:,} bytes, but there are {have}")
    return np.frombuffer(content, np.uint8).reshape(shape)
