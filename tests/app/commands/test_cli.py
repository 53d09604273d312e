"""The command `wae`, as a user runs it: what it writes, says, refuses and returns."""

import argparse
import importlib.util
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from wae import cli
from wae.commands import decode, info, shared, types
from wae.data import photos
from wae.data.images import read_image
from wae.experiments import comparison, demo, panels
from wae.inference.engines import ENGINES
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.storage import decomposed, weights_file
from wae.training import stage1
from wae.training.losses import psnr


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    weights_file.save(path, stage1.initial_model([photos.photo("coffee")], seed=0), {})
    return path


@pytest.fixture
def photo_file(tmp_path):
    path = tmp_path / "photo.png"
    image = photos.photo("chelsea")[:, 100:161, 100:180]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileExistsError("out exists; --force replaces it"), "out exists; --force replaces it"),
        (OSError(99, "Cannot assign requested address"), "Cannot assign requested address"),
        (OSError(28, "No space left on device", "out"), "out: No space left on device"),
        (OSError(28, "No space left on device", b"out"), "out: No space left on device"),
    ],
    ids=["our own", "without a file name", "with a file name", "file name in bytes"],
)
def test_system_errors_are_one_line_without_errno(monkeypatch, capsys, error, said):
    def fails(_):
        raise error

    monkeypatch.setattr("wae.commands.info.run", fails)
    assert run("info") == 1
    assert capsys.readouterr().err == f"wae: {said}\n"


# ------------------------------------------------------------------------------------------ encode and decode


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 5), (32, 48)], ids=str)
def test_encode_then_decode(tmp_path, weights, size, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    middle, out = tmp_path / "middle", tmp_path / "out.png"
    assert run("encode", tmp_path / "in.png", "-o", middle, "--dtype", dtype, "--weights", weights) == 0
    assert decomposed.load(middle).low.dtype == getattr(torch, dtype)
    assert run("decode", middle, "-o", out, "--weights", weights) == 0

    model = AutoEncoder()
    weights_file.load(weights, model)
    with torch.no_grad():
        expected = model(read_image(tmp_path / "in.png")[None]).image[0]
    difference = read_image(out).int() - to_uint8(expected).int()
    assert difference.abs().max() <= (0 if dtype == "float32" else 1)


def test_the_included_weights_reconstruct_a_photo(tmp_path):
    assert run("encode", photos.photo_path("chelsea"), "-o", tmp_path / "m") == 0
    assert run("decode", tmp_path / "m", "-o", tmp_path / "out.png") == 0
    assert psnr(read_image(tmp_path / "out.png"), photos.photo("chelsea")) > 48


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.png", "L"),
        ("grey16.png", "I;16"),
        ("alpha.png", "RGBA"),
        ("palette.png", "P"),
        ("cmyk.jpg", "CMYK"),
    ],
    ids=lambda value: value.partition(".")[0],
)
def test_images_of_every_mode_are_reconstructed(tmp_path, weights, name, mode):
    """As well as the linear transform can, which nearly preserves a smooth image."""
    y, x = np.mgrid[0:40, 0:60]
    ramp = (x + 2 * y).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert("RGB").convert(mode)
    image.save(tmp_path / name)
    assert run("encode", tmp_path / name, "-o", tmp_path / "m", "--weights", weights) == 0
    assert run("decode", tmp_path / "m", "-o", tmp_path / "out.png", "--weights", weights) == 0
    out = read_image(tmp_path / "out.png")
    assert psnr(out, read_image(tmp_path / name)) > (30 if mode == "P" else 40)
    if mode in ("L", "I;16"):
        assert np.abs(out[0].numpy().astype(int) - ramp).max() <= 4


