"""Image files: which file names are images, and how a file is read safely.

Reading an image takes at most :data:`BYTES_PER_PIXEL` bytes of memory per pixel, and at most ``max_pixels``
pixels are accepted. The header is checked before anything is decoded.
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
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, _imaging
from torch import Tensor

from wae.errors import WaeError
from wae.wording import reason

_Number = TypeVar("_Number", np.uint8, np.int32)
_Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
"""The formats that are opened, by Pillow's names.

Others run programs (EPS: Ghostscript) or do not hold photos.
"""

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff "
    ".ppm .pgm .pbm .pnm .avif .jp2 .j2k".split()
)
"""The extensions of these formats, in lower case."""

MAX_PIXELS = 89_478_485
"""The default limit of pixels in an image, which is Pillow's."""

BYTES_PER_PIXEL = 32
"""The peak memory of reading, in bytes per pixel; docs/training.md lists it by format."""

LONGEST = 100
"""The largest aspect ratio of an image for a network; enlarging a longer one would take too much memory."""

_SCALED = {"L;2": 85, "L;4": 17}  # the factors by which Pillow scales 2-bit and 4-bit grey
_STRIP = 1 << 20  # pixels that are converted at a time

_ORIENTATION = 0x0112  # the EXIF tag
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0102, 0x0106, 0x0153  # TIFF tags
_SIGNED = (2,)  # a sample format
# For each orientation: whether to exchange rows and columns, then to reverse the rows, then the columns.
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
    """Whether a file name has an image extension: see :data:`EXTENSIONS`."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS, longest: int | None = None) -> Tensor:
    """The image in ``path`` as a (3, H, W) uint8 tensor with channels innermost in memory (channels_last).

    EXIF orientation is applied. Grey and palette images become three channels. Transparent pixels are
    composited on white. 16-bit grey is rounded to 8 bits; of 16-bit colours Pillow keeps the upper 8 bits.
    CMYK is converted without a colour profile. Of an animation the first frame is taken.

    Args:
        path: a regular file in one of :data:`FORMATS`, whatever its name is.
        max_pixels: an image with more pixels is refused. A limit above :data:`MAX_PIXELS` also raises
            Pillow's limit, for the whole process (``PIL.Image.MAX_IMAGE_PIXELS``).
        longest: an image with a larger aspect ratio is refused; None accepts any.

    Raises:
        ImageError: the file is missing, not a regular file, not an image, damaged or truncated, too large or
            too elongated, or holds 32-bit or signed values of unknown range, 12-bit grey, or 16-bit grey
            whose zero is white.
    """
    with _named(path):
        _check_regular(path)
        return _read(path, max_pixels, longest)


def decode_image(
    content: bytes, name: object, max_pixels: int = MAX_PIXELS, longest: int | None = None
) -> Tensor:
    """As :func:`read_image`, for the ``content`` of a file; errors call it ``name``."""
    with _named(name):
        return _read(io.BytesIO(content), max_pixels, longest)


def of_pillow(image: Image.Image) -> Tensor:
    """As :func:`read_image`, for an image that Pillow opened or created.

    Raises ImageError if it holds values of unknown range: see :func:`read_image`.
    """
    if fitting := _fitting_transparency(image):
        image = image.copy()  # so that the caller's image is not changed
        image.info.update(fitting)
    _check_values(image)
    pixels = np.broadcast_to(_to_rgb(image), (image.height, image.width, 3))
    return torch.from_numpy(np.array(_upright(pixels, _orientation(image)))).permute(2, 0, 1)


def read_numbers(path: Path | str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The numbers stored in a PNG, (H, W) int32, 0..65535; for a palette image, the palette indices.

    EXIF orientation is applied, as it is to the image that the numbers belong to.

    Args:
        path: a regular file, up to 16-bit grey or with a palette.
        max_pixels: as for :func:`read_image`.

    Raises:
        ImageError: the file is missing, not a PNG, damaged or too large, or holds colours.
    """
    with _named(path):
        _check_regular(path)
        with _opened(path, max_pixels, ("PNG",)) as image:
            tiles: Any = getattr(image, "tile", ())
            scaled = _SCALED.get(str(tiles[0][3]), 1) if tiles else 1
            if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
                raise ImageError(
                    f"need a PNG of numbers, grey or with a palette; this one has mode {image.mode}"
                )
            image.load()
            numbers = np.asarray(image).astype(np.int32) // scaled
            return torch.from_numpy(_upright(numbers, _orientation(image)))


def check_length(height: int, width: int, longest: int = LONGEST) -> None:
    """Raise ImageError if one side of an image is more than ``longest`` times as long as the other."""
    if max(height, width) > longest * min(height, width):
        raise ImageError(
            f"need one side at most {longest} times as long as the other, got {height} x {width} pixels"
        )


