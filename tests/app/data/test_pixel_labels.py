"""wae.data.segmentation: images with a class for each pixel; errors name the label file."""

import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_sets import check_options_arrive, same
from PIL import Image
from scenes import write_scenes
from test_images import png

from wae.data.dataset import NOT_COUNTED, DatasetError
from wae.data.folder import ImageFolder
from wae.data.images import ImageError, read_image, read_numbers
from wae.data.input import Input, prepare, whole
from wae.data.loading import batches, fingerprint, open_dataset
from wae.data.segmentation import segmentation_folder


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path, (("train", 6), ("val", 2)))


def small(folder, part="train", size=(36, 48), **options):
    return segmentation_folder(folder, part, whole(*size), **options)


def relabel(scenes, pixels, number=0, **options):
    path = scenes / "train" / "labels" / f"{number:02}.png"
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


# ------------------------------------------------------------------------------------------------ the layout


def test_a_folder_gives_images_and_pixel_labels(scenes):
    data, held_out = open_dataset(scenes, True, False, 0), open_dataset(str(scenes), False, False, 0)
    assert data.labels == held_out.labels == ("sky", "road", "car")
    assert (len(data), len(held_out)) == (6, 2)
    images, labels = data.batch([4, 1], 0)
    assert (images.shape, images.dtype, labels.shape) == ((2, 3, 36, 48), torch.uint8, (2, 36, 48))
    assert images.is_contiguous()
    assert torch.equal(images[0], read_image(scenes / "train" / "images" / "04.jpg"))
    numbers = read_numbers(scenes / "train" / "labels" / "04.png").long()
    assert torch.equal(labels[0], numbers.where(numbers < 3, NOT_COUNTED))
    assert (labels == NOT_COUNTED).any()


def test_plain_images_are_not_augmented_and_use_the_same_cache(scenes):
    augmented, wanted = small(scenes, augment=True, keep=True), small(scenes).batch([0, 3], 0)
    before = augmented.batch([0, 3], 1)
    assert not same(before, wanted)
    (scenes / "train" / "images" / "00.jpg").unlink()
    assert same(augmented.plain().batch([0, 3], 1), wanted)
    assert same(augmented.batch([0, 3], 1), before)


def test_options_of_open_dataset_are_passed_on(scenes):
    check_options_arrive(scenes)


def test_val_takes_precedence_over_test(scenes):
    write_scenes(scenes, (("test", 3),))
    assert len(open_dataset(scenes, False, False, 0)) == 2


@pytest.mark.parametrize("size", [None, 16])
def test_an_image_with_a_large_aspect_ratio_is_refused(scenes, size):
    Image.new("L", (2000, 1)).save(scenes / "train" / "images" / "00.jpg")
    relabel(scenes, np.zeros((1, 2000), np.uint8))
    with pytest.raises(ImageError, match=r"00\.jpg: need one side .*, got .* pixels"):
        open_dataset(scenes, True, False, 0, size).batch([0], 0)


def test_images_are_found_in_subfolders_and_test_is_used_without_val(scenes):
    for kind in ("images", "labels"):
        (scenes / "val" / kind / "city").mkdir()
        for file in (scenes / "val" / kind).glob("00.*"):
            file.rename(file.parent / "city" / file.name)
    (scenes / "val").rename(scenes / "test")
    shutil.rmtree(scenes / "train")
    assert [path[-11:] for path, _ in open_dataset(scenes, False, False, 0).samples] == [
        "ages/01.jpg",
        "city/00.jpg",
    ]


