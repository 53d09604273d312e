"""`wae train` and `wae eval`, as a user runs them: what comes of it, and everything that can go wrong."""

import functools
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_classifier import tiny

from wae import cli
from wae.data.folder import image_folder
from wae.models import registry
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


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def folder_of_images(folder, labels=("blue", "green", "red"), each=8):
    """PNG files of 20 x 18 pixels; of colours as their labels say."""
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


# ------------------------------------------------------------------------------------------- what comes out


def test_the_folder_of_results(train, tmp_path, capsys, images):
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
    said = capsys.readouterr().out
    assert "stage 3/3 joint, epoch 2/2: loss" in said
    assert "top-1 error" in said

    # the same again, from the plan that was kept
    again = tmp_path / "again"
    assert train(out=again, plan=out / "plan.toml") == 0
    assert (again / "plan.toml").read_text() == (out / "plan.toml").read_text()
    one, other = load_file(model), load_file(again / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)

    # stages by themselves, one from the other's weights
    assert train("--stage", 2, "--epochs", 1, "--weights", model, out=tmp_path / "stage2") == 0
    changed = load_file(tmp_path / "stage2" / "model.safetensors")
    for name in one:
        still = name.startswith(("encoder.", "decoder.", "image_"))
        assert torch.equal(one[name], changed[name]) or not still

    # evaluated, beside another
    assert run("train", "--data", images, "--plan", out / "plan.toml", "--model", "tiny_half", "-o",
               tmp_path / "half", "--size", 14) == 0  # fmt: skip
    capsys.readouterr()
    weights = tmp_path / "half" / "model.safetensors", model
    assert run("eval", *weights, "--data", images, "--seconds", 0.05) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"{100 - 100 * lines[-1]['accuracy']['top1']:.2f} %" in said.out
    assert "(1.00x)" in said.out


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


def test_tensorboards_steps_go_on_over_a_resume_and_none_comes_twice(train, tmp_path, monkeypatch):
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


def test_a_folder_that_is_removed_meanwhile_is_made_again(train, tmp_path, monkeypatch, capsys):
    """TensorBoard's file could not be gone on with: a traceback, and the end of the training."""
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


def test_without_tensorboard_training_says_so_and_goes_on(train, monkeypatch, capsys, tmp_path):
    def missing(*arguments):
        raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")

    monkeypatch.setattr(session, "TensorBoard", missing)
    assert train("--epochs", 1) == 0
    assert 'not installed (pip install "wae-kernels[tensorboard]")' in capsys.readouterr().out
    assert not (tmp_path / "out" / "tensorboard").exists()


# ------------------------------------------------------------------------------------------------- going on


class Stop:
    """Ctrl-C (or another error) at the beginning of an epoch."""

    def __init__(self, monkeypatch, epoch, error=KeyboardInterrupt):
        real, left = session.Terminal.start, [epoch]

        def start(*arguments):
            left[0] -= 1
            if left[0] == 0:
                raise error
            real(*arguments)

        monkeypatch.setattr(session.Terminal, "start", start)


