"""`wae train` and `wae eval` as a user runs them: results, resuming and errors."""

import functools
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from command_line import run
from pickles import RunsCode
from PIL import Image
from printed_tables import rich_cells
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_classifier import tiny

from wae.data.folder import image_folder
from wae.data.input import luma
from wae.models import registry
from wae.models.accelerated import Form, accelerated
from wae.models.baselines import FullResolution, HalfResolution
from wae.models.registry import builder
from wae.models.small_vgg import SmallVGG
from wae.storage import weights_file
from wae.storage.checkpoint import Input, describe, load_classifier, save_classifier
from wae.training import observers, plan, pretrained, processes, session, small_data

TINY = """
model = "tiny"
batch = 8
[[stages]]
kind = "transform"
epochs = 1
learning_rate = 1e-3
optimizer = "adam"
[[stages]]
kind = "classifier"
epochs = 1
learning_rate = 0.05
[[stages]]
kind = "joint"
epochs = 2
learning_rate = 0.05
"""


def tiny_half(classes=3):
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return HalfResolution(torch.nn.Sequential(body, torch.nn.Linear(4, classes)))


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    for build in (tiny, tiny_half):
        monkeypatch.setitem(registry.NETWORKS, build.__name__, build)


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def folder_of_images(folder, labels=("blue", "green", "red"), each=8):
    """PNG files, 20 pixels high and 18 wide, in which the colour of the label is brighter."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for number, label in enumerate(labels):
            (folder / part / label).mkdir(parents=True)
            for i in range(each):
                pixels = random.integers(0, 150, (20, 18, 3), dtype=np.uint8)
                pixels[..., number % 3] += 90
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")
    return folder


@pytest.fixture
def images(tmp_path):
    return folder_of_images(tmp_path / "data")


@pytest.fixture
def train(images, plan_file, tmp_path):
    """`wae train` on the folder of images, 14 pixels a side, into tmp_path/out; options can be replaced."""

    def train(*more, data=images, out=tmp_path / "out", plan=plan_file):
        return run("train", "--data", data, "--plan", plan, "-o", out, "--size", 14, *more)

    return train


def errors(capsys):
    return capsys.readouterr().err


def same_weights(*files):
    one, other = map(load_file, files)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------------------------------------- results


def test_train_writes_plan_weights_log_and_checkpoint(train, tmp_path, capsys):
    assert train() == 0
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names - {"tensorboard"} == {"plan.toml", "state.safetensors", "model.safetensors", "log.jsonl"}
    model = out / "model.safetensors"
    assert describe(model).labels == ("blue", "green", "red")
    assert describe(model).input == Input(14, 16, False)
    assert load_classifier(model).decoder is not None
    with safe_open(model, framework="pt") as file:
        made = json.loads(file.metadata()["recipe"])
    assert made["plan"] == plan.read(out / "plan.toml").as_dict()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"]) for line in lines] == [
        ("transform", 0), ("classifier", 0), ("joint", 0), ("joint", 1),
    ]  # fmt: skip
    assert made["accuracy"][0] == lines[-1]["accuracy"]["top1"]
    printed = capsys.readouterr().out
    assert "stage 3/3 joint, epoch 2/2: loss" in printed
    assert "top-1 error" in printed


def test_the_saved_plan_gives_the_same_network(train, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    assert train() == 0
    assert train(out=again, plan=out / "plan.toml") == 0
    assert (again / "plan.toml").read_text() == (out / "plan.toml").read_text()
    assert same_weights(out / "model.safetensors", again / "model.safetensors")


def test_one_stage_alone_from_given_weights(train, tmp_path):
    assert train() == 0
    model = tmp_path / "out" / "model.safetensors"
    assert train("--stage", 2, "--epochs", 1, "--weights", model, out=tmp_path / "stage2") == 0
    before, after = load_file(model), load_file(tmp_path / "stage2" / "model.safetensors")
    fixed = [name for name in before if name.startswith(("encoder.", "decoder.", "image_"))]
    assert fixed
    assert all(torch.equal(before[name], after[name]) for name in fixed)


def test_weights_for_images_of_another_size_are_noted(train, tmp_path, capsys):
    """As where --size is forgotten in the second of two stages."""
    given = tmp_path / "given.safetensors"
    save_classifier(given, builder("tiny")(3), "tiny", ["blue", "green", "red"], Input(14, 16))
    printed = []
    for size in (14, 16):
        assert train("--weights", given, "--size", size, "--epochs", 1, out=tmp_path / f"{size}") == 0
        printed.append(" ".join(capsys.readouterr().out.split()))
    assert ["is for images of" in text for text in printed] == [False, True]
    assert "given.safetensors: is for images of 14 x 14, and sees 16 x 16" in printed[1]


def test_eval_compares_trained_networks(train, tmp_path, capsys, images):
    assert train() == 0
    assert train("--model", "tiny_half", out=tmp_path / "half") == 0
    capsys.readouterr()
    weights = (tmp_path / folder / "model.safetensors" for folder in ("half", "out"))
    assert run("eval", *weights, "--data", images, "--seconds", 0.05) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    last = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])
    assert f"{100 - 100 * last['accuracy']['top1']:.2f} %" in printed.out
    assert "(1.00x)" in printed.out


def test_tensorboard_files_hold_curves_and_images(train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train() == 0
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert {"epoch/loss", "epoch/reconstruction", "epoch/cross entropy", "test/top1"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("epoch/loss")] == [3, 6, 9, 12]
    for name in ("image", "low", "high", "reconstruction"):
        assert [event.step for event in events.Images(name)] == [3, 6, 9, 12]


def test_tensorboard_steps_continue_after_resume_without_repetition(train, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(observers, "_EVERY", 1)  # every step is written
    real, left = observers.TensorBoard.step, [8]

    def step(self, number, losses):
        real(self, number, losses)
        self._writer.flush()
        left[0] -= 1
        if left[0] == 0:  # in the middle of the third epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(observers.TensorBoard, "step", step)
        assert train() == 130
    assert train("--resume") == 0
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("epoch/loss")] == [3, 6, 9, 12]


def test_a_folder_removed_during_training_is_created_again(train, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    out, end, removed = tmp_path / "out", observers.JsonLines.end, []

    def remove(log, epoch, model):
        end(log, epoch, model)
        if not removed:
            removed.append(out.rename(tmp_path / "removed"))

    monkeypatch.setattr(observers.JsonLines, "end", remove)
    assert train() == 0
    assert not errors(capsys)
    assert {"state.safetensors", "model.safetensors", "log.jsonl", "tensorboard"} == {
        path.name for path in out.iterdir()
    }


def test_training_without_tensorboard_says_so_and_continues(train, monkeypatch, capsys, tmp_path):
    def missing(*arguments):
        raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")

    monkeypatch.setattr(session, "TensorBoard", missing)
    assert train("--epochs", 1) == 0
    assert 'not installed (pip install "wae-kernels[tensorboard]")' in capsys.readouterr().out
    assert not (tmp_path / "out" / "tensorboard").exists()


# --------------------------------------------------------------------------------------------------- resuming


def interrupt_in_epoch(monkeypatch, number):
    """Ctrl-C at the beginning of an epoch, counted from 1 over all stages."""
    real, left = session.Terminal.start, [number]

    def start(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(session.Terminal, "start", start)


def test_resume_after_an_interrupt_gives_the_same_network(train, monkeypatch, capsys, tmp_path):
    assert train(out=tmp_path / "uninterrupted") == 0
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 3)
        assert train() == 130
    assert "holds all complete epochs; the same command with --resume continues from there" in errors(capsys)
    with open(tmp_path / "out" / "log.jsonl", "a") as file:
        file.write("{half a li")  # as a kill may leave it
    assert train("--resume") == 0
    assert same_weights(*(tmp_path / name / "model.safetensors" for name in ("uninterrupted", "out")))
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 4


def test_resume_after_an_interrupt_in_the_first_epoch(train, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        assert train() == 130
    assert "the same command with --resume continues from there" in errors(capsys)
    assert train("--resume") == 0  # from the beginning


def test_resume_before_the_first_checkpoint_starts_from_the_given_weights(train, monkeypatch, tmp_path):
    given = ["--weights", weights(tmp_path / "given.safetensors"), "--autoencoder", "included"]
    uninterrupted, out = tmp_path / "uninterrupted", tmp_path / "out"
    assert train(*given, out=uninterrupted) == 0
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        assert train(*given) == 130
    assert train(*given, "--resume") == 0
    assert same_weights(uninterrupted / "model.safetensors", out / "model.safetensors")
    assert (out / "plan.toml").read_text() == (uninterrupted / "plan.toml").read_text()


def test_other_files_in_the_folder_are_kept(train, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert train() == 1
    assert "is not empty; --resume continues the training in it, --force replaces it" in errors(capsys)
    assert train("--resume") == 1
    assert "holds no training to resume" in errors(capsys)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    assert train("--force", "--epochs", 1) == 0
    assert (out / "thesis.txt").read_text() == "precious"
    assert train(out=out / "thesis.txt") == 1
    assert "thesis.txt is not a folder" in errors(capsys)


def test_resume_with_other_options_is_refused_and_changes_nothing(train, tmp_path, capsys):
    out = tmp_path / "out"
    assert train("--epochs", 1) == 0
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for options, message in (
        (["--epochs", 3], "different plan: epochs (1, not 3) of stage 1, epochs (1, not 3) of stage 2, "),
        (["--epochs", 1, "--batch", 4], "was made by a different plan: batch (8, not 4)"),
        (["--epochs", 1, "--size", 16], "data that differs in image size ([14, 14], not [16, 16])"),
        (["--epochs", 1, "--autoencoder", "included"], "was begun with other options: --autoencoder"),
        (["--epochs", 1, "--on-corrupt", "skip"], "was begun with other options: --on-corrupt ('error', not"),
        (
            ["--epochs", 1, "--weights", weights(tmp_path / "other")],
            "was begun with other options: --weights",
        ),
    ):
        assert train("--resume", *options) == 1
        assert message in (error := errors(capsys))
        remedy = f"; with --plan {out / 'plan.toml'}, and no other option that changes a plan, it resumes"
        assert (remedy in error) == ("by a different plan" in error)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept
    assert train("--resume", "--plan", out / "plan.toml") == 0


def test_a_full_disk_keeps_the_last_checkpoint(train, monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 3)
        assert train() == 130
    state = tmp_path / "out" / "state.safetensors"
    kept = state.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limits[1]))
    try:
        assert train("--resume") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large; " in (error := errors(capsys))
    assert "--resume continues from there" in error
    assert state.read_bytes() == kept
    assert train("--resume") == 0


def test_an_oserror_of_a_library_is_one_line(train, monkeypatch, tmp_path, capsys):
    def fail(*arguments, **options):
        raise OSError("no such lake\nor river")  # without errno, so without the system's message

    monkeypatch.setattr("wae.training.session.train", fail)
    assert train() == 1
    assert errors(capsys) == f"wae: {tmp_path / 'out'}: no such lake; nothing was trained yet\n"


LONGER = """
model = "wae_small_vgg"
batch = 100
start = "linear"
[[stages]]
kind = "joint"
epochs = 3
learning_rate = 0.05
ema = 0.9
"""


@pytest.mark.slow
def test_resume_after_a_kill_gives_bit_identical_weights(tmp_path, capsys):
    """kill -9 of a separate process, in the middle of an epoch."""
    path, uninterrupted, killed = (tmp_path / name for name in ("plan.toml", "uninterrupted", "killed"))
    path.write_text(LONGER)
    arguments = ["train", "--data", "digits", "--plan", str(path), "-o"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wae.cli", *arguments, str(killed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not (lines := (killed / "log.jsonl").read_text() if (killed / "log.jsonl").exists() else ""):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3 * json.loads(lines.splitlines()[0])["seconds"])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len((killed / "log.jsonl").read_text().splitlines())
    assert 1 <= done < 3
    assert not (killed / "model.safetensors").exists()
    assert run(*arguments, killed, "--resume") == 0
    assert f"resuming after stage 1/1 joint, epoch {done}/3" in capsys.readouterr().out
    assert run(*arguments, uninterrupted) == 0
    assert same_weights(*(folder / "model.safetensors" for folder in (uninterrupted, killed)))


@pytest.mark.slow
def test_three_stages_on_digits(tmp_path, capsys):
    """All stages of the included plan. Guessing would be right for one image in ten."""
    assert run("train", "--data", "digits", "-o", tmp_path / "out") == 0
    epochs = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [epoch["kind"] for epoch in epochs] == ["transform"] * 2 + ["classifier"] * 4 + ["joint"] * 3
    assert epochs[1]["losses"]["reconstruction"] < epochs[0]["losses"]["reconstruction"]
    assert epochs[-1]["accuracy"]["top1"] >= 0.9
    assert describe(tmp_path / "out" / "model.safetensors").input == Input(28, 28, True)
    capsys.readouterr()
    assert run("eval", tmp_path / "out" / "model.safetensors", "--data", "digits", "--seconds", 0.1) == 0
    assert f"{100 - 100 * epochs[-1]['accuracy']['top1']:.2f} %" in capsys.readouterr().out


@pytest.mark.slow  # three processes that import torch
def test_two_processes_share_one_training(train, plan_file, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('model = "small_vgg_half"\nbatch = 500\n[[stages]]\nkind = "classifier"\nepochs = 1\n'
                    "learning_rate = 0.05\n")  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["-m", "wae.cli", "train", "--data", "digits", "--plan", path, "-o", tmp_path / "out"]
    done = subprocess.run(
        [*command, *arguments, "--device", "cpu", "--json"], capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/1") == 1
    (epoch,) = json.loads(done.stdout)["epochs"]  # printed by one process only
    assert epoch["accuracy"]["images"] == 297
    assert describe(tmp_path / "out" / "model.safetensors").network == "small_vgg_half"
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 1


# -------------------------------------------------------------------------------------------------- bad input


def test_files_left_out_of_a_folder_are_reported(train, images, tmp_path, capsys):
    (images / "train" / ".ipynb_checkpoints").mkdir()
    (images / "val" / "red" / "new.heic").touch()
    assert train("--epochs", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{images}/train: left out: 1 hidden" in lines
    assert f"{images}/val: left out: 1 of other types (.heic)" in lines
    model = tmp_path / "out" / "model.safetensors"
    assert run("eval", model, "--data", images, "--seconds", 0.05) == 0
    assert f"{images}/val: left out: 1 of other types (.heic)" in errors(capsys)


def test_a_folder_name_is_printed_escaped(train, images, tmp_path, capsys):
    """It may have bytes that are not UTF-8, or a line feed."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff\n[red]")
    os.rename(images, odd)
    Path(odd, "train", "new.heic").touch()
    assert train("--epochs", 1, data=odd) == 0
    left_out = rf"{tmp_path}/d\udcff\n[red]/train: left out: 1 beside the class folders"
    assert left_out in capsys.readouterr().out.splitlines()


