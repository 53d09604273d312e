"""wae.data.loading: the order of samples depends only on seed and epoch; workers change nothing."""

import itertools
import math
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from data_sets import batch_labels, corrupt, noise, same, small
from hypothesis import example, given
from hypothesis import strategies as st

from wae.data import loading
from wae.data.dataset import DatasetError, InMemory
from wae.data.folder import ImageFolder, image_folder
from wae.data.images import ImageError
from wae.data.input import Input
from wae.data.loading import batches, fingerprint, open_dataset


class Indices:
    """A data set in which each sample's label is its index, so that a batch shows what it took."""

    labels = ("index",)

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def batch(self, indices, epoch):
        return torch.zeros(len(indices), 3, 1, 1, dtype=torch.uint8), torch.tensor(indices)


# ------------------------------------------------------------------------------------- the order of samples


@given(
    length=st.integers(1, 50),
    share=st.integers(1, 6),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
@example(length=6, share=2, world=3, shuffle=False, drop_last=True)  # exactly one batch
@example(length=9, share=2, world=4, shuffle=False, drop_last=False)  # one sample remains for four ranks
def test_all_ranks_together_take_the_batches_of_one_process(length, share, world, shuffle, drop_last):
    batch = share * world
    dataset, options = Indices(length), {"seed": 3, "shuffle": shuffle, "drop_last": drop_last}
    if drop_last and length < batch:
        with pytest.raises(DatasetError, match=f"{length} images? cannot fill one batch of {batch}"):
            batches(dataset, batch, 2, **options)
        return
    if shuffle and not drop_last and length % batch % world:
        with pytest.raises(ValueError, match="drop_last"):
            batches(dataset, batch, 2, world=world, **options)
        return
    alone = batch_labels(dataset, batch, 2, **options)
    steps = length // batch if drop_last else math.ceil(length / batch)
    assert [len(step) for step in alone] == [batch] * (length // batch) + [length % batch] * (
        steps - length // batch
    )
    everything = [sample for step in alone for sample in step]
    assert len(set(everything)) == len(everything)
    if not drop_last:
        assert sorted(everything) == list(range(length))

    ranks = [batches(dataset, batch, 2, rank=r, world=world, **options) for r in range(world)]
    shares = [[labels.tolist() for _, labels in rank] for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(taken_) for taken_ in shares]
    assert all(share_of_step for rank in shares for share_of_step in rank)
    for step, whole in enumerate(alone):
        for rank in range(world):
            share_of_step = shares[rank][step] if step < len(shares[rank]) else []
            assert share_of_step == whole[rank::world]


def test_the_order_depends_only_on_seed_and_epoch():
    dataset = Indices(100)
    first = batch_labels(dataset, 10, 0, seed=1, shuffle=True)
    torch.manual_seed(99)
    assert batch_labels(dataset, 10, 0, seed=1, shuffle=True) == first
    assert batch_labels(dataset, 20, 0, seed=1, shuffle=True) == [
        a + b for a, b in zip(*[iter(first)] * 2, strict=True)
    ]
    for other in (
        batch_labels(dataset, 10, 1, seed=1, shuffle=True),
        batch_labels(dataset, 10, 0, seed=2, shuffle=True),
        batch_labels(dataset, 10, 0, seed=-1, shuffle=True),
    ):
        assert other != first
        assert sorted(sample for step in other for sample in step) == list(range(100))


def test_without_shuffling_the_order_is_that_of_the_data_set():
    assert batch_labels(Indices(5), 2, 7, seed=1, shuffle=False) == [[0, 1], [2, 3], [4]]


def test_batches_can_be_iterated_over_again():
    twice = batches(Indices(7), 3, 0, 0, True)
    assert [labels.tolist() for _, labels in twice] == [labels.tolist() for _, labels in twice]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": 3, "world": 2}, "batch"),
        ({"world": 0}, "world"),
        ({"rank": 1}, "rank"),
        ({"rank": -1}, "rank"),
        ({"workers": -1}, "workers"),
        ({"epoch": -1}, "epoch"),
    ],
)
def test_arguments_out_of_range_are_refused(options, name):
    with pytest.raises(ValueError, match=name):
        batches(Indices(8), **{"batch": 2, "epoch": 0, "seed": 0, "shuffle": False, **options})


