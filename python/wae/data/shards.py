"""Images in WebDataset shards: tar files in which the members of a sample share their name up to a dot.

::

    train-000.tar            train-000.index.npz    the positions of its images, once it was read
        n01440764_10026.jpg
        n01440764_10026.cls  the class number
        ...
    classes.txt              the names of the classes, one per line

Alternatively the folder names tell the parts apart: ``train/000.tar`` and ``val/000.tar``, beside
``classes.txt``.

A shard is read once from end to end to build its index. After that, each image is read from its position, so
that shards can be shuffled, divided among processes and resumed like any other data set.
"""

from __future__ import annotations

import copy
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wae.storage.files import written
from wae.wording import counted

from .dataset import DatasetError, Draw, permuted, read_class_names, seeded
from .image_files import ImageFiles, OnCorrupt, transform
from .images import LONGEST, MAX_PIXELS, ImageError, decode_image, is_image
from .input import Input
from .walk import is_hidden

CLASSES = "classes.txt"

_HELD_OUT = "val", "test"
_BLOCK = tarfile.BLOCKSIZE
_MOST = 1 << 30  # bytes of an image file, which is read into memory as a whole
_DIGITS = 9  # of a class number
_NUMBER = re.compile(r"\d+([-_]of[-_]\d+)?$")  # ends a shard's name: its number, and how many there are

_Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class _Index(NamedTuple):
    """The positions of a shard's images: (M,) int64 each."""

    offset: _Numbers
    """In bytes, from the start of the shard."""
    size: _Numbers
    """In bytes."""
    target: _Numbers
    """The class number."""


