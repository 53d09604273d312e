"""Pictures of results: labelled panels, an image as the auto-encoder decomposes it, a legend of colours."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.training.losses import energy_ratio, psnr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARK = ("Software", "wae demo")  # in the metadata of every picture, to tell it from a user's file
_STRIP = 22  # pixels of height for a line of text
_GAP = 8
_SMALLEST, _LARGEST = 220, 800  # pixels of a panel's longer side; other images are enlarged or reduced
_GREY = 128


def png(picture: Image.Image | Figure) -> bytes:
    """The content of a PNG file of ``picture``, an image or a figure of matplotlib."""
    file = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(file, "PNG")
    else:
        picture.savefig(file, format="png")
    return file.getvalue()


def data_url(picture: Image.Image | Figure) -> str:
    """The source of an image within an HTML page: ``picture`` as a PNG, see :func:`png`."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"


def is_demo_picture(path: Path) -> bool:
    """Whether ``path`` is a picture that :func:`save` made, as opposed to any other file."""
    try:
        with Image.open(path) as image:
            return bool(image.info.get(_MARK[0]) == _MARK[1])
    except Exception:  # Pillow can raise nearly anything if the file is no picture
        return False


def save(picture: Image.Image, file: IO[bytes]) -> None:
    """Write the picture as a PNG that :func:`is_demo_picture` recognises."""
    info = PngImagePlugin.PngInfo()
    info.add_text(*_MARK)
    picture.save(file, format="PNG", pnginfo=info)


@dataclass(frozen=True)
class Parts:
    """One image and its parts, (3, H, W) each, on the image's scale of 0..255."""

    image: Tensor
    """uint8."""
    low: Tensor
    """Half as high and wide."""
    high: Tensor
    """Half as high and wide; its values are around zero."""
    reconstruction: Tensor
    """uint8."""
    energy: float
    """The mean square of ``high`` divided by the variance of ``low``, both on the encoder's scale."""

    @property
    def error(self) -> Tensor:
        """The reconstruction minus the image."""
        return self.reconstruction.float() - self.image.float()

    @property
    def psnr(self) -> float:
        """Of the reconstruction after rounding, in dB, for a peak of 255."""
        return psnr(self.reconstruction, self.image)


@torch.no_grad()
def parts(model: AutoEncoder, image: Tensor) -> Parts:
    """``image``, (3, H, W) uint8, decomposed and reconstructed by ``model``."""
    decoded, low, high = (tensor[0].float() for tensor in model(image[None]))
    scale, shift = model.image_scale.view(3, 1, 1), model.image_shift.view(3, 1, 1)
    energy = energy_ratio(low[None], high[None])
    return Parts(image, (low - shift) / scale, high / scale, to_uint8(decoded), energy)


def picture(shown: Parts) -> Image.Image:
    """Input, ``low`` over ``high``, reconstruction and error of one photo, with labels.

    ``high`` and the error are amplified by the power of two in their label.
    """
    error = shown.error
    error_factor, high_factor = amplification(error), amplification(shown.high)
    height, width = shown.image.shape[1:]
    zoom = zoom_of(shown.image)
    drawn = "" if zoom == 1 else f", drawn {zoom} x" if zoom > 1 else f", drawn 1/{round(1 / zoom)}"
    columns = [
        [(f"input, {height} x {width}{drawn}", shown.image)],
        [
            (f"low, {shown.low.shape[1]} x {shown.low.shape[2]}", shown.low),
            (f"high x {high_factor}", amplified(shown.high, high_factor)),
        ],
        [("reconstruction", shown.reconstruction)],
        [(f"error x {error_factor}", amplified(error, error_factor))],
    ]
    return joined([[labelled(label, draw(pixels, zoom)) for label, pixels in column] for column in columns])


def amplified(values: Tensor, factor: float) -> Tensor:
    """``values`` multiplied by ``factor``, with zero drawn as middle grey."""
    return values * factor + _GREY


def amplification(values: Tensor) -> int:
    """The largest power of two, at least 1, that leaves 99 % of ``values`` within 127 of zero."""
    flat = values.abs().flatten()
    sample = flat[:: max(1, len(flat) // 100_000)]
    typical = float(torch.quantile(sample, 0.99))
    return int(2 ** max(0, math.floor(math.log2(127 / max(typical, 0.1)))))


def zoom_of(image: Tensor) -> float:
    """The factor by which ``image``, (3, H, W), and its parts are enlarged or reduced."""
    longer = max(image.shape[1:])
    if longer > _LARGEST:
        return 1 / math.ceil(longer / _LARGEST)
    return max(1, round(_SMALLEST / longer))


def draw(pixels: Tensor, zoom: float = 1) -> Image.Image:
    """(3, H, W) of 0..255 as an image. Enlarging repeats pixels; reducing averages them."""
    data = to_uint8(pixels) if pixels.is_floating_point() else pixels
    image = Image.fromarray(data.permute(1, 2, 0).contiguous().numpy())
    if zoom == 1:
        return image
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    return image.resize(size, Image.Resampling.NEAREST if zoom > 1 else Image.Resampling.BOX)


def legend(colours: Mapping[str, Sequence[int]]) -> Image.Image:
    """A list of names, each beside a square of its colour."""
    font = ImageFont.load_default(13)
    width = _STRIP + _GAP + math.ceil(max(font.getlength(name) for name in colours))
    image = Image.new("RGB", (width, _STRIP * len(colours)), "white")
    pen = ImageDraw.Draw(image)
    for row, (name, colour) in enumerate(colours.items()):
        pen.rectangle((0, row * _STRIP + 3, _STRIP - 6, (row + 1) * _STRIP - 3), fill=tuple(colour))
        pen.text((_STRIP, row * _STRIP + 3), name, fill="black", font=font)
    return image


def labelled(label: str, image: Image.Image) -> Image.Image:
    """``image`` with ``label`` above it."""
    font = ImageFont.load_default(13)
    panel = Image.new(
        "RGB", (max(image.width, math.ceil(font.getlength(label))), image.height + _STRIP), "white"
    )
    ImageDraw.Draw(panel).text((0, 3), label, fill="black", font=font)
    panel.paste(image, (0, _STRIP))
    return panel


def joined(columns: list[list[Image.Image]]) -> Image.Image:
    """Columns of panels, side by side."""
    widths = [max(panel.width for panel in column) for column in columns]
    height = max(sum(panel.height + _GAP for panel in column) for column in columns) + _GAP
    canvas = Image.new("RGB", (sum(widths) + _GAP * (len(widths) + 1), height), "white")
    x = _GAP
    for column, width in zip(columns, widths, strict=True):
        y = _GAP
        for panel in column:
            canvas.paste(panel, (x, y))
            y += panel.height + _GAP
        x += width + _GAP
    return canvas
