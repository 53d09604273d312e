"""``wae decode``."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wae.errors import UsageError

from . import shared, types

if TYPE_CHECKING:
    from PIL import Image

HELP = "reconstruct an image from the file that `wae encode` wrote"

_QUALITY = 95  # for formats that have one; Pillow's default for JPEG, 75, loses 13 dB more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("file", type=Path, metavar="FILE", help="- is standard input")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="IMAGE",
        help="image file, whose extension determines the format; - is standard output, as PNG",
    )
    parser.add_argument(
        "--quality",
        type=types.percent,
        metavar="N",
        help=f"quality of a lossy format, 1 to 100 (default: {_QUALITY} for JPEG; lossless WebP)",
    )
    shared.add_weights(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> int:
    """Reconstruct the image and write it."""
    from PIL import Image

    suffix = ".png" if options.output == shared.STANDARD else options.output.suffix.lower()
    file_format = Image.registered_extensions().get(suffix)
    if file_format is None or file_format not in Image.SAVE:
        raise UsageError(f"{options.output}: Pillow cannot write this file type; use .png")
    if options.quality is not None and file_format not in _QUALITIES:
        raise UsageError(f"--quality: needs one of {', '.join(_QUALITIES)}, got {file_format}")
    for source in filter(None, (options.file, options.weights)):
        shared.check_target(options.output, source, options.force)
    encoded = _encoded(_decoded(options), file_format, options)
    with shared.output(options.output, options.force) as file:
        file.write(encoded)
    if file_format not in _EXACT and not (file_format == "WEBP" and options.quality is None):
        shared.complain(f"{options.output}: {file_format} is lossy; .png is lossless")
    return 0


def _decoded(options: argparse.Namespace) -> Image.Image:
    """The image in the file. Raises WaeError if `wae encode` did not write it, or used other weights."""
    import torch
    from PIL import Image

    from wae.models.autoencoder import to_uint8
    from wae.storage import decomposed

    model = shared.autoencoder(options.weights)
    with shared.input_file(options.file) as path:
        made = decomposed.load(path)
    if made.weights != decomposed.fingerprint(model):
        raise shared.Failure(
            f"{options.file}: was encoded with other weights than these; name those with --weights"
        )
    with torch.no_grad():
        image = model.reconstruct(made.low[None].float(), made.high[None].float(), made.size)
    return Image.fromarray(to_uint8(image[0]).permute(1, 2, 0).contiguous().numpy())


def _encoded(image: Image.Image, file_format: str, options: argparse.Namespace) -> memoryview:
    """The content of the image file.

    Pillow does not write to the file itself: it would bypass the file object, and its error would not name a
    full disk.
    """
    encoded = io.BytesIO()
    try:
        image.save(encoded, format=file_format, **_how(file_format, options.quality))
    except (OSError, ValueError) as error:
        raise shared.Failure(
            f"{options.output}: Pillow cannot write this as {file_format}: {error}"
        ) from None
    return encoded.getbuffer()


_QUALITIES = ("JPEG", "WEBP", "AVIF")
_EXACT = ("BMP", "DDS", "DIB", "IM", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF")


def _how(file_format: str, quality: int | None) -> dict[str, Any]:
    """Pillow's options for a format: as lossless as it can be, or with the given ``quality``."""
    if file_format == "WEBP" and quality is None:
        return {"lossless": True}
    if file_format not in _QUALITIES:
        return {}
    colours = {"WEBP": {}, "JPEG": {"subsampling": "4:4:4"}, "AVIF": {"subsampling": "4:4:4"}}
    return {"quality": _QUALITY if quality is None else quality, **colours[file_format]}
