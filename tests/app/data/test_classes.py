"""wae.data.classes: classes are matched by name; data sets can be renumbered."""

import time

import pytest
import torch
from data_sets import noise, small, write_images

from wae.data.classes import ClassError, ClassOrder, class_order


@pytest.mark.parametrize(
    ("known", "labels", "numbers"),
    [
        ("abc", "abc", (0, 1, 2)),
        ("cba", "abc", (2, 1, 0)),
        ("bca", "abc", (2, 0, 1)),
        ("aab", "aab", (0, 1, 2)),
    ],
)
def test_classes_are_matched_by_name(known, labels, numbers):
    assert class_order("net", known, 3, labels) == ClassOrder(numbers)


def test_very_many_classes_are_matched_in_moments():
    """Searching all names for each of them would take minutes."""
    names = [str(number) for number in range(100_000)]
    started = time.monotonic()
    assert class_order("net", names[::-1], len(names), names).numbers == tuple(range(len(names)))[::-1]
    assert time.monotonic() - started < 10


def test_without_names_classes_are_matched_by_number_and_a_note_says_so():
    numbers, note = class_order("net", None, 2, "ab")
    assert numbers == (0, 1)
    assert note == "net: has no class names; its classes are matched by number"


@pytest.mark.parametrize(
    ("known", "count", "labels", "message"),
    [
        (None, 1, "ab", "net: has 1 class, the data has 2"),
        (None, 3, "ab", "net: has 3 classes, the data has 2"),
        ("abx", 3, "abc", "only the network has x; only the data has c"),
        ("abc", 3, "ab", "only the network has c$"),
        ("ab", 2, "abc", "of the data: only the data has c$"),
        ("aab", 3, "abb", "3 and 3, some of them twice"),
        ("baa", 3, "aab", "occurs twice, and the order differs"),
        ([str(n) for n in range(30)], 30, "ab", "has 0, 1, 10, 11, 12, 13, 14, 15, 16, 17 and 20 more; only"),
        ("abcdefghij", 10, "xy", "has a, b, c, d, e, f, g, h, i, j; only"),
    ],
)
def test_different_names_are_refused_and_listed(known, count, labels, message):
    with pytest.raises(ClassError, match=message):
        class_order("net", known, count, labels)


def images_and_names(dataset):
    images, targets = dataset.batch(range(len(dataset)), 0)
    return images, [dataset.labels[target] for target in targets]


@pytest.mark.parametrize("kind", ["in memory", "folder"])
def test_renumbered_samples_keep_their_class_names(kind, photos):
    for part in ("train", "val"):
        write_images(photos / part, classes=("cow",))
    dataset = noise(12, augment=False) if kind == "in memory" else small(photos)
    numbers = [2, 0, 3, 1] if kind == "in memory" else [2, 0, 1]
    other = dataset.renumbered(numbers)
    assert [other.labels[n] for n in numbers] == list(dataset.labels)
    (images, names), (others, other_names) = images_and_names(dataset), images_and_names(other)
    assert torch.equal(images, others)
    assert names == other_names