class Shards(ImageFiles):
    """Images in tar files. Use :func:`shards` to create it.

    Args:
        paths: the shards.
        indices: the index of each shard.
        labels: the names of the classes.
        input, augment: see :func:`wae.data.image_files.transform`.
        seed, on_corrupt, max_pixels: see :class:`wae.data.image_files.ImageFiles`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        indices: Sequence[_Index],
        labels: Sequence[str],
        input: Input,
        augment: bool,
        seed: int,
        on_corrupt: OnCorrupt = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(input, augment, seed, on_corrupt, max_pixels, None, None)
        self.paths, self.labels = list(paths), tuple(labels)
        self.shard = np.repeat(np.arange(len(paths)), [len(index.target) for index in indices])
        self.offset, self.bytes, self.targets = (
            np.concatenate(column) for column in zip(*indices, strict=True)
        )

    def __len__(self) -> int:
        return len(self.targets)

    def renumbered(self, numbers: Sequence[int]) -> Shards:
        """See :meth:`wae.data.dataset.Dataset.renumbered`."""
        other = copy.copy(self)
        other.targets = np.array(numbers)[self.targets]
        other.labels = permuted(self.labels, numbers)
        return other

    def subset(self, indices: Sequence[int]) -> Shards:
        """A data set of the samples at ``indices``, in that order."""
        other = copy.copy(self)
        chosen = np.array(indices, np.int64)
        for name in ("shard", "offset", "bytes", "targets"):
            setattr(other, name, getattr(self, name)[chosen])
        return other

    def _sample(self, index: int, epoch: int) -> tuple[Tensor, Tensor]:
        image = self._image(index)
        with seeded(Draw.SAMPLE, self.seed, epoch, index):
            return transform(self.input, self.augment)(image), torch.tensor(int(self.targets[index]))

    def _image(self, index: int) -> Tensor:
        path, offset, size = self.paths[self.shard[index]], int(self.offset[index]), int(self.bytes[index])
        try:
            with open(path, "rb") as shard:
                shard.seek(offset)
                content = shard.read(size)
        except OSError as error:
            raise ImageError(f"{path}: the shard cannot be read ({error.strerror})") from None
        try:
            return decode_image(content, path, self.max_pixels, LONGEST)
        except ImageError as error:
            why = str(error).removeprefix(f"{path}: ")
            raise ImageError(f"{path}: {_name(path, offset)}: {why}") from None


def is_sharded(source: str | Path) -> bool:
    """Whether ``source`` is a pattern of shards, which ends with ``.tar``, or a folder of shards."""
    return _is_pattern(source) or bool(_in_folder(Path(source, "train")))


def _is_pattern(source: str | Path) -> bool:
    return Path(source).suffix == ".tar" and not Path(source).is_dir()  # a folder may be named so too


def _in_folder(folder: Path) -> list[Path]:
    """The shards in ``folder``; none if it has subfolders, because these are classes."""
    if not folder.is_dir():
        return []
    visible = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
    return [] if any(map(Path.is_dir, visible)) else [path for path in visible if path.suffix == ".tar"]


def shards(
    pattern: str,
    train: bool,
    input: Input,
    augment: bool = False,
    seed: int = 0,
    on_corrupt: OnCorrupt = "error",
    max_pixels: int = MAX_PIXELS,
) -> Shards:
    """The images in the shards that ``pattern`` names.

    Args:
        pattern: the shards to train on, such as ``shards/train-{000..127}.tar``. Those to test on are the
            ones beside them with ``val`` or ``test`` in place of ``train``, whatever their numbers are, such
            as ``shards/val-00003-of-00010.tar``. If the names do not contain ``train``, their folder must be
            called so: ``shards/train/{000..127}.tar`` and ``shards/val/*.tar``; ``shards`` alone stands for
            all of these.
        train: open the training shards rather than the test shards.
        input, augment: see :func:`wae.data.image_files.transform`.
        seed, on_corrupt, max_pixels: see :class:`wae.data.image_files.ImageFiles`.

    Raises:
        DatasetError: a shard is missing, named twice, damaged, or not a tar file; a sample in it has no image
            or no class, or more than one; a class has no name; or webdataset is not installed.
    """
    paths = _expanded(pattern)
    folder, others = _held_out(pattern, paths[0])
    if not train:
        paths = _first_there(folder, others)
    indices = [_index(path) for path in paths]
    labels = _labels(folder / CLASSES, max(int(index.target.max()) for index in indices))
    return Shards(paths, indices, labels, input, augment, seed, on_corrupt, max_pixels)


def _expanded(pattern: str) -> list[Path]:
    try:
        from braceexpand import braceexpand
    except ModuleNotFoundError:
        raise DatasetError(f'{pattern}: shards need pip install "wae-kernels[webdataset]"') from None
    try:
        folder = Path(pattern, "train")
        paths = [*map(Path, braceexpand(pattern))] if _is_pattern(pattern) else _in_folder(folder)
    except ValueError as error:  # its UnbalancedBracesError
        raise DatasetError(f"{pattern}: {error}") from None
    if not paths:
        raise DatasetError(f"{pattern}: need a pattern that ends with .tar, or a folder with train/*.tar")
    if len(set(paths)) < len(paths):
        raise DatasetError(f"{pattern}: names a shard more than once")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f"; {counted(len(missing) - 1, 'other')} missing too" if missing[1:] else ""
        raise DatasetError(f"{missing[0]}: there is no such shard{more}")
    return paths


def _held_out(pattern: str, first: Path) -> tuple[Path, list[str]]:
    """The data set's folder, and patterns for the shards to test on in it. The first that matches is used.

    Args:
        pattern: see :func:`shards`.
        first: the first of the shards to train on.
    """
    before, train, after = first.stem.rpartition("train")
    if train and _is_pattern(pattern):
        before, after = escape(before), escape(_NUMBER.sub("", after))
        return first.parent, [f"{before}{part}{after}*.tar" for part in _HELD_OUT]
    if first.parent.name == "train":
        return first.parent.parent, [f"{part}/*.tar" for part in _HELD_OUT]
    raise DatasetError(
        f"{pattern}: need train in the names of the shards, as in train-000.tar, or as the name of their "
        "folder, as in train/000.tar; those with val are for testing"
    )


def _first_there(folder: Path, patterns: Sequence[str]) -> list[Path]:
    for pattern in patterns:
        if found := [path for path in sorted(folder.glob(pattern)) if not is_hidden(path.name)]:
            return found
    raise DatasetError(f"{folder}: there are no shards {patterns[0]} to test on")


def _labels(path: Path, highest: int) -> tuple[str, ...]:
    """The names of the classes; ``highest`` is the highest class number in use."""
    if not path.exists():
        raise DatasetError(f"{path}: is missing; it needs the name of each class, one per line")
    labels = read_class_names(path)
    if "" in labels:
        raise DatasetError(f"{path}: line {labels.index('') + 1} is empty; need a class name in each line")
    if len(labels) <= max(highest, 1):
        why = f", but an image has class number {highest}" if highest else "; need at least two"
        raise DatasetError(f"{path}: names {counted(len(labels), 'class')}{why}")
    return labels


# -------------------------------------------------------------------------------------------------- indices


def _index(path: Path) -> _Index:
    """The shard's index: read from the file beside it, or built and, if possible, saved there."""
    kept, now = path.with_suffix(".index.npz"), path.stat()
    version = np.array([now.st_size, now.st_mtime_ns])
    # The file is opened here because numpy leaves a damaged one open.
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), kept.open("rb") as file:
        known = np.load(file)
        if np.array_equal(known["version"], version):
            return _Index(*(known[name] for name in _Index._fields))
    index = _made(path)
    with suppress(OSError), written(kept, force=True) as file:
        np.savez(file, version=version, **index._asdict())
    return index


def _made(path: Path) -> _Index:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with open(path, "rb") as file:
            for key, kind, member in _members(path, file):
                sample = samples.setdefault(key, {})
                if kind in sample:
                    raise DatasetError(f"{path}: sample {key} has more than one {kind}")
                if kind == "cls":
                    sample[kind] = member.offset_data, _class(path, member, file)
                else:
                    sample[kind] = member.offset_data, member.size
    except OSError as error:
        raise DatasetError(f"{path}: the shard cannot be read ({error.strerror})") from None
    if not samples:
        raise DatasetError(f"{path}: there are no images in this shard")
    for key, sample in samples.items():
        for kind, called in (("image", "image"), ("cls", "class (a member .cls)")):
            if kind not in sample:
                raise DatasetError(f"{path}: sample {key} has no {called}")
    rows = [(*sample["image"], sample["cls"][1]) for sample in samples.values()]
    return _Index(*np.array(rows, np.int64).T)


def _members(path: Path, file: IO[bytes]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """For each member that is an ``image`` or a ``cls``: the sample's name, which it is, and the entry."""
    from webdataset.tariterators import base_plus_ext

    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                key, ending = base_plus_ext(member.name)
                kind = "image" if is_image(f"{key}.{ending}") else str(ending).lower()
                if member.isreg() and kind in ("image", "cls"):
                    if member.size > _MOST:
                        raise DatasetError(f"{path}: {member.name} is larger than {_MOST:,} bytes")
                    yield key, kind, member
            end = archive.offset
    except DatasetError:
        raise
    except (tarfile.TarError, OverflowError, ValueError) as error:  # the last two: impossible sizes
        raise DatasetError(f"{path}: this is not a readable tar file ({error})") from None
    # tarfile takes a damaged entry for the end of the archive. The real end is a block of zeros.
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise DatasetError(f"{path}: the shard is damaged or truncated at byte {end:,}")


def _class(path: Path, member: tarfile.TarInfo, file: IO[bytes]) -> int:
    file.seek(member.offset_data)
    text = file.read(member.size).strip() if member.size <= _DIGITS + 2 else b"more than a number"
    if not text.isdigit():
        raise DatasetError(
            f"{path}: {member.name} needs a class number, got {text.decode(errors='replace')!r}"
        )
    return int(text)


def _name(path: Path, offset: int) -> str:
    """The name of the member whose content begins at ``offset``."""
    with suppress(OSError, tarfile.TarError), open(path, "rb") as shard:
        shard.seek(offset - _BLOCK)
        return tarfile.TarInfo.frombuf(shard.read(_BLOCK), "utf-8", "replace").name
    return f"the image at byte {offset:,}"