def test_interrupted_and_gone_on_with(train, monkeypatch, capsys, tmp_path):
    assert train(out=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        Stop(patch, 3)
        assert train() == 130
    assert "holds all complete epochs; the same command with --resume continues from there" in errors(capsys)
    with open(tmp_path / "out" / "log.jsonl", "a") as file:
        file.write("{half a li")  # a kill can leave that
    assert train("--resume") == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 4


def test_interrupted_in_the_first_epoch(train, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        Stop(patch, 1)
        assert train() == 130
    assert "the same command with --resume continues from there" in errors(capsys)
    assert train("--resume") == 0  # from the beginning


def test_going_on_before_the_first_checkpoint_starts_from_the_given_weights(train, monkeypatch, tmp_path):
    given = ["--weights", weights(tmp_path / "given.safetensors"), "--autoencoder", "included"]
    assert train(*given, out=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        Stop(patch, 1)
        assert train(*given) == 130
    assert train(*given, "--resume") == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "out" / "plan.toml").read_text() == (tmp_path / "whole" / "plan.toml").read_text()


def test_a_folder_with_something_in_it_is_not_touched(train, tmp_path, capsys):
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
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for options, message in (
        (["--epochs", 3], "another epochs (1, not 3) of stage 1, epochs (1, not 3) of stage 2, "),
        (["--epochs", 1, "--batch", 4], "was made by a plan with another batch (8, not 4)"),
        (["--epochs", 1, "--size", 16], "data that differs in image size ([14, 14], not [16, 16])"),
        (["--epochs", 1, "--autoencoder", "included"], "was begun with another --autoencoder"),
        (["--epochs", 1, "--on-corrupt", "skip"], "was begun with another --on-corrupt ('error', not"),
        (["--epochs", 1, "--weights", weights(tmp_path / "other")], "was begun with another --weights"),
    ):
        assert train("--resume", *options) == 1
        assert message in (said := errors(capsys))
        way = f"; with --plan {out / 'plan.toml'}, and no other option that changes a plan, it resumes"
        assert (way in said) == ("by a plan" in said)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept
    assert train("--resume", "--plan", out / "plan.toml") == 0
    assert train(out=out / "thesis.txt") == 1
    assert "thesis.txt is not a folder" in errors(capsys)


def test_a_full_disk_keeps_what_there_is(train, monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patch:
        Stop(patch, 3)
        assert train() == 130
    state = tmp_path / "out" / "state.safetensors"
    kept = state.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limits[1]))
    try:
        assert train("--resume") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large; " in (said := errors(capsys))
    assert "--resume continues from there" in said
    assert state.read_bytes() == kept
    assert train("--resume") == 0


def test_an_error_of_the_system_in_a_librarys_own_words(train, monkeypatch, tmp_path, capsys):
    def fail(*arguments, **options):
        raise OSError("no such lake\nor river")  # without a number, and so without the system's words

    monkeypatch.setattr("wae.training.session.train", fail)
    assert train() == 1
    assert errors(capsys) == f"wae: {tmp_path / 'out'}: no such lake; nothing was trained yet\n"


KILLED = """
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
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, capsys):
    """kill -9 in the middle of an epoch, in a process of its own."""
    path, whole, killed = tmp_path / "plan.toml", tmp_path / "whole", tmp_path / "killed"
    path.write_text(KILLED)
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
    assert run(*arguments, whole) == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_three_stages_on_digits(tmp_path, capsys):
    """The whole method, by the shipped plan. Guessing is right for one of ten."""
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
    (epoch,) = json.loads(done.stdout)["epochs"]  # of one process
    assert epoch["accuracy"]["images"] == 297
    assert describe(tmp_path / "out" / "model.safetensors").network == "small_vgg_half"
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 1


# ------------------------------------------------------------------------------------------------ bad input


def broken(folder):
    (folder / "train" / "red" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


def test_what_is_left_out_of_a_folder_is_reported(train, images, tmp_path, capsys):
    (images / "train" / ".ipynb_checkpoints").mkdir()
    (images / "val" / "red" / "new.heic").touch()
    assert train("--epochs", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{images}/train: left out: 1 hidden" in lines
    assert f"{images}/val: left out: 1 of other types (.heic)" in lines
    model = tmp_path / "out" / "model.safetensors"
    assert run("eval", model, "--data", images, "--seconds", 0.05) == 0
    assert f"{images}/val: left out: 1 of other types (.heic)" in errors(capsys)


def test_a_folder_whose_name_no_terminal_can_show(train, images, tmp_path, capsys):
    """Bytes that are no UTF-8 ended the training, and a line feed made two lines of one."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff\n[red]")
    os.rename(images, odd)
    Path(odd, "train", "new.heic").touch()
    assert train("--epochs", 1, data=odd) == 0
    left_out = rf"{tmp_path}/d\udcff\n[red]/train: left out: 1 beside the class folders"
    assert left_out in capsys.readouterr().out.splitlines()