def test_images_above_max_pixels_are_refused(train, images, tmp_path, capsys):
    assert train("--max-pixels", 359) == 1
    assert "20 x 18 pixels exceed the limit of 359" in errors(capsys)
    assert train("--max-pixels", 360, "--force") == 0
    model = tmp_path / "out" / "model.safetensors"
    assert run("eval", model, "--data", images, "--max-pixels", 359) == 1
    assert "20 x 18 pixels exceed the limit of 359" in errors(capsys)


def test_resume_needs_the_same_max_pixels(train, images, capsys):
    Image.new("RGB", (40, 40)).save(next((images / "train").rglob("*.png")))
    options = "--on-corrupt", "skip", "--epochs", 1
    assert train("--max-pixels", 1000, *options) == 0
    assert train("--resume", *options) == 1
    assert "was begun with other options: --max-pixels ('1000', not None)" in errors(capsys)
    assert train("--resume", "--max-pixels", 1000, *options) == 0


def test_corrupt_images_end_a_training_or_are_skipped(train, images, capsys):
    (images / "train" / "red" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert train() == 1
    assert "3.png: " in errors(capsys)
    assert train("--force", "--on-corrupt", "skip") == 0
    lines = capsys.readouterr().out.splitlines()
    (reported,) = (line for line in lines if line.startswith("left out: "))  # once, not in every epoch
    assert "3.png: " in reported
    assert sum(line.endswith(" s, 1 image left out") for line in lines) == 4


def test_test_images_left_out_are_reported(train, images, capsys):
    next((images / "val").rglob("*.png")).write_bytes(b"no image")
    assert train("--on-corrupt", "skip", "--stage", 2, "--epochs", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"left out: {images / 'val'}") for line in lines) == 1
    assert sum(line.endswith(" s, 1 image left out") for line in lines) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [((), "is empty; need a folder of images for each class"), (("one",), "has only one class, one")],
    ids=["empty", "one class"],
)
def test_fewer_than_two_classes_are_refused(train, tmp_path, capsys, labels, message):
    folder = folder_of_images(tmp_path / "other", labels, each=1)
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    assert train(data=folder) == 1
    assert message in errors(capsys)
    assert not (tmp_path / "out").exists()


