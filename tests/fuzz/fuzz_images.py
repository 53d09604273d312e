"""Any bytes in an image file give an image, or are refused with an ImageError.

python tests/fuzz/fuzz_images.py CORPUS
"""

import os
import sys
import tempfile
import warnings

import torch

from wae.data.images import ImageError, read_image

_PIXELS = 250_000
_FILE = os.path.join(tempfile.mkdtemp(), "input")


def check(content: bytes) -> None:
    """Read ``content`` as an image."""
    with open(_FILE, "wb") as file:
        file.write(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unusual files
            image = read_image(_FILE, max_pixels=_PIXELS, longest=100)
    except ImageError:
        return
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert image.stride() == (1, 3 * image.shape[2], 3)
    assert image.shape[1] * image.shape[2] <= _PIXELS


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["PIL"]):
        from PIL import Image

        Image.init()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