def test_a_limit_of_pixels(train, images, tmp_path, capsys):
    assert train("--max-pixels", 359) == 1
    assert "18 x 20 pixels exceed the limit of 359" in errors(capsys)
    assert train("--max-pixels", 360, "--force") == 0
    model = tmp_path / "out" / "model.safetensors"
    assert run("eval", model, "--data", images, "--max-pixels", 359) == 1
    assert "18 x 20 pixels exceed the limit of 359" in errors(capsys)


def test_a_training_that_leaves_images_out_goes_on_with_the_same_limit_of_pixels(
    train, images, tmp_path, capsys
):
    Image.new("RGB", (40, 40)).save(next((images / "train").rglob("*.png")))
    options = "--on-corrupt", "skip", "--epochs", 1
    assert train("--max-pixels", 1000, *options) == 0
    assert train("--resume", *options) == 1
    assert "was begun with another --max-pixels ('1000', not None)" in errors(capsys)
    assert train("--resume", "--max-pixels", 1000, *options) == 0


def test_corrupt_images(train, images, tmp_path, capsys):
    broken(images)
    assert train() == 1
    assert "3.png: " in errors(capsys)
    assert train("--force", "--on-corrupt", "skip") == 0
    lines = capsys.readouterr().out.splitlines()
    (reported,) = (line for line in lines if line.startswith("left out: "))  # once, not in every epoch
    assert "3.png: " in reported
    assert sum(line.endswith(" s, 1 image left out") for line in lines) == 4


def test_images_to_test_with_that_are_left_out_are_told(train, images, capsys):
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
def test_folders_without_classes(train, tmp_path, capsys, labels, message):
    folder = tmp_path / "other"
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
    folder_of_images(folder / "deeper", labels, 1)
    for part in ("train", "val"):
        for label in labels:
            os.replace(folder / "deeper" / part / label, folder / part / label)
    assert train(data=folder) == 1
    assert message in errors(capsys)
    assert not (tmp_path / "out").exists()


