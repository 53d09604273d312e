"""wae.data.images: every kind of file that a user may have."""

import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from wae.data import images, photos
from wae.data.images import (
    BYTES_PER_PIXEL,
    LONGEST,
    MAX_PIXELS,
    ImageError,
    check_length,
    is_image,
    of_pillow,
    read_image,
    read_numbers,
)


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


def test_black_and_white_become_0_and_255(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    assert pixels(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 255]


def test_palette_indices_become_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert pixels(read_image(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_composited_on_white(tmp_path, mode):
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
def test_16_bit_grey_is_rounded_to_8_bits(tmp_path, suffix):
    grey = np.array([[0, 128, 129, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    assert pixels(read_image(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == [0, 0, 1, 100, 255]


def test_big_endian_16_bit_grey(tmp_path):
    values = np.array([[0, 129, 257 * 100]], ">u2")
    Image.frombytes("I;16B", (3, 1), values.tobytes()).save(tmp_path / "a.tiff")
    assert pixels(read_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 1, 100]


def grey_tiff(bits, photometric=1, sample_format=1):
    """The content of a TIFF of two grey pixels, both zero."""
    size = 2 * bits // 8
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: size}
    tags[339] = sample_format
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header, count = struct.pack("<HHI", 0x4949, 42, 8 + size), struct.pack("<H", len(tags))
    return header + bytes(size) + count + entries + bytes(4)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0)])
def test_grey_that_pillow_would_misread_is_refused(tmp_path, bits, photometric, opened):
    """It reads 12 bits as nearly black, and 16 bits whose zero is white as a negative."""
    path = tmp_path / "a.tiff"
    path.write_bytes(grey_tiff(bits, photometric))
    with Image.open(path) as image, pytest.raises(ImageError, match="grey of 12 bits, or of 16 bits whose"):
        of_pillow(image) if opened else read_image(path)


@pytest.mark.parametrize(
    ("bits", "sample_format", "kind"),
    [
        (8, 2, "signed 8-bit"),
        (16, 2, "signed 16-bit"),
        (32, 2, "signed 32-bit"),
        (32, 1, "32-bit"),
        (32, 3, "32-bit"),
    ],
)
@pytest.mark.parametrize("opened", [False, True], ids=["file", "opened"])
def test_values_of_unknown_range_are_refused_by_their_kind(tmp_path, bits, sample_format, kind, opened):
    """Pillow reads signed values of 8 bits as unsigned ones."""
    path = tmp_path / "a.tiff"
    path.write_bytes(grey_tiff(bits, sample_format=sample_format))
    message = rf"^(.*a\.tiff: )?{kind} values have no known range"
    with Image.open(path) as image, pytest.raises(ImageError, match=message):
        of_pillow(image) if opened else read_image(path)


def test_16_bit_colours_keep_the_upper_8_bits(tmp_path):
    samples = np.array([[[0x1234, 0xABCD, 0xFFFF]]], dtype=">u2")
    (tmp_path / "a.png").write_bytes(png(1, 1, 16, 2, [samples.tobytes()]))
    assert pixels(read_image(tmp_path / "a.png")).tolist() == [[[0x12, 0xAB, 0xFF]]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 40, 20)


def test_cmyk_is_converted_to_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 0, 0)).save(tmp_path / "a.jpg")
    red, green, blue = pixels(read_image(tmp_path / "a.jpg"))[0, 0].tolist()
    assert red > 240
    assert blue > 240
    assert green < 15


def test_the_first_frame_of_an_animation_is_read(tmp_path):
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
def test_the_error_for_a_broken_file_names_it(tmp_path, kind):
    with pytest.raises(ImageError, match=r"broken\.png: "):
        read_image(broken(tmp_path / "broken.png", kind))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: there is no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match=f"{tmp_path.name}: this is a folder"):
        read_image(tmp_path)


def test_images_beyond_the_limits_are_refused(tmp_path):
    Image.new("RGB", (40, 25)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=1000).shape == (3, 25, 40)
    with pytest.raises(ImageError, match=r"a\.png: 25 x 40 pixels exceed the limit of 999"):
        read_image(tmp_path / "a.png", max_pixels=999)
    with pytest.raises(ImageError, match=r"a\.png: need one side .*, got 25 x 40 pixels"):
        read_image(tmp_path / "a.png", longest=1)
    Image.new("L", (40, 25)).save(tmp_path / "a.png")
    assert read_numbers(tmp_path / "a.png", max_pixels=1000).shape == (25, 40)
    with pytest.raises(ImageError, match=r"a\.png: 25 x 40 pixels exceed the limit of 999"):
        read_numbers(tmp_path / "a.png", max_pixels=999)


def test_an_aspect_ratio_may_be_100():
    assert LONGEST == 100
    check_length(3, 300)
    for shape in ((3, 301), (301, 3)):
        with pytest.raises(
            ImageError, match=r"need one side at most 100 times as long as the other, got .* pixels"
        ):
            check_length(*shape)


@pytest.mark.parametrize("limit", [1000, 9999])  # Pillow raises an error for the first, warns for the second
def test_a_lower_limit_of_pillow_applies_and_a_higher_max_pixels_raises_it(tmp_path, monkeypatch, limit):
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=rf"a\.png: .* more pixels than {limit:,}, Pillow's limit"):
        read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=MAX_PIXELS + 1).shape == (3, 100, 100)


