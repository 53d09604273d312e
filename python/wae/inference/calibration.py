"""Images that int8's scales come from, and others that it is checked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wae.data.dataset import Dataset, spread
from wae.data.input import IMAGENET, Input
from wae.data.walk import find
from wae.errors import WaeError
from wae.progress import track
from wae.wording import counted, shown

from .reading import images

CHECKED = 1_000
"""Images that a precision is checked on, at most."""

STEP = 4
"""Images in a step of the calibration."""

_READ = 32  # images at a time

Source = Tensor | Iterable[Any] | Dataset | str | PathLike[str]
"""Images (M, 3, H, W); what can be gone through for such images, or (images, labels); a data set;
or a folder of image files."""


class CalibrationError(WaeError, ValueError):
    """The images for calibration are missing, too few, or not what the network takes."""


class Calibration(NamedTuple):
    """Images, none of them in both parts."""

    images: Tensor
    """To take the scales from."""
    held_out: Tensor
    """To check on."""
    labels: Tensor | None
    """Of ``held_out``, (N,), or (N, H, W) of pixels, on the processor; None where the source had none."""


def gather(
    source: Source, size: tuple[int, int], count: int, scales: bool, input: Input = IMAGENET
) -> Calibration:
    """Read what is needed of ``source``: every other image for each part, spread over all if possible.

    Args:
        source: see :data:`Source`. What can only be gone through is
            read from its beginning: it should be in a random order.
        size: (H, W) of the network's images; files are resized and cut to it, which must be a square.
        count: images to calibrate on; as many are needed to check on, and up to :data:`CHECKED` are taken.
        scales: whether the network scales its images itself: only then can files be read for it.
        input: how a file becomes an image of the network, brought to ``size``.

    Raises:
        CalibrationError: there are too few images, or they are not what the network takes.
    """
    if type(count) is not int or count < 1:
        raise CalibrationError(f"calibration_images: need an integer of at least 1, got {count!r}")
    wanted = count + max(count, CHECKED)
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    total = 0
    for part, targets in _parts(source, size, wanted, scales, input):
        if part.dim() != 4 or tuple(part.shape[1:]) != (3, *size):
            raise CalibrationError(
                f"calibration: images must be (N, 3, {size[0]}, {size[1]}), got {tuple(part.shape)}"
            )
        parts.append(part)
        labels += [] if targets is None else [targets]
        total += len(part)
        if total >= wanted:
            break
    if total < 2 * count:
        raise CalibrationError(
            f"calibration: need at least {2 * count} images, {count} to calibrate on and as "
            f"many to check on (calibration_images sets the number), got {total}"
        )
    every = torch.cat(parts)[:wanted]
    known = torch.cat(labels)[:wanted] if len(labels) == len(parts) else None
    numbers = torch.arange(len(every))
    chosen = (numbers % 2 == 0) & (numbers < 2 * count)
    return Calibration(every[chosen], every[~chosen], None if known is None else known[~chosen])


def _parts(
    source: Any, size: tuple[int, int], wanted: int, scales: bool, input: Input
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A few images at a time, with their labels where there are some."""
    if isinstance(source, (str, PathLike)):
        yield from _files(Path(source), size, wanted, scales, input)
    elif isinstance(source, Tensor):
        yield source[spread(len(source), wanted)] if source.dim() == 4 else source, None
    elif hasattr(source, "batch") and hasattr(source, "labels"):
        numbers = spread(len(source), wanted).tolist()
        chunks = [numbers[start : start + _READ] for start in range(0, len(numbers), _READ)]
        for chunk in track(chunks, "reading images"):
            yield source.batch(chunk, 0)
        others = _others(len(source), numbers)  # where files that cannot be read were left out
        while chunk := list(islice(others, _READ)):
            yield source.batch(chunk, 0)
    elif isinstance(source, Iterable):
        for part in source:
            yield _pair(part)
    else:
        raise CalibrationError(
            f"calibration: need images, a loader of images or a folder, got {type(source).__name__}"
        )


def _pair(part: Any) -> tuple[Tensor, Tensor | None]:
    """A few images, and their labels where there are some, of what a loader gives."""
    images, *rest = part if isinstance(part, (tuple, list)) and part else (part,)
    if not isinstance(images, Tensor):
        raise CalibrationError(f"calibration: need tensors of images, got {type(images).__name__}")
    if not rest or rest[0] is None or images.dim() != 4:  # the last is refused for its shape
        return images, None
    try:
        labels = torch.as_tensor(rest[0], device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise CalibrationError(f"calibration: labels must be numbers, got {shown(rest[0])}") from None
    if labels.shape[:1] != images.shape[:1]:
        shape, images_given = tuple(labels.shape), counted(len(images), "image")
        raise CalibrationError(f"calibration: need a label for each image, got {shape} for {images_given}")
    return images, labels


def _others(total: int, numbers: Sequence[int]) -> Iterator[int]:
    """The numbers below ``total`` that are not in ``numbers``."""
    known = set(numbers)
    return (number for number in range(total) if number not in known)


def _files(
    folder: Path, size: tuple[int, int], wanted: int, scales: bool, input: Input
) -> Iterator[tuple[Tensor, Tensor | None]]:
    if not folder.is_dir():
        raise CalibrationError(f"calibration: {folder} is not a folder")
    if not scales or size[0] != size[1]:
        raise CalibrationError(
            "calibration: files of a folder can be read for a network that scales its square images itself; "
            "give it prepared images instead"
        )
    for part in in_folder(folder, input.of_size(size[0]), wanted):
        yield part, None


def in_folder(folder: Path, input: Input, wanted: int) -> Iterator[Tensor]:
    """``wanted`` readable images in ``folder`` and its folders, or all, a few at a time."""
    found = list(find([folder]))
    numbers = spread(len(found), wanted).tolist()
    chosen = track([found[number] for number in numbers], "reading images")
    others = (found[number] for number in _others(len(found), numbers))
    prepared = islice(images(chain(chosen, others), input), wanted)
    while part := list(islice(prepared, _READ)):
        yield torch.stack(part)