def test_nothing_is_overwritten_without_force(tmp_path, weights, photo_file, capsys):
    kept = tmp_path / "kept"
    kept.write_bytes(b"precious")
    assert run("encode", photo_file, "-o", kept, "--weights", weights) == 1
    assert kept.read_bytes() == b"precious"
    assert "kept exists; --force replaces it" in capsys.readouterr().err
    assert run("encode", photo_file, "-o", kept, "--weights", weights, "--force") == 0

    picture = tmp_path / "kept.png"
    picture.write_bytes(b"precious")
    assert run("decode", kept, "-o", picture, "--weights", weights) == 1
    assert picture.read_bytes() == b"precious"
    assert run("decode", kept, "-o", picture, "--weights", weights, "--force") == 0
    assert read_image(picture).shape == (3, 61, 80)


def test_an_input_is_never_overwritten(photo_file, weights, capsys):
    before = photo_file.read_bytes()
    for command in ("encode", "decode"):
        assert run(command, photo_file, "-o", photo_file, "--weights", weights, "--force") == 1
        assert "is the input" in capsys.readouterr().err
    assert photo_file.read_bytes() == before
    before = weights.read_bytes()
    assert run("encode", photo_file, "-o", weights, "--weights", weights, "--force") == 1
    assert "is the input" in capsys.readouterr().err
    assert weights.read_bytes() == before


def test_weights_and_training_photos_are_never_overwritten(tmp_path, photo_file, weights, capsys):
    named = tmp_path / "weights.png"
    named.write_bytes(weights.read_bytes())
    assert run("encode", photo_file, "-o", tmp_path / "m", "--weights", named) == 0
    assert run("decode", tmp_path / "m", "-o", named, "--weights", named, "--force") == 1
    assert "weights.png is the input" in capsys.readouterr().err
    assert named.read_bytes() == weights.read_bytes()
    named.unlink()
    before = photo_file.read_bytes()
    for source in (photo_file, tmp_path):
        options = ("--force", "--steps", 1, "--batch", 1, "--crop", 8)
        assert run("train-autoencoder", source, "-o", photo_file, *options) == 1
        assert "photo.png is the input" in capsys.readouterr().err
    assert photo_file.read_bytes() == before


def test_decode_refuses_unusable_files(tmp_path, weights, photo_file, capsys):
    assert run("encode", photo_file, "-o", tmp_path / "m", "--weights", weights) == 0
    assert run("decode", tmp_path / "m", "-o", tmp_path / "x.unknown", "--weights", weights) == 2
    assert "x.unknown" in capsys.readouterr().err
    assert run("decode", photo_file, "-o", tmp_path / "x.png", "--weights", weights) == 1
    assert "photo.png" in capsys.readouterr().err
    weights_file.save(tmp_path / "other", AutoEncoder(), {})
    assert run("decode", tmp_path / "m", "-o", tmp_path / "x.png", "--weights", tmp_path / "other") == 1
    assert "other weights" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def decoded(tmp_path, weights, photo_file, name, *options):
    """The PSNR of a decoded file, compared with the same image decoded to PNG."""
    middle = tmp_path / "m"
    if not middle.exists():
        assert run("encode", photo_file, "-o", middle, "--weights", weights) == 0
        assert run("decode", middle, "-o", tmp_path / "exact.png", "--weights", weights) == 0
    assert run("decode", middle, "-o", tmp_path / name, "--weights", weights, *options) == 0
    with Image.open(tmp_path / name) as image:
        kept = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return psnr(kept, read_image(tmp_path / "exact.png"))


def test_decode_warns_of_lossy_formats(tmp_path, weights, photo_file, capsys):
    known = Image.registered_extensions().items()
    formats = {
        form: suffix for suffix, form in known if form in (*decode._EXACT, "WEBP", "GIF", "JPEG", "AVIF")
    }
    for form, suffix in formats.items():
        db = decoded(tmp_path, weights, photo_file, f"out{suffix}")
        assert ("is lossy; .png is lossless" in capsys.readouterr().err) == (db < np.inf), form
        assert (db == np.inf) == (form in (*decode._EXACT, "WEBP"))