@contextmanager
def _named(path: object) -> Iterator[None]:
    """In this block any error about the image file at ``path`` becomes an ImageError that names it."""
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
        raise ImageError(f"{path}: this is not an image file, or its format is not supported") from None
    # Pillow's decoders raise almost anything on a damaged file (SyntaxError, struct.error, ...).
    except Exception as error:
        raise ImageError(f"{path}: the file cannot be read ({reason(error)})") from None


def _check_regular(path: Path | str) -> None:
    """Raise ImageError for pipes, devices and the like, which could block or act when opened."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("this is a folder")
    if not stat.S_ISREG(mode):
        raise ImageError("this is not a regular file")


@contextmanager
def _opened(
    file: Path | str | io.BytesIO, max_pixels: int, formats: tuple[str, ...]
) -> Iterator[Image.Image]:
    """The image, with its header read and checked, but its pixels not yet decoded."""
    if max_pixels > MAX_PIXELS and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    with Image.open(file, formats=formats) as image:
        if image.width * image.height > max_pixels:
            raise ImageError(f"{image.height} x {image.width} pixels exceed the limit of {max_pixels:,}")
        yield image


def _read(file: Path | str | io.BytesIO, max_pixels: int, longest: int | None) -> Tensor:
    """See :func:`read_image`."""
    return torch.from_numpy(_upright(*_stored(file, max_pixels, longest))).permute(2, 0, 1)


def _stored(file: Path | str | io.BytesIO, max_pixels: int, longest: int | None) -> tuple[_Pixels, int]:
    """The pixels as stored, (H, W, 3), and the EXIF orientation."""
    with _opened(file, max_pixels, FORMATS) as image:
        if longest is not None:
            check_length(image.height, image.width, longest)
        _check_values(image)
        if image.format == "TIFF":
            _silence_libtiff()
        image.info.update(_fitting_transparency(image))
        image.load()
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, _STRIP // image.width)
        for top in range(0, image.height, rows):  # in strips, to avoid a second copy of all pixels
            bottom = min(top + rows, image.height)
            pixels[top:bottom] = _to_rgb(image.crop((0, top, image.width, bottom)))
        return pixels, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation alone, because cameras write other entries that cannot be parsed."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # parsers raise anything, and the pixels have already been read
        return 1


def _upright(
    pixels: np.ndarray[Any, np.dtype[_Number]], orientation: int
) -> np.ndarray[Any, np.dtype[_Number]]:
    """``pixels``, (H, W, ...), turned as their EXIF orientation says."""
    exchanged, rows, columns = _TURNS.get(orientation, (False, False, False))
    if exchanged:
        pixels = pixels.swapaxes(0, 1)
    if rows:
        pixels = pixels[::-1]
    if columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _check_values(image: Any) -> None:
    """Raise ImageError for values of unknown range, and for grey TIFFs that Pillow would misread.

    It neither scales 12 bits nor inverts 16, and reads signed values of 8 bits as unsigned ones.
    """
    tags = getattr(image, "tag_v2", {})
    signed = tags.get(_SAMPLE_FORMAT) == _SIGNED
    if signed or image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = f"{'signed ' if signed else ''}{tags.get(_BITS, (32,))[0]}-bit"
        raise ImageError(
            f"{kind} values have no known range; convert them to unsigned ones of 8 or 16 bits first"
        )
    if image.mode.startswith("I;16") and (tags.get(_BITS) == (12,) or tags.get(_PHOTOMETRIC) == 0):
        raise ImageError(
            "grey of 12 bits, or of 16 bits whose zero is white, is not supported; convert the image to 8 "
            "bits, or to 16 bits whose zero is black, first"
        )


def _fitting_transparency(image: Any) -> dict[str, Any]:
    """What to change in ``image.info`` if a PNG's transparent colour has another depth than Pillow's pixels.

    Pillow keeps the upper 8 bits of 16-bit colours and scales 2-bit and 4-bit grey up, but does not change
    the transparent colour. Once the pixels are loaded, the bit depth is no longer known; a transparent colour
    above 255 then means 16 bits.
    """
    transparent, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    bits = str(tiles[0][3]) if tiles else ""
    if isinstance(transparent, int) and bits in _SCALED:
        return {"transparency": transparent * _SCALED[bits]}
    if isinstance(transparent, tuple) and ("16B" in bits if tiles else max(transparent) > 255):
        return {"transparency": tuple(value >> 8 for value in transparent)}
    return {}


def _to_rgb(image: Image.Image) -> _Pixels:
    """The pixels as (H, W, 3) uint8, or as (H, W, 1) if all channels are equal."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_of_16_bits(image)
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
    """Keep libtiff from reporting damaged files on stderr; Pillow raises an error for them anyway."""
    with suppress(OSError, AttributeError):  # if Pillow hides its libtiff or has none
        # The handle of a library also finds the functions of the libraries it was linked with.
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
