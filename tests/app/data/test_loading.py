"""wae.data.loading: what is random depends on seed, epoch and sample alone; bad files are named."""

import gzip
import io
import math
import multiprocessing
import pickle
import tracemalloc
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from wae.data import loading
from wae.data.loading import DatasetError, InMemory, batches, image_folder, open_dataset
from wae.data.photos import ImageError, read_image

HERE = loading.FASHION_MNIST_FOLDER
needs_fashion_mnist = pytest.mark.skipif(
    not (HERE / "t10k-images-idx3-ubyte.gz").is_file(), reason="dataset-fashion-mnist is not installed"
)


class Numbers:
    """A data set whose labels are the samples' own numbers, so that a batch says what it took."""

    labels = ("number",)

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def batch(self, indices, epoch):
        return torch.zeros(len(indices), 3, 1, 1, dtype=torch.uint8), torch.tensor(indices)


def noise(count, colours=1, height=8, width=6, **options):
    images = torch.randint(256, (count, colours, height, width), dtype=torch.uint8)
    targets = torch.arange(count) % 4
    return InMemory(images, targets, "abcd", **{"augment": True, "seed": 5, **options})


def taken(dataset, *arguments, **options):
    """The labels of each batch."""
    return [labels.tolist() for _, labels in batches(dataset, *arguments, **options)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------- the order of samples


@given(
    length=st.integers(1, 50),
    share=st.integers(1, 6),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
@example(length=9, share=2, world=4, shuffle=False, drop_last=False)  # one sample is left for four ranks
def test_the_ranks_together_take_the_batches_of_one_process(length, share, world, shuffle, drop_last):
    batch = share * world
    dataset, options = Numbers(length), {"seed": 3, "shuffle": shuffle, "drop_last": drop_last}
    if drop_last and length < batch:
        with pytest.raises(DatasetError, match=f"{length} images do not fill one batch of {batch}"):
            batches(dataset, batch, 2, **options)
        return
    if shuffle and not drop_last and length % batch % world:
        with pytest.raises(ValueError, match="drop_last"):
            batches(dataset, batch, 2, world=world, **options)
        return
    alone = taken(dataset, batch, 2, **options)
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


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    dataset = Numbers(100)
    first = taken(dataset, 10, 0, seed=1, shuffle=True)
    torch.manual_seed(99)
    assert taken(dataset, 10, 0, seed=1, shuffle=True) == first
    assert taken(dataset, 20, 0, seed=1, shuffle=True) == [
        a + b for a, b in zip(*[iter(first)] * 2, strict=True)
    ]
    for other in (
        taken(dataset, 10, 1, seed=1, shuffle=True),
        taken(dataset, 10, 0, seed=2, shuffle=True),
        taken(dataset, 10, 0, seed=-1, shuffle=True),
    ):
        assert other != first
        assert sorted(sample for step in other for sample in step) == list(range(100))


def test_without_shuffling_the_order_is_the_data_sets():
    assert taken(Numbers(5), 2, 7, seed=1, shuffle=False) == [[0, 1], [2, 3], [4]]


def test_batches_can_be_gone_through_again():
    twice = batches(Numbers(7), 3, 0, 0, True)
    assert [labels.tolist() for _, labels in twice] == [labels.tolist() for _, labels in twice]


@pytest.mark.parametrize(
    ("options", "named"),
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
def test_numbers_out_of_range_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        batches(Numbers(8), **{"batch": 2, "epoch": 0, "seed": 0, "shuffle": False, **options})


# ------------------------------------------------------------------------------------------------ in memory


def test_every_shift_and_flip_comes_equally_often():
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
    # KeyError where an image is none of the fifty
    seen = Counter(possible[image[0].numpy().tobytes()] for image in images)
    assert len(seen) == 50
    expected = 5000 / 50
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < 85  # 49 degrees of freedom: passed by 999 in 1000 seeds, and this one is fixed


@pytest.mark.parametrize("colours", [1, 3])
def test_augmentation_is_a_function_of_seed_epoch_and_sample(colours):
    dataset = noise(40, colours)
    whole, labels = dataset.batch(range(40), 3)
    assert whole.shape == (40, 3, 8, 6)
    assert whole.dtype == torch.uint8
    assert whole.is_contiguous()
    assert labels.dtype == torch.int64
    torch.manual_seed(1)
    dataset.batch([0], 4)  # an epoch in between, as where a run is resumed
    for indices in ([7], [39, 0, 7], list(range(39, -1, -1))):
        images, part = dataset.batch(indices, 3)
        assert torch.equal(images, whole[indices])
        assert torch.equal(part, labels[indices])
    assert not torch.equal(dataset.batch(range(40), 4)[0], whole)
    dataset.seed, dataset._drawn = 6, None
    assert not torch.equal(dataset.batch(range(40), 3)[0], whole)


def test_the_union_over_ranks_and_steps_holds_for_augmented_pixels_too():
    dataset = noise(20)
    alone = list(batches(dataset, 8, 1, 0, True, drop_last=True))
    ranks = [list(batches(dataset, 8, 1, 0, True, r, 2, drop_last=True)) for r in range(2)]
    for step, (images, labels) in enumerate(alone):
        for rank in range(2):
            assert same(ranks[rank][step], (images[rank::2], labels[rank::2]))


def test_without_augmentation_the_images_are_as_they_were():
    dataset = noise(5, augment=False)
    images, labels = dataset.batch([3, 1], 0)
    assert torch.equal(images, dataset.images[[3, 1]].expand(-1, 3, -1, -1))
    assert labels.tolist() == [3, 1]
    images.zero_()
    assert dataset.images.any()


def test_without_padding_and_flips_nothing_moves():
    dataset = noise(30, 3, pad=0, flip=False)
    assert torch.equal(dataset.batch(range(30), 0)[0], dataset.images)


def test_the_global_generator_is_left_alone():
    dataset, before = noise(20), torch.get_rng_state()
    for _ in batches(dataset, 5, 0, 0, True):
        pass
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("images", "targets", "options", "named"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), {}, "images"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), {}, "images"),
        (torch.zeros(2, 2, 4, 4).byte(), torch.zeros(2).long(), {}, "images"),
        (torch.zeros(0, 3, 4, 4).byte(), torch.zeros(0).long(), {}, "images"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), {}, "targets"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2), {}, "targets"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 2]), {}, r"need 0\.\.1, got 0\.\.2"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([-1, 0]), {}, r"need 0\.\.1, got -1\.\.0"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2).long(), {"pad": -1}, "pad"),
    ],
)
def test_tensors_that_make_no_data_set(images, targets, options, named):
    with pytest.raises(DatasetError, match=named):
        InMemory(images, targets, ("a", "b"), True, 0, **options)