def test_decode_writes_lossy_formats_at_the_quality_given(tmp_path, weights, photo_file, capsys):
    best = decoded(tmp_path, weights, photo_file, "best.jpg")
    assert best > 40
    assert decoded(tmp_path, weights, photo_file, "poor.jpg", "--quality", 75) < best - 5
    assert decoded(tmp_path, weights, photo_file, "better.jpg", "--quality", 100) > best + 3
    assert decoded(tmp_path, weights, photo_file, "some.webp", "--quality", 80) < 45
    assert "some.webp: WEBP is lossy" in capsys.readouterr().err
    assert run("decode", tmp_path / "m", "-o", tmp_path / "x.png", "--quality", 9, "--weights", weights) == 2
    assert "--quality: needs one of JPEG, WEBP, AVIF, got PNG" in capsys.readouterr().err
    assert run("decode", tmp_path / "m", "-o", tmp_path / "x.msp", "--weights", weights) == 1
    assert "x.msp: Pillow cannot write this as MSP" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dash_is_standard_input_and_output(tmp_path, weights, photo_file):
    """`wae encode - -o - | wae decode - -o -`."""

    def piped(data, command, *options):
        words = [sys.executable, "-m", "wae", command, "-", "-o", "-", "--weights", str(weights), *options]
        return subprocess.run(words, input=data, stdout=subprocess.PIPE, check=True, cwd=tmp_path).stdout

    image = piped(piped(photo_file.read_bytes(), "encode"), "decode")
    assert decoded(tmp_path, weights, photo_file, "out.png") == np.inf
    assert image == (tmp_path / "exact.png").read_bytes()
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/null"])
def test_devices_are_never_replaced(weights, photo_file, target, capsys):
    before = os.lstat(target)
    assert run("encode", photo_file, "-o", target, "--weights", weights, "--force") == 1
    assert "which is never replaced" in capsys.readouterr().err
    assert os.path.samestat(os.lstat(target), before)


