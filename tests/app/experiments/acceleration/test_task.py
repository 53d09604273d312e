"""Opening a task: the trained network and its images."""

import pytest
import torch
from accelerations import MEAN, STD, network, of_two_classes, opened, task_of, with_new_head
from small_networks import HeadFirst
from tiny_original import CLASSES, SIDE, build
from torch import nn

from wae.data.dataset import InMemory
from wae.experiments.acceleration.data import in_memory
from wae.experiments.acceleration.networks import described
from wae.experiments.acceleration.settings import AccelerationError, Settings
from wae.models.registry import build as named
from wae.storage.checkpoint import Input, save_classifier
from wae.wording import shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorrt"}, "engine: tensorrt runs on cuda, not on cpu"),
        ({"engine": "winograd", "precision": "bfloat16"}, "engine: winograd computes in float32, not in bfl"),
    ],
)
def test_an_engine_that_cannot_run_is_refused(tmp_path, options, message):
    with pytest.raises(AccelerationError, match=message):
        task_of(tmp_path, **options)


@pytest.mark.parametrize(("entry", "value"), [("input_size", 0), ("interpolation", "")])
def test_invalid_preprocessing_is_refused(tmp_path, entry, value):
    data = InMemory(torch.zeros(5, 3, SIDE, SIDE, dtype=torch.uint8), torch.arange(5), CLASSES, False, 0)
    with pytest.raises(ValueError, match=f"{entry.removeprefix('input_')} must be .*, got {shown(value)}"):
        opened(Settings(build(), (data, data), tmp_path, **{entry: value}))


def test_classes_are_in_the_order_of_the_original(tmp_path):
    path = tmp_path / "original.safetensors"
    save_classifier(path, named("small_photo_vgg", 3), "small_photo_vgg", ("c", "a", "b"), Input(SIDE))
    images = torch.randint(256, (6, 3, SIDE, SIDE), dtype=torch.uint8)
    held = InMemory(images, torch.tensor([0, 0, 1, 1, 2, 2]), ("a", "b", "c"), False, 0)
    for data in opened(Settings(str(path), (held, held), tmp_path / "out")).sets(SIDE):
        assert data.labels == ("c", "a", "b")
        assert data.batch(range(6), 0)[1].tolist() == [1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize(("classes", "replaced"), [(3, False), (2, True)])
def test_loaders_classes_are_the_originals_of_the_same_numbers(tmp_path, classes, replaced):
    """Loaders name no class, so the trained head is kept."""
    path = tmp_path / "original.safetensors"
    save_classifier(path, named("small_photo_vgg", 3), "small_photo_vgg", ("c", "a", "b"), Input(SIDE))
    images = torch.randint(256, (classes, 3, SIDE, SIDE), dtype=torch.uint8)
    loader = [(images, torch.arange(classes))]
    task = opened(Settings(str(path), in_memory(loader, loader), tmp_path / "out"))
    assert bool(task.new_head) == replaced
    assert task.sets(SIDE).test.labels == (("0", "1") if replaced else ("c", "a", "b"))
    assert task.sets(SIDE).test.targets.tolist() == list(range(classes))
    assert task.order.note == ("" if replaced else "small_photo_vgg: its classes are matched by number")


def test_a_checkpoint_says_how_a_photo_becomes_an_image_like_those_in_memory(tmp_path):
    """It said that photos are cropped and keep their colours, as for the network's own images."""
    grey = [(torch.randint(256, (5, 1, SIDE, SIDE), dtype=torch.uint8), torch.arange(5))]
    colour = [(grey[0][0].expand(-1, 3, -1, -1), grey[0][1])]
    for data, size, expected in (
        ("digits", 28, Input(28, 28, grayscale=True)),
        (in_memory(grey, grey), SIDE, Input(SIDE, 55, grayscale=True)),
        (in_memory(colour, colour), SIDE, Input(SIDE, 55)),
    ):
        task = opened(Settings(build(), data, tmp_path, input_size=size))
        assert described(task, task.form)[2] == expected


def test_a_network_has_as_many_classes_as_scores(tmp_path):
    """Not as outputs of the linear layer defined last."""
    network = HeadFirst(nn.Linear(4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    held = InMemory(*of_two_classes(8, 0), ("dark", "light"), False, 0)
    task = opened(Settings(network, (held, held), tmp_path, input_size=SIDE))
    assert (task.original.classes, task.new_head) == (2, "")


def test_a_new_head_is_trained_first_and_alone(tmp_path):
    parameters = with_new_head(tmp_path).original.network.parameters()
    free = [parameter.shape[0] for parameter in parameters if parameter.requires_grad]
    assert free == [2, 2]  # two classes in the head's weight and bias


def test_the_given_preprocessing_is_used(tmp_path):
    task, images = task_of(tmp_path, mean=MEAN, std=STD, interpolation="bicubic")
    assert task.original.input.interpolation == "bicubic"
    with torch.no_grad():
        found, wanted = (one.eval()(images.images) for one in (task.original.classifier(), network()))
    assert torch.allclose(found, wanted, atol=1e-4)
