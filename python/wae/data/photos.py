"""Images that ship with scikit-image and scikit-learn: photos and handwritten digits.

Nothing is ever downloaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset import InMemory
from .images import ImageError, read_image

_SKIMAGE = ("skimage", "scikit-image", "data")
_SKLEARN = ("sklearn", "scikit-learn", "datasets")

_PHOTOS = {
    "astronaut": (_SKIMAGE, "astronaut.png"),
    "chelsea": (_SKIMAGE, "chelsea.png"),
    "china": (_SKLEARN, "images/china.jpg"),
    "coffee": (_SKIMAGE, "coffee.png"),
    "flower": (_SKLEARN, "images/flower.jpg"),
    "hubble": (_SKIMAGE, "hubble_deep_field.jpg"),
    "ihc": (_SKIMAGE, "ihc.png"),
    "motorcycle_left": (_SKIMAGE, "motorcycle_left.png"),
    "motorcycle_right": (_SKIMAGE, "motorcycle_right.png"),
    "retina": (_SKIMAGE, "retina.jpg"),
    "rocket": (_SKIMAGE, "rocket.jpg"),
}

HELD_OUT = ("chelsea", "flower")
"""Held-out photos: no training may use them, and quality is measured on them."""

TRAINING = tuple(name for name in _PHOTOS if name not in HELD_OUT)


def photo_path(name: str) -> Path:
    """The path of the photo ``name`` (one of TRAINING and HELD_OUT) in the installed packages.

    Raises:
        KeyError: no photo has this name.
        ModuleNotFoundError: the package that ships it is not installed.
        ImageError: the installed package lacks the photo.
    """
    return _installed(*_PHOTOS[name])


def _installed(source: tuple[str, str, str], file: str) -> Path:
    """The path of ``file`` in a package, which is not imported. Raises as :func:`photo_path` does."""
    module, package, folder = source
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=module)
    path = Path(spec.origin).parent / folder / file
    if not path.is_file():
        raise ImageError(f"{path}: this installation of {package} lacks the file")
    return path


def photo(name: str) -> Tensor:
    """The photo ``name``, (3, H, W) uint8. Raises as :func:`photo_path` does."""
    return read_image(photo_path(name))


def digits(train: bool, augment: bool, seed: int) -> InMemory:
    """The 1,797 handwritten digits in scikit-learn, 8 x 8 pixels enlarged to 28 x 28 (bilinear).

    The first 1,500 are for training, the last 297 for testing. Augmentation shifts them by up to 2 pixels in
    each direction; nothing is flipped. Raises ModuleNotFoundError if scikit-learn is not installed, and
    ImageError if it lacks the digits.
    """
    # scikit-learn's own function would import all of it, and warn if there is no room for a semaphore.
    rows = torch.from_numpy(np.loadtxt(_installed(_SKLEARN, "data/digits.csv.gz"), np.float32, delimiter=","))
    part = rows[:1500] if train else rows[1500:]
    small = part[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    targets = part[:, -1].long()
    return InMemory(images.round().to(torch.uint8), targets, "0123456789", augment, seed, flip=False)