def test_all_ranks_together_take_the_augmented_images_of_one_process():
    dataset = noise(20)
    alone = list(batches(dataset, 8, 1, 0, True, drop_last=True))
    ranks = [list(batches(dataset, 8, 1, 0, True, r, 2, drop_last=True)) for r in range(2)]
    for step, (images, labels) in enumerate(alone):
        for rank in range(2):
            assert same(ranks[rank][step], (images[rank::2], labels[rank::2]))


def test_memory_is_pinned_for_a_gpu_alone(monkeypatch):
    """Pinning uses the GPU: each process of a training on the CPU would take half a gigabyte there."""
    pinned = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(loading, "DataLoader", lambda *_, pin_memory, **__: pinned.append(pin_memory) or [])
    for device in ("cpu", "cuda:1"):
        list(batches(noise(8), 4, 0, 0, True, device=device))
    assert pinned == [False, True]


def test_the_global_generator_is_not_used():
    dataset, before = noise(20), torch.get_rng_state()
    for _ in batches(dataset, 5, 0, 0, True):
        pass
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------ opening by name


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-set", "no-such-set: is neither a folder, nor shards, nor one of"),
        ("cifar-10", "cifar-10: is neither a folder, nor shards, nor one of"),
        ("", "there is no folder train in it"),  # the current folder
    ],
)
def test_unknown_sources_are_refused(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=message):
        open_dataset(source, True, True, 0)


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_a_folder_with_the_name_of_a_data_set_is_not_overlooked(photos, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).symlink_to(photos)
    with pytest.raises(
        DatasetError, match=rf"{name}: is the name of .* a folder of images, which is \./{name}$"
    ):
        open_dataset(name, True, False, 0)
    for source in (f"./{name}", Path(name), tmp_path / name):
        assert isinstance(open_dataset(source, True, False, 0), ImageFolder)


def test_fashion_mnist_is_read_from_a_folder_of_that_name(tmp_path, monkeypatch):
    """It is the same, but may not be installed."""
    opened = []
    monkeypatch.setattr(loading, "fashion_mnist", lambda folder, *options: opened.append(folder))
    monkeypatch.chdir(tmp_path)
    open_dataset("fashion-mnist", True, True, 0)
    Path("fashion-mnist").mkdir()
    Path("fashion-mnist/t10k-images-idx3-ubyte").touch()
    open_dataset("fashion-mnist", True, True, 0)
    assert opened == [None, Path("fashion-mnist")]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        image_folder(tmp_path / "none", True)


def test_28_pixel_data_sets_have_no_other_size(tmp_path):
    for size in (28, Input(28, 32)):
        assert open_dataset("digits", False, False, 0, size=size).batch([0], 0)[0].shape == (1, 3, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte").touch()
    for source, size in itertools.product(
        ("digits", "fashion-mnist", tmp_path), (32, Input(32, 32), (28, 28))
    ):
        with pytest.raises(DatasetError, match=f"size: the images of {source} are 28 pixels wide"):
            open_dataset(source, True, True, 0, size=size)


def test_height_and_width_are_refused_for_classification(photos):
    with pytest.raises(DatasetError, match=f"{photos}: --size HEIGHTxWIDTH is for images with a class for"):
        open_dataset(photos, True, False, 0, (16, 16))


def test_the_fingerprint_of_a_folder_depends_on_file_names_and_reads_no_file(photos):
    known = fingerprint(small(photos))
    assert known["number of images"] == 8
    assert known["image size"] == [16, 16]
    assert fingerprint(small(photos).renumbered([1, 0]))["targets"] != known["targets"]
    (photos / "train" / "cat" / "0.png").write_bytes(b"never read")
    moved = photos.rename(photos.with_name("moved"))
    assert fingerprint(small(moved, seed=1, augment=True)) == known
    (moved / "train" / "cat" / "0.png").rename(moved / "train" / "cat" / "00.png")
    renamed = fingerprint(small(moved))
    assert {key for key in known if renamed[key] != known[key]} == {"file names"}


def test_the_fingerprint_includes_a_name_that_is_not_utf_8(photos):
    known = fingerprint(small(photos))
    file = photos / "train" / "cat" / "0.png"
    os.rename(file, os.fsencode(file.parent) + b"/\xe9.png")
    assert fingerprint(small(photos))["file names"] != known["file names"]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda images, targets, labels: None, set()),
        (lambda images, targets, labels: images[4, 0, 2, 1].add_(1), {"pixels"}),
        (lambda images, targets, labels: targets[4].add_(1), {"targets"}),
        (lambda images, targets, labels: labels.append("more"), {"labels"}),
    ],
    ids=["same", "pixels", "targets", "labels"],
)
def test_the_fingerprint_of_images_in_memory_depends_on_pixels_targets_and_labels(change, differs):
    images, targets = torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)[::2]
    known = fingerprint(InMemory(images, targets, labels := ["a", "b"], False, 0))
    change(images, targets, labels)
    other = fingerprint(InMemory(images, targets, labels, True, 1))
    assert {key for key in known if other[key] != known[key]} == differs