@pytest.mark.parametrize("size", [(18, 24), (20, 31), (72, 96)], ids=str)
def test_images_are_interpolated_and_labels_take_the_nearest_pixel(scenes, size):
    images, labels = small(scenes, size=size).batch(range(6), 0)
    assert images.shape[2:] == labels.shape[1:] == size
    assert set(labels.unique().tolist()) == {NOT_COUNTED, 0, 1, 2}  # no value between classes
    image = read_image(scenes / "train" / "images" / "00.jpg")
    assert torch.equal(images[0], prepare(image, Input(size[0], size[0], squash=True, width=size[1])))
    flat = labels[:, size[0] // 10, : size[1] // 2]  # in the sky
    assert (flat == 0).all()


def test_a_scaled_label_is_that_of_the_pixel_in_the_middle(scenes):
    labels = small(scenes).batch(range(6), 0)[1]
    third = small(scenes, size=(12, 16)).batch(range(6), 0)[1]
    assert torch.equal(third, labels[:, 1::3, 1::3])


@pytest.mark.parametrize("input", [Input(24, 30), Input(24, 24), Input(24, 30, squash=True)], ids=str)
def test_labels_are_cropped_as_their_image_is(scenes, input):
    """As in ``wae eval`` of a checkpoint without ``input``."""
    numbers = np.zeros((36, 48), np.uint8)
    numbers[:, 30:] = 1
    relabel(scenes, numbers)
    (scenes / "train" / "images" / "00.jpg").unlink()
    Image.fromarray(200 * numbers).save(scenes / "train" / "images" / "00.png")
    images, labels = open_dataset(scenes, True, False, 0, input).batch([0], 0)
    assert ((images[:, 0] > 100) == labels).all()


def test_the_default_size_is_that_of_the_first_image(scenes):
    (scenes / "train" / "images" / "03.jpg").unlink()
    Image.new("RGB", (20, 10)).save(scenes / "train" / "images" / "03.png")
    relabel(scenes, np.ones((10, 20), np.uint8), 3)
    data = open_dataset(scenes, True, False, 0)
    assert data.batch([3], 0)[1].shape == (1, 36, 48)
    assert open_dataset(scenes, True, False, 0, 16).shape == (16, 16)
    assert open_dataset(scenes, True, False, 0, (16, 18)).shape == (16, 18)
    assert open_dataset(scenes, True, False, 0, whole(16, 18)).shape == (16, 18)


def test_classes_can_be_renumbered_without_changing_the_original(scenes):
    data = small(scenes, keep=True)
    labels = data.batch([0], 0)[1]
    other = data.renumbered([2, 0, 1])
    assert other.labels == ("road", "car", "sky")
    wanted = torch.full_like(labels, NOT_COUNTED)
    for old, new in enumerate([2, 0, 1]):
        wanted[labels == old] = new
    assert torch.equal(other.batch([0], 0)[1], wanted)
    assert torch.equal(data.batch([0], 0)[1], labels)


def test_cached_images_are_those_that_were_read(scenes):
    kept, read_again = small(scenes, keep=True, augment=True), small(scenes, augment=True)
    wanted = read_again.batch(range(6), 1)
    first = kept.batch(range(6), 0)
    for file in (scenes / "train" / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ImageError):
        read_again.batch([0], 1)
    assert same(kept.batch(range(6), 1), wanted)
    assert not torch.equal(first[0], wanted[0])  # augmented again


def test_subsets_and_renumbered_data_sets_have_their_own_cache(scenes):
    data = small(scenes, keep=True)
    images, labels = data.batch(range(6), 0)
    some, other = data.subset([4, 1]), data.renumbered([2, 0, 1])
    assert same(some.batch([0, 1], 0), (images[[4, 1]], labels[[4, 1]]))
    known = other.batch([0], 0)
    for file in (scenes / "train" / "images").iterdir():
        file.unlink()
    assert same(some.batch([1], 0), (images[[1]], labels[[1]]))
    assert same(other.batch([0], 0), known)


def test_class_shares_leave_out_pixels_that_are_not_counted(scenes):
    numbers = np.full((36, 48), 255, np.uint8)
    numbers[:4] = 3
    for number in range(6):
        relabel(scenes, numbers, number)
    with pytest.raises(DatasetError, match="its labels hold no pixel that is counted"):
        small(scenes).shares()
    numbers[20, :4], numbers[21, :12] = 0, 2
    relabel(scenes, numbers, 5)
    data = small(scenes)
    assert data.shares().tolist() == [0.25, 0, 0.75]
    assert data.renumbered([1, 2, 0]).shares().tolist() == [0.75, 0.25, 0]
    path = data.folder
    assert data.missing() == f"{path}: no label has a pixel of road (1); pixels of 255 do not count"
    assert data.renumbered([1, 2, 0]).missing() == data.missing()
    with pytest.raises(DatasetError, match="no pixel that is counted"):
        data.subset([0]).missing()
    numbers[22] = 1
    relabel(scenes, numbers, 5)
    assert not small(scenes).missing()


def test_the_fingerprint_depends_on_files_classes_and_size(scenes, tmp_path_factory):
    known = fingerprint(small(scenes))
    assert known["image size"] == [36, 48]
    assert known == fingerprint(small(write_scenes(tmp_path_factory.mktemp("other"), (("train", 6),))))
    assert known != fingerprint(small(scenes, size=(36, 47)))
    assert known != fingerprint(small(scenes, "val"))
    (scenes / "classes.txt").write_text("(void)\nsky\nroad\ncar\n")
    assert fingerprint(small(scenes)) == {**known, "numbers of the labels": [1, 2, 3]}
    one, other = (small(scenes).subset([number]) for number in (0, 1))
    assert fingerprint(one) != fingerprint(other)


# ---------------------------------------------------------------------------------------------- augmentation


def test_augmentation_moves_images_and_labels_alike(scenes):
    """Each pixel's colour encodes its label, also after augmentation."""
    random = np.random.default_rng(1)
    for number in range(6):
        numbers = np.kron(random.integers(0, 3, (4, 5)), np.ones((9, 9), int)).astype(np.uint8)[:, :48]
        numbers = np.pad(numbers, ((0, 0), (0, 48 - numbers.shape[1])), mode="edge")
        relabel(scenes, numbers, number)
        Image.fromarray(100 * numbers).save(scenes / "train" / "images" / f"{number:02}.png")
        (scenes / "train" / "images" / f"{number:02}.jpg").unlink()
    data, plain = small(scenes, augment=True), small(scenes).batch(range(6), 0)
    moved = [data.batch(range(6), epoch) for epoch in range(4)]
    for images, labels in moved:
        agree = (images[:, 0].float() / 100).round() == labels
        assert agree.float().mean() > 0.93  # all but those at edges, where colours are interpolated
        unmoved = (images[:, 0].float() / 100).round() == plain[1]
        assert unmoved.float().mean() < 0.8


def test_augmented_labels_are_not_shifted_against_their_images(scenes):
    """Scaled with "nearest", edges in the labels would be half a pixel below those in the images."""
    numbers = np.zeros((36, 48), np.uint8)
    numbers[18:] = 1
    relabel(scenes, numbers)
    (scenes / "train" / "images" / "00.jpg").unlink()
    Image.fromarray(200 * numbers).save(scenes / "train" / "images" / "00.png")
    data = small(scenes, augment=True)
    moved = [data.batch([0], epoch) for epoch in range(100)]
    below = [labels.float().mean() - images[:, 0].float().mean() / 200 for images, labels in moved]
    assert abs(36 * float(torch.stack(below).mean())) < 0.15  # rows


def replace_image(scenes, pixels):
    """Make ``pixels`` the first training image, with labels that are all 1."""
    relabel(scenes, np.ones(pixels.shape[:2], np.uint8))
    Image.fromarray(pixels).save(scenes / "train" / "images" / "00.png")
    (scenes / "train" / "images" / "00.jpg").unlink()


def test_crops_of_a_larger_image_have_as_much_detail_as_the_image(scenes):
    """Cut from the scaled image and scaled up, they would have about half of the detail."""
    replace_image(scenes, np.random.default_rng(0).integers(0, 256, (144, 192, 3), np.uint8))
    augmented, plain = small(scenes, augment=True), small(scenes)

    def detail(images):
        return float((images[..., 1:].float() - images[..., :-1].float()).square().mean())

    crops = [detail(augmented.batch([0], epoch)[0]) for epoch in range(20)]
    assert min(crops) > 0.9 * detail(plain.batch([0], 0)[0])


@pytest.mark.parametrize("input", [whole(32, 32), Input(32, 36), Input(32, 36, squash=True)], ids=str)
def test_crops_are_distorted_as_the_image_is(scenes, input):
    rows, columns = np.mgrid[:40, :160]
    replace_image(scenes, np.stack([6 * rows, 1.5 * columns, 0 * rows], -1).round().astype(np.uint8))
    data = open_dataset(scenes, True, True, 0, input)

    def distortion(images):
        image = images[0].float()
        down = (image[0, 24:] - image[0, :8]).mean() / 6  # rows of the file in 24 rows of the sample
        right = (image[1, :, 24:] - image[1, :, :8]).mean().abs() / 1.5
        return float(right / down)

    wanted = distortion(data.plain().batch([0], 0)[0])
    found = torch.tensor([distortion(data.batch([0], epoch)[0]) for epoch in range(30)])
    assert wanted * 0.85 < found.min() < found.max() < wanted / 0.85


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_crops_are_scaled_and_coloured_as_the_input_says(scenes, interpolation):
    random = np.random.default_rng(0).integers(0, 2, (72, 96, 3), np.uint8)
    replace_image(scenes, 255 * random)
    grey = Input(24, 24, grayscale=True, interpolation=interpolation, squash=True)
    images, _ = open_dataset(scenes, True, True, 0, grey).batch([0], 0)
    assert torch.equal(images[:, 0], images[:, 1])
    assert (len(images.unique()) <= 8) == (interpolation == "nearest")  # no value between two pixels


@pytest.mark.parametrize("augment", [False, True])
def test_an_image_that_is_scaled_as_labels_are_stays_on_them(scenes, augment):
    numbers = np.random.default_rng(0).integers(0, 3, (36, 48), np.uint8)
    replace_image(scenes, np.stack([100 * numbers] * 3, -1))
    relabel(scenes, numbers)
    input = replace(whole(20, 30), interpolation="nearest")
    data = open_dataset(scenes, True, augment, 0, input)
    for epoch in range(3):
        images, labels = data.batch([0], epoch)
        assert torch.equal(images[:, 0], 100 * labels)


def test_half_are_flipped_and_crops_vary_in_size(scenes):
    ramp = np.tile(np.arange(48, dtype=np.uint8) * 5, (36, 1))
    Image.fromarray(ramp).save(scenes / "train" / "images" / "00.jpg", quality=95)
    data = small(scenes, augment=True)
    rows = torch.cat([data.batch([0], epoch)[0][:, 0, 18] for epoch in range(100)]).float()
    rise = rows[:, -1] - rows[:, 0]
    assert 30 < int((rise < 0).sum()) < 70
    assert 140 < rise.abs().min() < 195 < 215 < rise.abs().max() <= 240  # at least 0.67 of the width


def test_augmentation_depends_only_on_seed_epoch_and_sample(scenes):
    data = small(scenes, augment=True, seed=4)
    images, labels = data.batch(range(6), 2)
    state = torch.get_rng_state()
    for indices in ([5], [3, 0, 4]):
        assert same(data.batch(indices, 2), (images[indices], labels[indices]))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(small(scenes, augment=True, seed=4).batch(range(6), 2), (images, labels))
    for other in (data.batch(range(6), 3), small(scenes, augment=True, seed=5).batch(range(6), 2)):
        assert not torch.equal(other[0], images)


# ------------------------------------------------------------------------------------------------ label files


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_indices_and_1_to_8_bit_grey_are_read_as_numbers(tmp_path, bits):
    numbers = np.arange(48, dtype=np.uint8).reshape(6, 8) % 2 ** min(bits, 5)
    palette = Image.fromarray(numbers, "P")
    palette.putpalette([7 * i % 256 for i in range(3 * 2**bits)])
    palette.save(tmp_path / "palette.png", bits=bits)
    assert read_numbers(tmp_path / "palette.png").tolist() == numbers.tolist()
    if bits in (2, 4):
        (tmp_path / "grey.png").write_bytes(_grey_png(numbers, bits))
    else:
        Image.fromarray(numbers * 255 if bits == 1 else numbers).convert("1" if bits == 1 else "L").save(
            tmp_path / "grey.png"
        )
    assert read_numbers(tmp_path / "grey.png").tolist() == numbers.tolist()


def _grey_png(numbers, bits):
    """A 2-bit or 4-bit grey PNG, which Pillow cannot write."""
    height, width = numbers.shape
    each = 8 // bits
    packed = sum(numbers[:, i::each] << (8 - bits * (i + 1)) for i in range(each)).astype(np.uint8)
    return png(width, height, bits, 0, [row.tobytes() for row in packed])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_are_turned_as_their_image_is(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_numbers(tmp_path / "a.png"), read_image(tmp_path / "a.png")[0].int())


def test_16_bit_labels_are_read_as_numbers(scenes):
    names = [f"class {number}" for number in range(1001)]
    (scenes / "classes.txt").write_text("\n".join(names))
    path = relabel(scenes, np.full((36, 48), 1000, np.uint16))
    assert read_numbers(path).unique().tolist() == [1000]
    assert small(scenes).batch([0], 0)[1].unique().tolist() == [1000]
    relabel(scenes, np.full((36, 48), 255, np.uint16))  # a class, because there are more than 255
    assert small(scenes).batch([0], 0)[1].unique().tolist() == [255]


def test_255_and_names_in_brackets_are_not_counted(scenes):
    (scenes / "classes.txt").write_text("(void)\nsky\n(ego vehicle)\nroad\n")
    numbers = np.zeros((36, 48), np.uint8)
    numbers[10], numbers[11], numbers[12], numbers[13] = 1, 2, 3, 255
    relabel(scenes, numbers)
    data = small(scenes)
    assert data.labels == ("sky", "road")
    rows = data.batch([0], 0)[1][0, 9:14, 0].tolist()
    assert rows == [NOT_COUNTED, 0, NOT_COUNTED, 1, NOT_COUNTED]


def test_only_names_entirely_in_brackets_are_left_out(scenes):
    names = ("car (parked)", "(old) road", "sky", "(void)")
    (scenes / "classes.txt").write_text("\n".join(names))
    assert small(scenes).labels == names[:3]


def test_classes_argument_replaces_the_file(scenes):
    (scenes / "classes.txt").unlink()
    data = small(scenes, classes=("(void)", "a", "b", "c"))
    assert data.labels == ("a", "b", "c")
    assert data.batch(range(6), 0)[1].unique().tolist() == [NOT_COUNTED, 0, 1, 2]


# ----------------------------------------------------------------------------------------------------- errors


def unknown_number(scenes):
    numbers = np.zeros((36, 48), np.uint8)
    numbers[7, 5] = 17
    return relabel(scenes, numbers)


MISFITS = {
    "unknown number": (unknown_number, "row 7, column 5 has the number 17, .*known are 0 to 3 and 255"),
    "size": (lambda scenes: relabel(scenes, np.zeros((36, 47), np.uint8)), "has 36 x 47 pixels, .* 36 x 48"),
    "transposed": (
        lambda scenes: relabel(scenes, np.zeros((48, 36), np.uint8)),
        "has 48 x 36 pixels, .* 36 x 48",
    ),
}
UNREADABLE = {
    "colours": (lambda scenes: relabel(scenes, Image.new("RGB", (48, 36))), "has mode RGB"),
    "transparency": (lambda scenes: relabel(scenes, Image.new("LA", (48, 36))), "has mode LA"),
    "JPEG": (lambda scenes: relabel(scenes, np.zeros((36, 48), np.uint8), format="JPEG"), "not supported"),
}


@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_labels_that_do_not_fit_are_an_error_that_names_the_file_once(scenes, change, message, on_corrupt):
    path = change(scenes)
    with pytest.raises(DatasetError, match=f"{path}: .*{message}") as error:
        list(batches(small(scenes, on_corrupt=on_corrupt), 2, 0, 0, False))
    assert str(error.value).count(str(path)) == 1


@pytest.mark.parametrize(("change", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_labels_are_errors_or_left_out(scenes, change, message):
    path = change(scenes)
    with pytest.raises(ImageError, match=f"{path}: .*{message}"):
        small(scenes).batch([0], 0)
    images, _, (failed,) = small(scenes, on_corrupt="skip").read(range(6), 0)
    assert len(images) == 5
    assert failed.startswith(f"{path}: ")


def test_a_missing_label_file_is_an_error_when_the_folder_is_opened(scenes):
    path = scenes / "train" / "labels" / "02.png"
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path}: there is no such file; it needs the labels of .*02.jpg"):
        small(scenes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky\n", "two or more"),
        ("sky\n\nroad\n", "none empty"),
        ("sky\nsky\n", "each once"),
        ("sky\n(void)\n", "two or more"),
        ("\n".join(map(str, range(2**16 + 1))), "needs the names"),
        (None, "is missing; it needs the name of each class"),
    ],
)
def test_invalid_class_names_are_refused(scenes, text, message):
    path = scenes / "classes.txt"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DatasetError, match=f"{path}: .*{message}"):
        open_dataset(scenes, True, False, 0)