def test_a_full_disk_is_reported_with_the_file(tmp_path, weights, photo_file, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        status = run("encode", photo_file, "-o", tmp_path / "m", "--weights", weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert capsys.readouterr().err == f"wae: {tmp_path / 'm'}: File too large\n"
    assert sorted(os.listdir(tmp_path)) == ["photo.png"]


def test_warnings_about_odd_metadata_are_hidden(tmp_path, weights):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # one entry of five
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert read_image(tmp_path / "a.jpg").shape == (3, 40, 20)
        assert "EXIF" in str(said[-1].message)
        said.clear()
        assert run("encode", tmp_path / "a.jpg", "-o", tmp_path / "m", "--weights", weights) == 0
    assert said == []


@pytest.mark.parametrize("content", [b"", b"text", None], ids=["empty", "text", "missing"])
def test_a_broken_image_is_an_error_that_names_it(tmp_path, weights, content, capsys):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    assert run("encode", path, "-o", tmp_path / "m", "--weights", weights) == 1
    message = capsys.readouterr().err
    assert message.startswith("wae: ")
    assert "broken.png" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_what_pillow_logs_about_a_broken_file_is_hidden(tmp_path, weights, capsys):
    path = tmp_path / "a.tif"
    Image.new("RGB", (8, 8)).save(path)
    colours = b"\x15\x01\3\0\1\0\0\0"  # the tag SamplesPerPixel, which its value follows
    path.write_bytes(path.read_bytes().replace(colours + b"\3", colours + b"\x7a"))
    assert run("encode", path, "-o", tmp_path / "a.safetensors", "--weights", weights) == 1
    assert capsys.readouterr().err.startswith(f"wae: {path}: ")


def test_broken_weights_are_named(tmp_path, photo_file, capsys):
    (tmp_path / "w").write_bytes(b"nothing")
    assert run("encode", photo_file, "-o", tmp_path / "m", "--weights", tmp_path / "w") == 1
    assert "not a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "source", "tensor"),
    [
        ("eval WEIGHTS --data digits", "fashion-mnist", "low_body.0.weight"),
        ("predict photo.png --weights WEIGHTS", "fashion-mnist", "low_norm.running_var"),
        ("export WEIGHTS -o out.onnx", "fashion-mnist", "encoder.conv2.bias"),
        ("app --weights WEIGHTS", "fashion-mnist", "image_scale"),
        ("accelerate --model WEIGHTS --data digits -o out", "fashion-mnist", "low_body.0.weight"),
        ("encode photo.png -o out --weights WEIGHTS", "autoencoder", "encoder.conv1.weight"),
        ("train --data digits --autoencoder WEIGHTS -o out", "autoencoder", "decoder.conv1.bias"),
    ],
)
def test_weights_that_are_not_finite_are_named(
    tmp_path, monkeypatch, photo_file, capsys, command, source, tensor
):
    """``wae eval`` printed its table, with the error of networks that guess, and exited with 0."""
    original, path = weights_file.WEIGHTS / f"{source}.safetensors", tmp_path / "broken.safetensors"
    tensors = load_file(original)
    tensors[tensor].view(-1)[-1] = np.nan
    save_file(tensors, path, {"recipe": json.dumps(weights_file.read_recipe(original))})
    monkeypatch.chdir(tmp_path)
    assert run(*command.replace("WEIGHTS", str(path)).split()) == 1
    assert capsys.readouterr().err == f"wae: {path}: {tensor} has numbers that are not finite\n"


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["encode"], ["demo", "--seconds", "-1"]], ids=str)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        "export w -o m --size 100000",
        "export w -o m --size 99999999999999999999",
        "export w -o m --batch 1000000000000",
        "export w -o m --max-drop nan",
        "predict photo.png --batch 1000000000000",
        "predict photo.png --top 99999999999999999999",
        "eval w --data digits --batch 1000000000000",
        "eval w --data digits --workers 1000000",
        "eval w --data digits --workers -1",
        "eval w --data digits --seconds nan",
        "accelerate --model m --data digits -o d --size 5000",
        "accelerate --model m --data digits -o d --factor 65",
        "train --data digits -o d --size 100000",
        "train --data digits -o d --workers 1000000",
        "train --data digits -o d --batch 0",
        "train --data digits -o d --size 28x",
        *(
            f"train --data digits -o d --{option}"
            for option in (
                "epochs 1000001",
                "learning-rate nan",
                "learning-rate=-1",
                "learning-rate inf",
                "seed=-1",
                "seed 2147483649",
                "batch 10000001",
                "accumulate 10000001",
            )
        ),
        *(
            f"train-autoencoder -o d --{option}"
            for option in (
                "steps 500000001",
                "learning-rate nan",
                "energy-weight=-1",
                "seed 2147483649",
                "batch 10000001",
            )
        ),
        "train-autoencoder -o d --crop 99999999999999999999",
        "reproduce fashion-mnist --processes 1000000",
        "reproduce fashion-mnist --seeds 1000000000",
        "reproduce fashion-mnist --times 0",
        "reproduce fashion-mnist --times nan",
        "bench resnet18 --batch 1 1000000000000",
        "bench resnet18 --size 100000",
        "selftest --only 99999999999999999999",
        "selftest --seconds inf",
        "demo --seconds 1e300",
        "decode m -o o.jpg --quality 1000",
        "encode photo.png -o m --max-pixels 99999999999999999999",
    ],
)
def test_an_option_out_of_range_is_refused_in_one_line_before_any_work(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments.split())
    assert caught.value.code == 2
    *usage, error = capsys.readouterr().err.splitlines()
    assert "needs" in error
    assert len(error) < 160
    assert usage[0].startswith("usage: wae")


