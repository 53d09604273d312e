"""A training's folder: one training at a time, no lost files, resuming; networks are saved and loaded."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from command_line import run

from wae.data.dataset import InMemory
from wae.storage.checkpoint import Input, load_classifier
from wae.training import lock, rehearsal, session
from wae.training.lock import FolderInUseError, alone_in
from wae.training.plan import find

SMALL = """
model = "small_vgg_half"
batch = 500
[[stages]]
kind = "classifier"
epochs = 2
learning_rate = 0.05
"""


@pytest.fixture
def small_plan(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def train(small_plan, tmp_path):
    return lambda *more: run("train", "--data", "digits", "--plan", small_plan, "-o", tmp_path / "out", *more)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_data_tells_whether_images_are_grey(channels):
    images = torch.zeros(2, channels, 28, 28, dtype=torch.uint8)
    data = InMemory(images, torch.zeros(2, dtype=torch.long), ("a", "b"), augment=False, seed=0)
    assert session._input(data, data.batch([0], 0)[0]) == Input(28, 28, grayscale=channels == 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regnet_x_400mf", "mnasnet0_5", "wae_mnasnet0_5"])
def test_a_network_is_trained_evaluated_and_used(tmp_path, name, capsys):
    options = "--data", "digits", "--plan", tmp_path / "plan.toml"
    (tmp_path / "plan.toml").write_text(
        SMALL.replace("small_vgg_half", name).replace("epochs = 2", "epochs = 1")
    )
    assert run("train", *options, "-o", tmp_path / "out") == 0
    assert run("train", *options, "-o", tmp_path / "out", "--resume") == 0
    weights = tmp_path / "out" / "model.safetensors"
    assert load_classifier(weights)(torch.zeros(2, 3, 28, 28)).shape == (2, 10)
    assert run("eval", weights, "--data", "digits", "--seconds", 0.05) == 0


def test_a_network_that_changes_when_saved_is_refused_before_training(train, monkeypatch, tmp_path, capsys):
    def other(path, original):
        model = load_classifier(path, original)
        next(model.parameters()).data[0] += 1
        return model

    monkeypatch.setattr(rehearsal, "load_classifier", other)
    assert train() == 1
    assert "network.0.0.weight changes when it is saved and loaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- nothing is lost


def test_files_to_start_from_must_not_be_in_the_output(train, tmp_path, capsys):
    assert train("--epochs", 1) == 0
    model = tmp_path / "out" / "model.safetensors"
    kept = model.read_bytes()
    for option in ("--weights", "--body-weights", "--teacher"):
        assert train("--force", option, model) == 1
        assert (
            f"{option} {model} is in {tmp_path / 'out'}, whose files are replaced" in capsys.readouterr().err
        )
    assert model.read_bytes() == kept


def test_old_files_stay_until_new_ones_replace_them(train, tmp_path, monkeypatch):
    assert train("--epochs", 1) == 0
    model = tmp_path / "out" / "model.safetensors"
    kept = model.read_bytes()

    def start(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.Terminal, "start", start)
        assert train("--force", "--seed", 1) == 130
    assert model.read_bytes() == kept
    assert train("--resume", "--seed", 1) == 0  # the new training, from its beginning
    assert model.read_bytes() != kept


def test_workers_and_device_are_passed_on(train, monkeypatch):
    seen = {}

    def stop(*_, **options):
        seen.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "train", stop)
    assert train("--workers", 3, "--device", "cpu") == 130
    assert (seen["workers"], seen["device"]) == (3, torch.device("cpu"))


# ------------------------------------------------------------------------------------------ one at a time


def test_two_trainings_do_not_share_a_folder(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    out = tmp_path / "out"
    with alone_in(out):
        assert train() == 1
        assert f"{out}: another training is writing to this folder" in capsys.readouterr().err
    assert not out.exists()  # it was made for the lock
    with alone_in(out), alone_in(tmp_path / "other"):
        pass
    with pytest.raises(FolderInUseError), alone_in(tmp_path), alone_in(tmp_path):
        pass


def test_a_training_waits_for_the_data_readers_of_a_killed_one(tmp_path):
    """They hold the lock a little longer."""
    locked = threading.Event()

    def reader():
        with alone_in(tmp_path):
            locked.set()
            time.sleep(0.15)

    thread = threading.Thread(target=reader)
    thread.start()
    assert locked.wait(10)
    with alone_in(tmp_path):
        pass
    thread.join()


def test_an_empty_folder_is_removed_only_if_it_is_new(tmp_path):
    with alone_in(tmp_path / "made"):
        pass
    with alone_in(tmp_path):
        pass
    assert tmp_path.exists()
    assert not (tmp_path / "made").exists()


def test_a_file_system_without_locks_is_accepted(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_in(tmp_path):
        pass


# -------------------------------------------------------------------------------- one command for a scheduler


LAUNCH = "-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=2 -m wae.cli"
LINE = "train --data digits --device cpu --epochs 12 --resume --plan"


@pytest.mark.slow  # torchrun twice
def test_torchrun_restarts_a_killed_worker_with_the_same_command(small_plan, tmp_path):
    """Of either rank: the other ends too, both resume after the last epoch; the weights are bit-identical."""
    command = [sys.executable, *LAUNCH.split(), *LINE.split(), small_plan, "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out, log = tmp_path / "out", tmp_path / "out" / "log.jsonl"
    process = subprocess.Popen([*command, out], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        previous: set[int] = set()
        for rank, epochs in ((1, 2), (0, 4)):
            deadline = time.monotonic() + 300
            while not (is_up(there := workers(process.pid), previous) and epochs_in(log) >= epochs):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            previous = {*there.values()}
            os.kill(there[rank], signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0
    assert output.count("resuming after stage 1/1") == 2
    assert epochs_in(log) == 12

    expected = tmp_path / "uninterrupted"
    subprocess.run([*command, expected], env=environment, check=True, timeout=300)
    one, other = (load_classifier(folder / "model.safetensors") for folder in (out, expected))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def is_up(there, previous):
    """Whether both workers run, and neither is one of the ``previous`` ones."""
    return len(there) == 2 and not previous & {*there.values()}


def epochs_in(log):
    return log.read_text().count("\n") if log.exists() else 0


def workers(parent):
    """The training processes that ``parent``, torchrun, has started, by rank."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has ended
            texts = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {rank: int(child) for rank in (0, 1) if b"RANK=%d" % rank in texts}
    return found