def weights(path, classes=3, network="tiny"):
    save_classifier(path, builder(network)(classes), network)
    return path


@pytest.mark.parametrize(
    ("status", "options", "message"),
    [
        (1, lambda p: ["--weights", p / "none"], "none: there is no such file"),
        (1, lambda p: ["--weights", weights(p / "w", 4)], "w: has 4 classes, the data has 3"),
        (
            1,
            lambda p: ["--weights", weights(p / "w", network="tiny_half")],
            "needs tiny for 3 classes, got tiny_half for 3",
        ),
        (1, lambda p: ["--autoencoder", weights(p / "w")], "its tensors are not those of the network"),
        (1, lambda p: ["--teacher", weights(p / "w", 4)], "/w: has 4 classes, the data has 3"),
        (
            2,
            lambda p: ["--teacher", weights(p / "w")],
            "is given, but no stage of the plan has a mimic_weight",
        ),
        (1, lambda p: ["--teacher", p / "none"], "none: there is no such file"),
        (2, lambda p: ["--model", "vgg99", "--data", "nowhere"], "there is no network vgg99"),
        (1, lambda p: ["--model", "small_vgg"], "448, 512 these work: 28, 32"),
        pytest.param(
            1,
            lambda p: ["--model", "wae_maxvit_t"],
            "(its bodies get 7 x 7 of images of 14 x 14); of --size 28, 32, ",
            marks=pytest.mark.slow,
        ),
        (2, lambda p: ["--model", "autoencoder"], "wae train-autoencoder trains it"),
        (
            1,
            lambda p: ["--model", "resnet18", "--batch", 1],
            "cannot be trained on parts of 1 image of 14 x 14: ",
        ),
        (1, lambda p: ["--model", "resnet18", "--accumulate", 8], "on parts of 1 image of 14 x 14: "),
        (1, lambda p: ["--model", "resnet18", "--accumulate", 16], "on parts of 1 image of 14 x 14: "),
        (1, lambda p: ["--device", "meta"], "device meta cannot be used here"),
        (2, lambda p: ["--plan", "none"], "none: is neither a file nor one of the plans"),
        (1, lambda p: ["--batch", 100], "at most the 24 images of the training set, got 100"),
        (2, lambda p: ["--device", "abacus"], "there is no device abacus: "),
        (2, lambda p: ["--body-weights", "torchvision"], "torchvision has no weights for tiny"),
        (1, lambda p: ["--data", "nowhere"], "nowhere: is neither a folder, nor shards, nor one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_refused_before_training(train, tmp_path, capsys, status, options, message):
    """With 2 if the command line alone is wrong, and with 1 if a file or this machine does not do."""
    assert train(*options(tmp_path)) == status
    assert message in errors(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_wae_around_a_network_that_takes_only_some_sizes_is_trained_on_one(train, images, tmp_path):
    """DLA takes multiples of 32 pixels, so WAE around it multiples of 64."""
    pytest.importorskip("timm", reason="timm is not installed")
    assert train("--model", "wae_dla46_c", "--size", 64, "--learning-rate", 1e-4) == 0
    assert run("eval", tmp_path / "out" / "model.safetensors", "--data", images, "--seconds", 0) == 0


def test_without_a_plan_one_is_made_for_the_folder(images, tmp_path):
    """Its batch, epochs and image size follow from the images, whose shorter side is 18 pixels."""
    out = tmp_path / "out"
    assert run("train", "--data", images, "--model", "tiny", "-o", out, "--epochs", 1) == 0
    made = plan.read(out / "plan.toml")
    assert (made.model, made.batch) == ("tiny", 8)
    assert [stage.kind for stage in made.stages] == ["transform", "joint"]
    assert describe(out / "model.safetensors").input == Input(64, 73, False)


def test_without_a_plan_too_an_unknown_network_is_named_before_the_data_are_read(tmp_path, capsys):
    """Listing the files of a large data set takes long."""
    assert run("train", "--data", tmp_path / "nowhere", "--model", "vgg99", "-o", tmp_path / "out") == 2
    assert "there is no network vgg99; known are" in errors(capsys)


def test_without_a_plan_too_a_device_that_does_not_exist_is_named_before_the_data_are_read(tmp_path, capsys):
    arguments = ("--data", tmp_path / "nowhere", "--device", "abacus", "-o", tmp_path / "out")
    assert run("train", *arguments) == 2
    assert "there is no device abacus: " in errors(capsys)


def test_the_default_image_size_fits_the_images(tmp_path):
    for side, size in ((20, 64), (100, 96), (120, 128), (130, 128), (900, 224)):
        folder = tmp_path / str(side)
        for part in ("train", "val"):
            for label in "ab":
                (folder / part / label).mkdir(parents=True)
                Image.new("RGB", (side, 2 * side)).save(folder / part / label / "1.png")
        assert small_data.fitting_size(image_folder(folder, train=True)) == size


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [(24, 8, 60), (200, 8, 60), (1000, 32, 60), (10_000, 64, 13), (10**6, 64, 5)],
)
def test_the_default_batch_and_epochs_depend_on_the_number_of_images(images, batch, epochs):
    made = small_data.small_data_plan(images)
    assert (made.batch, made.stages[1].epochs) == (batch, epochs)


def test_the_default_plan():
    assert small_data.small_data_plan(4).batch == 4
    stages = (
        plan.Stage("transform", 1, 1e-3, "adam", warmup=0.1),
        plan.Stage("joint", 13, 1e-3, "adamw", weight_decay=0.05, encoder_rate=0.1, warmup=13 / 20),
    )
    wanted = plan.Plan("wae_resnet18", stages, batch=64, start="linear")
    assert small_data.small_data_plan(10_000) == wanted


def test_the_default_image_size_is_that_of_most_readable_images(tmp_path):
    for number, side in enumerate((70, 200, 200, None, None)):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side)).save(path) if side else path.write_bytes(b"no image")
    assert small_data.fitting_size(image_folder(tmp_path, train=True)) == 192


def test_every_option_is_passed_on(monkeypatch):
    seen = []
    monkeypatch.setattr(session.Session, "run", lambda made, console, show: seen.append((made, show)))
    line = (
        "train --data d -o o --plan digits --model tiny --stage 2 3 --epochs 9 --learning-rate 0.2 --batch 6 "
        "--accumulate 2 --precision bfloat16 --seed 7 --weights w --body-weights b --autoencoder a "
        "--teacher t --resume --force --size 20x30 --on-corrupt skip --max-pixels 99 "
        "--workers 8 --device cpu --json"
    )
    assert run(*line.split()) == 0
    ((made, show),) = seen
    digits = plan.find("digits")
    lengths = {"epochs": 9, "learning_rate": 0.2}
    labelled, joint = digits.stages[1:]
    stages = replace(labelled, warmup=0.5 * 9 / 4, **lengths), replace(joint, **lengths)  # 0.5 of 4 epochs
    changed = {"model": "tiny", "batch": 6, "accumulate": 2, "precision": "bfloat16", "seed": 7}
    files = {"weights": Path("w"), "body_weights": "b", "autoencoder": Path("a"), "teacher": Path("t")}
    others = {"size": (20, 30), "on_corrupt": "skip", "max_pixels": 99, "workers": 8, "device": "cpu"}
    wanted = replace(digits, stages=stages, **changed)
    assert made == session.Session(wanted, "d", Path("o"), resume=True, force=True, **files, **others)
    defaults = [f.name for f in fields(made) if getattr(made, f.name) == f.default]
    assert defaults == ["original"]  # excludes the other initial weights: test_fine_tuning.py
    assert show is not None


@pytest.mark.parametrize(("stages", "rates"), [((), [1e-3, 0.2, 0.2]), ((1,), [0.2])])
def test_a_rate_is_for_the_stages_with_labels_or_for_stage_1_alone(monkeypatch, stages, rates):
    seen = []
    monkeypatch.setattr(session.Session, "run", lambda made, *_: seen.append(made))
    some = ("--stage", *stages) if stages else ()
    assert run("train", "--data", "digits", "-o", "o", "--learning-rate", 0.2, *some, "--json") == 0
    assert [stage.learning_rate for stage in seen[0].plan.stages] == rates


def test_plan_list_prints_the_included_plans(capsys):
    with pytest.raises(SystemExit) as ended:
        run("train", "--plan", "list")
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in plan.PLANS.glob("*.toml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "this is not a file of weights"),
        (b"junk", "this is not a file of weights"),
        (pickle.dumps(RunsCode()), "this is not a file of weights|nothing in it was run"),
        (RunsCode(), "nothing in it was run"),
        ([torch.zeros(1)], "must hold a state_dict, tensors by name"),
        ({"conv.weight": torch.zeros(1)}, "not the weights of small_vgg's body: 0.weight is missing"),
        ({"0.weight": torch.zeros(32, 3, 5, 5)}, "not the weights of small_vgg's body"),
    ],
    ids=["missing", "empty", "text", "pickle", "torch.save of code", "list", "names", "shapes"],
)
def test_files_that_hold_no_body_are_refused(tmp_path, content, message):
    path = tmp_path / "body.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    model = SmallVGG(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(weights_file.CheckpointError, match=message):
        pretrained.load_body(model, "small_vgg", str(path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_body_that_is_not_finite_is_refused(tmp_path):
    model, path = SmallVGG(3), tmp_path / "body.pth"
    torch.save({**model.body.state_dict(), "0.bias": torch.full((32,), torch.inf)}, path)
    with pytest.raises(
        weights_file.CheckpointError, match=r"body\.pth: 0\.bias has numbers that are not finite"
    ):
        pretrained.load_body(model, "small_vgg", str(path))


def test_eval_refuses_scores_that_are_not_finite(images, tmp_path, capsys):
    """Such as sums that overflow. It printed a table with the error of networks that guess."""
    path, model = tmp_path / "model.safetensors", tiny(3)
    for parameter in model.low_classifier.parameters():
        parameter.data.fill_(3e38)
    save_classifier(path, model, "tiny", input=Input(14, 16, False))
    assert run("eval", path, "--data", images, "--seconds", 0.05) == 1
    assert f"{path}: its scores of the test images are not finite" in errors(capsys)


def test_unreadable_test_images_are_skipped_unless_all_are(train, images, tmp_path, capsys):
    for path in (images / "val" / "red").iterdir():
        path.write_bytes(b"broken")
    model = tmp_path / "model.safetensors"
    save_classifier(model, tiny(3), "tiny", input=Input(14, 16, False))
    arguments = ["eval", model, "--data", images, "--on-corrupt", "skip", "--batch", 4, "--seconds", 0.05]
    assert run(*arguments) == 0
    assert errors(capsys).count("wae: left out: ") == 8
    assert train("--on-corrupt", "skip") == 0
    for path in (images / "val").rglob("*.png"):
        path.write_bytes(b"broken")
    assert train("--on-corrupt", "skip", "--force") == 1
    assert "val: none of the 24 images tried can be read" in errors(capsys)


def test_only_the_first_process_prints_an_evaluation(images, tmp_path, capsys, monkeypatch):
    model = tmp_path / "model.safetensors"
    save_classifier(model, tiny(3), "tiny", None, Input(14, 16, False))
    for first in (True, False):
        monkeypatch.setattr(processes, "is_first", lambda first=first: first)
        assert run("eval", model, "--data", images, "--seconds", 0.05) == 0
        said = capsys.readouterr()
        assert ("top-1 error" in said.out, bool(said.out)) == (first, first)
        note = "has no class names; its classes are matched by number"
        assert (note in said.err, bool(said.err)) == (first, first)


def test_eval_prints_full_paths_and_no_top_5_of_three_classes(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model = tmp_path / ("long" * 20) / "model.safetensors"
    save_classifier(model, tiny(3), "tiny", None, Input(14, 16, False))
    assert run("eval", model, "--data", images, "--seconds", 0.05) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if "│" in line) <= 80
    networks, _, top5, *_ = zip(*rich_cells(printed), strict=True)
    assert str(model) in "".join(networks)
    assert set(top5) == {""}


def test_eval_refuses_images_that_the_network_does_not_accept(images, tmp_path, capsys):
    """Of the data's size, or of the checkpoint's."""
    for data, classes in ((images, 3), ("digits", 10)):
        model = tmp_path / f"{classes}.safetensors"
        save_classifier(model, builder("small_vgg")(classes), "small_vgg", None, Input(64, 73, False))
        assert run("eval", model, "--data", data) == 1
        assert f"{model}: takes no images of 64 x 64 (mat1" in errors(capsys)


def test_eval_refuses_networks_of_other_classes(images, tmp_path, capsys):
    four = weights(tmp_path / "four", 4)
    assert run("eval", four, "--data", images) == 1
    assert "four: has 4 classes, the data has 3" in errors(capsys)
    save_classifier(four, tiny(3), "tiny", ("blue", "green", "grey"), force=True)
    assert run("eval", four, "--data", images) == 1
    assert "differ from those of the data: only the network has grey; only the data has red" in errors(capsys)
    assert run("eval", tmp_path / "none", "--data", images) == 1
    assert "none: there is no such file" in errors(capsys)


# --------------------------------------------------------------------------------------- the order of classes


@functools.cache
def network_of_colours():
    """A network trained once for all tests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, plan_file = folder_of_images(folder / "data"), folder / "tiny.toml"
        plan_file.write_text(TINY)
        options = ("--size", 14, "--epochs", 10)
        assert run("train", "--data", images, "--plan", plan_file, "-o", folder / "out", *options) == 0
        return load_classifier(folder / "out" / "model.safetensors")


@pytest.fixture
def trained(images, tmp_path):
    """A network of the classes blue, green, red. Blue is then renamed violet, now the folder's last class."""
    for part in ("train", "val"):
        (images / part / "blue").rename(images / part / "violet")
    path = tmp_path / "trained.safetensors"
    save_classifier(path, network_of_colours(), "tiny", ("violet", "green", "red"), Input(14, 16, False))
    return path


def test_eval_matches_classes_by_name(trained, images, capsys):
    assert run("eval", trained, "--data", images, "--seconds", 0.05) == 0
    assert " 0.00 %" in capsys.readouterr().out.splitlines()[3]


def test_training_keeps_the_class_order_of_the_weights(trained, train, tmp_path):
    more = ("--weights", trained, "--stage", 2, "--learning-rate", 0, "--epochs", 1)
    assert train(*more, out=tmp_path / "more") == 0
    made = tmp_path / "more" / "model.safetensors"
    assert describe(made).labels == ("violet", "green", "red")
    assert json.loads((made.parent / "log.jsonl").read_text())["accuracy"]["top1"] == 1.0
    assert train(*more, "--resume", out=tmp_path / "more") == 0


def labelled(*labels):
    """Data with these classes that do not come from files."""
    return SimpleNamespace(labels=labels)


def test_a_teachers_scores_are_in_the_class_order_of_the_data(trained, images, tmp_path):
    stage = replace(plan.find("digits").stages[-1], mimic_weight=1.0)
    training = session.Session(plan.Plan("tiny", (stage,)), str(images), tmp_path / "new", teacher=trained)
    images = torch.randint(256, (4, 3, 14, 14), dtype=torch.uint8)
    teacher = training._teacher(images, labelled("green", "red", "violet"), Input(14, 16), Console())
    assert torch.equal(teacher(images), load_classifier(trained)(images)[:, [1, 2, 0]])


def test_a_teacher_of_grey_images_sees_the_luma(images, tmp_path):
    path, data = tmp_path / "grey.safetensors", labelled("blue", "green", "red")
    save_classifier(path, network_of_colours(), "tiny", data.labels, Input(14, 16, grayscale=True))
    stage = replace(plan.find("digits").stages[-1], mimic_weight=1.0)
    training = session.Session(plan.Plan("tiny", (stage,)), str(images), tmp_path / "new", teacher=path)
    photos = torch.randint(256, (4, 3, 14, 14), dtype=torch.uint8)
    grey = torch.stack([luma(photo) for photo in photos])
    printed = io.StringIO()
    teacher = training._teacher(photos, data, Input(14, 16), Console(file=printed))
    assert torch.equal(teacher(photos), load_classifier(path)(grey))
    assert printed.getvalue() == ""


@pytest.mark.parametrize("side", [14, 16])
def test_a_teacher_for_images_of_another_size_is_noted(trained, images, tmp_path, side):
    stage = replace(plan.find("digits").stages[-1], mimic_weight=1.0)
    training = session.Session(plan.Plan("tiny", (stage,)), str(images), tmp_path / "new", teacher=trained)
    printed = io.StringIO()
    photos = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    data, seen = labelled("green", "red", "violet"), Input(side, 2 * side)
    training._teacher(photos, data, seen, Console(file=printed, width=1000))
    noted = f"the teacher, {trained}: is for images of 14 x 14, and sees 16 x 16\n"
    assert printed.getvalue() == (noted if side == 16 else "")


@pytest.mark.parametrize(
    ("wanted", "noted"),
    [
        (Input(14, 16), ""),
        (
            Input(14, 14, interpolation="bicubic"),
            "14 x 14 (bicubic, the middle 100%) 14 x 14 (bilinear, the middle 88%)",
        ),
        (Input(14, 16, squash=True), "14 x 14 (the middle 88%, squashed) 14 x 14 (the middle 88%)"),
        (Input(14, 14, squash=True), "14 x 14 (the full image) 14 x 14 (the middle 88%)"),
        (Input(16, 18), "16 x 16 14 x 14"),
    ],
)
def test_a_teacher_for_images_scaled_or_cropped_otherwise_is_noted(
    train, plan_file, tmp_path, capsys, wanted, noted
):
    """It may teach worse, and nothing else says so."""
    plan_file.write_text(TINY + "mimic_weight = 1.0\n")
    teacher = tmp_path / "teacher.safetensors"
    save_classifier(teacher, builder("tiny")(3), "tiny", ["blue", "green", "red"], wanted)
    assert train("--teacher", teacher, "--epochs", 1) == 0
    printed = " ".join(capsys.readouterr().out.split())
    found = re.search(r"the teacher, \S+: is for images of (.*?), and sees (\d+ x \d+(?: \(.*?\))?)", printed)
    assert (" ".join(found.groups()) if found else "") == noted


def test_colours_are_noted_where_a_network_sees_other_ones():
    colour, grey = Input(14, 16), Input(14, 16, grayscale=True)
    data = SimpleNamespace(labels=())
    of = [
        session._other_input("it", wanted, data, seen) for wanted in (colour, grey) for seen in (colour, grey)
    ]
    assert of == [
        "",
        "it: is for images of 14 x 14 (in colour), and sees 14 x 14 (grey)",
        "it: is for images of 14 x 14 (grey), and sees 14 x 14 (in colour)",
        "",
    ]


def test_a_plan_that_needs_a_teacher_says_so(train, plan_file, capsys):
    plan_file.write_text(TINY + "mimic_weight = 1.0\n")
    assert train() == 2
    assert "the plan has a mimic_weight, which needs a teacher (--teacher)" in errors(capsys)


# -------------------------------------------------------------------------------------------- initial weights


def test_training_from_the_included_autoencoder(train, tmp_path):
    assert train("--autoencoder", "included", "--stage", 2) == 0
    ours = load_file(tmp_path / "out" / "model.safetensors")
    included = load_file(weights_file.WEIGHTS / "autoencoder.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in included.items())
    assert plan.read(tmp_path / "out" / "plan.toml").start == "random"


def test_a_session_uses_the_seed_and_start_of_its_plan_unless_weights_are_given(images, tmp_path):
    linear = plan.Plan("tiny", (plan.Stage("joint", 1, 0.1),), start="linear", seed=5)
    included = weights_file.WEIGHTS / "autoencoder.safetensors"

    def session_of(plan=linear, **options):
        made = session.Session(plan, str(images), tmp_path / "out", size=14, **options)
        sets = made._sets(Console())
        return sets, *made._model(sets[0], (14, 14), False)

    sets, made, model = session_of()
    assert [data.seed for data in sets] == [5, 5]
    augmented = [not torch.equal(*(data.batch(range(8), epoch)[0] for epoch in (0, 1))) for data in sets]
    assert augmented == [True, False]
    same, other = (next(session_of(replace(linear, seed=seed))[2].parameters()) for seed in (5, 6))
    assert torch.equal(same, next(model.parameters()))
    assert not torch.equal(other, same)
    assert made == linear
    given = {"weights": weights(tmp_path / "w")}, {"autoencoder": included}
    assert [session_of(**option)[1].start for option in given] == ["random"] * 2
    _, _, half = session_of(replace(linear, model="tiny_half"))
    assert torch.allclose(255 * half.image_scale, 1 / torch.tensor([0.229, 0.224, 0.225]))
    weighted = replace(linear, stages=(replace(linear.stages[0], low_weight=0.5),))
    for model, weight in (("wavelet_small_vgg", 0.5), ("tiny_half", 0)):
        assert session_of(replace(weighted, model=model))[1].stages[0].low_weight == weight


def test_low_is_a_small_image_for_a_given_body(images, tmp_path):
    """The body was trained on colours, not on principal components of 2 x 2 blocks."""
    body, given = tmp_path / "body.safetensors", {}
    save_classifier(body, builder("small_vgg")(3), "small_vgg")
    own = plan.Plan("wae_small_vgg", (plan.Stage("joint", 1, 0.1),))
    for start in ("random", "linear", "small_image"):
        made = session.Session(replace(own, start=start), str(images), tmp_path, body_weights=str(body))
        given[start] = made._model(made._sets(Console())[0], (28, 28), False)[0].start
    assert given == {"random": "random", "linear": "small_image", "small_image": "small_image"}


def test_a_given_body_and_autoencoder_replace_those_of_the_weights(images, tmp_path):
    files = {"weights": tmp_path / "network", "body_weights": tmp_path / "body.safetensors"}
    for name, path in zip(("wae_small_vgg", "small_vgg"), files.values(), strict=True):
        save_classifier(path, builder(name)(3), name)
    files["autoencoder"] = weights_file.WEIGHTS / "autoencoder.safetensors"
    own = plan.Plan("wae_small_vgg", (plan.Stage("joint", 1, 0.1),))
    made = session.Session(own, str(images), tmp_path / "out", size=28, **files)
    training, _ = made._sets(Console())
    network, body, autoencoder = map(load_file, files.values())
    body = {name.replace("body.", "low_body.", 1): t for name, t in body.items() if name.startswith("body.")}
    for resumes in (False, True):  # from a checkpoint, which holds all weights
        loaded = made._model(training, (28, 28), resumes)[1].state_dict()
        wanted = {**network, **body, **autoencoder}
        assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items()) == (not resumes)
        assert loaded.keys() == wanted.keys()


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model.backbone."]
)
def test_a_body_saved_inside_another_module_is_found(tmp_path, prefix, wrapper):
    source, path = SmallVGG(7), tmp_path / "body.pth"
    tensors = {prefix + name: tensor for name, tensor in source.body.state_dict().items()}
    others = [{}, {"head.weight": torch.zeros(3)}] if prefix in ("", "model.", "backbone.") else [{}]
    for other in others:
        torch.save({wrapper: tensors | other, "epoch": 3}, path)
        model = builder("small_vgg")(3)
        pretrained.load_body(model, "small_vgg", str(path))
        assert torch.equal(model.body[0].weight, source.body[0].weight)


@pytest.mark.parametrize("name", ["googlenet", "googlenet_half", "efficientnet_v2_l"])
def test_a_network_with_torchvisions_weights_sees_what_these_expect(monkeypatch, name):
    """A mean and deviation of 0.5: torchvision's own GoogLeNet rescales images to them.

    EfficientNetV2-L is replaced by GoogLeNet here, which is a tenth of its size.
    """
    from torchvision import models

    source = models.googlenet(num_classes=5, init_weights=False)
    monkeypatch.setattr(models, "get_model", lambda *_, **__: source)
    model = FullResolution(models.googlenet(num_classes=3, aux_logits=False, init_weights=False))
    pretrained.scale_for_photos(model)
    pretrained.load_body(model, name, "torchvision")
    for scale, shift in zip(model.image_scale, model.image_shift, strict=True):
        assert (255 * scale.item(), shift.item()) == pytest.approx((2, -1))


def test_a_failed_download_is_reported(train, monkeypatch, capsys):
    def get_model(name, weights=None, **options):
        if weights:
            raise URLError("no route to host")
        return models.resnet18(**options)

    from torchvision import models

    monkeypatch.setattr(models, "get_model", get_model)
    assert train("--model", "resnet18", "--size", 32, "--body-weights", "torchvision") == 1
    assert "weights for resnet18 could not be downloaded: <urlopen error no route to host>" in errors(capsys)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_body_is_loaded_from_another_networks_file(tmp_path, suffix):
    """The body is the same; the networks' names and numbers of classes differ. Old files have no counters."""
    source, path = SmallVGG(7), tmp_path / f"body.{suffix}"
    tensors = source.state_dict()
    old = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    save_file(tensors, path) if suffix == "safetensors" else torch.save({"state_dict": old}, path)
    for name, body in (
        ("wae_small_vgg", "low_body"), ("small_vgg", "body"), ("small_vgg_half", "network.0"),
    ):  # fmt: skip
        model = builder(name)(3)
        pretrained.load_body(model, name, str(path))
        loaded = model.get_submodule(body).state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in source.body.state_dict().items())