def test_missing_folders_and_images_are_errors(scenes):
    with pytest.raises(DatasetError, match="test/images: there is no such folder"):
        small(scenes, "test")
    for file in (scenes / "val" / "images").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(DatasetError, match=r"val/images: there are no images \(left out: 2 of other types"):
        small(scenes, "val")
    shutil.rmtree(scenes / "val" / "labels")
    with pytest.raises(DatasetError, match="val/labels: there is no such folder"):
        small(scenes, "val")


def test_max_pixels_applies_to_labels_and_to_the_first_image(scenes):
    with pytest.raises(ImageError, match=r"labels/00\.png: 36 x 48 pixels exceed the limit of 1,700"):
        small(scenes, max_pixels=1700).shares()
    with pytest.raises(ImageError, match=r"images/00\.jpg: 36 x 48 pixels exceed the limit of 1,700"):
        open_dataset(scenes, True, False, 0, max_pixels=1700)


def test_an_unreadable_folder_is_an_error(scenes, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match="train/images: Permission denied"):
        small(scenes)


def test_files_that_are_not_images_are_left_out_and_counted(scenes):
    (scenes / "train" / "images" / "notes.txt").touch()
    assert str(small(scenes).left_out) == "left out: 1 of other types (.txt)"


def test_unreadable_files_are_left_out_if_skipped(scenes):
    for path in (scenes / "train" / "images" / "01.jpg", scenes / "train" / "labels" / "03.png"):
        path.write_bytes(path.read_bytes()[:60])
    data = small(scenes, on_corrupt="skip")
    images, labels, failed = data.read(range(6), 0)
    assert (len(images), len(labels), len(failed)) == (4, 4, 2)
    assert data.shares().sum() == pytest.approx(1)
    with pytest.raises(ImageError, match=r"labels/03\.png"):
        small(scenes).shares()
    images, labels = data.batch([1], 0)
    assert (images.shape, labels.shape) == ((0, 3, 36, 48), (0, 36, 48))  # calibration joins them with others
    with pytest.raises(ImageError, match=r"01\.jpg"):
        small(scenes).batch(range(6), 0)


