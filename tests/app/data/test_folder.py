"""wae.data.folder: folders of image files, one per class; errors name the bad file."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import check_options_arrive, corrupt, noise, same, small, write_images
from PIL import Image

from wae.data.dataset import DatasetError, sample
from wae.data.folder import image_folder
from wae.data.image_files import left_out_of
from wae.data.images import ImageError, read_image
from wae.data.input import Input
from wae.data.loading import batches, open_dataset


def test_class_folders_give_samples_and_labels(photos):
    (photos / "train" / "cat" / "notes.txt").write_text("no image")
    train, held_out = open_dataset(photos, True, True, 0), open_dataset(str(photos), False, False, 0)
    assert train.labels == held_out.labels == ("cat", "dog")
    assert (len(train), len(held_out)) == (8, 4)
    images, labels = held_out.batch([3, 0], 0)
    assert labels.tolist() == [1, 0]
    assert images.shape == (2, 3, 224, 224)
    assert train.batch([0], 0)[0].shape == (1, 3, 224, 224)
    assert open_dataset(photos, False, False, 0, size=16).batch([0], 0)[0].shape == (1, 3, 16, 16)


def test_options_of_open_dataset_are_passed_on(photos):
    check_options_arrive(photos)
    images = open_dataset(photos, False, False, 0, size=20).batch([0, 3], 0)[0]
    resize = 23  # 8/7 of the size
    assert torch.equal(images, image_folder(photos, False, Input(20, resize)).batch([0, 3], 0)[0])


def test_a_class_name_that_is_not_utf_8_is_refused(photos):
    """A checkpoint could not store its label."""
    for part in ("train", "val"):
        os.rename(photos / part / "cat", os.fsencode(photos / part) + b"/caf\xe9")
    with pytest.raises(DatasetError, match=r"name of the folder 'caf\\udce9' is not UTF-8; rename it"):
        small(photos)


def test_test_is_used_if_there_is_no_val(photos):
    (photos / "val").rename(photos / "test")
    assert len(small(photos, train=False)) == 4
    write_images(photos / "val", per_class=1)
    assert len(small(photos, train=False)) == 2  # val takes precedence


def test_evaluation_crops_the_centre_of_the_resized_image(photos):
    image = read_image(photos / "val" / "cat" / "0.png")
    images, _ = image_folder(photos, False, Input(20, 30)).batch([0], 0)
    assert torch.equal(images[0], image[:, 10:30, 5:25])  # the shorter side has 30 pixels: nothing is scaled
    images, _ = image_folder(photos, False, Input(30, 30)).batch([0], 0)
    assert torch.equal(images[0], image[:, 5:35])


def test_augmentation_depends_only_on_seed_epoch_and_sample(photos):
    dataset = small(photos, augment=True, seed=4)
    everything, labels = dataset.batch(range(8), 2)
    assert everything.dtype == torch.uint8
    assert everything.is_contiguous()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for indices in ([5], [7, 0, 3]):
        assert same(dataset.batch(indices, 2), (everything[indices], labels[indices]))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(small(photos, augment=True, seed=4).batch(range(8), 2), (everything, labels))
    for other in (dataset.batch(range(8), 3), small(photos, augment=True, seed=5).batch(range(8), 2)):
        assert not torch.equal(other[0], everything)


def test_augmentation_crops_and_flips(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.fromarray(ramp).save(tmp_path / "train" / label / "ramp.png")
    dataset = small(tmp_path, augment=True)
    first, second = dataset.batch([0, 1], 0)[0]
    assert not torch.equal(first, second)  # the same image, but another sample
    images = torch.cat([dataset.batch([0], epoch)[0] for epoch in range(200)]).float()
    rise = images[:, 0, :, -1].mean(1) - images[:, 0, :, 0].mean(1)
    assert 70 < int((rise < 0).sum()) < 130  # flipped
    assert 50 < rise.abs().min() < 100 < 200 < rise.abs().max()  # small crops and large ones


def test_the_error_for_a_corrupt_image_names_the_file(photos):
    path = corrupt(photos)
    with pytest.raises(ImageError, match=str(path)):
        list(batches(small(photos, augment=True), 4, 0, 0, True))


def test_a_corrupt_image_is_left_out_and_reported_if_skipped(photos):
    path = corrupt(photos)
    dataset = small(photos, augment=True, on_corrupt="skip")
    loader = batches(dataset, 4, 0, 0, False)
    for _ in range(2):
        assert [labels.tolist() for _, labels in loader] == [[0, 0, 0, 0], [1, 1, 1]]
        (failed,) = loader.failed
        assert failed.startswith(f"{path}: ")


def test_a_batch_of_only_corrupt_images_is_empty(photos):
    corrupt(photos)
    dataset = small(photos, on_corrupt="skip")
    good = dataset.batch([0], 0)
    images, labels = dataset.batch([5], 0)
    assert images.shape == (0, 3, 16, 16)
    assert labels.shape == (0,)
    assert (images.dtype, labels.dtype) == (good[0].dtype, good[1].dtype)


def test_if_no_image_can_be_read_the_error_names_the_first(photos):
    for path in (photos / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    data = small(photos, on_corrupt="skip")
    first = f"the first: {data.samples[0][0]}: this is not an image file"
    with pytest.raises(DatasetError, match=f"train: none of the 8 images tried can be read; {first}"):
        sample(data, 2)


def test_an_image_with_a_large_aspect_ratio_is_refused(photos):
    Image.new("L", (1, 3000)).save(photos / "val" / "cat" / "0.png")
    with pytest.raises(ImageError, match=r"0.png: need one side .*, got 3000 x 1 pixels"):
        small(photos, train=False).batch([0], 0)


def test_files_that_are_not_images_of_a_class_are_left_out_and_counted(photos):
    train, expected = photos / "train", [Path(path).name for path, _ in small(photos).samples]
    for extra in (".ipynb_checkpoints", "__MACOSX", "cat/@eaDir"):
        (train / extra).mkdir()
        Image.new("RGB", (8, 8)).save(train / extra / "0.png")
    (train / "loop").symlink_to(".")
    (train / "up").symlink_to("..")
    (train / "kitten").symlink_to("cat")
    (train / "cat" / "loop").symlink_to(train)
    (train / "cat" / "._0.png").touch()
    (train / "dog" / "x.heic").touch()
    (train / "loose.png").touch()
    (photos / "val" / "loose.png").touch()  # does not count: it is not in train
    os.mkfifo(train / "dog" / "pipe.png")
    dataset = small(photos)
    assert [Path(path).name for path, _ in dataset.samples] == expected
    assert str(dataset.left_out) == (
        "left out: 4 hidden, 1 of other types (.heic), 4 linked folders, 1 special file, "
        "1 beside the class folders"
    )


def test_left_out_of_says_what_was_left_out(photos):
    assert left_out_of(small(photos)) == left_out_of(noise(4)) == ""
    (photos / "train" / "cat" / "notes.txt").touch()
    assert left_out_of(small(photos)) == f"{photos}/train: left out: 1 of other types (.txt)"


def test_a_class_may_be_called_images(photos):
    for part in ("train", "val"):
        (photos / part / "cat").rename(photos / part / "images")
    assert open_dataset(photos, True, False, 0).labels == ("dog", "images")


def test_a_class_may_be_a_link_to_a_folder_elsewhere(photos):
    (photos / "train" / "dog").rename(photos / "dogs")
    (photos / "train" / "dog").symlink_to(photos / "dogs")
    assert len(small(photos)) == 8


def test_a_folder_that_cannot_be_read_is_an_error_unless_skipped(photos, monkeypatch):
    (photos / "train" / "cat" / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match="locked: Permission denied"):
        small(photos)
    loader = batches(small(photos, on_corrupt="skip"), 16, 0, 0, False)
    assert [len(labels) for _, labels in loader] == [8]
    assert "locked" in loader.failed[0]


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, "there is no folder train in it"),
        (lambda folder: remove(folder / "train"), "train: is empty"),
        (lambda folder: remove(folder / "val"), "val: is empty"),
        (lambda folder: remove(folder / "train" / "dog"), r"train/dog: there are no images in .* folder$"),
        (
            lambda folder: [path.rename(f"{path}.heic") for path in (folder / "train" / "dog").iterdir()],
            r"train/dog: there are no images in .* folder \(left out: 4 of other types \(.heic\) so far\)",
        ),
        (lambda folder: (folder / "train" / "dog").rename(folder / "dog"), "train: has only one class, cat"),
        (lambda folder: (folder / "val" / "dog").rename(folder / "val" / "cow"), "same classes; .* cow, dog"),
        (lambda folder: (folder / "val" / "cow").mkdir(), "same classes; .* cow$"),
    ],
)
def test_invalid_folders_are_refused(photos, change, message):
    change(photos)
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(photos, True, True, 0)
    assert str(photos) in str(caught.value)


def test_a_folder_without_val_and_test_is_refused(photos):
    (photos / "val").rename(photos / "elsewhere")
    with pytest.raises(DatasetError, match="there is no folder val or test in it"):
        open_dataset(photos, False, False, 0)


def test_an_unknown_on_corrupt_is_refused(photos):
    with pytest.raises(DatasetError, match="on_corrupt"):
        image_folder(photos, True, on_corrupt="x")


def test_datasets_can_be_pickled(photos):
    for dataset in (small(photos, augment=True), noise(6)):
        copy = pickle.load(io.BytesIO(pickle.dumps(dataset)))
        assert same(copy.batch([0, 5], 1), dataset.batch([0, 5], 1))
