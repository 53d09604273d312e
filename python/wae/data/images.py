"""Image files: which names are images, and how a file is read safely.

Memory: reading an image takes at most :data:`BYTES_PER_PIXEL` for each of its pixels, which are at most
``max_pixels``. The header is judged before anything is decoded.
"""

from __future__ import annotations

import ctypes
import functools
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, _imaging
from torch import Tensor

from wae.errors import WaeError

_Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Pillow's names of what is opened. Others run programs (EPS: Ghostscript) or are no photos."""

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff "
    ".ppm .pgm .pbm .pnm .avif .jp2 .j2k".split()
)
"""Their extensions, in lower case."""

MAX_PIXELS = 89_478_485
"""The default limit of pixels in an image: Pillow's own."""

BYTES_PER_PIXEL = 32
"""The most that reading takes at its peak; docs/training.md has it by format."""

LONGEST = 100
"""How many times longer than wide an image for a network may be: a longer one would be enlarged to no end."""

_SCALED = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of 2 and 4 bits with
_STRIP = 1 << 20  # pixels that are converted at once

_ORIENTATION = 0x0112  # in EXIF
# Of each orientation: whether rows and columns are exchanged, then rows reversed, then columns.
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class ImageError(WaeError):
    """An image file that cannot be used. The message names the file and says why."""


def is_image(name: str | Path) -> bool:
    """Whether a file's name ends as that of an image: see :data:`EXTENSIONS`."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS, longest: int | None = None) -> Tensor:
    """The image in ``path`` as a (3, H, W) uint8 tensor, colours innermost in memory (channels_last).

    EXIF orientation is applied; grey and palette images become three colours; transparent pixels are
    laid over white; 16-bit grey is rounded to 8 bits, and of 16-bit colours Pillow keeps the upper 8; CMYK
    is converted without a colour profile; of an animation the first frame is taken.

    Args:
        path: a regular file in one of :data:`FORMATS`, whatever its name.
        max_pixels: more are refused. A limit above :data:`MAX_PIXELS` raises Pillow's own, which is that of
            the process (``PIL.Image.MAX_IMAGE_PIXELS``).
        longest: an image that is more times longer than wide is refused.

    Raises:
        ImageError: the file is missing, not a regular file, no image, broken or cut short, too large or too
            long, or holds 32-bit values of unknown range.
    """
    with _named(path):
        _check_regular(path)
        return _read(path, max_pixels, longest)


def decode_image(
    content: bytes, name: object, max_pixels: int = MAX_PIXELS, longest: int | None = None
) -> Tensor:
    """As :func:`read_image`, of a file's ``content``; errors call it ``name``."""
    with _named(name):
        return _read(io.BytesIO(content), max_pixels, longest)