def test_an_image_folder_with_classes_txt_stays_an_image_folder(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    assert isinstance(open_dataset(tmp_path, True, False, 0), ImageFolder)


def test_two_images_with_the_same_labels_are_refused(scenes):
    images = scenes / "train" / "images"
    Image.open(images / "01.jpg").save(images / "01.png")
    with pytest.raises(
        DatasetError, match=r"01\.png: is the label file of two images, .*01\.jpg and .*01\.png"
    ):
        small(scenes)


@pytest.mark.parametrize("shape", [(2049, 40), (40, 2049)])
def test_a_first_image_that_is_too_large_needs_a_size(scenes, shape):
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        path = next((scenes / "train" / kind).glob("00.*"))
        Image.new(mode, shape[::-1]).save(path)
    with pytest.raises(
        DatasetError, match=rf"00\.jpg: has {shape[0]} x {shape[1]} pixels, more than 2048 .*: set --size"
    ):
        open_dataset(scenes, True, False, 0)
    assert open_dataset(scenes, True, False, 0, (36, 48)).batch([0], 0)[0].shape == (1, 3, 36, 48)
    Image.new("RGB", tuple(min(side, 2048) for side in shape)).save(scenes / "train" / "images" / "00.jpg")
    assert max(open_dataset(scenes, True, False, 0).shape) == 2048


def test_a_data_set_can_be_pickled(scenes):
    data = open_dataset(scenes, True, True, 0)
    assert same(pickle.loads(pickle.dumps(data)).batch(range(3), 1), data.batch(range(3), 1))
