"""Images that give the scales of int8, and held-out images that a deployed model is checked on."""

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
from wae.data.walk import find, labels_among
from wae.errors import WaeError
from wae.progress import track
from wae.wording import counted, shown

from .precision import IMAGES
from .reading import images

CHECKED = 1_000
"""The most images that a precision is checked on; fewer if they are larger than 512 x 512."""
_PIXELS = CHECKED * 512**2  # of the images to check on: they, their labels and their classes are in memory

STEP = 4
"""Images in a batch of the calibration."""

_READ = 32  # images that are read at a time
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # PyTorch compares none of them with others

Source = Tensor | Iterable[Any] | Dataset | str | PathLike[str]
"""Where calibration images come from: a tensor (M, 3, H, W); an iterable of such tensors or of pairs
(images, labels), such as a loader; a data set; or the path of a folder of image files."""


class CalibrationError(WaeError, ValueError):
    """The images or labels for calibration are missing, too few, or not what the network takes."""


class Calibration(NamedTuple):
    """Two sets of images that share none."""

    images: Tensor
    """The images that give the scales, (M, 3, H, W), on the CPU."""
    held_out: Tensor
    """The images to check on, (N, 3, H, W), on the CPU."""
    labels: Tensor | None
    """The labels of ``held_out``: (N,), or (N, H, W) for pixels, on the CPU. None if the source has none."""


def gather(
    source: Source, size: tuple[int, int], count: int, scales: bool, input: Input = IMAGENET
) -> Calibration:
    """Read images from ``source`` and divide them: some calibrate, the others check.

    Args:
        source: see :data:`Source`. Both sets of images are spread over all of a tensor, a data set or a
            folder. Any other iterable is read from its start, so it should be in random order.
        size: (H, W) of the network's images. Files are resized and cropped to it; it must then be a square.
        count: the number of images to calibrate on. At least the same number is needed to check on, and more
            are used: see :func:`most`.
        scales: whether the network scales its images itself. Files can be read only for such a network.
        input: how a file becomes an image of the network; its size is replaced by ``size``.

    Raises:
        CalibrationError: there are too few images, they are not what the network takes, or the labels do not
            fit the images.
    """
    if type(count) is not int or count < 1:
        raise CalibrationError(f"calibration_images: need an integer of at least 1, got {shown(count)}")
    with torch.device("cpu"):  # loaders that shuffle fail while the default is a GPU
        return _gathered(source, size, count, scales, input)


def most(count: int, size: tuple[int, int]) -> int:
    """The most images of ``size`` (H, W) that are read to calibrate on ``count`` and check on others."""
    height, width = size
    return count + max(count, min(CHECKED, _PIXELS // (height * width)))


def _gathered(source: Source, size: tuple[int, int], count: int, scales: bool, input: Input) -> Calibration:
    wanted = most(count, size)
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    total = 0
    for part, targets in _parts(source, size, wanted, scales, input):
        if part.dim() != 4 or tuple(part.shape[1:]) != (3, *size):
            raise CalibrationError(
                f"calibration: images must be (N, 3, {size[0]}, {size[1]}), got {tuple(part.shape)}"
            )
        if part.dtype not in IMAGES.values():
            raise CalibrationError(
                f"calibration: images must be one of {', '.join(IMAGES)}, got {part.dtype}"
            )
        if part.is_floating_point() and not part.isfinite().all():
            raise CalibrationError("calibration: images must be finite, but some have NaN or infinity")
        parts.append(part.cpu())
        if targets is not None:
            if labels and targets.shape[1:] != labels[0].shape[1:]:
                both = f"{tuple(labels[0].shape)} and {tuple(targets.shape)}"
                raise CalibrationError(f"calibration: labels must have one shape, got {both}")
            labels.append(targets)
        total += len(part)
        if total >= wanted:
            break
    if total < 2 * count:
        raise CalibrationError(
            f"calibration: need at least {2 * count} images, {count} to calibrate on and the same number "
            f"to check on (calibration_images sets it), got {total}"
        )
    every = torch.cat(parts)[:wanted]
    known = torch.cat(labels)[:wanted] if len(labels) == len(parts) else None
    chosen = torch.zeros(len(every), dtype=torch.bool)
    chosen[_spread(len(every), count)] = True
    return Calibration(every[chosen], every[~chosen], None if known is None else known[~chosen])


def _spread(total: int, wanted: int) -> Tensor:
    """``wanted`` integers in 0..``total`` - 1, one in each of as many equal parts; all if there are no more.

    Which one is random, though the same in every call: equal steps find a single class if classes alternate.
    """
    starts = spread(total, wanted)
    sizes = torch.cat((starts[1:], torch.tensor([total]))) - starts
    random = torch.rand(len(starts), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return starts + (random * sizes).long()


def _parts(
    source: Any, size: tuple[int, int], wanted: int, scales: bool, input: Input
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The images of ``source``, a few at a time, each with its labels or None."""
    if isinstance(source, (str, PathLike)):
        yield from _files(Path(source), size, wanted, scales, input)
    elif isinstance(source, Tensor):
        yield source[_spread(len(source), wanted)] if source.dim() == 4 else source, None
    elif hasattr(source, "batch") and hasattr(source, "labels"):
        numbers = _spread(len(source), wanted).tolist()
        chunks = [numbers[start : start + _READ] for start in range(0, len(numbers), _READ)]
        for chunk in track(chunks, "reading images"):
            yield source.batch(chunk, 0)
        others = _others(len(source), numbers)  # needed if files could not be read and were left out
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
    """Copies of the images, and of the labels or None, in an item of a loader.

    They are copies because a loader may fill the same memory with its next images.
    """
    images, *rest = part if isinstance(part, (tuple, list)) and part else (part,)
    if not isinstance(images, Tensor):
        raise CalibrationError(f"calibration: need tensors of images, got {type(images).__name__}")
    images = images.to("cpu", copy=True)
    if not rest or rest[0] is None or images.dim() != 4:  # wrong images are refused by the caller
        return images, None
    try:
        labels = torch.as_tensor(rest[0], device="cpu").clone()
    except (TypeError, ValueError, RuntimeError):
        raise CalibrationError(f"calibration: labels must be numbers, got {shown(rest[0])}") from None
    if labels.shape[:1] != images.shape[:1]:
        shape, images_given = tuple(labels.shape), counted(len(images), "image")
        raise CalibrationError(f"calibration: need a label for each image, got {shape} for {images_given}")
    if labels.is_complex():
        raise CalibrationError(f"calibration: labels must be numbers, got {labels.dtype}")
    return images, labels.long() if labels.dtype in _UNSIGNED else labels


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
            "calibration: files can be read only for a network that scales its images itself, at a square "
            "size; pass prepared images instead"
        )
    for part in in_folder(folder, input.of_size(size[0]), wanted):
        yield part, None


def in_folder(folder: Path, input: Input, wanted: int, invert: bool = False) -> Iterator[Tensor]:
    """Up to ``wanted`` readable images below ``folder``, a few at a time, (N, 3, H, W) uint8.

    ``input`` and ``invert`` are as for :func:`wae.data.input.prepare`. Raises CalibrationError if labels of
    pixels are among the images.
    """
    if labels := labels_among(folder):
        raise CalibrationError(f"calibration: {labels}")
    found = list(find([folder]))
    numbers = _spread(len(found), wanted).tolist()
    chosen = track([found[number] for number in numbers], "reading images")
    others = (found[number] for number in _others(len(found), numbers))
    prepared = islice(images(chain(chosen, others), input, invert), wanted)
    while part := list(islice(prepared, _READ)):
        yield torch.stack(part)