@pytest.mark.parametrize("limit", [10 * MAX_PIXELS, None])
def test_a_higher_limit_of_pillow_is_kept(tmp_path, monkeypatch, limit):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    read_image(tmp_path / "a.png", max_pixels=2 * MAX_PIXELS)
    assert limit == Image.MAX_IMAGE_PIXELS


def png(width, height, depth, colour, rows, *chunks):
    """The bytes of a PNG file; ``rows`` are not filtered."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    compressor = zlib.compressobj(9)
    body = b"".join(compressor.compress(b"\0" + row) for row in rows) + compressor.flush()
    more = b"".join(chunk(*entry) for entry in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(9600, 9600), (1, 8_000_000)], ids=["large", "long"])
def test_an_image_that_is_too_large_or_too_long_is_not_decoded(tmp_path, shape, monkeypatch):
    height, width = shape
    (tmp_path / "a.png").write_bytes(png(width, height, 1, 0, [bytes((width + 7) // 8)] * height))
    Image.new("L", (1, 1)).save(tmp_path / "small.png")
    read_image(tmp_path / "small.png")  # imports what reading needs
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("the image was decoded"))
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ImageError, match=r"more pixels than|need one side"):
        read_image(tmp_path / "a.png", longest=100)
    assert time.process_time() - started < 0.5
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


PEAK = """
import sys
from wae.data.images import read_image

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

