"""wae.data.images: every kind of file that a user may bring."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wae.data import photos
from wae.data.images import ImageError, read_image


def pixels(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def test_rgb_is_exact_and_channels_last(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(pixels(image), rgb)
    assert image.stride() == (1, 21, 3)


def test_grey_becomes_three_equal_colours(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(pixels(read_image(tmp_path / "a.png")), np.dstack([grey] * 3))


def test_black_and_white_is_0_and_255(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    assert pixels(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 255]


def test_palette_gives_the_palette_s_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert pixels(read_image(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_over_white(tmp_path, mode):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128 if mode != "P" else 255))
    if mode == "P":  # one palette entry is transparent
        image = Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8), mode="P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.save(tmp_path / "a.png", transparency=0)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    row = pixels(read_image(tmp_path / "a.png"))[0, :, 0].tolist()
    assert row == ([255, 0, 0] if mode == "P" else [255, 0, 127])


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_rounded_to_8(tmp_path, suffix):
    grey = np.array([[0, 128, 129, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    assert pixels(read_image(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == [0, 0, 1, 100, 255]


def test_16_bit_colours_keep_the_upper_8_bits(tmp_path):
    samples = np.array([[[0x1234, 0xABCD, 0xFFFF]]], dtype=">u2")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + samples.tobytes()))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    assert pixels(read_image(tmp_path / "a.png")).tolist() == [[[0x12, 0xAB, 0xFF]]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 40, 20)


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 0, 0)).save(tmp_path / "a.jpg")
    red, green, blue = pixels(read_image(tmp_path / "a.jpg"))[0, 0].tolist()
    assert red > 240
    assert blue > 240
    assert green < 15


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(read_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def broken(path: Path, kind: str) -> Path:
    good = photos.photo_path("coffee").read_bytes()
    jpeg = photos.photo_path("rocket").read_bytes()
    content = {
        "empty": b"",
        "text": b"this is not an image",
        "truncated png": good[: len(good) // 2],
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "header only": good[:20],
        "flipped bytes": good[:5000] + bytes(255 - b for b in good[5000:6000]) + good[6000:],
    }[kind]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "kind", ["empty", "text", "truncated png", "truncated jpeg", "header only", "flipped bytes"]
)
def test_a_broken_file_gives_one_error_that_names_it(tmp_path, kind):
    with pytest.raises(ImageError, match=r"broken\.png: "):
        read_image(broken(tmp_path / "broken.png", kind))


def test_missing_file_folder_and_unreadable_range(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: there is no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match=tmp_path.name):
        read_image(tmp_path)
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ImageError, match=r"float\.tiff: 32-bit values"):
        read_image(tmp_path / "float.tiff")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side in (40, 100):  # Pillow itself warns about the first and refuses the second
        Image.new("RGB", (side, side)).save(tmp_path / "bomb.png")
        with pytest.raises(ImageError, match=r"bomb\.png: the image has more than 1,000 pixels"):
            read_image(tmp_path / "bomb.png")