@pytest.mark.parametrize(
    "arguments",
    [
        "accelerate --model m --data d -o o",
        "app",
        "bench resnet18",
        "eval m --data d --deployed int8",
        "predict photo.png",
    ],
)
def test_an_unknown_engine_is_refused_before_torch_is_imported(arguments, monkeypatch, capsys):
    """Importing it takes seconds."""
    monkeypatch.setattr(cli, "_check_backend", lambda: pytest.fail("this imports torch"))
    with pytest.raises(SystemExit) as caught:
        run(*arguments.split(), "--engine", "steam")
    assert caught.value.code == 2
    assert "--engine: invalid choice: 'steam' (choose from " in capsys.readouterr().err


def test_the_engines_of_options_are_those_of_the_package():
    assert tuple(ENGINES) == types.ENGINES


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("positive", 1, 2**63 - 1),
        ("whole", 0, 2**63 - 1),
        ("batch", 1, 4096),
        ("workers", 0, 256),
        ("processes", 1, 256),
        ("size", 1, 2048),
        ("image_size", 1, 2048),
        ("port", 0, 65535),
        ("seconds", 0, 3600),
        ("percent", 1, 100),
        ("share", 0, 1),
    ],
)
def test_number_options_accept_values_up_to_their_limits(kind, least, most):
    parse = getattr(types, kind)
    assert (parse(str(least)), parse(str(most))) == (least, most)
    for text in (str(least - 1), str(most + 1), "", "many", "nan", "1e99"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"needs .*, got {text}$"):
            parse(text)
    if kind == "image_size":
        assert parse("20x30") == (20, 30)
        with pytest.raises(argparse.ArgumentTypeError, match=r"HEIGHTxWIDTH, got 20x0$"):
            parse("20x0")


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("wae.commands.info.run", lambda options: torch.empty(2**60))
    assert run("info") == 1
    assert capsys.readouterr().err.startswith("wae: out of memory; ")
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("wae: a result cannot be allocated: CUDA out of memory. Tried to allocate 2.00 GiB."),
    ):
        monkeypatch.setattr("wae.commands.info.run", Mock(side_effect=error))
        assert run("info") == 1
        assert capsys.readouterr().err.startswith("wae: out of memory; ")
    monkeypatch.setattr("wae.commands.info.run", lambda options: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run("info")


def test_too_many_open_files_are_one_line(monkeypatch, capsys):
    """As of the batches of 128 workers under the usual limit of 1024."""

    def fails(_):
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")

    monkeypatch.setattr("wae.commands.info.run", fails)
    assert run("info") == 1
    assert capsys.readouterr().err.startswith("wae: too many open files; fewer --workers need fewer, ")


class KillsItsReader(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_killed_dataloader_worker_is_one_line(monkeypatch, capsys):
    """As the kernel kills it if memory or /dev/shm runs out."""
    data = DataLoader(KillsItsReader(), num_workers=1)
    monkeypatch.setattr("wae.commands.info.run", lambda options: list(data))
    assert run("info") == 1
    error = capsys.readouterr().err
    assert re.match(r"wae: DataLoader worker .*: out of memory\? Fewer --workers need less\n$", error)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    assert caught.value.code == 0
    assert "usage: wae" in capsys.readouterr().out


def test_a_missing_package_is_one_sentence_naming_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "wae.experiments.info", raising=False)
    assert run("info") == 1
    assert capsys.readouterr().err == (
        'wae: rich is not installed; `pip install "wae-kernels[app]"` installs it.\n'
    )
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n, *a: None if n == "skimage" else find_spec(n, *a)
    )
    assert run("demo", "--no-timing") == 1
    assert "scikit-image is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("matplotlib.figure", "matplotlib", "app"),
        ("segmentation_models_pytorch", "segmentation-models-pytorch", "segmentation"),
        ("timm", "timm", "timm"),
    ],
)
def test_packages_that_few_commands_need_are_named_too(module, package, extra, monkeypatch, capsys):
    def fail(options):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(info, "run", fail)
    assert run("info") == 1
    wanted = f'wae: {package} is not installed; `pip install "wae-kernels[{extra}]"` installs it.\n'
    assert capsys.readouterr().err == wanted