class Runs:
    """A pickle of it runs code when it is read."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was read",))


def weights(path, classes=3, network="tiny"):
    save_classifier(path, builder(network)(classes), network)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda p: ["--weights", p / "none"], "none: there is no such file"),
        (lambda p: ["--weights", weights(p / "w", 4)], "w: has 4 classes, the data has 3"),
        (
            lambda p: ["--weights", weights(p / "w", network="tiny_half")],
            "needs tiny for 3 classes, got tiny_half for 3",
        ),
        (lambda p: ["--autoencoder", weights(p / "w")], "its tensors are not those of the network"),
        (lambda p: ["--teacher", weights(p / "w", 4)], "/w: has 4 classes, the data has 3"),
        (lambda p: ["--teacher", weights(p / "w")], "is given, but no stage of the plan has a mimic_weight"),
        (lambda p: ["--teacher", p / "none"], "none: there is no such file"),
        (lambda p: ["--model", "vgg99"], "there is no network vgg99"),
        (lambda p: ["--model", "small_vgg"], "448, 512 these work: 28, 32"),
        (lambda p: ["--model", "autoencoder"], "wae train-autoencoder trains it"),
        (
            lambda p: ["--model", "resnet18", "--batch", 1],
            "cannot be trained on parts of 1 image of 14 x 14: ",
        ),
        (lambda p: ["--model", "resnet18", "--accumulate", 8], "on parts of 1 image of 14 x 14: "),
        (lambda p: ["--model", "resnet18", "--accumulate", 16], "on parts of 1 image of 14 x 14: "),
        (lambda p: ["--device", "meta"], "device meta cannot be used here"),
        (lambda p: ["--plan", "none"], "none: is neither a file nor one of the plans"),
        (lambda p: ["--batch", 100], "at most the 24 images of the training set, got 100"),
        (lambda p: ["--learning-rate", -1], "learning_rate must be a number from 0"),
        (lambda p: ["--device", "abacus"], "device abacus cannot be used here"),
        (lambda p: ["--body-weights", "torchvision"], "torchvision has no weights for tiny"),
        (lambda p: ["--data", "nowhere"], "nowhere: is neither a folder, nor shards, nor one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_together(train, tmp_path, capsys, options, message):
    assert train(*options(tmp_path)) == 1
    assert message in errors(capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_plan_gets_one(images, tmp_path):
    """Batch, epochs and size from what is in it; the images are 18 pixels wide at their narrowest."""
    out = tmp_path / "out"
    assert run("train", "--data", images, "--model", "tiny", "-o", out, "--epochs", 1) == 0
    made = plan.read(out / "plan.toml")
    assert (made.model, made.batch, [stage.kind for stage in made.stages]) == (
        "tiny",
        8,
        ["transform", "joint"],
    )
    assert describe(out / "model.safetensors").input == Input(64, 73, False)


def test_the_size_of_the_plan_for_a_folder(tmp_path):
    for side, size in ((20, 64), (100, 96), (120, 128), (130, 128), (900, 224)):
        folder = tmp_path / str(side)
        for part in ("train", "val"):
            for label in "ab":
                (folder / part / label).mkdir(parents=True)
                Image.new("RGB", (side, 2 * side)).save(folder / part / label / "1.png")
        assert small_data.fitting_size(image_folder(folder, train=True)) == size
    for images, batch, epochs in (
        (24, 8, 60),
        (200, 8, 60),
        (1000, 32, 60),
        (10_000, 64, 13),
        (10**6, 64, 5),
    ):
        made = small_data.small_data_plan(images)
        assert (made.batch, made.stages[1].epochs) == (batch, epochs)
    assert small_data.small_data_plan(4).batch == 4
    stages = (
        plan.Stage("transform", 1, 1e-3, "adam", warmup=0.1),
        plan.Stage("joint", 13, 1e-3, "adamw", weight_decay=0.05, encoder_rate=0.1, warmup=13 / 20),
    )
    wanted = plan.Plan("wae_resnet18", stages, batch=64, start="linear")
    assert small_data.small_data_plan(10_000) == wanted


def test_the_size_is_that_of_most_images_that_can_be_read(tmp_path):
    for number, side in enumerate((70, 200, 200, None, None)):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side)).save(path) if side else path.write_bytes(b"no image")
    assert small_data.fitting_size(image_folder(tmp_path, train=True)) == 192


def test_every_option_arrives(monkeypatch):
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
    without = [f.name for f in fields(made) if getattr(made, f.name) == f.default]
    assert without == ["original"]  # goes with none of the other starts: test_original_start.py
    assert show is not None


def test_the_plans_are_listed(capsys):
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
        (pickle.dumps(Runs()), "this is not a file of weights|nothing in it was run"),
        (Runs(), "nothing in it was run"),
        ([torch.zeros(1)], "must hold a state_dict, tensors by name"),
        ({"conv.weight": torch.zeros(1)}, "not the weights of small_vgg's body: 0.bias is missing"),
        ({"0.weight": torch.zeros(32, 3, 5, 5)}, "not the weights of small_vgg's body"),
    ],
    ids=["missing", "empty", "text", "pickle", "torch.save of code", "list", "names", "shapes"],
)
def test_files_that_are_no_body(tmp_path, content, message):
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


def test_test_images_that_cannot_be_read(train, images, tmp_path, capsys):
    for path in (images / "val" / "red").iterdir():
        path.write_bytes(b"broken")
    model = weights(tmp_path / "model.safetensors")
    arguments = ["eval", model, "--data", images, "--on-corrupt", "skip", "--batch", 4, "--seconds", 0.05]
    save_classifier(model, tiny(3), "tiny", input=Input(14, 16, False), force=True)
    assert run(*arguments) == 0
    assert errors(capsys).count("wae: left out: ") == 8
    assert train("--on-corrupt", "skip") == 0  # as some can be read
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
        assert ("has no class names; its classes are matched by number" in said.err, bool(said.err)) == (
            first,
            first,
        )


def test_eval_prints_whole_paths_and_no_top_5_of_five_classes(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model = tmp_path / ("long" * 20) / "model.safetensors"
    save_classifier(model, tiny(3), "tiny", None, Input(14, 16, False))
    assert run("eval", model, "--data", images, "--seconds", 0.05) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert max(map(len, lines)) <= 80
    networks, _, top5, *_ = zip(*([c.strip() for c in line.split("│")[1:-1]] for line in lines), strict=True)
    assert str(model) in "".join(networks)
    assert set(top5) == {""}


def test_eval_refuses_what_it_cannot_compare(images, tmp_path, capsys):
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
    """Trained once for all tests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, plan_file = folder_of_images(folder / "data"), folder / "tiny.toml"
        plan_file.write_text(TINY)
        options = ("--size", 14, "--epochs", 10)
        assert run("train", "--data", images, "--plan", plan_file, "-o", folder / "out", *options) == 0
        return load_classifier(folder / "out" / "model.safetensors")