def staged(blocks, **others):
    """A body with a stage of so many convolutions, as ResNets and the like have, which is used twice."""
    stage = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 1) for _ in range(blocks)))
    return torch.nn.Sequential(OrderedDict(stem=torch.nn.Conv2d(3, 4, 3), stage=stage, again=stage, **others))


def test_a_deeper_network_is_not_taken_for_the_body(tmp_path):
    """ResNet34 has all layers of ResNet18, with the same names, and more."""
    model, path = tiny(), tmp_path / "body.pth"
    model.low_body = staged(2)
    others = {"fc.weight": torch.zeros(3, 4), "stage.table": torch.zeros(2)}
    for prefix in ("", "features.", "low_body."):
        source = staged(2)
        torch.save({prefix + name: tensor for name, tensor in (source.state_dict() | others).items()}, path)
        pretrained.load_body(model, "tiny", str(path))
        assert torch.equal(model.low_body.stage[1].weight, source.stage[1].weight)
        torch.save({prefix + name: tensor for name, tensor in staged(3).state_dict().items()}, path)
        with pytest.raises(weights_file.CheckpointError, match=r"stage\.2\.weight is unexpected"):
            pretrained.load_body(model, "tiny", str(path))
        assert torch.equal(model.low_body.stage[1].weight, source.stage[1].weight)


