"""The initialised networks, and the teacher."""

import pytest
import torch
from accelerations import PLAIN, of_two_classes, opened, task_of
from tiny_original import CLASSES, SIDE, build

from wae.data.dataset import InMemory
from wae.experiments.acceleration import baselines
from wae.experiments.acceleration.networks import initialised, teacher, try_out
from wae.experiments.acceleration.settings import Settings
from wae.training.plan import Plan, Stage


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 21}, "be at most the 20 images of the training set, got 21"),
        (
            {"batch": 7, "plan": Plan("x", (Stage("joint", 1, 0.1),), accumulate=2)},
            "a multiple of 2, .* got 7",
        ),
        ({"seed": -1}, "seed must be an integer from 0 to"),
        ({"size": 0}, "size must be an integer from 2 to 2048, got 0"),  # 0 was taken as the original's
        ({"factor": 0}, "factor must be an integer from 1 to 64, got 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_trained_are_found_by_a_trial_run(tmp_path, options, message):
    task, _ = task_of(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        try_out(task)


def test_networks_made_from_a_frozen_original_are_trained_and_it_stays_frozen(tmp_path):
    original = build().train().requires_grad_(False)
    images, labels = of_two_classes(8, 0)
    sets = tuple(InMemory(images, labels + shift, CLASSES, False, 0) for shift in (0, 1))
    task = opened(Settings(original, sets, tmp_path, input_size=SIDE))
    for network in (
        initialised(task, task.form),
        baselines.untrained_baseline(task, baselines.HALF, {"side": SIDE // 2}),
    ):
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


def test_initial_weights_are_the_same_each_time(tmp_path):
    task, _ = task_of(tmp_path)
    one, other = (initialised(task, task.form).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_initial_weights_are_the_same_if_the_original_is_on_a_gpu(tmp_path):
    """It is there once it was measured; in a run that is resumed it may not be."""
    task, _ = task_of(tmp_path)
    one = initialised(task, task.form).state_dict()
    task.original.network.cuda()
    other = initialised(task, task.form).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