def test_digits():
    train, held_out = open_dataset("digits", True, True, 0), open_dataset("digits", False, False, 0)
    assert (len(train), len(held_out)) == (1500, 297)
    assert train.labels == held_out.labels == tuple("0123456789")
    images, labels = held_out.batch(range(297), 0)
    assert images.shape == (297, 3, 28, 28)
    assert Counter(labels.tolist()).keys() == set(range(10))
    # a 0 is hollow, a 1 is not
    centre = images[:, 0, 12:16, 12:16].float().mean((1, 2))
    assert centre[labels == 0].mean() < 30 < 150 < centre[labels == 1].mean()
    everything = torch.cat([train.images, held_out.images])
    assert everything.max() == 255
    assert len({image.numpy().tobytes() for image in everything}) == 1797  # none is in both parts


# ------------------------------------------------------------------------------------------- Fashion-MNIST


@needs_fashion_mnist
def test_fashion_mnist_as_installed():
    train, held_out = (
        open_dataset("fashion-mnist", True, True, 0),
        loading.fashion_mnist(None, False, False, 0),
    )
    assert (len(train), len(held_out)) == (60_000, 10_000)
    assert torch.bincount(train.targets).tolist() == [6000] * 10
    assert torch.bincount(held_out.targets).tolist() == [1000] * 10
    assert train.labels[9] == "Ankle boot"
    assert train.batch([0], 0)[1].tolist() == [9]
    # trousers are tall and narrow
    trousers = held_out.images[held_out.targets == 1].float().mean(0)[0]
    assert trousers.mean(0).gt(50).sum() < trousers.mean(1).gt(50).sum()


