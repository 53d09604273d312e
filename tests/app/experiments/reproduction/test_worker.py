"""The worker processes: their results and messages, and that none outlives the main process."""

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reproductions import DIGITS

from wae.experiments import reproduce
from wae.experiments.reproduction import worker
from wae.experiments.reproduction.claim import Job
from wae.experiments.reproduction.fashion_mnist import FashionMnist
from wae.experiments.reproduction.results import read_result, state_path, weights_path
from wae.experiments.reproduction.worker import Progress
from wae.models.counting import count
from wae.storage.checkpoint import save_classifier
from wae.training.accuracy import Accuracy
from wae.training.state import Epoch
from wae.training.trainer import TrainingError


def test_a_result_is_that_of_the_last_epoch_and_of_its_seed(tmp_path, monkeypatch):
    """Not of the best epoch. The images, their order and the teacher are those of the job's seed."""
    used = {}
    job = Job("WAE, mimic", 2)
    for seed in (0, 2):
        torch.manual_seed(seed)
        teacher = DIGITS.build("28 x 28")
        save_classifier(weights_path(tmp_path, Job("28 x 28", seed)), teacher, "small_vgg")

    def train(model, plan, training, test, **options):
        used.update(options, plan=plan, seed=training.seed, augment=(training.augment, test.augment))
        used["images"] = len(training), len(test)
        options["state"].write_bytes(b"")
        kinds = ("transform", None), ("joint", 0.3), ("joint", 0.9), ("joint", 0.8)
        return [
            Epoch(kind == "joint", kind, 0, {}, score and Accuracy(score, 1.0, 0.5, 297), 10.0)
            for kind, score in kinds
        ]

    monkeypatch.setattr(worker, "train", train)
    with monkeypatch.context() as patch:  # as on a full disk: the checkpoint is kept, to resume from
        patch.setattr(worker, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            worker._train(job, tmp_path, "digits", DIGITS, torch.device("cpu"), None)
    assert list(tmp_path.glob("*.state.*"))
    claim = DIGITS.on("digits")
    result = worker._train(job, tmp_path, "digits", claim, torch.device("cpu"), None)
    assert result.data == claim.data != {}
    assert (result.accuracy, result.epochs, result.seconds) == (0.8, [0.3, 0.9, 0.8], 40.0)
    assert result.measured == {"top1": 0.8, "top5": 1.0, "loss": 0.5, "images": 297}
    assert result.multiply_adds == count(DIGITS.build("WAE"), (28, 28)).multiply_adds
    assert (used["seed"], used["plan"].seed) == (2, 2)
    assert (used["augment"], used["images"]) == ((True, False), (1500, 297))
    assert torch.equal(used["teacher"].body[0].weight, teacher.body[0].weight)
    assert read_result(tmp_path, job, DIGITS) == result
    assert not list(tmp_path.glob("*.state.*"))
    monkeypatch.setattr(FashionMnist, "remeasures", True)
    monkeypatch.setattr(worker, "_remeasured", lambda *_: 1 / 0)  # it ends here, and the next run starts here
    with pytest.raises(ZeroDivisionError):
        worker._train(job, tmp_path, "digits", DIGITS, torch.device("cpu"), None)
    assert not list(tmp_path.glob("*.state.*"))


def test_new_weights_end_unfinished_trainings_that_began_from_earlier_ones(tmp_path, monkeypatch):
    """They resumed, distilled from two teachers."""
    began, others = Job("WAE, mimic", 0), (Job("WAE, mimic", 1), Job("WAE", 0))
    for job in (began, *others):
        state_path(tmp_path, job).touch()
    DIGITS.start_path(tmp_path, began).touch()
    epoch = Epoch(0, "classifier", 0, {}, Accuracy(0.9, 1.0, 0.5, 297), 10.0)
    monkeypatch.setattr(worker, "train", lambda *_, **__: [epoch])
    worker._train(Job("28 x 28", 0), tmp_path, "digits", DIGITS, torch.device("cpu"), None)
    left = [*tmp_path.glob("*.state.safetensors"), *tmp_path.glob("*.start.json")]
    assert sorted(left) == sorted(state_path(tmp_path, job) for job in others)


def test_a_worker_finds_the_commit_of_its_code_before_the_first_job(tmp_path, monkeypatch):
    """After days of training, the files may be of another commit."""
    steps = []

    def recv():
        steps.append("job")
        raise EOFError

    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    monkeypatch.setattr(worker, "_commit", lambda: steps.append("commit"))
    worker._work(SimpleNamespace(recv=recv), tmp_path, "digits", DIGITS, "cpu")
    assert steps == ["commit", "job"]


@pytest.mark.slow
def test_a_worker_killed_in_training_ends_the_run_and_the_next_run_resumes(tmp_path):
    messages = []

    def kill(progress):
        messages.append((progress.done, progress.before))
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(TrainingError, match="ended without a result: out of memory"):
        reproduce.run(tmp_path, "digits", [Job("WAE", 0)], DIGITS, 1, tell=kill)
    assert messages == [(1, False)]
    again = []
    reproduce.run(tmp_path, "digits", [Job("WAE", 0)], DIGITS, 1, tell=again.append)
    assert [(progress.done, progress.before) for progress in again] == [(1, True), (2, False)]


def killed_while_it_writes(link, folder, data, claim, device):
    """A worker that is killed when it has written the length and 10 of the 40 bytes of its second message.

    Workers with other jobs keep running.
    """
    job = link.recv()
    if job.network != "WAE":
        time.sleep(600)
    link.send(Progress(job, "joint", 1, 2, None))
    os.write(link.fileno(), struct.pack("!i", 40) + bytes(10))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_killed_while_it_writes_ends_the_run_after_its_complete_message(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_work", killed_while_it_writes)
    wanted, messages = [Job("WAE", 0), Job("14 x 14", 0)], []
    with pytest.raises(TrainingError, match="ended without a result: out of memory"):
        reproduce.run(tmp_path, "digits", wanted, DIGITS, 2, tell=messages.append)
    assert messages == [Progress(Job("WAE", 0), "joint", 1, 2, None)]
    for process in multiprocessing.active_children():
        process.join(10)
        assert process.exitcode is not None


WATCHED = """
import multiprocessing, sys
from pathlib import Path
from wae.experiments.reproduction import fashion_mnist, worker
if __name__ == "__main__":
    workers = [worker.Worker(Path(sys.argv[1]), "digits", fashion_mnist.claim(), "cpu") for _ in range(2)]
    print(*[worker.process.pid for worker in workers], flush=True)
    input()
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_workers_end_when_the_main_process_is_killed(tmp_path, sent):
    script = tmp_path / "script.py"
    script.write_text(WATCHED)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2
        process.send_signal(sent)
    deadline = time.monotonic() + 120
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("jobs", [[], [Job("WAE", 0)]], ids=["idle", "in training"])
def test_a_worker_ends_when_the_main_process_is_gone(tmp_path, monkeypatch, jobs):
    def train(job, folder, data, claim, device, link):
        link.send("an epoch has ended")
        pytest.fail("the message has no reader")

    monkeypatch.setattr(worker, "_train", train)
    link, its_end = multiprocessing.Pipe()
    for job in jobs:
        link.send(job)
    link.close()
    worker._work(its_end, tmp_path, "digits", DIGITS, "cpu")


class OddError(Exception):
    """It cannot be unpickled: pickle would pass its text as the only argument."""

    def __init__(self, what, where):
        super().__init__(f"{what} in {where}")


class WordyError(Exception):
    """Unpickled, it says "no" twice."""

    def __init__(self, what):
        super().__init__(f"no {what}")


class LocalError(Exception):
    """It cannot be pickled."""

    def __init__(self):
        super().__init__("no room", lambda: None)


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (ValueError("bad images"), "ValueError: bad images"),
        (OddError("noise", "epoch 3"), "TrainingError: WAE, seed 4: OddError: noise in epoch 3"),
        (WordyError("room"), "TrainingError: WAE, seed 4: WordyError: no room"),
        (LocalError(), "TrainingError: WAE, seed 4: LocalError: ('no room', <function"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_any_error_of_a_training_is_reported(tmp_path, monkeypatch, error, reported):
    def train(*arguments):
        raise error

    monkeypatch.setattr(worker, "_train", train)
    link, its_end = multiprocessing.Pipe()
    thread = threading.Thread(target=worker._work, args=(its_end, tmp_path, "digits", DIGITS, "cpu"))
    thread.start()
    link.send(Job("WAE", 4))
    assert link.poll(10)
    found = worker.next_message(link)
    link.close()
    thread.join(10)
    assert f"{type(found).__name__}: {found}".startswith(reported)
