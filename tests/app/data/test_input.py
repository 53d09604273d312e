"""wae.data.input: preprocessing, compared with the pipelines of timm and torchvision on photos."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import v2

from wae.data import photos
from wae.data.images import ImageError, of_pillow, read_image
from wae.data.input import INTERPOLATIONS, Input, Transforms, prepare, whole
from wae.data.loading import open_dataset

PHOTOS = ("chelsea", "coffee", "rocket", "china")
INPUTS = [
    Input(20, 24),
    Input(20, 24, interpolation="bicubic"),
    Input(20, 24, squash=True),
    Input(20, 24, grayscale=True),
    Input(20, 24, interpolation="nearest"),
    whole(20, 30),
]


def check_close(made, expected):
    """Equal but for rounding, in grey values."""
    difference = (made.float() - expected.float()).abs()
    assert difference.max() <= 2
    assert difference.mean() <= 0.1


def opened(name):
    with Image.open(photos.photo_path(name)) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("network", ["ResNet50_Weights.IMAGENET1K_V2", "EfficientNet_B0_Weights.DEFAULT"])
def test_prepare_matches_torchvision_s_transforms(name, network):
    """One is bilinear, the other bicubic. Ours work on the pixels, torchvision's on Pillow's image."""
    preset = models.get_weight(network).transforms()
    interpolation = preset.interpolation.value
    input = Input(preset.crop_size[0], preset.resize_size[0], interpolation=interpolation)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (preset.mean, preset.std))
    expected = (preset(opened(name)) * std + mean) * 255
    check_close(prepare(photos.photo(name), input), expected)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
    ("interpolation", "crop_pct", "mode"),
    [("bicubic", 0.9, "center"), ("bilinear", 0.875, "center"), ("bicubic", 1.0, "squash")],
)
def test_prepare_matches_timm_s_transforms(name, interpolation, crop_pct, mode):
    data = pytest.importorskip("timm.data")
    transform = data.create_transform(
        (3, 224, 224), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode, normalize=False
    )
    input = Input(224, int(224 / crop_pct), interpolation=interpolation, squash=mode == "squash")
    check_close(prepare(photos.photo(name), input), transform(opened(name)))


@pytest.mark.parametrize("name", PHOTOS)
def test_nearest_takes_the_same_pixels_as_pillow(name):
    """What PyTorch calls "nearest" takes others, up to half a pixel of the result away."""
    resize = v2.Compose([v2.Resize(100, v2.InterpolationMode.NEAREST), v2.CenterCrop(90), v2.PILToTensor()])
    input = Input(90, 100, interpolation="nearest")
    assert torch.equal(prepare(photos.photo(name), input), resize(opened(name)))


@pytest.mark.parametrize("input", INPUTS, ids=str)
def test_a_folder_prepares_its_images_the_same_way(tmp_path, input):
    for label in ("cat", "sky"):
        (tmp_path / "val" / label).mkdir(parents=True)
        opened("chelsea").save(tmp_path / "val" / label / "photo.png")
    (tmp_path / "train").symlink_to("val")
    image = open_dataset(tmp_path, False, False, 0, input).batch([0], 0)[0][0]
    assert torch.equal(image, prepare(photos.photo("chelsea"), input))
    others = [other for other in INPUTS if other != input]
    assert not any(torch.equal(image, prepare(photos.photo("chelsea"), other)) for other in others)
    red, green, blue = open_dataset(tmp_path, True, True, 0, input).batch([0], 0)[0][0]  # augmented
    assert red.shape == input.shape
    assert (torch.equal(red, green) and torch.equal(green, blue)) == input.grayscale


def test_random_crops_use_the_interpolation_of_the_input(photos):
    made = [
        open_dataset(photos, True, True, 0, Input(20, 24, interpolation=interpolation)).batch([0], 0)[0]
        for interpolation in INTERPOLATIONS
    ]
    assert not any(torch.equal(*pair) for pair in combinations(made, 2))
    colours = [{*image.flatten().tolist()} for image in made]
    assert colours[2] <= {*read_image(photos / "train" / "cat" / "0.png").flatten().tolist()}


def test_another_size_keeps_the_crop_and_the_aspect_ratio():
    assert Input(224, 256, interpolation="bicubic").of_size(112) == Input(112, 128, interpolation="bicubic")
    assert Input(224, 224).of_size(160) == Input(160, 160)
    same = Input(28, 29)
    assert same.of_size(28) is same
    assert Input(224, 255).of_size(100) == Input(100, 114)  # 113.8
    assert Input(224, 256).of_size((112, 112)) == Input(112, 128)  # --size 112x112 is --size 112
    assert whole(1000, 3).of_size(100) == whole(100, 1)
    assert whole(1000, 3).of_size((50, 50)) == whole(50, 50)
    assert whole(360, 480).of_size(180) == whole(180, 240)


def test_grayscale_is_pillow_s_and_keeps_grey():
    """torchvision turns 200 into 199."""
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 200, 200]]], np.uint8))
    made = prepare(of_pillow(image), replace(whole(1, 4), grayscale=True))
    assert made.tolist() == [np.asarray(image.convert("L")).tolist()] * 3


def test_grayscale_ignores_the_default_device():
    image, input = of_pillow(Image.new("RGB", (4, 4), (9, 90, 200))), replace(whole(4, 4), grayscale=True)
    wanted = prepare(image, input)
    with torch.device("meta"):
        assert torch.equal(prepare(image, input), wanted)


def test_a_tensor_with_a_large_aspect_ratio_is_refused():
    assert Transforms(INPUTS[0])(torch.zeros(3, 1, 100, dtype=torch.uint8)).shape == (3, 20, 20)
    with pytest.raises(
        ImageError, match=r"need one side at most 100 times as long as the other, got .* pixels"
    ):
        Transforms(INPUTS[0])(torch.zeros(3, 1, 101, dtype=torch.uint8))


def test_a_height_and_a_width_show_the_whole_image():
    made = Input(20, 24, interpolation="bicubic").of_size((30, 40))
    assert made == Input(30, 30, interpolation="bicubic", squash=True, width=40)
    assert made.is_whole
    for other in (Input(20, 24, squash=True), Input(20, 20)):
        assert not other.is_whole


def test_the_largest_input_is_accepted():
    assert Input(2048, 4096).shape == whole(2048, 2048).shape == (2048, 2048)


def test_the_shape_is_height_and_width():
    assert Input(30, 30, squash=True, width=40).shape == (30, 40)
    assert Input(30, 40).shape == (30, 30)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"interpolation": "lanczos"},
            "interpolation must be one of bilinear, bicubic, nearest, got 'lanczos'",
        ),
        ({"interpolation": ["bilinear"]}, "interpolation must be one of"),
        ({"squash": 1}, "squash must be true or false, got 1"),
        ({"grayscale": 1}, "grayscale must be true or false, got 1"),
        ({"size": 0}, "size must be an integer from 1 to 2048, got 0"),
        ({"size": 2049, "resize": 2049}, "size must be an integer from 1 to 2048, got 2049"),
        ({"size": True}, "size must be an integer from 1 to 2048, got (?i:true)"),
        ({"resize": 223}, "resize must be an integer from 224 to 4096, got 223"),
        ({"resize": 4097}, "resize must be an integer from 224 to 4096, got 4097"),
        ({"resize": 224, "squash": True, "width": 2049}, "width must be an integer from 1 to 2048, got 2049"),
        ({"resize": 224, "squash": True, "width": 0}, "width must be an integer from 1 to 2048, got 0"),
        ({"resize": 224, "squash": True, "width": True}, "width must be an integer .*, got (?i:true)"),
        ({"resize": 224, "squash": False, "width": 40}, "width needs squash = true and resize equal to size"),
        ({"resize": 225, "squash": True, "width": 40}, "width needs squash = true and resize equal to size"),
    ],
    ids=str,
)
def test_invalid_entries_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        Input(**entries)


def _pillow_images():
    """Kinds of Pillow images that are easily read differently from their files."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (24, 30, 4), dtype=np.uint8))
    yield "transparent", colours
    yield "16-bit", Image.fromarray(random.integers(0, 65536, (24, 30), dtype=np.uint16))
    yield "grey", colours.convert("L")
    yield "palette", colours.convert("RGB").convert("P")
    rotated = colours.convert("RGB")
    rotated.getexif()[0x0112] = 6
    yield "rotated", rotated


