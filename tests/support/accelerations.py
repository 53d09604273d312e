"""Tasks for the tests of `wae accelerate`: a small network to accelerate, and images of noise in memory."""

import torch
from rich.console import Console
from tiny_original import CLASSES, SIDE, build

from wae.data.dataset import InMemory
from wae.experiments.acceleration.settings import Recipe, Settings
from wae.experiments.acceleration.task import open_task
from wae.models.baselines import FullResolution

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.24, 0.23)
PLAIN, MIRRORED = Recipe(1.0), Recipe(1.0, mirrored=True)


def network():
    scale, shift = [1 / (255 * std) for std in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)]
    return FullResolution(build(), scale, shift)


def of_two_classes(number, seed):
    """Images of noise, 48 x 48, and their labels. One of the two classes is a third brighter."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 2
    images = torch.randint(128, (number, 3, SIDE, SIDE), generator=random, dtype=torch.uint8)
    return images + 60 * labels.to(torch.uint8).view(-1, 1, 1, 1), labels


def opened(settings):
    return open_task(settings, Console(quiet=True), torch.device("cpu"))


def with_new_head(tmp_path, **options):
    """A task in which the network of five classes gets a new head, because the images have two classes."""
    held = InMemory(*of_two_classes(8, 0), ("dark", "light"), False, 0)
    return opened(Settings(build(), (held, held), tmp_path, input_size=SIDE, **options))


def task_of(tmp_path, training=20, test=7, **options):
    """A task for the network of five classes, on images of noise, and its training images."""
    sets = [
        InMemory(
            torch.randint(256, (number, 3, SIDE, SIDE), dtype=torch.uint8),
            torch.arange(number) % 5,
            CLASSES,
            augment,
            seed=0,
        )
        for number, augment in ((training, True), (test, False))
    ]
    return opened(Settings(build(), tuple(sets), tmp_path, input_size=SIDE, **options)), sets[0]
