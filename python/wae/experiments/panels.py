"""The demo's pictures: what the auto-encoder made of one photo, side by side in one PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from wae.models.autoencoder import AutoEncoder

_MARK = ("Software", "wae demo")  # in every picture's metadata: tells our files from a user's
_STRIP = 22  # pixels for a line of text above a panel
_GAP = 8
_SMALLEST, _LARGEST = 220, 800  # pixels of a panel's longer side; images outside are shown larger or smaller
_GREY = 128


def is_demo_picture(path: Path) -> bool:
    """Whether ``path`` is a picture that :func:`save` made, as opposed to any other file."""
    try:
        with Image.open(path) as image:
            return bool(image.info.get(_MARK[0]) == _MARK[1])
    except Exception:  # Pillow raises nearly anything on a file that is no picture: then it is not ours
        return False


def save(picture: Image.Image, file: IO[bytes]) -> None:
    """Write the picture as a PNG that :func:`is_demo_picture` knows."""
    info = PngImagePlugin.PngInfo()
    info.add_text(*_MARK)
    picture.save(file, format="PNG", pnginfo=info)


def picture(
    model: AutoEncoder, image: Tensor, reconstruction: Tensor, low: Tensor, high: Tensor
) -> Image.Image:
    """Input, ``low`` over ``high``, reconstruction and error of one photo, with labels.

    ``high`` and the error are drawn around a middle grey, amplified by the power of two in their label.

    Args:
        image, reconstruction: (3, H, W) uint8.
        low, high: (3, h, w), as ``model`` gave them.
    """
    scale, shift = model.image_scale.view(3, 1, 1), model.image_shift.view(3, 1, 1)
    error = reconstruction.float() - image.float()
    details = high.float() / scale
    error_factor, high_factor = amplification(error), amplification(details)
    height, width = image.shape[1:]
    zoom = _zoom(max(height, width))
    shown = "" if zoom == 1 else f", drawn {zoom} x" if zoom > 1 else f", drawn 1/{round(1 / zoom)}"
    columns = [
        [(f"input, {width} x {height}{shown}", image)],
        [
            (f"low, {low.shape[2]} x {low.shape[1]}", (low.float() - shift) / scale),
            (f"high x {high_factor}", details * high_factor + _GREY),
        ],
        [("reconstruction", reconstruction)],
        [(f"error x {error_factor}", error * error_factor + _GREY)],
    ]
    return _join([[_panel(label, pixels, zoom) for label, pixels in column] for column in columns])


def amplification(values: Tensor) -> int:
    """The largest power of two, at least 1, that leaves 99 % of ``values`` within 127 of zero."""
    flat = values.abs().flatten()
    sample = flat[:: max(1, len(flat) // 100_000)]
    typical = float(torch.quantile(sample, 0.99))
    return int(2 ** max(0, math.floor(math.log2(127 / max(typical, 0.1)))))


def _zoom(longer: int) -> float:
    if longer > _LARGEST:
        return 1 / math.ceil(longer / _LARGEST)
    return max(1, round(_SMALLEST / longer))


def _panel(label: str, pixels: Tensor, zoom: float) -> Image.Image:
    """One image with its label above. Enlarged pixels stay square, made smaller they are averaged."""
    data = pixels.round().clamp(0, 255).to(torch.uint8) if pixels.is_floating_point() else pixels
    image = Image.fromarray(data.permute(1, 2, 0).contiguous().numpy())
    if zoom != 1:
        size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
        image = image.resize(size, Image.Resampling.NEAREST if zoom > 1 else Image.Resampling.BOX)
    font = ImageFont.load_default(13)
    panel = Image.new(
        "RGB", (max(image.width, math.ceil(font.getlength(label))), image.height + _STRIP), "white"
    )
    ImageDraw.Draw(panel).text((0, 3), label, fill="black", font=font)
    panel.paste(image, (0, _STRIP))
    return panel


def _join(columns: list[list[Image.Image]]) -> Image.Image:
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