@pytest.mark.parametrize(("kind", "image"), [pytest.param(*pair, id=pair[0]) for pair in _pillow_images()])
def test_a_pillow_image_is_transformed_like_its_file(kind, image, tmp_path):
    """`wae predict` and `model.transforms()(image)` must see the same."""
    path = tmp_path / "image.png"
    image.save(path, **({"exif": image.getexif()} if kind == "rotated" else {}))
    expected = prepare(read_image(path), INPUTS[0])
    with Image.open(path) as opened:
        assert torch.equal(Transforms(INPUTS[0])(opened), expected)
    assert torch.equal(Transforms(INPUTS[0])(image), expected)
    assert torch.equal(Transforms(INPUTS[0], invert=True)(image), 255 - expected)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (torch.rand(3, 24, 30), r"\(3, 24, 30\) torch.float32"),
        (torch.zeros(1, 24, 30, dtype=torch.uint8), r"\(1, 24, 30\) torch.uint8"),
        (torch.zeros(2, 3, 24, 30, dtype=torch.uint8), r"\(2, 3, 24, 30\)"),
        (np.zeros((24, 30, 3), np.uint8), "ndarray"),
    ],
)
def test_the_transform_refuses_other_types(image, got):
    """Many transforms return values from 0 to 1: such an image would be nearly black."""
    with pytest.raises(TypeError, match=f"image must be a Pillow image or .*, got {got}"):
        Transforms(INPUTS[0])(image)
