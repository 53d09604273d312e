"""The classes of an image's pixels as files: a PNG of their numbers, and their colours over the image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wae.data.images import LONGEST, MAX_PIXELS, read_image
from wae.data.input import Input, prepare
from wae.storage.files import refuse_existing, written

KINDS = ("labels", "overlays")
"""The folders into which the maps are written."""

_IN_A_PALETTE = 256  # the most classes
_TURN = 0.618034  # of the colour circle from one class to the next: the golden ratio keeps the hues apart


class Maps:
    """Writes ``labels/NAME.png`` and ``overlays/NAME.png`` for each image into a folder.

    ``labels`` holds the numbers that the network has for the classes, in the format of a data set's labels:
    an 8-bit PNG with a palette of the classes' colours for up to 256 classes, else a 16-bit PNG. NAME is the
    image's path within the source where it was found, without its extension.

    Args:
        folder: the folder to write into; it is made if it is missing.
        sources: the files and folders in which the images were found.
        input: how an image becomes the network's input. If the input shows all of the image, the files have
            the image's size, else the size of the part that it shows.
        force: replace files from earlier runs.
        max_pixels: see :func:`wae.data.images.read_image`.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Path],
        input: Input,
        force: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._folder, self._input = folder, input
        self._sources = [source for source in sources if source.is_dir()]  # a shell's * gives many files
        self._force, self._max_pixels = force, max_pixels
        self._written: set[Path] = set()

    def write(self, path: Path, scores: Tensor) -> None:
        """Write both files for the image at ``path``.

        Args:
            path: the image file.
            scores: the image's scores, (classes, h, w), finite.

        Raises:
            ImageError: the image cannot be read.
            FileExistsError: one of the files exists and ``force`` is false, or another image of this run has
                the same NAME. Neither file is written then.
        """
        name = self._name(path)
        if name in self._written:
            raise FileExistsError(f"{name} is the name of the maps of another image, too")
        self._written.add(name)
        for kind in KINDS:
            refuse_existing(self._folder / kind / name, self._force)
        image = read_image(path, self._max_pixels, LONGEST)
        if not self._input.is_whole:
            image = prepare(image, self._input)
        classes = at_size(scores, image.shape[1:])
        palette = colours(len(scores))
        overlay = Image.fromarray(_overlay(image, palette[classes.long()]))
        for kind, picture in zip(KINDS, (_numbers(classes, palette), overlay), strict=True):
            # without looking for old parts, which would take longer with each image
            with written(self._folder / kind / name, self._force, tidy=False) as file:
                picture.save(file, "PNG")

    def _name(self, path: Path) -> Path:
        for source in self._sources:
            if path.is_relative_to(source) and ".." not in path.relative_to(source).parts:
                return path.relative_to(source).with_suffix(".png")
        return Path(path.name).with_suffix(".png")


def at_size(scores: Tensor, size: Sequence[int]) -> Tensor:
    """The best class of each pixel at ``size`` (H, W), (H, W) int32 on the CPU.

    ``scores``, (classes, h, w), are scaled bilinearly, one class at a time because an image may be large.
    """
    best = found = torch.empty(0)
    for number, one in enumerate(scores.float()):
        scaled = F.interpolate(one[None, None], list(size), mode="bilinear", align_corners=False)[0, 0]
        if number == 0:
            best, found = scaled, torch.zeros(scaled.shape, dtype=torch.int32, device=scaled.device)
            continue
        found[scaled > best] = number
        best = torch.maximum(best, scaled)
    return found.cpu()


def colours(classes: int) -> Tensor:
    """A colour for each class, (classes, 3) uint8; the same in every call."""
    hues = ((number * _TURN) % 1 for number in range(classes))
    values = [colorsys.hsv_to_rgb(hue, 0.75, 1 - 0.3 * (i % 2)) for i, hue in enumerate(hues)]
    return (255 * torch.tensor(values)).round().to(torch.uint8)


def _numbers(classes: Tensor, palette: Tensor) -> Image.Image:
    if len(palette) > _IN_A_PALETTE:
        return Image.fromarray(classes.numpy().astype(np.uint16))
    image = Image.fromarray(classes.numpy().astype(np.uint8), "P")
    image.putpalette(palette.flatten().tolist())
    return image


def _overlay(image: Tensor, over: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    mixed = (image.permute(1, 2, 0).int() + over.int()) // 2
    result: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = mixed.to(torch.uint8).numpy()
    return result