def of_pillow(image: Image.Image) -> Tensor:
    """As :func:`read_image`, of an image that Pillow opened or made.

    Raises ImageError where it holds 32-bit values of unknown range.
    """
    if fitting := _fitting_transparency(image):
        image = image.copy()  # the given one stays as it is
        image.info.update(fitting)
    pixels = np.broadcast_to(_to_rgb(image, image.format), (image.height, image.width, 3))
    if (orientation := _orientation(image)) in _TURNS:
        pixels = _turned(pixels, *_TURNS[orientation])
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def read_numbers(path: Path | str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The numbers in a PNG of numbers, not colours: (H, W) int32, 0..65535. Of a palette's, the entries'.

    Args:
        path: a regular file, grey of up to 16 bits or with a palette.
        max_pixels: as for :func:`read_image`.

    Raises ImageError where the file is missing, no PNG, damaged or too large, or holds colours.
    """
    with _named(path):
        _check_regular(path)
        with _opened(path, max_pixels, ("PNG",)) as image:
            tiles: Any = getattr(image, "tile", ())
            scaled = _SCALED.get(str(tiles[0][3]), 1) if tiles else 1
            if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
                raise ImageError(
                    f"need a PNG of numbers, grey or with a palette; this one's mode is {image.mode}"
                )
            image.load()
            return torch.from_numpy(np.asarray(image).astype(np.int32) // scaled)


def check_length(height: int, width: int, longest: int = LONGEST) -> None:
    """Raise ImageError where an image is more than ``longest`` times longer than wide, or the reverse."""
    short, long = sorted((height, width))
    if long > longest * short:
        raise ImageError(f"{long} x {short} pixels is too long an image")


@contextmanager
def _named(path: object) -> Iterator[None]:
    """Within it, whatever is wrong with the image file at ``path`` becomes an ImageError that names it."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise ImageError(f"{path}: the image has more pixels than {limit}, Pillow's limit") from None
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: this is not an image file, or one of a kind that is not read") from None
    # Pillow's decoders raise nearly anything on a damaged file (SyntaxError, struct.error, ...).
    except Exception as error:
        raise ImageError(f"{path}: the file cannot be read ({error})") from None


def _check_regular(path: Path | str) -> None:
    """Raise ImageError for what could block or act when it is opened, as pipes and devices do."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("this is a folder")
    if not stat.S_ISREG(mode):
        raise ImageError("this is not a regular file")


@contextmanager
def _opened(
    file: Path | str | io.BytesIO, max_pixels: int, formats: tuple[str, ...]
) -> Iterator[Image.Image]:
    """The file, its header read and judged, its pixels not decoded yet."""
    if max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    with Image.open(file, formats=formats) as image:
        if image.width * image.height > max_pixels:
            raise ImageError(f"{image.width} x {image.height} pixels are more than {max_pixels:,}, the limit")
        yield image


def _read(file: Path | str | io.BytesIO, max_pixels: int, longest: int | None) -> Tensor:
    """See :func:`read_image`."""
    pixels, orientation = _stored(file, max_pixels, longest)
    if orientation in _TURNS:
        pixels = _turned(pixels, *_TURNS[orientation])
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _stored(file: Path | str | io.BytesIO, max_pixels: int, longest: int | None) -> tuple[_Pixels, int]:
    """(H, W, 3) as stored, and the orientation that EXIF tells."""
    with _opened(file, max_pixels, FORMATS) as image:
        if longest is not None:
            check_length(image.height, image.width, longest)
        if image.format == "TIFF":
            _silence_libtiff()
        image.info.update(_fitting_transparency(image))
        image.load()
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, _STRIP // image.width)
        for top in range(0, image.height, rows):  # in strips, so that there is no second copy of all pixels
            bottom = min(top + rows, image.height)
            pixels[top:bottom] = _to_rgb(image.crop((0, top, image.width, bottom)), image.format)
        return pixels, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, and nothing else of it: cameras write other entries that cannot be parsed."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever a parser meets; the pixels are read already
        return 1


def _turned(pixels: _Pixels, exchanged: bool, rows: bool, columns: bool) -> _Pixels:
    if exchanged:
        pixels = pixels.transpose(1, 0, 2)
    if rows:
        pixels = pixels[::-1]
    if columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _fitting_transparency(image: Any) -> dict[str, Any]:
    """What to put into ``image.info`` where a PNG's transparent colour has other bits than Pillow's pixels.

    Pillow keeps the upper 8 of 16 bits of colours and scales grey of 2 and 4 bits up, but leaves the
    transparent one as it is. Once the pixels are loaded it no longer tells how many bits they had; then a
    colour that takes more than 8 had 16.
    """
    transparent, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    bits = str(tiles[0][3]) if tiles else ""
    if isinstance(transparent, int) and bits in _SCALED:
        return {"transparency": transparent * _SCALED[bits]}
    if isinstance(transparent, tuple) and ("16B" in bits if tiles else max(transparent) > 255):
        return {"transparency": tuple(value >> 8 for value in transparent)}
    return {}


def _to_rgb(image: Image.Image, file_format: str | None) -> _Pixels:
    """The pixels as (H, W, 3) uint8, or (H, W, 1) for all three."""
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        return _grey_of_16_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError("32-bit values have no known range; convert the image to 8 or 16 bits first")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.new("RGBA", layers.size, "white")
        image.alpha_composite(layers)
    return np.asarray(image.convert("RGB"))


def _grey_of_16_bits(image: Image.Image) -> _Pixels:
    values = np.asarray(image).astype(np.int32).clip(0, 65535)
    grey = ((values + 128) // 257).astype(np.uint8)  # 257 * 255 = 65535; rounded to nearest
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey[:, :, None]


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing about damaged files to stderr; Pillow raises an error for them as well."""
    with suppress(OSError, AttributeError):  # of a Pillow that hides its libtiff, or has none
        # A library's handle also finds the functions of the libraries that it was linked with.
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