# ------------------------------------------------------------------------------------------------------- demo


def test_demo_writes_a_picture_of_each_photo_and_a_table(tmp_path, weights, photo_file, capsys):
    out = tmp_path / "out"
    assert run("demo", photo_file, "-o", out, "--no-timing", "--weights", weights) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Decomposed and reconstructed")  # no empty line that a progress bar leaves
    model = AutoEncoder()
    weights_file.load(weights, model)
    assert f"{stage1.quality(model, read_image(photo_file)).psnr:.2f}" in printed
    assert [p.name for p in out.iterdir()] == ["photo.png"]
    with Image.open(out / "photo.png") as picture:
        assert picture.width > 3 * 80
        assert picture.height > 61
    assert panels.is_demo_picture(out / "photo.png")


def test_names_in_tables_are_printed_literally(tmp_path, weights, capsys):
    """Rich would read a style and an emoji in this name, and a terminal a control sequence."""
    name = "[b]:cat:\x1b"
    Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
    arguments = (tmp_path / f"{name}.png", "-o", tmp_path / "o", "--no-timing", "--weights", weights)
    assert run("demo", *arguments) == 0
    assert r"│ [b]:cat:\x1b │ 2 x 2 │" in capsys.readouterr().out
    shared.console().print("[/red]")
    assert capsys.readouterr().out == "[/red]\n"


def test_demo_as_json(tmp_path, weights, capsys, monkeypatch):
    narrow = tmp_path / "narrow.png"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 3), dtype=np.uint8)  # no 2 x 2 block
    Image.fromarray(pixels).save(narrow)
    timings = comparison.Timings("cpu:x", 2, [comparison.OpRow("encode", "NCHW", 1.0, 2.0)], [], 0.5)
    monkeypatch.setattr(comparison, "measure", lambda *_: timings)
    assert run("demo", narrow, "-o", tmp_path / "out", "--weights", weights, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["photos"]
    assert (row["photo"], row["width"], row["height"], row["picture"]) == ("narrow", 1, 5, "narrow.png")
    assert row["psnr"] > 0
    assert row["best_linear_psnr"] is None  # JSON has no NaN
    assert found["timings"]["ops"] == [{"op": "encode", "layout": "NCHW", "wae": 1.0, "stock": 2.0}]
    assert run("demo", narrow, "-o", tmp_path / "out", "--weights", weights, "--json", "--no-timing") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"photos"}


def test_demo_of_a_missing_image_fails_before_timing(tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "measure", lambda *_: pytest.fail("timed"))
    assert run("demo", tmp_path / "nosuch.png", "-o", tmp_path / "out", "--weights", weights) == 1
    assert "nosuch.png" in capsys.readouterr().err


def test_demo_replaces_its_own_pictures_and_nothing_else(tmp_path, weights, photo_file, capsys):
    out = tmp_path / "out"
    arguments = ("demo", photo_file, "-o", out, "--no-timing", "--weights", weights)
    assert run(*arguments) == 0
    assert run(*arguments) == 0  # its own
    mine = Image.new("RGB", (4, 4), "red")
    mine.save(out / "photo.png")
    assert run(*arguments) == 1
    assert "not a picture of an earlier demo" in capsys.readouterr().err
    assert read_image(out / "photo.png").shape == (3, 4, 4)
    assert run(*arguments, "--force") == 0
    assert panels.is_demo_picture(out / "photo.png")


def test_demo_never_replaces_an_input(photo_file, weights, capsys):
    before = photo_file.read_bytes()
    arguments = ("demo", photo_file, "-o", photo_file.parent, "--no-timing", "--weights", weights)
    assert run(*arguments, "--force") == 1
    assert "is one of the inputs" in capsys.readouterr().err
    assert photo_file.read_bytes() == before