def test_a_norm_in_the_head_of_timms_networks_is_part_of_the_body(tmp_path):
    """Their bodies keep it, so it needs its trained weights."""
    model, path = tiny(), tmp_path / "body.pth"
    source, model.low_body = (
        staged(1, head=torch.nn.Sequential(OrderedDict(norm=torch.nn.BatchNorm2d(4)))) for _ in range(2)
    )
    torch.nn.init.normal_(source.head.norm.weight)
    torch.save(source.state_dict() | {"head.fc.weight": torch.zeros(3, 4)}, path)
    pretrained.load_body(model, "tiny", str(path))
    assert torch.equal(model.low_body.head.norm.weight, source.head.norm.weight)


def test_weights_of_the_same_network_in_another_form_are_refused(tmp_path):
    """Some of the names are the same in an accelerated network."""
    path, form = tmp_path / "accelerated.safetensors", Form(64)
    made = accelerated(builder("small_photo_vgg")(3).network, form)
    save_classifier(path, made, "wae_small_photo_vgg", form=form)
    model = builder("wae_small_photo_vgg")(3)
    before = model.low_body[0].weight.clone()
    with pytest.raises(weights_file.CheckpointError, match=r"accelerated\.safetensors: these are not"):
        pretrained.load_weights(model, "wae_small_photo_vgg", 3, path)
    assert torch.equal(model.low_body[0].weight, before)