small, *paths = sys.argv[1:]
read_image(small)  # imports what reading needs
for path in paths:
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    pixels = read_image(path).shape[1:].numel()
    print((peak() - before) / pixels)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_per_pixel_is_bounded(tmp_path):
    side = 2000
    rgba = Image.effect_noise((side, side), 50).convert("RGBA")
    rgba.putalpha(128)
    rgb, exif = rgba.convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    paths = []
    for name, image, options in (
        ("a.jpg", rgb, {"progressive": True, "subsampling": 0, "exif": exif}),
        ("a.png", rgba, {}),
        ("a.gif", rgb.quantize(16), {}),
        ("a.webp", rgba, {"quality": 30}),
        ("a.avif", rgba, {"speed": 10}),
        ("a.jp2", rgba, {}),
        ("a.tif", rgba, {"compression": "tiff_lzw", "strip_size": 1 << 30}),
    ):
        image.save(tmp_path / name, **options)
        paths.append(tmp_path / name)
    (tmp_path / "grey.png").write_bytes(png(side, side, 16, 0, [bytes(range(250)) * (side // 125)] * side))
    (tmp_path / "one.png").write_bytes(png(side, side, 1, 0, [bytes(side // 8)] * side))
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    paths += [tmp_path / "grey.png", tmp_path / "one.png"]
    printed = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "small.png", *paths], check=True, stdout=subprocess.PIPE
    ).stdout
    peaks = {path.name: float(line) for path, line in zip(paths, printed.split(), strict=True)}
    assert all(peak <= BYTES_PER_PIXEL for peak in peaks.values()), peaks
    assert peaks["grey.png"] < 20  # with copies in float64 it was 62


ODD_EXIF = b"".join(
    (
        b"Exif\0\0II*\0\x08\0\0\0\x03\0",
        struct.pack("<HHII", 0x0112, 3, 1, 6),  # orientation: SHORT
        struct.pack("<HHII", 0x011A, 10, 1, 50),  # XResolution: SRATIONAL instead of RATIONAL
        struct.pack("<HHIi", 0x0128, 8, 1, -1),  # ResolutionUnit: SSHORT
        b"\0\0\0\0",
        struct.pack("<ii", -1, 0),
    )
)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("cut", [0, 8])
def test_malformed_exif_resolutions_are_ignored(tmp_path, cut):
    """The resolutions have wrong types, or lie beyond the end of the data."""
    exif = ODD_EXIF[: len(ODD_EXIF) - cut]
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 40, 20)


def test_xmp_metadata_that_is_not_text_is_ignored(tmp_path):
    """Pillow looks for an orientation in XMP too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options, shape in (("a", {}, (3, 20, 40)), ("b", {"exif": exif}, (3, 40, 20))):
        Image.new("RGB", (40, 20)).save(tmp_path / f"{name}.jpg", xmp=b"<x:xmpmeta>\xa8", **options)
        with Image.open(tmp_path / f"{name}.jpg") as image:
            assert image.info["xmp"].endswith(b"\xa8")
        assert read_image(tmp_path / f"{name}.jpg").shape == shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation(tmp_path, orientation):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(pixels(image), expected)
    assert image.stride() == (1, 3 * image.shape[2], 3)


@pytest.mark.parametrize("orientation", [b"\x09\0", b"\0\0", b"\xff\xff"])
def test_invalid_exif_orientations_are_ignored(tmp_path, orientation):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 0x0112, 3, 1) + orientation + bytes(6)
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 20, 40)


def test_16_bit_pgm_is_rounded_to_8_bits(tmp_path):
    grey = np.array([[0, 128, 129, 257 * 100, 65535]], dtype=">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 5 1 65535\n" + grey.tobytes())
    assert pixels(read_image(tmp_path / "a.pgm"))[0, :, 0].tolist() == [0, 0, 1, 100, 255]


def test_the_transparent_value_of_16_bit_grey_becomes_white(tmp_path):
    grey = struct.pack(">HHH", 0x1234, 0x1235, 0)
    (tmp_path / "grey.png").write_bytes(png(3, 1, 16, 0, [grey], (b"tRNS", struct.pack(">H", 0x1234))))
    assert pixels(read_image(tmp_path / "grey.png"))[0, :, 0].tolist() == [255, 0x12, 0]


def test_a_nearly_black_transparent_16_bit_colour_becomes_white(tmp_path):
    transparent = struct.pack(">HHH", 5, 6, 7)
    (tmp_path / "a.png").write_bytes(png(1, 1, 16, 2, [transparent], (b"tRNS", transparent)))
    assert pixels(read_image(tmp_path / "a.png")).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("loaded", [False, True])
def test_the_transparent_16_bit_colour_becomes_white(tmp_path, loaded):
    colours = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1334, 0x5678, 0x9ABC)
    transparent = (b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    (tmp_path / "rgb.png").write_bytes(png(2, 1, 16, 2, [colours], transparent))
    expected = [[255, 255, 255], [0x13, 0x56, 0x9A]]
    assert pixels(read_image(tmp_path / "rgb.png"))[0].tolist() == expected
    with Image.open(tmp_path / "rgb.png") as image:
        if loaded:
            image.load()
        for _ in range(2):  # the first call does not change Pillow's image
            assert pixels(of_pillow(image))[0].tolist() == expected
        assert image.info["transparency"] == (0x1234, 0x5678, 0x9ABC)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_value_of_1_to_8_bit_grey_becomes_white(tmp_path, bits, value):
    transparent = (b"tRNS", struct.pack(">H", value))
    rows = [bytes([value << (8 - bits)]), bytes([(1 - value) << (8 - bits)])]
    (tmp_path / "a.png").write_bytes(png(1, 2, bits, 0, rows, transparent))
    expected = [255, (1 - value) * 255 // (2**bits - 1)]
    assert pixels(read_image(tmp_path / "a.png"))[:, 0, 0].tolist() == expected
    with Image.open(tmp_path / "a.png") as image:
        assert pixels(of_pillow(image))[:, 0, 0].tolist() == expected


def test_the_transparent_8_bit_colour_becomes_white(tmp_path):
    image = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    expected = [[255, 255, 255], [1, 2, 4]]
    assert pixels(read_image(tmp_path / "a.png"))[0].tolist() == expected
    with Image.open(tmp_path / "a.png") as image:
        assert pixels(of_pillow(image))[0].tolist() == expected


@pytest.mark.parametrize("strip", [28, 3])  # four rows, less than one row
def test_the_result_does_not_depend_on_the_strip_size(tmp_path, monkeypatch, strip):
    rgba = np.random.default_rng(0).integers(0, 256, (23, 7, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "_STRIP", strip)
    assert torch.equal(read_image(tmp_path / "a.png"), expected)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("content", [EPS, b"%PDF-1.4\n", b"SIMPLE  =                    T" + b" " * 2850])
def test_formats_that_run_programs_or_hold_no_photos_are_not_opened(tmp_path, content, monkeypatch):
    def refuse(*arguments, **options):
        pytest.fail("a program was started")

    monkeypatch.setattr(subprocess, "check_call", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    (tmp_path / "holiday.png").write_bytes(content)
    with pytest.raises(ImageError, match="not an image file, or its format is not supported"):
        read_image(tmp_path / "holiday.png")


def test_an_error_of_the_system_is_reported_without_its_number(tmp_path):
    (tmp_path / "a.png").symlink_to("a.png")
    with pytest.raises(ImageError, match=r"a\.png: the file cannot be read \(Too many .*links\)$"):
        read_image(tmp_path / "a.png")


def test_an_error_without_a_message_is_reported_by_its_type(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match=r"a\.png: the file cannot be read \(AssertionError\)"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, read_numbers])
def test_special_files_are_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (Path("/dev/zero"), tmp_path / "pipe.png"):  # opening the pipe would block
        with pytest.raises(ImageError, match=f"{path}: this is not a regular file"):
            read(path)


@pytest.mark.parametrize("suffix", "jpg png webp gif bmp dib tif ppm avif jp2 j2k".split())
def test_every_format_is_read(tmp_path, suffix):
    Image.new("RGB", (16, 16), (200, 60, 60)).save(tmp_path / f"a.{suffix}")
    assert is_image(f"a.{suffix.upper()}")
    mean = read_image(tmp_path / f"a.{suffix}").float().mean((1, 2))
    assert mean.tolist() == pytest.approx([200, 60, 60], abs=4)


@pytest.mark.parametrize("suffix", "jpeg jpe jfif apng tiff pgm pbm pnm".split())
def test_other_extensions_of_these_formats_are_known(suffix):
    assert is_image(f"a.b.{suffix}")
    assert not is_image(suffix)


def test_libtiff_prints_nothing(tmp_path, capfd):
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path, compression="tiff_lzw")
    content = path.read_bytes()
    at = content.index(b"II*\0") + 8
    path.write_bytes(content[:at] + b"\xff" * 40 + content[at + 40 :])
    with pytest.raises(ImageError, match=r"a\.tif"):
        read_image(path)
    assert capfd.readouterr() == ("", "")