def test_the_fingerprint_of_images_in_memory_depends_on_their_size():
    one, other = (
        fingerprint(InMemory(torch.zeros(2, 1, *size).byte(), torch.tensor([0, 1]), "ab", False, 0))
        for size in ((4, 4), (2, 8))
    )
    assert {key for key in one if other[key] != one[key]} == {"image size"}


# ------------------------------------------------------------------------------------------ worker processes


@pytest.fixture
def start_method(request):
    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {request.param}")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


with_workers = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than cores
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.mark.parametrize(
    "start_method", [pytest.param(method, marks=with_workers) for method in ("fork", "spawn")], indirect=True
)
def test_worker_processes_change_nothing(photos, start_method):
    dataset, before = small(photos, augment=True), torch.get_rng_state()
    alone = list(batches(dataset, 3, 1, 0, True))
    workers = 1 if start_method == "spawn" else 2  # each imports torch again, which takes seconds
    helped = list(batches(dataset, 3, 1, 0, True, workers=workers))
    assert len(helped) == len(alone) == 3
    assert all(same(*pair) for pair in zip(alone, helped, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start_method", [pytest.param("fork", marks=with_workers)], indirect=True)
def test_worker_processes_pass_on_errors_and_failed_files(photos, start_method):
    path = corrupt(photos)
    with pytest.raises(ImageError) as caught:
        list(batches(small(photos), 2, 1, 0, True, workers=2))
    assert str(caught.value).startswith(str(path))  # not with the worker's traceback
    loader = batches(small(photos, on_corrupt="skip"), 4, 1, 0, False, workers=2)
    assert [labels.tolist() for _, labels in loader] == [[0, 0, 0, 0], [1, 1, 1]]
    assert len(loader.failed) == 1


@pytest.mark.parametrize("start_method", [pytest.param("fork", marks=with_workers)], indirect=True)
def test_full_shared_memory_is_an_error(monkeypatch, start_method):
    """Docker's /dev/shm has 64 MB. PyTorch's workers drop what has no room, and the loader would hang."""

    def full(*arguments):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    def hung(number, frame):
        raise TimeoutError

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(60)
    try:
        with pytest.raises(DatasetError, match=r"^workers: .* \(.*No space left .*\); fewer workers or"):
            batch_labels(Indices(4), 2, 0, 0, False, workers=1)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_more_workers_than_files_can_be_open_are_refused(monkeypatch):
    """With too few, PyTorch's workers drop batches, and the loader would hang or print tracebacks."""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (30, 46))
    with pytest.raises(DatasetError, match=r"^workers: 8 may need \d+ open files, and the limit is 46 \(`ul"):
        batch_labels(Indices(4), 2, 0, 0, False, workers=8)
    assert batch_labels(Indices(4), 2, 0, 0, False) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("start_method", [pytest.param("fork", marks=with_workers)], indirect=True)
def test_the_limit_of_open_files_is_raised_for_the_workers(start_method):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 4, before[1]))
    try:
        assert batch_labels(Indices(8), 1, 0, 0, False, workers=4) == [[number] for number in range(8)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Refusing(Indices):
    def batch(self, indices, epoch):
        raise DatasetError("labels: one line")


class Interruptible(Indices):
    def batch(self, indices, epoch):
        images, _ = super().batch(indices, epoch)
        return images, torch.tensor([signal.getsignal(signal.SIGINT) != signal.SIG_IGN])


@pytest.mark.parametrize("start_method", [pytest.param("fork", marks=with_workers)], indirect=True)
def test_worker_processes_raise_one_line_and_ignore_interrupts(start_method):
    with pytest.raises(DatasetError, match=r"^labels: one line$"):
        batch_labels(Refusing(1), 1, 0, 0, False, workers=1)
    # A shell's background job ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert batch_labels(Interruptible(1), 1, 0, 0, False) == [[True]]
        assert batch_labels(Interruptible(1), 1, 0, 0, False, workers=1) == [[False]]
    finally:
        signal.signal(signal.SIGINT, before)