@pytest.mark.parametrize("name", ["squeezenet1_1_half", "squeezenet1_1_at_64"])
def test_torchvision_weights_are_loaded_without_the_classifier(name, monkeypatch):
    from torchvision import models

    source = models.squeezenet1_1(num_classes=5)
    requests = []

    def get_model(name, weights=None, **options):
        requests.append((name, weights))
        return source if weights else models.squeezenet1_1(**options)

    monkeypatch.setattr(models, "get_model", get_model)
    model = builder(name)(3)
    pretrained.load_body(model, name, "torchvision")
    assert requests[-1] == ("squeezenet1_1", "DEFAULT")
    assert torch.equal(model.network.features[0].weight, source.features[0].weight)
    assert model.network.classifier[1].weight.shape[0] == 3


def test_images_are_normalised_for_a_network_that_does_not_scale_them():
    model = FullResolution(torch.nn.Identity())
    pretrained.scale_for_photos(model)
    grey = model(torch.full((1, 3, 1, 1), 255 * 0.5)).flatten()
    assert grey.tolist() == pytest.approx(
        [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225], rel=1e-4
    )
    kept = SmallVGG(3)
    pretrained.scale_for_photos(kept)
    assert torch.equal(kept.image_scale, SmallVGG(3).image_scale)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18_half", "wae_resnet18", "wavelet_resnet18", "wavelet_vgg16"]
)
def test_torchvision_networks_have_four_forms(name):
    with torch.device("meta"):
        model = builder(name)(7)
        assert model.eval()(torch.empty(2, 3, 224, 224)).shape == (2, 7)