@needs_fashion_mnist
def test_fashion_mnist_from_a_folder_without_compression(tmp_path):
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(gzip.decompress((HERE / f"{name}.gz").read_bytes()))
    plain, packed = open_dataset(tmp_path, False, False, 0), loading.fashion_mnist(HERE, False, False, 0)
    assert torch.equal(plain.images, packed.images)
    assert torch.equal(plain.targets, packed.targets)
    with pytest.raises(DatasetError, match="no train-images-idx3-ubyte"):
        open_dataset(tmp_path, True, False, 0)

    with (tmp_path / "t10k-labels-idx1-ubyte").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([(byte + 1) % 10]))
    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte: .* SHA-256"):
        open_dataset(tmp_path, False, False, 0)


def test_missing_fashion_mnist_says_where_it_comes_from(tmp_path):
    with pytest.raises(
        DatasetError, match=r"no train-images-idx3-ubyte .*dataset-fashion-mnist, or name a folder"
    ):
        loading.fashion_mnist(tmp_path, True, False, 0)


def idx(shape, content):
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + content


def test_a_well_made_file_of_other_content_is_refused(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx((10_000, 28, 28), bytes(7_840_000)))
    with pytest.raises(DatasetError, match=r"t10k-images-idx3-ubyte: .*SHA-256"):
        loading.fashion_mnist(tmp_path, False, False, 0)


WELL_MADE = idx((3, 2), b"pixels")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a", b"", "not an IDX file of 3 x 2 bytes"),
        ("a", WELL_MADE[:7], "not an IDX file"),
        ("a", b"\0\0\x0d" + WELL_MADE[3:], "not an IDX file"),  # floats
        ("a", idx((2, 3), b"pixels"), "not an IDX file"),
        ("a", idx((0xFFFFFFFF, 0xFFFFFFFF), b"pixels"), "not an IDX file"),
        ("a", gzip.compress(WELL_MADE), "not an IDX file"),  # compressed, but not named .gz
        ("a", WELL_MADE[:-1], "announces 6 bytes, but there are 5"),
        ("a", WELL_MADE + b"!", "announces 6 bytes, but there are more"),
        ("a.gz", WELL_MADE, "broken or cannot be read"),
        ("a.gz", gzip.compress(WELL_MADE)[:-1], "broken or cannot be read"),
        ("a.gz", gzip.compress(WELL_MADE)[:-8] + bytes(8), "broken or cannot be read"),  # check sum of gzip
        ("a.gz", gzip.compress(WELL_MADE)[:10] + b"\xff" * 30, "broken or cannot be read"),
        ("a.gz", gzip.compress(WELL_MADE[:-1]), "announces 6 bytes, but there are 5"),
    ],
)
def test_hostile_idx_files(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{name}: .*{said}"):
        loading._read_idx(tmp_path / name, (3, 2))


@given(
    at=st.integers(0, len(WELL_MADE)),
    cut=st.integers(0, len(WELL_MADE)),
    new=st.binary(max_size=20),
    packed=st.booleans(),
)
def test_a_damaged_idx_file_is_read_exactly_or_refused(tmp_path, at, cut, new, packed):
    content = WELL_MADE[:at] + new + WELL_MADE[at + cut :]
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(content) if packed else content)
    if content.startswith(WELL_MADE[:12]) and len(content) == len(WELL_MADE):
        assert loading._read_idx(path, (3, 2)).tobytes() == content[12:]
    else:
        with pytest.raises(DatasetError, match=str(path)):
            loading._read_idx(path, (3, 2))


