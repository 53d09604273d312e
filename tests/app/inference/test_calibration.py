"""Images for calibration: which of them calibrate, and which are held out for the check."""

import pytest
import torch
from PIL import Image
from small_networks import SIZE
from torch.utils.data import DataLoader, TensorDataset

from wae.data.input import Input
from wae.inference import calibration
from wae.inference.calibration import CHECKED, CalibrationError, gather, most


def test_calibration_and_check_share_no_image():
    data = torch.arange(50.0).view(50, 1, 1, 1).expand(50, 3, *SIZE)
    found = gather(data, SIZE, 10, True)
    calibrating, checking = (set(part[:, 0, 0, 0].tolist()) for part in (found.images, found.held_out))
    assert len(calibrating) == 10
    assert calibrating | checking == set(range(50))
    assert not calibrating & checking


@pytest.mark.parametrize("checked", [10, 300])
def test_images_are_spread_evenly_over_many(monkeypatch, checked):
    """Those that calibrate too: the first ones are of the first classes of a folder."""
    monkeypatch.setattr(calibration, "CHECKED", checked)
    data = torch.arange(1000.0).view(1000, 1, 1, 1).expand(1000, 3, *SIZE)
    found = gather(data, SIZE, 10, True)
    numbers, others = (part[:, 0, 0, 0].long() for part in (found.images, found.held_out))
    assert (numbers // 100).tolist() == list(range(10))
    assert (others // 100).bincount().tolist() == [checked // 10] * 10


@pytest.mark.parametrize("number", [20, 2000])
def test_if_classes_alternate_both_kinds_of_images_are_of_all_classes(number):
    data = (torch.arange(number) % 2).view(-1, 1, 1, 1).expand(-1, 3, *SIZE).float()
    for part in gather(data, SIZE, 10, True)[:2]:
        assert part[:, 0, 0, 0].unique().tolist() == [0, 1]


def test_fewer_images_are_held_out_if_they_are_large(monkeypatch):
    """They, their labels and the classes of their pixels are in memory."""
    assert most(100, (512, 512)) == 100 + CHECKED
    assert most(100, (1024, 1024)) == 100 + CHECKED // 4
    assert most(100, (2048, 2048)) == 100 + 100
    monkeypatch.setattr(calibration, "_PIXELS", 12 * 16)
    data = torch.zeros(1).expand(50, 3, 4, 4)
    labels = torch.zeros(1).expand(50, 4, 4)
    found = gather([(data, labels)], (4, 4), 10, True)
    assert (len(found.images), len(found.held_out), len(found.labels)) == (10, 12, 12)


def test_labels_stay_with_their_images():
    batches = [(torch.full((2, 3, *SIZE), float(n)), torch.tensor([n, n])) for n in range(10)]
    found = gather(iter(batches), SIZE, 10, True)
    assert torch.equal(found.held_out[:, 0, 0, 0].long(), found.labels)
    batches[3] = batches[3][:1]  # without labels
    assert gather(batches, SIZE, 10, True).labels is None


def test_a_loader_may_use_its_memory_again():
    """As one does that reads into its own buffers."""

    def loader():
        images, labels = torch.empty(2, 3, *SIZE), torch.empty(2, dtype=torch.long)
        for number in range(10):
            yield images.fill_(number), labels.fill_(number)

    found = gather(loader(), SIZE, 10, True)
    assert found.images[:, 0, 0, 0].tolist() == list(range(10))
    assert found.labels.tolist() == list(range(10))


def test_the_default_device_changes_nothing():
    """It is the network's own while one is deployed in inference mode, and loaders that shuffle fail then."""
    data = torch.arange(250.0).view(-1, 1, 1, 1).expand(-1, 3, *SIZE)
    shuffled = DataLoader(TensorDataset(data), 50, shuffle=True)
    with torch.device("meta"):
        for source in (data, shuffled):
            found = gather(source, SIZE, 10, True)
            assert len(found.images) == 10
            assert found.images.device == found.held_out.device == data.device


class OnGpu(torch.Tensor):
    """Images that are on a GPU until they are copied to the CPU."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_images_on_a_gpu_are_copied_to_the_cpu():
    """Where int8 is calibrated; NumPy refuses them."""
    found = gather(torch.zeros(20, 3, *SIZE).as_subclass(OnGpu), SIZE, 10, True)
    assert type(found.images) is type(found.held_out) is torch.Tensor


def test_a_loader_without_labels_may_yield_lists_of_one_tensor():
    """As a DataLoader over a TensorDataset does."""
    data = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 3, *SIZE)
    found = gather(DataLoader(TensorDataset(data), 5), SIZE, 10, True)
    assert (found.images[:, 0, 0, 0] // 2).tolist() == list(range(10))
    assert found.labels is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(19, 3, *SIZE), "need at least 20 images, 10 to calibrate .*, got 19"),
        (torch.zeros(20, 3, 5, 5), r"images must be \(N, 3, 20, 33\), got \(20, 3, 5, 5\)"),
        (torch.zeros(3, *SIZE), "images must be"),
        (
            torch.zeros(20, 3, *SIZE, dtype=torch.int64),
            "images must be one of uint8, float64, .*, got torch.int64",
        ),
        (torch.zeros(20, 3, *SIZE).to(torch.float8_e5m2), "images must be one of .*, got torch.float8_e5m2"),
        (torch.ones(20, 3, *SIZE).mul(torch.inf), "images must be finite, but some have NaN or infinity"),
        (["a.png"], "need tensors of images, got str"),
        ([()], "need tensors of images, got tuple"),
        ([(torch.zeros(3, *SIZE), 5)], r"images must be \(N, 3, 20, 33\), got \(3, 20, 33\)"),
        ([(torch.zeros(()), torch.zeros(3))], r"images must be \(N, 3, 20, 33\), got \(\)"),
        ([(torch.zeros(2, 3, *SIZE), ["cat", "dog"])], r"labels must be numbers, got \['cat', 'dog'\]"),
        ([(torch.zeros(20, 3, *SIZE), torch.zeros(19))], r"label for each image, got \(19,\) for 20 images"),
        ([(torch.zeros(1, 3, *SIZE), 7)], r"label for each image, got \(\) for 1 image$"),
        ([(torch.zeros(1, 3, *SIZE), [1j])], "labels must be numbers, got torch.complex64"),
        (
            [(torch.zeros(1, 3, *SIZE), torch.zeros(1, *size)) for size in ((4, 4), (4, 5))],
            r"labels must have one shape, got \(1, 4, 4\) and \(1, 4, 5\)",
        ),
        (7, "need images, a loader of images or a folder, got int"),
        ("/nowhere/at/all", "is not a folder"),
    ],
)
def test_unusable_images_are_refused(source, message):
    with pytest.raises(CalibrationError, match=message):
        gather(source, SIZE, 10, True)
    with pytest.raises(CalibrationError, match="calibration_images: need an integer"):
        gather(source, SIZE, 0, True)


def test_images_from_a_folder(tmp_path):
    for n in range(12):
        Image.new("RGB", (40, 30), (n, n, n)).save(tmp_path / f"{n:02}.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = gather(tmp_path, (16, 16), 5, True)
    starts = torch.tensor([2, 4, 7, 9])  # of four of the five parts of 12
    assert torch.bucketize(found.images[:, 0, 0, 0].long(), starts, right=True).tolist() == [0, 1, 2, 3, 4]
    assert found.labels is None
    with pytest.raises(CalibrationError, match="only for a network that scales its images itself"):
        gather(tmp_path, (16, 16), 5, False)


@pytest.mark.parametrize("named", ["", "train"])
def test_labels_of_pixels_are_not_taken_for_images(tmp_path, named):
    """They are nearly black images, or colourful ones, whose classes hardly ever change in int8."""
    part = tmp_path / "train"
    for kind in ("images", "labels"):
        (part / kind).mkdir(parents=True)
        Image.new("L", (16, 16), 3).save(part / kind / "a.png")
    with pytest.raises(CalibrationError) as caught:
        gather(tmp_path / named, (16, 16), 1, True)
    named = tmp_path / named
    wanted = f"calibration: {named}: holds labels of pixels beside its images; name {part / 'images'} instead"
    assert str(caught.value) == wanted
    assert sum(map(len, calibration.in_folder(part / "images", Input(8, 8), 6))) == 1


class WithGaps:
    """A data set in which every third image cannot be read, and is left out."""

    labels = ("a", "b")

    def __len__(self):
        return 2000

    def batch(self, indices, epoch):
        kept = torch.tensor([i for i in indices if i % 3], dtype=torch.int64)
        return kept.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).to(torch.uint8), kept % 2


def test_other_images_replace_those_that_cannot_be_read(tmp_path):
    found = calibration.gather(WithGaps(), (4, 4), 20, scales=True)
    assert len(found.images) == 20
    assert len(found.held_out) == calibration.CHECKED
    for number in range(12):
        path = tmp_path / f"{number:02}.png"
        Image.new("L", (8, 8), number).save(path) if number % 3 else path.write_bytes(b"no image")
    assert sum(map(len, calibration.in_folder(tmp_path, Input(8, 8), 6))) == 6
    assert sum(map(len, calibration.in_folder(tmp_path, Input(8, 8), 100))) == 8
