"""Image files: which files are images, and how one is read safely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from wae.errors import WaeError


class ImageError(WaeError):
    """An image file that cannot be used. The message names the file and says why."""


def read_image(path: Path | str) -> Tensor:
    """The image in ``path`` as a (3, H, W) uint8 tensor, colours innermost in memory (channels_last).

    EXIF orientation is applied; grey and palette images become three colours; transparent pixels are
    laid over white; 16-bit grey is rounded to 8 bits, and of 16-bit colours Pillow keeps the upper 8; CMYK
    is converted without a colour profile; of an animation the first frame is taken.

    Raises:
        ImageError: the file is missing, is no image, is broken or cut short, has more pixels than
            Pillow's limit (``PIL.Image.MAX_IMAGE_PIXELS``), or holds 32-bit values of unknown range.
    """
    try:
        with Image.open(path) as image:
            # Pillow only warns of it, and warnings cannot be caught on several threads at once
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            rgb = _to_rgb(ImageOps.exif_transpose(image), image.format)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"{path}: the image has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: this is not an image file, or one that Pillow does not know") from None
    # Pillow's decoders raise nearly anything on a damaged file (SyntaxError, struct.error, ...).
    except Exception as error:
        raise ImageError(f"{path}: the file cannot be read ({error})") from None
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _to_rgb(image: Image.Image, file_format: str | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The pixels as (H, W, 3) uint8, in memory of their own."""
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        grey = np.asarray(image).astype(np.float64).clip(0, 65535)
        return np.repeat((grey / 257).round().astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ImageError("32-bit values have no known range; convert the image to 8 or 16 bits first")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.new("RGBA", layers.size, "white")
        image.alpha_composite(layers)
    return np.array(image.convert("RGB"))
