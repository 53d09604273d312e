"""The photos of ``wae demo``: decomposed, reconstructed, drawn and measured."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from wae.data.images import ImageError, read_image
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.progress import track
from wae.storage.files import written
from wae.training.linear_start import best_linear, linear_reconstruction
from wae.training.losses import psnr
from wae.wording import named_reason, printable

from . import panels

BUNDLED = ("chelsea", "flower", "astronaut", "coffee")
"""The photos shown when none is given. The first two were held out of training."""


class Row(NamedTuple):
    """One photo's line in the table."""

    photo: str
    width: int
    height: int
    psnr: float
    """Of the reconstruction, in dB."""
    best_linear_psnr: float
    """See :func:`best_linear_psnr`."""
    energy: float
    """The mean square of ``high`` divided by the variance of ``low``."""
    picture: str
    """The name of the picture's file."""


def targets(inputs: Sequence[Path], folder: Path, force: bool) -> list[Path]:
    """The path of each input's picture: ``folder/<name>.png``, with a number if two inputs share a name.

    Raises:
        FileExistsError: a picture would replace an input, or a file that no earlier demo wrote; ``force``
            allows the latter.
    """
    found: list[Path] = []
    protected = {path.resolve() for path in inputs}
    for path in inputs:
        target, number = folder / f"{path.stem}.png", 2
        while target in found:
            target, number = folder / f"{path.stem}-{number}.png", number + 1
        if target.resolve() in protected:
            raise FileExistsError(f"{target} is one of the inputs; -o chooses another folder")
        if target.exists() and not (force or panels.is_demo_picture(target)):
            raise FileExistsError(
                f"{target} exists and is not a picture of an earlier demo; -o chooses another folder, "
                "--force replaces it"
            )
        found.append(target)
    return found


def draw(model: AutoEncoder, inputs: Sequence[Path], outputs: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """Decompose and reconstruct every input, and write its picture to the matching output.

    Returns the table's rows, and an error message for every input that could not be shown.
    """
    rows, errors = [], []
    for source, target in track(list(zip(inputs, outputs, strict=True)), "photos"):
        try:
            rows.append(_draw(model, source, target))
        except ImageError as error:  # noqa: PERF203 (one bad photo must not hide the others)
            errors.append(str(error))
        except OSError as error:
            errors.append(named_reason(error))
    return rows, errors


def _draw(model: AutoEncoder, source: Path, target: Path) -> Row:
    image = read_image(source)
    shown = panels.parts(model, image)
    with written(target, force=True) as file:
        panels.save(panels.picture(shown), file)
    height, width = image.shape[1:]
    return Row(source.stem, width, height, shown.psnr, best_linear_psnr(image), shown.energy, target.name)


def show(console: Console, rows: Sequence[Row], folder: Path) -> None:
    """Print the table of the pictures in ``folder``."""
    table = Table(title="Decomposed and reconstructed", title_justify="left")
    for name in ("photo", "size", "PSNR\ndB", "best linear\ndB", "energy\nhigh / low", "picture"):
        table.add_column(name, justify="left" if name in ("photo", "picture") else "right")
    for row in rows:
        size = f"{row.height} x {row.width}"
        quality = f"{row.psnr:.2f}", f"{row.best_linear_psnr:.2f}"
        energy = f"{100 * row.energy:.1f} %"
        table.add_row(printable(row.photo), size, *quality, energy, printable(row.picture))
    console.print(table)
    where = printable(f"{folder}{os.sep}")
    console.print(f"The pictures are in the folder {where}", markup=False, highlight=False)
    console.print(
        "PSNR: peak 255, after rounding. Best linear: the best linear transform of 2x2 blocks "
        "that keeps 6 of 12 numbers, fitted to this photo. Energy: mean square of high divided "
        "by the variance of low.\n",
        highlight=False,
    )


def best_linear_psnr(image: Tensor) -> float:
    """PSNR of the best linear transform of 2x2 blocks that keeps 6 of 12 numbers, fitted to ``image`` itself.

    Returns dB after rounding, or NaN if ``image``, (3, H, W) uint8, has no block. An odd last row or column
    is left out. The transform minimises the mean square error around middle grey, as in the linear start of
    training.
    """
    even = image[:, : image.shape[1] // 2 * 2, : image.shape[2] // 2 * 2]
    if even.numel() == 0:
        return math.nan
    centred = even.float() - 127.5
    linear = linear_reconstruction(centred, best_linear([centred])) + 127.5
    return psnr(to_uint8(linear), even)