def test_resume_starts_continues_or_finds_the_training_finished(train, tmp_path):
    """So that one command is enough; it also starts in an empty folder."""
    (tmp_path / "out").mkdir()
    assert train("--resume", "--epochs", 1) == 0
    assert train("--resume", "--epochs", 1) == 0
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 1


def test_resume_writes_the_plan_if_the_training_was_killed_before_that(train, tmp_path):
    assert train("--epochs", 1) == 0
    plan = tmp_path / "out" / "plan.toml"
    wanted = plan.read_text()
    for left in (None, "# of the training that --force replaces\n"):
        plan.unlink() if left is None else plan.write_text(left)
        assert train("--resume", "--epochs", 1) == 0
        assert plan.read_text() == wanted


@pytest.mark.parametrize("left", [".rehearsal", "plan.toml"])
def test_training_starts_in_a_folder_without_a_checkpoint(tmp_path, left):
    (tmp_path / left).touch()
    session.Session(find("digits"), "digits", tmp_path, resume=True)._check_folder()


def test_a_pixel_limit_that_leaves_out_no_image_may_change_on_resume(tmp_path):
    training = session.Session(find("digits"), "digits", tmp_path, body_weights="torchvision", max_pixels=9)
    assert training._sources() == {"--body-weights": "torchvision", "--on-corrupt": "error"}
