"""The images of an acceleration."""

from pathlib import Path

import pytest
import torch
from accelerations import of_two_classes, opened
from tiny_original import SIDE, build, write_crops

from wae.data.dataset import DatasetError
from wae.experiments.acceleration.data import in_memory
from wae.experiments.acceleration.settings import Settings


def test_only_the_training_part_of_a_folder_is_augmented(tmp_path):
    write_crops(tmp_path / "data", 2, 1)
    settings = Settings(build(), tmp_path / "data", tmp_path / "out", input_size=SIDE, seed=4)
    sets = opened(settings).sets(SIDE)
    parts = [(Path(data.samples[0][0]).parts[-3], len(data)) for data in sets]
    assert parts == [("train", 10), ("train", 10), ("val", 5)]
    changes = [not torch.equal(*(data.batch([0], epoch)[0] for epoch in (0, 1))) for data in sets]
    assert changes == [True, False, False]
    assert sets.training.seed == 4


@pytest.mark.parametrize("has_all", [0, 1])
def test_loaders_are_held_in_memory_unchanged(has_all):
    """Both sets have the same classes, even if one of them has no image of some."""
    images, labels = of_two_classes(8, 0)
    loaders = [[(images[:5], labels[:5]), (images[5:], labels[5:])] for _ in range(2)]
    loaders[1 - has_all] = [(images[::2], labels[::2])]
    held = in_memory(*loaders)
    for data, step in zip(held, (1, 2) if has_all == 0 else (2, 1), strict=True):
        for epoch in (0, 1):
            found = data.batch(range(len(data)), epoch)
            assert torch.equal(found[0], images[::step])
            assert torch.equal(found[1], labels[::step])
        assert data.labels == ("0", "1")
    for nothing in ([], [(images[:0], labels[:0])]):
        with pytest.raises(
            DatasetError, match="a loader must yield images and labels, but the test loader yields nothing"
        ):
            in_memory(loaders[0], nothing)
    for numbers in (labels.byte(), labels.to(torch.int32), labels.double()):
        assert torch.equal(in_memory([(images, numbers)], loaders[1])[0].targets, labels)


def test_a_loader_may_read_each_batch_into_the_same_memory():
    images, labels = of_two_classes(8, 0)

    def batches():
        read, numbers = torch.empty_like(images[:2]), torch.empty_like(labels[:2])
        for start in range(0, 8, 2):
            yield read.copy_(images[start : start + 2]), numbers.copy_(labels[start : start + 2])

    for data in in_memory(batches(), batches()):
        assert torch.equal(data.images, images)
        assert torch.equal(data.targets, labels)


IMAGES, LABELS = of_two_classes(8, 0)


def test_loaders_of_a_single_class_are_refused():
    """A network for one class would always be right."""
    with pytest.raises(DatasetError, match=r"^data: the loaders must yield labels of two or more classes"):
        in_memory([(IMAGES, 0 * LABELS)], [(IMAGES, 0 * LABELS)])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(IMAGES, LABELS, LABELS)], r"got \(8, 3, 48, 48\), \(8,\), \(8,\)"),
        ([(IMAGES, 1)], r"got \(8, 3, 48, 48\), int"),
        ([(IMAGES[0], LABELS[0])], r"got \(3, 48, 48\), \(\)"),
        ([{"image": IMAGES, "label": LABELS}], "got dict"),
        ([(IMAGES, LABELS), (IMAGES[..., 1:], LABELS)], "images of one size, got 3 x (.*) x (.*) and 3 x "),
    ],
    ids=["three", "number", "one", "dict", "sizes"],
)
def test_wrong_batches_of_loaders_are_refused(batches, message):
    with pytest.raises(DatasetError, match=f"^data: a loader must yield .*{message}.* the test loader$"):
        in_memory([(IMAGES, LABELS)], batches)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        *(
            (IMAGES, torch.tensor([0.0, 1.0, wrong, 0.0]).repeat(2), f"labels must be .* got {wrong}")
            for wrong in (float("nan"), float("inf"), 0.5, -1.0)
        ),
        (IMAGES, LABELS - 1, "labels must be whole numbers from 0 to 999,999, .* got -1"),
        (IMAGES, LABELS + 10**6 - 1, "labels must be .* got 1000000"),
        (IMAGES / 255, LABELS, r"images must be \(N, 3, H, W\) uint8, got \(8, 3, 48, 48\) torch.float32"),
        (IMAGES[:, :2], LABELS, r"images must be \(N, 3, H, W\) uint8, got \(8, 2, 48, 48\) torch.uint8"),
        (IMAGES[1:], LABELS, "each image needs a label, got 7 images and 8 labels"),
    ],
    ids=["nan", "inf", "half", "minus one", "negative", "many", "floats", "channels", "count"],
)
def test_a_batch_that_cannot_be_used_is_named(images, labels, message):
    """Unequal numbers of images and labels too, even if the sums over all batches agree."""
    good, bad = (IMAGES, LABELS), (images, labels)
    for loaders, name in (([[good, bad], [good]], "training"), ([[good], [good, bad]], "test")):
        with pytest.raises(DatasetError, match=f"^data: {message} in batch 2 of the {name} loader$"):
            in_memory(*loaders)


def test_what_is_not_a_loader_is_refused():
    with pytest.raises(DatasetError, match=r"^data: the test loader must yield images and labels, got int$"):
        in_memory([(IMAGES, LABELS)], 5)