@given(st.binary(max_size=60))
def test_any_bytes_after_the_gzip_magic_are_refused_not_fatal(tmp_path, content):
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b\x08" + content)
    with pytest.raises(DatasetError, match=r"a\.gz"):
        loading._read_idx(tmp_path / "a.gz", (3, 2))


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(WELL_MADE + bytes(50_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match="there are more"):
            loading._read_idx(tmp_path / "a.gz", (3, 2))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------------------- folders of images


def write_images(folder, per_class=4, classes=("cat", "dog"), size=(40, 30)):
    random = np.random.default_rng(0)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", per_class=2)
    return tmp_path


def small(folder, train=True, **options):
    return image_folder(folder, train, size=16, resize=20, **options)


def test_the_layout_gives_samples_and_labels(photos):
    (photos / "train" / "cat" / "notes.txt").write_text("no image")
    train, held_out = open_dataset(photos, True, True, 0), open_dataset(str(photos), False, False, 0)
    assert train.labels == held_out.labels == ("cat", "dog")
    assert (len(train), len(held_out)) == (8, 4)
    images, labels = held_out.batch([3, 0], 0)
    assert labels.tolist() == [1, 0]
    assert images.shape == (2, 3, 224, 224)
    assert train.batch([0], 0)[0].shape == (1, 3, 224, 224)
    assert open_dataset(photos, False, False, 0, size=16).batch([0], 0)[0].shape == (1, 3, 16, 16)


def test_test_will_do_for_val(photos):
    (photos / "val").rename(photos / "test")
    assert len(small(photos, train=False)) == 4


def test_evaluation_takes_the_centre_of_the_resized_image(photos):
    image = read_image(photos / "val" / "cat" / "0.png")
    images, _ = image_folder(photos, False, size=20, resize=30).batch([0], 0)
    assert torch.equal(images[0], image[:, 10:30, 5:25])  # the shorter side has 30 pixels: nothing is scaled


def test_augmented_photos_are_a_function_of_seed_epoch_and_sample(photos):
    dataset = small(photos, augment=True, seed=4)
    whole, labels = dataset.batch(range(8), 2)
    assert whole.dtype == torch.uint8
    assert whole.is_contiguous()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for indices in ([5], [7, 0, 3]):
        assert same(dataset.batch(indices, 2), (whole[indices], labels[indices]))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(small(photos, augment=True, seed=4).batch(range(8), 2), (whole, labels))
    for other in (dataset.batch(range(8), 3), small(photos, augment=True, seed=5).batch(range(8), 2)):
        assert not torch.equal(other[0], whole)


def test_crops_and_flips_of_photos_are_real(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.fromarray(ramp).save(tmp_path / "train" / label / "ramp.png")
    dataset = small(tmp_path, augment=True)
    first, second = dataset.batch([0, 1], 0)[0]
    assert not torch.equal(first, second)  # the same picture, but another sample
    images = torch.cat([dataset.batch([0], epoch)[0] for epoch in range(200)]).float()
    rise = images[:, 0, :, -1].mean(1) - images[:, 0, :, 0].mean(1)
    assert 70 < int((rise < 0).sum()) < 130  # flipped
    assert rise.abs().min() < 120 < 200 < rise.abs().max()  # small crops and large ones


def corrupt(photos):
    path = photos / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_a_corrupt_image_is_an_error_that_names_the_file(photos):
    path = corrupt(photos)
    with pytest.raises(ImageError, match=str(path)):
        list(batches(small(photos, augment=True), 4, 0, 0, True))


def test_a_corrupt_image_is_left_out_only_when_asked(photos):
    path = corrupt(photos)
    dataset = small(photos, augment=True, on_corrupt="skip")
    for epoch, told in ((0, [str(path), "epoch 0: 1 images"]), (1, ["epoch 1: 1 images"])):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            labels = taken(dataset, 4, epoch, 0, False)
        assert labels == [[0, 0, 0, 0], [1, 1, 1]]
        assert len(caught) == len(told)  # one for the file, and one for each epoch
        assert all(said in str(warning.message) for said, warning in zip(told, caught, strict=True))


def test_a_batch_of_nothing_but_corrupt_images_is_empty(photos):
    corrupt(photos)
    dataset = small(photos, on_corrupt="skip")
    whole = dataset.batch([0], 0)
    with pytest.warns(UserWarning, match="is left out"):
        images, labels = dataset.batch([5], 0)
    assert images.shape == (0, 3, 16, 16)
    assert labels.shape == (0,)
    assert (images.dtype, labels.dtype) == (whole[0].dtype, whole[1].dtype)


def test_an_image_far_longer_than_wide_is_refused(photos):
    Image.new("L", (1, 3000)).save(photos / "val" / "cat" / "0.png")
    with pytest.raises(ImageError, match=r"0.png: 3000 x 1 pixels"):
        small(photos, train=False).batch([0], 0)


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove, "there is no folder train in it"),
        (lambda folder: remove(folder / "train"), "train: is empty"),
        (lambda folder: remove(folder / "val"), "val: is empty"),
        (lambda folder: remove(folder / "train" / "dog"), "train/dog: there are no images"),
        (lambda folder: (folder / "train" / "dog").rename(folder / "dog"), "train: has the one class cat"),
        (lambda folder: (folder / "val" / "dog").rename(folder / "val" / "cow"), "same classes; .* cow, dog"),
        (lambda folder: (folder / "val" / "cow").mkdir(), "same classes; .* cow$"),
    ],
)
def test_folders_that_make_no_data_set(photos, spoil, said):
    spoil(photos)
    with pytest.raises(DatasetError, match=said) as caught:
        open_dataset(photos, True, True, 0)
    assert str(photos) in str(caught.value)


