"""The networks to begin with, and the teacher."""

import torch
from accelerations import PLAIN, of_two_classes, opened, task_of
from tiny_original import CLASSES, SIDE, build

from wae.data.dataset import InMemory
from wae.experiments.acceleration import rivals
from wae.experiments.acceleration.networks import begun, teacher
from wae.experiments.acceleration.settings import Settings


def test_all_is_trained_of_a_network_that_was_frozen_and_the_users_own_stays(tmp_path):
    original = build().train().requires_grad_(False)
    images, labels = of_two_classes(8, 0)
    sets = tuple(InMemory(images, labels + shift, CLASSES, False, 0) for shift in (0, 1))
    task = opened(Settings(original, sets, tmp_path, input_size=SIDE))
    for network in (begun(task, task.form), rivals.made(task, rivals.HALF, {"side": SIDE // 2})):
        assert all(parameter.requires_grad for parameter in network.parameters())
    assert original.training
    assert not any(parameter.requires_grad for parameter in original.parameters())


def test_a_teacher_sees_images_of_its_own_size(tmp_path):
    task, _ = task_of(tmp_path)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    small = torch.nn.functional.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    with torch.no_grad():
        found, wanted = teacher(task, 64, PLAIN).eval()(images), task.original.classifier()(small)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_network_begins_with_the_same_weights_each_time(tmp_path):
    task, _ = task_of(tmp_path)
    one, other = (begun(task, task.form).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