@pytest.fixture
def trained(images, tmp_path):
    """A network whose classes are blue, green, red; the first comes last in the images' folder since."""
    for part in ("train", "val"):
        (images / part / "blue").rename(images / part / "violet")
    path = tmp_path / "trained.safetensors"
    save_classifier(path, network_of_colours(), "tiny", ("violet", "green", "red"), Input(14, 16, False))
    return path


def test_eval_takes_classes_by_their_names(trained, images, capsys):
    assert run("eval", trained, "--data", images, "--seconds", 0.05) == 0
    assert " 0.00 %" in capsys.readouterr().out.splitlines()[3]


def test_weights_bring_the_order_of_their_classes(trained, train, tmp_path):
    more = ("--weights", trained, "--stage", 2, "--learning-rate", 0, "--epochs", 1)
    assert train(*more, out=tmp_path / "more") == 0
    made = tmp_path / "more" / "model.safetensors"
    assert describe(made).labels == ("violet", "green", "red")
    assert json.loads((made.parent / "log.jsonl").read_text())["accuracy"]["top1"] == 1.0
    assert train(*more, "--resume", out=tmp_path / "more") == 0


def test_a_teacher_is_asked_in_the_order_of_the_data(trained, images, tmp_path):
    stage = replace(plan.find("digits").stages[-1], mimic_weight=1.0)
    training = session.Session(plan.Plan("tiny", (stage,)), str(images), tmp_path / "new", teacher=trained)
    images = torch.randint(256, (4, 3, 14, 14), dtype=torch.uint8)
    asked = training._teacher(images, ("green", "red", "violet"), Console())
    assert torch.equal(asked(images), load_classifier(trained)(images)[:, [1, 2, 0]])


def test_a_plan_that_needs_a_teacher_says_so(train, plan_file, capsys):
    plan_file.write_text(TINY + "mimic_weight = 1.0\n")
    assert train() == 1
    assert "the plan has a mimic_weight, which needs a teacher (--teacher)" in errors(capsys)


# -------------------------------------------------------------------------------------- where weights start