def test_demo_into_a_file_is_one_line(photo_file, weights, capsys):
    assert run("demo", photo_file, "-o", weights, "--weights", weights, "--no-timing") == 1
    assert capsys.readouterr().err == f"wae: {weights}: Not a directory\n"


def test_demo_recognises_its_inputs_by_any_path(tmp_path, photo_file):
    (tmp_path / "link").symlink_to(photo_file.parent)
    with pytest.raises(FileExistsError, match="is one of the inputs"):
        demo.targets([tmp_path / "link" / "photo.png"], photo_file.parent, force=True)


def test_demo_continues_after_a_broken_file_and_reports_it(tmp_path, weights, photo_file, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos.photo_path("coffee").read_bytes()[:50_000])
    out = tmp_path / "out"
    assert run("demo", broken, photo_file, "-o", out, "--no-timing", "--weights", weights) == 1
    assert [p.name for p in out.iterdir()] == ["photo.png"]
    assert "broken.png" in capsys.readouterr().err


def test_demo_numbers_pictures_of_the_same_name(tmp_path):
    inputs = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.jpg", tmp_path / "x.tiff"]
    targets = demo.targets(inputs, tmp_path / "out", force=False)
    assert [t.name for t in targets] == ["x.png", "x-2.png", "x-3.png"]


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (901, 3), (13, 17)], ids=str)
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "noise"])
def test_demo_accepts_any_size(tmp_path, weights, size, flat):
    pixels = np.random.default_rng(0).integers(0, 1 if flat else 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    out = tmp_path / "out"
    assert run("demo", tmp_path / "in.png", "-o", out, "--no-timing", "--weights", weights) == 0
    assert read_image(out / "in.png").shape[2] < 8 * 900


@pytest.mark.parametrize(("largest", "factor"), [(0.0, 1024), (1.2, 64), (60.0, 2), (127.0, 1), (500.0, 1)])
def test_amplification_keeps_values_in_range(largest, factor):
    assert panels.amplification(torch.linspace(-largest, largest, 1000)) == factor


@pytest.mark.slow
def test_demo_times_the_ops_and_the_networks(weights, photo_file, tmp_path, capsys):
    arguments = ("demo", photo_file, "-o", tmp_path / "out", "--weights", weights, "--seconds", "0")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    for text in ("encode", "decode", "channels_last", "WAE-VGG16", "1289", "412", "3.13x", "15.47", "4.38"):
        assert text in printed


# ------------------------------------------------------------------------------------------------------- info


def test_info_prints_versions_and_every_backend(capsys):
    from wae_kernels import backends

    assert run("info") == 0
    printed = capsys.readouterr().out
    for text in (torch.__version__, *(b.name for b in backends.available()), "runs through"):
        assert text in printed


def test_info_as_json(capsys):
    from wae_kernels import backends

    assert run("info", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["torch"] == torch.__version__
    assert [each["name"] for each in found["backends"]] == [each.name for each in backends.available()]
    assert run("info", "wae_vgg16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 53_324_582
    assert found["of_these_the_encoder"] < found["multiply_adds"]
    assert run("info", "alexnot", "--json") == 2


def test_info_counts_a_network(capsys):
    assert run("info", "wae_vgg16") == 0
    printed = capsys.readouterr().out
    for text in ("53,324,582", "4.382 G", "0.264 G"):
        assert text in printed
    assert run("info", "alexnot") == 2
    assert "there is no network alexnot; known are wae_vgg16, " in capsys.readouterr().err
    assert run("info", "wae_maxvit_t") == 2  # its attention accepts only images of 224 pixels
    assert "wae_maxvit_t cannot be built: " in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ train-autoencoder


def test_train_autoencoder_writes_weights_that_encode_accepts(tmp_path, photo_file, capsys):
    weights = tmp_path / "w"
    options = ("--steps", 3, "--batch", 2, "--crop", 16, "--seed", 5, "--learning-rate", 1e-4)
    assert run("train-autoencoder", photo_file, "-o", weights, *options) == 0
    printed = capsys.readouterr().out
    for text in ("linear start", "trained", "chelsea", "flower"):
        assert text in printed
    recipe = weights_file.load(weights, AutoEncoder())
    wanted = stage1.schedule(3, batch=2, seed=5, learning_rate=1e-4)
    assert recipe["plan"] == wanted.plan.as_dict()
    assert (recipe["photos"], recipe["data"]["crop"]) == ([str(photo_file)], 16)
    assert run("encode", photo_file, "-o", tmp_path / "m", "--weights", weights) == 0

    assert run("train-autoencoder", photo_file, "-o", weights, *options) == 1
    assert "--force" in capsys.readouterr().err
    again = ("--resume", "--json")  # nothing is left to train
    assert run("train-autoencoder", photo_file, "-o", weights, *options, *again) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["photo"]) for row in rows] == [
        (model, photo) for model in ("linear start", "trained") for photo in photos.HELD_OUT
    ]
    assert all(f"{row['psnr']:.2f}" in printed for row in rows)
    assert run("train-autoencoder", photo_file, "-o", weights, *options, "--resume", "--steps", 4) == 1
    assert "by a different plan" not in (said := capsys.readouterr().err)
    assert "data that differs in number of images (6, not 8)" in said
    assert run("train-autoencoder", photo_file, "-o", weights, "--force", "--crop", 1000) == 1
    assert "smaller than a crop" in capsys.readouterr().err


def test_an_auto_encoder_is_not_trained_on_labels_of_pixels(tmp_path, capsys):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        Image.new("L", (16, 16)).save(tmp_path / kind / "a.png")
    assert run("train-autoencoder", tmp_path, "-o", tmp_path / "w", "--crop", 8) == 1
    assert "holds labels of pixels beside its images" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["argparse", "numpy"], ids=["by the command line", "by torch"])
