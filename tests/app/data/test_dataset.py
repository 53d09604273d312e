"""wae.data.dataset: images in memory, whose augmentation depends only on seed, epoch and sample."""

from collections import Counter

import numpy as np
import pytest
import torch
from data_sets import noise

from wae.data.dataset import DatasetError, Draw, InMemory, random_seed, sample


def test_every_shift_and_flip_is_equally_likely():
    dataset = noise(1, height=5, width=7)
    original = dataset.images[0, 0]
    dataset.images = dataset.images.expand(5000, -1, -1, -1).contiguous()
    dataset.targets = dataset.targets.expand(5000)
    images, _ = dataset.batch(range(5000), 0)
    padded = np.pad(original.numpy(), 2)
    possible = {}
    for top in range(5):
        for left in range(5):
            window = padded[top : top + 5, left : left + 7]
            possible[window.tobytes()] = top, left, False
            possible[np.ascontiguousarray(window[:, ::-1]).tobytes()] = top, left, True
    assert len(possible) == 50
    # KeyError if an image is none of the fifty
    seen = Counter(possible[image[0].numpy().tobytes()] for image in images)
    assert len(seen) == 50
    expected = 5000 / 50
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < 85  # 49 degrees of freedom: 999 of 1000 seeds pass, and this one is fixed


@pytest.mark.parametrize("colours", [1, 3])
def test_augmentation_depends_only_on_seed_epoch_and_sample(colours):
    dataset = noise(40, colours)
    everything, labels = dataset.batch(range(40), 3)
    assert everything.shape == (40, 3, 8, 6)
    assert everything.dtype == torch.uint8
    assert everything.is_contiguous()
    assert labels.dtype == torch.int64
    torch.manual_seed(1)
    dataset.batch([0], 4)  # an epoch in between, as when a run is resumed
    for indices in ([7], [39, 0, 7], list(range(39, -1, -1))):
        images, part = dataset.batch(indices, 3)
        assert torch.equal(images, everything[indices])
        assert torch.equal(part, labels[indices])
    assert not torch.equal(dataset.batch(range(40), 4)[0], everything)
    dataset.seed, dataset._drawn = 6, None
    assert not torch.equal(dataset.batch(range(40), 3)[0], everything)


def test_random_seeds_are_those_of_earlier_versions_and_differ_by_purpose():
    """A resumed training must continue with the same numbers."""
    drawn = {purpose.name: random_seed(purpose, 3, 1) for purpose in Draw}
    assert drawn == {"ORDER": 2234450039, "SHIFTS": 782383878, "SAMPLE": 1384528246, "CROPS": 2707966756}


def test_a_subset_is_augmented_by_its_own_indices():
    dataset, indices = noise(10), [7, 0, 4]
    dataset.batch([0], 3)
    alone = InMemory(dataset.images[indices], dataset.targets[indices], "abcd", True, 5)
    for made, wanted in zip(dataset.subset(indices).batch([2, 0], 3), alone.batch([2, 0], 3), strict=True):
        assert torch.equal(made, wanted)


def test_plain_samples_are_not_augmented():
    dataset = noise(10)
    before = dataset.batch([3, 1], 2)[0]
    images, labels = dataset.plain().batch([3, 1], 2)
    assert torch.equal(images, dataset.images[[3, 1]].expand(-1, 3, -1, -1))
    assert torch.equal(labels, dataset.targets[[3, 1]])
    assert torch.equal(dataset.batch([3, 1], 2)[0], before)
    assert not torch.equal(before, images)


def test_without_augmentation_images_are_unchanged_copies():
    dataset = noise(5, augment=False)
    images, labels = dataset.batch([3, 1], 0)
    assert torch.equal(images, dataset.images[[3, 1]].expand(-1, 3, -1, -1))
    assert labels.tolist() == [3, 1]
    images.zero_()
    assert dataset.images.any()


def test_without_padding_and_flips_images_are_unchanged():
    dataset = noise(30, 3, pad=0, flip=False)
    assert torch.equal(dataset.batch(range(30), 0)[0], dataset.images)


@pytest.mark.parametrize(
    ("images", "targets", "options", "name"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), {}, "images"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), {}, "images"),
        (torch.zeros(2, 2, 4, 4).byte(), torch.zeros(2).long(), {}, "images"),
        (torch.zeros(0, 3, 4, 4).byte(), torch.zeros(0).long(), {}, "images"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), {}, "targets"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2), {}, "targets"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2, 1).long(), {}, "targets"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 2]), {}, r"need 0\.\.1, got 0\.\.2"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([-1, 0]), {}, r"need 0\.\.1, got -1\.\.0"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2).long(), {"pad": -1}, "pad"),
    ],
)
def test_invalid_tensors_are_refused(images, targets, options, name):
    with pytest.raises(DatasetError, match=name):
        InMemory(images, targets, ("a", "b"), True, 0, **options)


def test_sample_is_evenly_spaced():
    numbers = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    data = InMemory(numbers, torch.arange(200), [str(number) for number in range(200)], False, 0)
    images, labels = sample(data, 4)
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [0, 50, 100, 150]
    assert sample(data, 200)[1].tolist() == sample(data, 999)[1].tolist() == list(range(200))
    assert sample(data, 150)[1][-1] == 198


@pytest.mark.parametrize(("classes", "count"), [(2, 64), (10, 64), (7, 4)])
def test_sample_has_as_many_classes_as_it_can(classes, count):
    """Also if they take turns: equal steps found samples of one class."""
    number = classes * 10 * 64
    turns = torch.arange(number) % classes
    images = torch.zeros(number, 3, 2, 2, dtype=torch.uint8)
    names = [str(n) for n in range(classes)]
    for targets in (turns, turns.sort().values):
        _, labels = sample(InMemory(images, targets, names, False, 0), count)
        assert len(labels) == count
        assert len(labels.unique()) == min(classes, count)
    assert labels.tolist() == targets[torch.arange(count) * number // count].tolist()  # as in folders


def test_sample_keeps_to_the_order_of_the_data_if_it_has_all_classes():
    """So the images that published networks were initialised on stay the same."""
    targets = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    images = torch.arange(8, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    found, _ = sample(InMemory(images, targets, "ab", False, 0), 4)
    assert found[:, 0, 0, 0].tolist() == [0, 2, 4, 6]


class PartlyReadable:
    """Twenty images, of which only the ``readable`` ones can be read; it records the indices requested."""

    def __init__(self, *readable):
        self.readable, self.requested = readable, []

    def __len__(self):
        return 20

    def batch(self, indices, epoch):
        self.requested += indices
        found = [index for index in indices if index in self.readable]
        return torch.zeros(len(found), 3, 2, 2, dtype=torch.uint8), torch.tensor(found, dtype=torch.int64)


@pytest.mark.parametrize(
    ("readable", "taken"),
    [((0, 5, 10, 15), [0, 5, 10, 15]), ((0, 10, 11, 12, 16), [0, 10, 11, 16]), ((3, 13), [3, 13])],
)
def test_sample_replaces_unreadable_files_by_their_successors(readable, taken):
    assert sorted(sample(PartlyReadable(*readable), 4)[1].tolist()) == taken


def test_sample_reads_no_more_than_it_returns():
    data = PartlyReadable(*range(20))
    sample(data, 4)
    assert data.requested == [0, 5, 10, 15]


def test_sample_tries_each_file_once_before_it_fails():
    data = PartlyReadable()
    with pytest.raises(DatasetError, match="none of the 20 images tried can be read"):
        sample(data, 6)
    assert sorted(data.requested) == list(range(20))
