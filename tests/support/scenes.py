"""Synthetic road scenes in the form of CamVid, for the tests of segmentation networks."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from wae.models.segmentation.segmenter import WAESegmenter, wae_segmenter
from wae_kernels.nn import Decoder

CLASSES = ("sky", "road", "car", "(unlabelled)")
_COLOURS = np.array([(90, 140, 220), (110, 110, 110), (200, 60, 50), (20, 200, 20)])


TINY_PLAN = """
model = "wae_enet"
batch = 10
start = "linear"
[[stages]]
kind = "transform"
epochs = 1
learning_rate = 1e-3
optimizer = "adam"
[[stages]]
kind = "joint"
epochs = 1
learning_rate = 1e-3
optimizer = "adam"
class_balance = 1.02
"""
"""The file of a plan with two epochs."""


def scene(random, height, width):
    """An image, (height, width, 3) uint8, and its classes: sky, road, a car, and an unlabelled edge."""
    numbers = np.zeros((height, width), np.uint8)
    horizon = random.integers(height // 3, 2 * height // 3)
    numbers[horizon:] = 1
    top, left = random.integers(height // 4, height // 2), random.integers(0, width // 2)
    numbers[top : top + height // 3, left : left + width // 3] = 2
    numbers[:, -2:] = 3
    image = _COLOURS[numbers] + random.integers(-20, 20, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), numbers


def write_scenes(folder, parts=(("train", 20), ("val", 4), ("test", 4)), size=(36, 48), classes=CLASSES):
    """Write folders for :mod:`wae.data.segmentation`; with ``classes=None``, no ``classes.txt``."""
    random = np.random.default_rng(0)
    for part, count in parts:
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(count):
            image, numbers = scene(random, *size)
            Image.fromarray(image).save(folder / part / "images" / f"{number:02}.jpg", quality=95)
            Image.fromarray(numbers).save(folder / part / "labels" / f"{number:02}.png")
    if classes:
        Path(folder, "classes.txt").write_text("\n".join(classes) + "\n")
    return folder


def small_network():
    """Scores of three classes for each pixel, from two convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
    )


def small_segmenter(seed=0) -> WAESegmenter:
    """WAE around ``small_network()``, with a decoder, for images of 0..255."""
    torch.manual_seed(seed)
    return wae_segmenter(small_network(), None, [1 / 64] * 3, [-2.0] * 3, Decoder())