def test_nothing_to_evaluate_on(photos):
    (photos / "val").rename(photos / "elsewhere")
    with pytest.raises(DatasetError, match="there is no folder val or test in it"):
        open_dataset(photos, False, False, 0)


@pytest.mark.parametrize("source", ["no-such-set", "", "cifar-10"])
def test_unknown_sources(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError):
        open_dataset(source, True, True, 0)
    with pytest.raises(DatasetError, match="no such folder"):
        image_folder(tmp_path / "none", True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": 0}, "size"),
        ({"size": 32, "resize": 30}, "size and resize"),
        ({"on_corrupt": "x"}, "on_corrupt"),
    ],
)
def test_options_of_image_folders_out_of_range(photos, options, named):
    with pytest.raises(DatasetError, match=named):
        image_folder(photos, True, **options)


def test_small_images_have_the_one_size():
    with pytest.raises(DatasetError, match=r"size: .*got 32"):
        open_dataset("digits", True, True, 0, size=32)


# ------------------------------------------------------------------------------------------ worker processes


def test_what_goes_to_workers_can_be_pickled(photos):
    for dataset in (small(photos, augment=True), noise(6)):
        copy = pickle.load(io.BytesIO(pickle.dumps(dataset)))
        assert same(copy.batch([0, 5], 1), dataset.batch([0, 5], 1))


def test_a_folder_is_known_by_its_files_names_and_none_is_read(photos):
    known = loading.fingerprint(small(photos))
    assert known["number of images"] == 8
    assert known["image size"] == [16, 16]
    (photos / "train" / "cat" / "0.png").write_bytes(b"never read")
    moved = photos.rename(photos.with_name("moved"))
    assert loading.fingerprint(small(moved, seed=1, augment=True)) == known
    (moved / "train" / "cat" / "0.png").rename(moved / "train" / "cat" / "00.png")
    renamed = loading.fingerprint(small(moved))
    assert {key for key in known if renamed[key] != known[key]} == {"file names"}


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
def test_images_in_memory_are_known_by_every_pixel_target_and_label(change, differs):
    images, targets = torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)[::2]
    known = loading.fingerprint(InMemory(images, targets, labels := ["a", "b"], False, 0))
    change(images, targets, labels)
    other = loading.fingerprint(InMemory(images, targets, labels, True, 1))
    assert {key for key in known if other[key] != known[key]} == differs


@pytest.fixture
def start_method(request):
    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {request.param}")
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
    workers = 1 if start_method == "spawn" else 2  # each imports torch anew: seconds
    helped = list(batches(dataset, 3, 1, 0, True, workers=workers))
    assert len(helped) == len(alone) == 3
    assert all(same(*pair) for pair in zip(alone, helped, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:epoch 1. 1 images could not be read")
@pytest.mark.parametrize("start_method", [pytest.param("fork", marks=with_workers)], indirect=True)
def test_errors_and_warnings_of_worker_processes(photos, start_method):
    path = corrupt(photos)
    with pytest.raises(ImageError) as caught:
        list(batches(small(photos), 2, 1, 0, True, workers=2))
    assert str(caught.value).startswith(str(path))  # no worker's traceback in front of it
    with pytest.warns(UserWarning, match=f"{path}: .* is left out"):
        labels = taken(small(photos, on_corrupt="skip"), 4, 1, 0, False, workers=2)
    assert labels == [[0, 0, 0, 0], [1, 1, 1]]
