"""Measurements of the original."""

import torch
from accelerations import network, opened, task_of
from tiny_original import CLASSES, SIDE, build

from wae.data.dataset import InMemory
from wae.experiments.acceleration import measuring
from wae.experiments.acceleration.settings import Settings
from wae.models.counting import count


def test_the_original_is_measured_on_the_test_images(tmp_path):
    """They are labelled as it classifies them, and the training images are not."""
    task, images = task_of(tmp_path)
    held = (images, task.sets(SIDE).test)
    with torch.no_grad():
        found = [task.original.classifier()(data.images).argmax(1) for data in held]
    labelled = [
        InMemory(data.images, (classes + wrong) % 5, CLASSES, False, 0)
        for data, classes, wrong in zip(held, found, (1, 0), strict=True)
    ]
    settings = Settings(build(), tuple(labelled), tmp_path, input_size=SIDE)
    measured = measuring.measure_original(opened(settings))
    assert measured["accuracy"] == 1.0
    assert [entry["right"] for entry in measured["classes"]] == torch.bincount(found[1], minlength=5).tolist()
    assert measured["multiply_adds"] == count(network(), (SIDE, SIDE)).multiply_adds
