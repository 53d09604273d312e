"""Small data sets for tests: random pixels in memory, and folders of image files."""

import numpy as np
import torch
from PIL import Image

from wae.data.dataset import InMemory
from wae.data.folder import image_folder
from wae.data.input import Input
from wae.data.loading import batches, open_dataset


def noise(count, colours=1, height=8, width=6, **options):
    images = torch.randint(256, (count, colours, height, width), dtype=torch.uint8)
    targets = torch.arange(count) % 4
    return InMemory(images, targets, "abcd", **{"augment": True, "seed": 5, **options})


def batch_labels(dataset, *arguments, **options):
    """The labels of each batch of ``batches`` with these arguments."""
    return [labels.tolist() for _, labels in batches(dataset, *arguments, **options)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_options_arrive(source):
    """``open_dataset`` passes its options on, for a data set of files of more than 1199 pixels."""
    data = open_dataset(source, True, True, 3, 16, "skip", 1199)
    assert (data.seed, data.shape, data.on_corrupt) == (3, (16, 16), "skip")
    assert "exceed the limit of 1,199" in data.read([0], 0)[2][0]
    augmented = open_dataset(source, True, True, 3, 16)
    assert not torch.equal(augmented.batch([0], 0)[0], augmented.batch([0], 1)[0])


def write_images(folder, per_class=4, classes=("cat", "dog")):
    random = np.random.default_rng(0)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            pixels = random.integers(0, 256, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def small(folder, train=True, **options):
    return image_folder(folder, train, Input(16, 20), **options)


def corrupt(photos):
    path = photos / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    return path
