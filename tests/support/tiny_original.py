"""A small custom classifier, for `wae accelerate --model tiny_original:build`, and photos for it."""

import torch
from PIL import Image
from torch import nn

from wae.data import photos

CLASSES = ("coffee", "hubble", "ihc", "retina", "rocket")
SIDE = 48
_CROP = 64


def build():
    """A network with 40,000 random weights, which are the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers, channels = [], 3
        for width, stride in ((16, 1), (32, 2), (48, 2), (48, 1)):
            convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(CLASSES))
        )


def write_crops(folder, training=30, test=20):
    """Write crops of one photo for each class: its left half for training, its right half for testing."""
    random = torch.Generator().manual_seed(0)
    for label in CLASSES:
        photo = photos.photo(label)
        height, width = photo.shape[1:]
        for part, number, (least, most) in (
            ("train", training, (0, width // 2 - _CROP)),
            ("val", test, (width // 2, width - _CROP)),
        ):
            (folder / part / label).mkdir(parents=True)
            for i in range(number):
                top, left = (
                    int(torch.randint(*span, (), generator=random))
                    for span in ((0, height - _CROP), (least, most))
                )
                crop = photo[:, top : top + _CROP, left : left + _CROP].permute(1, 2, 0).contiguous()
                Image.fromarray(crop.numpy()).save(folder / part / label / f"{i:02}.png")
    return folder