def test_ctrl_c_while_importing_is_one_line(tmp_path, module):
    """An exception during an import may abort a library's C++ code, and prints a long traceback."""
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    here = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "wae", "info"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": here},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "wae: interrupted\n")


def is_trained(path):
    """Whether an epoch has ended; the checkpoint exists before that."""
    return path.exists() and weights_file.read_recipe(path)["epoch"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (signal.SIGINT, 130, "wae: interrupted"),
        (signal.SIGTERM, 143, "wae: terminated"),
        (signal.SIGHUP, 129, "wae: terminated"),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_ends_a_training_cleanly(tmp_path, sent, status, message):
    command = ["wae.cli", "train-autoencoder", "-o", str(tmp_path / "w"), "--crop", "8", "--batch", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        # a shell starts background jobs with SIGINT ignored, nohup with SIGHUP; children inherit that
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not is_trained(tmp_path / "w"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == status
    assert errors.splitlines()[-1] == message
    assert "Traceback" not in errors
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    assert weights_file.load(tmp_path / "w", AutoEncoder())["epoch"] >= 1


def test_control_characters_are_escaped_in_errors(tmp_path, capsys):
    assert run("encode", tmp_path / "a\nb\x1b[31m.png", "-o", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert r"a\nb\x1b[31m.png" in error
    assert error.count("\n") == 1


def test_a_wrong_backend_is_one_line():
    result = subprocess.run(
        [sys.executable, "-m", "wae", "info"],
        env={"WAE_BACKEND": "foo", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("wae: WAE_BACKEND: backend must be one of auto")
    assert result.stderr.count("\n") == 1


def test_completions(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match="0"):
        run("--print-completion", "bash")
    assert "selftest" in capsys.readouterr().out
