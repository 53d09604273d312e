"""wae.data.photos: images that ship with scikit-image and scikit-learn."""

import importlib.util
from collections import Counter

import pytest
import torch
from programs import run_program

from wae.data import photos
from wae.data.images import ImageError
from wae.data.loading import fingerprint, open_dataset


@pytest.mark.parametrize("name", [*photos.TRAINING, *photos.HELD_OUT])
def test_photos_are_read_from_the_installed_packages(name):
    photo = photos.photo(name)
    assert photo.dtype == torch.uint8
    assert photo.shape[0] == 3
    assert min(photo.shape[1:]) >= 300
    assert photo.float().std() > 20  # a photo, not a blank


def test_held_out_photos_are_not_trained_on():
    assert set(photos.HELD_OUT) == {"chelsea", "flower"}
    assert not set(photos.HELD_OUT) & set(photos.TRAINING)


def test_an_unknown_photo_and_a_missing_package_are_errors(monkeypatch):
    with pytest.raises(KeyError):
        photos.photo("nobody")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="scikit-image") as caught:
        photos.photo("chelsea")
    assert caught.value.name == "skimage"


def test_a_photo_missing_from_its_package_is_an_error(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("skimage", tmp_path / "__init__.py")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(ImageError, match=r"chelsea\.png: this installation of scikit-image lacks the"):
        photos.photo_path("chelsea")


def test_digits_are_enlarged_and_split_into_two_parts():
    train, held_out = open_dataset("digits", True, True, 4), open_dataset("digits", False, False, 0)
    assert (len(train), len(held_out)) == (1500, 297)
    assert (train.augment, train.seed, train.pad, train.flip) == (True, 4, 2, False)
    assert train.labels == held_out.labels == tuple("0123456789")
    images, labels = held_out.batch(range(297), 0)
    assert images.shape == (297, 3, 28, 28)
    assert Counter(labels.tolist()).keys() == set(range(10))
    # a 0 is hollow, a 1 is not
    centre = images[:, 0, 12:16, 12:16].float().mean((1, 2))
    assert centre[labels == 0].mean() < 30 < 150 < centre[labels == 1].mean()
    everything = torch.cat([train.images, held_out.images])
    assert everything.max() == 255
    assert everything.int().diff(dim=3).abs().max() <= 255 * 8 / 28 + 1  # smooth: enlarged 28 / 8 times
    assert len({image.numpy().tobytes() for image in everything}) == 1797  # none is in both parts


@pytest.mark.parametrize(
    ("train", "pixels", "targets"),
    [(True, "35629db6f505", "ee51eb962cad"), (False, "b74115d416ee", "883075a37454")],
    ids=["train", "held out"],
)
def test_digits_are_those_of_scikit_learns_own_function(train, pixels, targets):
    """These are the hashes that its function gave."""
    found = fingerprint(photos.digits(train, False, 0))
    assert (found["pixels"][:12], found["targets"][:12]) == (pixels, targets)


@pytest.mark.slow  # a process that imports torch
def test_digits_need_no_import_of_scikit_learn():
    """The import may warn, as on a busy machine, and a warning is an error in tests."""
    program = "import sys; from wae.data.photos import digits; digits(True, False, 0); print(*sys.modules)"
    assert not {"sklearn", "joblib"} & set(run_program(program).stdout.split())