def test_the_included_auto_encoder_starts_a_training(train, tmp_path):
    assert train("--autoencoder", "included", "--stage", 2) == 0
    ours = load_file(tmp_path / "out" / "model.safetensors")
    included = load_file(weights_file.WEIGHTS / "autoencoder.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in included.items())
    assert plan.read(tmp_path / "out" / "plan.toml").start == "random"


def test_a_session_has_the_seed_and_the_start_of_its_plan_but_keeps_weights_that_are_given(images, tmp_path):
    linear = plan.Plan("tiny", (plan.Stage("joint", 1, 0.1),), start="linear", seed=5)
    included = weights_file.WEIGHTS / "autoencoder.safetensors"

    def session_of(plan=linear, **options):
        made = session.Session(plan, str(images), tmp_path / "out", size=14, **options)
        sets = made._sets(Console())
        return sets, *made._model(sets[0], False)

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


def test_a_body_and_an_auto_encoder_replace_those_of_the_weights(images, tmp_path):
    files = {"weights": tmp_path / "whole", "body_weights": tmp_path / "body.safetensors"}
    for name, path in zip(("wae_small_vgg", "small_vgg"), files.values(), strict=True):
        save_classifier(path, builder(name)(3), name)
    files["autoencoder"] = weights_file.WEIGHTS / "autoencoder.safetensors"
    own = plan.Plan("wae_small_vgg", (plan.Stage("joint", 1, 0.1),))
    made = session.Session(own, str(images), tmp_path / "out", size=28, **files)
    training, _ = made._sets(Console())
    whole, body, autoencoder = map(load_file, files.values())
    body = {name.replace("body.", "low_body.", 1): t for name, t in body.items() if name.startswith("body.")}
    for goes_on in (False, True):  # with a checkpoint, which has it all
        loaded = made._model(training, goes_on)[1].state_dict()
        wanted = {**whole, **body, **autoencoder}
        assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items()) == (not goes_on)
        assert loaded.keys() == wanted.keys()


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model.backbone."]
)
def test_a_body_that_was_saved_inside_of_something(tmp_path, prefix, wrapper):
    source, path, model = SmallVGG(7), tmp_path / "body.pth", builder("small_vgg")(3)
    tensors = {prefix + name: tensor for name, tensor in source.body.state_dict().items()}
    torch.save({wrapper: tensors, "epoch": 3}, path)
    pretrained.load_body(model, "small_vgg", str(path))
    assert torch.equal(model.body[0].weight, source.body[0].weight)
    torch.save({wrapper: {**tensors, "head.weight": torch.zeros(3)}}, path)  # and something beside
    if prefix in ("", "model.", "backbone."):
        pretrained.load_body(model, "small_vgg", str(path))


def test_a_download_that_fails_says_so(train, monkeypatch, capsys):
    def get_model(name, weights=None, **options):
        if weights:
            raise URLError("no route to host")
        return models.resnet18(**options)

    from torchvision import models

    monkeypatch.setattr(models, "get_model", get_model)
    assert train("--model", "resnet18", "--size", 32, "--body-weights", "torchvision") == 1
    assert "weights for resnet18 could not be downloaded: <urlopen error no route to host>" in errors(capsys)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_body_of_another_file(tmp_path, suffix):
    """The same body in networks of other names, with classifiers of other sizes."""
    source, path = SmallVGG(7), tmp_path / f"body.{suffix}"
    tensors = source.state_dict()
    save_file(tensors, path) if suffix == "safetensors" else torch.save({"state_dict": tensors}, path)
    for name, body in (
        ("wae_small_vgg", "low_body"), ("small_vgg", "body"), ("small_vgg_half", "network.0"),
    ):  # fmt: skip
        model = builder(name)(3)
        pretrained.load_body(model, name, str(path))
        loaded = model.get_submodule(body).state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in source.body.state_dict().items())


def test_a_network_of_torchvisions_without_its_classifier(tmp_path, monkeypatch):
    from torchvision import models

    source = models.squeezenet1_1(num_classes=5)
    asked = []

    def get_model(name, weights=None, **options):
        asked.append((name, weights))
        return source if weights else models.squeezenet1_1(**options)

    monkeypatch.setattr(models, "get_model", get_model)
    model = builder("squeezenet1_1_half")(3)
    pretrained.load_body(model, "squeezenet1_1_half", "torchvision")
    assert asked[-1] == ("squeezenet1_1", "DEFAULT")
    assert torch.equal(model.network.features[0].weight, source.features[0].weight)
    assert model.network.classifier[1].weight.shape[0] == 3


def test_images_are_scaled_for_a_network_that_takes_them_as_they_are():
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
def test_networks_of_torchvision_have_four_forms(name):
    with torch.device("meta"):
        model = builder(name)(7)
        assert model.eval()(torch.empty(2, 3, 224, 224)).shape == (2, 7)
