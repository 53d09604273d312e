"""``wae reproduce``: the trainings, that nothing is done twice, and the table. On digits, which are small."""

import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from wae.cli import main
from wae.experiments import reproduce
from wae.experiments.reproduction import fashion_mnist, imagenette, worker
from wae.experiments.reproduction.claim import Job
from wae.experiments.reproduction.fashion_mnist import FashionMnist
from wae.experiments.reproduction.results import Result, read_result, weights_path
from wae.experiments.reproduction.table import Row, markdown, rows, timed, won_back
from wae.experiments.reproduction.worker import Progress
from wae.inference.timing import Timing
from wae.models.counting import count
from wae.storage.checkpoint import Input, describe, load_classifier, save_classifier
from wae.storage.weights_file import CheckpointError
from wae.training import lock, plan
from wae.training.accuracy import Accuracy
from wae.training.plan import Plan, Stage
from wae.training.trainer import Epoch, TrainingError

TINY = plan.from_dict(
    {
        "model": "wae_small_vgg",
        "batch": 500,
        "start": "linear",
        "stages": [
            {"kind": "transform", "epochs": 1, "learning_rate": 1e-3, "optimizer": "adam"},
            {"kind": "joint", "epochs": 1, "learning_rate": 0.05},
        ],
    }
)


DIGITS = FashionMnist(TINY)
CLAIMS = {
    "fashion-mnist": fashion_mnist.claim(),
    "imagenette": imagenette.claim(),
    "resnet18": imagenette.claim("resnet18"),
}
SLOW = {"resnet18"}


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, marks=pytest.mark.slow if name in SLOW else (), id=name)
        for name, claim in CLAIMS.items()
    ],
)
def test_every_network_is_trained_with_labels_for_as_many_epochs_at_the_same_rates(claim):
    labelled = {}
    for network in claim.registered:
        stages = [s for s in claim.plan_of(network, 1).stages if s.kind != "transform"]
        labelled[network] = sum(stage.epochs for stage in stages)
        assert {(s.learning_rate, s.weight_decay, s.label_smoothing, s.ema) for s in stages} == {
            (s.learning_rate, s.weight_decay, s.label_smoothing, s.ema)
            for s in claim.wae.stages
            if s.kind != "transform"
        }
    assert len(set(labelled.values())) == 1
    stage = claim.plan_of("Decomposition+CNN", 0).stages[0]
    assert (stage.kind, stage.transform_weight) == ("joint", 0)


def test_plans_share_all_of_waes_last_stage_but_what_is_waes_own():
    """Each entry has a value that no default is, so that one that is left out shows."""
    plain = Stage(
        "classifier", 5, 0.1, "adamw", momentum=0.8, weight_decay=0.01, schedule="step", warmup=0.5,
        step_epochs=2, step_factor=0.3, label_smoothing=0.1, class_balance=1.5, ema=0.9,
    )  # fmt: skip
    own = {"encoder_rate": 0.2, "energy_weight": 0.3, "transform_weight": 0.4}
    last = replace(plain, kind="joint", epochs=3, low_weight=0.5, **own)
    first = Stage("transform", 7, 1e-4), Stage("classifier", 2, 0.2)
    wae = Plan("wae_small_vgg", (*first, last), batch=50, precision="bfloat16", start="linear", seed=3)
    claim = FashionMnist(wae)
    for network, stage in (
        ("28 x 28", plain),
        ("14 x 14", plain),
        ("Wavelet+CNN", replace(plain, low_weight=0.5)),
        ("Decomposition+CNN", replace(last, epochs=5, transform_weight=0.0, encoder_rate=1.0)),
    ):
        assert claim.plan_of(network, 9) == Plan(network, (stage,), batch=50, precision="bfloat16", seed=9)
    assert claim.plan_of("WAE", 9) == replace(wae, seed=9)
    taught = {"mimic_weight": 1.0, "mimic_temperature": 4.0, "mimic_mirrored": True}
    stages = first[0], replace(first[1], **taught), replace(last, **taught)
    assert claim.plan_of("WAE, mimic", 9) == replace(wae, seed=9, stages=stages)


def test_the_networks_of_fashion_mnist_are_what_they_are_called():
    """By what they cost: half is a quarter, the wavelets cost no multiply-adds, WAE's encoder does."""
    cost = {name: count(DIGITS.build(name), DIGITS.input.shape).multiply_adds for name in DIGITS.registered}
    assert cost["14 x 14"] < 0.3 * cost["28 x 28"]
    assert cost["14 x 14"] < cost["Wavelet+CNN"] < cost["WAE"] < cost["28 x 28"]
    assert cost["Decomposition+CNN"] == cost["WAE"] == cost["WAE, mimic"]
    assert DIGITS.input == Input(28, 28, grayscale=True)


def test_a_network_begins_with_the_weights_of_its_seed(tmp_path):
    def begun(seed):
        torch.rand(2)
        return torch.cat(
            [p.flatten() for p in DIGITS.start(Job("WAE", seed), tmp_path, None)[0].parameters()]
        )

    assert torch.equal(begun(3), begun(3))
    assert not torch.equal(begun(3), begun(4))


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_jobs_are_all_networks_with_all_seeds_and_of_those_that_are_pruned_one(claim):
    wanted = claim.jobs(range(3))
    pruned = sum(name is None for name in claim.registered.values())
    assert len(wanted) == len(set(wanted)) == 3 * len(claim.registered) - 2 * pruned
    assert len({job.stem for job in wanted}) == len(wanted)
    assert {job.network for job in wanted[:3]} == {claim.full, claim.half, "WAE"}


def test_longer_trainings_have_more_epochs_with_labels():
    claim, other = fashion_mnist.claim(), fashion_mnist.claim(4)
    assert [stage.epochs for stage in claim.wae.stages] == [1, 4]
    assert [stage.epochs for stage in other.wae.stages] == [1, 16]
    assert [stage.epochs for stage in fashion_mnist.claim(1 / 4).wae.stages] == [1, 1]


@pytest.mark.slow
def test_trainings_are_kept_and_not_done_again(tmp_path):
    wanted = [Job("WAE, mimic", 0), Job("28 x 28", 0)]
    told = []
    results = reproduce.run(tmp_path, "digits", wanted, DIGITS, 2, tell=told.append)
    assert [(r.network, r.seed) for r in results] == wanted
    assert sorted((p.job.network, p.done, p.of) for p in told) == [
        ("28 x 28", 1, 1),
        ("WAE, mimic", 1, 2),
        ("WAE, mimic", 2, 2),
    ]
    assert reproduce.run(tmp_path, "digits", wanted, DIGITS, 2, tell=told.append) == results
    assert len(told) == 3
    weights = weights_path(tmp_path, wanted[0])
    assert describe(weights).labels == tuple("0123456789")
    assert load_classifier(weights).decoder is not None
    assert not list(tmp_path.glob("*.state.*"))
    with pytest.raises(CheckpointError, match="another plan"):
        reproduce.run(tmp_path, "digits", wanted, FashionMnist(replace(TINY, batch=250)), 2)


def test_a_result_is_that_of_the_last_epoch_and_of_its_seed(tmp_path, monkeypatch):
    """Not of the best epoch; the images, the order and the teacher are those of the job's seed."""
    asked = {}
    job = Job("WAE, mimic", 2)
    for seed in (0, 2):
        torch.manual_seed(seed)
        teacher = DIGITS.build("28 x 28")
        save_classifier(weights_path(tmp_path, Job("28 x 28", seed)), teacher, "small_vgg")

    def train(model, plan, training, test, **options):
        asked.update(options, plan=plan, seed=training.seed, augment=(training.augment, test.augment))
        asked["images"] = len(training), len(test)
        options["state"].write_bytes(b"")
        kinds = ("transform", None), ("joint", 0.3), ("joint", 0.9), ("joint", 0.8)
        return [
            Epoch(kind == "joint", kind, 0, {}, score and Accuracy(score, 1.0, 0.5, 297), 10.0)
            for kind, score in kinds
        ]

    monkeypatch.setattr(worker, "train", train)
    with monkeypatch.context() as patch:  # a full disk: what there is to go on from is there still
        patch.setattr(worker, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            worker._train(job, tmp_path, "digits", DIGITS, "cpu", None)
    assert list(tmp_path.glob("*.state.*"))
    result = worker._train(job, tmp_path, "digits", DIGITS, "cpu", None)
    assert (result.accuracy, result.epochs, result.seconds) == (0.8, [0.3, 0.9, 0.8], 40.0)
    assert result.measured == {"top1": 0.8, "top5": 1.0, "loss": 0.5, "images": 297}
    assert result.multiply_adds == count(DIGITS.build("WAE"), (28, 28)).multiply_adds
    assert (asked["seed"], asked["plan"].seed) == (2, 2)
    assert (asked["augment"], asked["images"]) == ((True, False), (1500, 297))
    assert torch.equal(asked["teacher"].body[0].weight, teacher.body[0].weight)
    assert read_result(tmp_path, job, DIGITS) == result
    assert not list(tmp_path.glob("*.state.*"))


@pytest.mark.slow
def test_what_goes_wrong_in_a_training_is_told(tmp_path):
    with pytest.raises(ValueError, match="the 1,500 images of the training set, got 2000"):
        reproduce.run(tmp_path, "digits", [Job("14 x 14", 0)], FashionMnist(replace(TINY, batch=2000)), 1)


@pytest.mark.slow
def test_a_worker_killed_in_training_ends_the_run_and_the_next_run_goes_on(tmp_path):
    told = []

    def kill(progress):
        told.append(progress.done)
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(TrainingError, match="ended without a result: was it out of memory"):
        reproduce.run(tmp_path, "digits", [Job("WAE", 0)], DIGITS, 1, tell=kill)
    assert told == [1]
    reproduce.run(
        tmp_path, "digits", [Job("WAE", 0)], DIGITS, 1, tell=lambda progress: told.append(progress.done)
    )
    assert told == [1, 2]


def killed_while_it_writes(link, folder, data, claim, device):
    """A worker: of its second message's 40 bytes it writes the number and ten. Others go on."""
    job = link.recv()
    if job.network != "WAE":
        time.sleep(600)
    link.send(Progress(job, "joint", 1, 2, None))
    os.write(link.fileno(), struct.pack("!i", 40) + bytes(10))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_killed_while_it_writes_ends_the_run_after_what_was_said(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_work", killed_while_it_writes)
    wanted, told = [Job("WAE", 0), Job("14 x 14", 0)], []
    with pytest.raises(TrainingError, match="ended without a result: was it out of memory"):
        reproduce.run(tmp_path, "digits", wanted, DIGITS, 2, tell=told.append)
    assert told == [Progress(Job("WAE", 0), "joint", 1, 2, None)]
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
def test_workers_end_with_a_main_process_that_is_killed(tmp_path, sent):
    script = tmp_path / "script.py"
    script.write_text(WATCHED)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2
        process.send_signal(sent)
    deadline = time.monotonic() + 30
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
    """It comes out of no pipe: pickle would call it with its text alone."""

    def __init__(self, what, where):
        super().__init__(f"{what} in {where}")


class WordyError(Exception):
    """It comes out with its text doubled."""

    def __init__(self, what):
        super().__init__(f"no {what}")


class LocalError(Exception):
    """It goes into none."""

    def __init__(self):
        super().__init__("no room", lambda: None)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("bad images"), "ValueError: bad images"),
        (OddError("noise", "epoch 3"), "TrainingError: WAE, seed 4: OddError: noise in epoch 3"),
        (WordyError("room"), "TrainingError: WAE, seed 4: WordyError: no room"),
        (LocalError(), "TrainingError: WAE, seed 4: LocalError: ('no room', <function"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_error_ends_a_training_is_told(tmp_path, monkeypatch, error, told):
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
    assert f"{type(found).__name__}: {found}".startswith(told)


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with lock.alone_in(tmp_path):
        assert main(["reproduce", "fashion-mnist", "--data", "digits", "-o", str(tmp_path)]) == 1
    assert f"{tmp_path}: another training is writing to this folder" in capsys.readouterr().err


def test_the_folder_is_locked_until_its_last_file_is_written(tmp_path, monkeypatch):
    asked = []

    def is_locked(what):
        with pytest.raises(lock.FolderInUseError), lock.alone_in(tmp_path):
            pass
        asked.append(what)

    picture = Image.new("RGB", (1, 1))
    monkeypatch.setattr(lock, "PATIENCE", 0)
    monkeypatch.setattr(reproduce, "run", lambda *_: is_locked("trained") or [])
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: is_locked("timed") or [])
    monkeypatch.setattr(FashionMnist, "picture", lambda *_: picture)
    monkeypatch.setattr(picture, "save", lambda *_: is_locked("written"))
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == 0
    assert asked == ["trained", "timed", "written"]
    assert {file.name for file in tmp_path.iterdir()} == {"table.md", "picture.png"}
    with lock.alone_in(tmp_path):
        pass


def test_as_many_trainings_at_a_time_as_the_process_has_cores(tmp_path, monkeypatch):
    """Not as the machine has: within taskset, say."""
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(reproduce, "run", lambda *arguments: asked.append(arguments[4]) or [])
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: [])
    for more in ([], ["--processes", "2"], ["--device", "cuda"]):
        assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path), *more]) == 0
    assert asked == [3, 2, 1]


def test_a_student_needs_its_teacher(tmp_path):
    with pytest.raises(ValueError, match="28 x 28, seed 1"):
        reproduce.run(tmp_path, "digits", [Job("WAE, mimic", 1), Job("28 x 28", 0)], DIGITS, 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        ("[1]", "must be a mapping"),
        ("[" * 200_000, "nested too deeply"),
        ({"plan": 3}, r"plan must be of kind dict\[str, Any\], got 3"),
        ({"accuracy": "0.9"}, "accuracy must be of kind float, got '0.9'"),
        ({"network": "28 x 28"}, "it is of 28 x 28, seed 0"),
    ],
    ids=["cut", "list", "deep", "plan", "accuracy", "another"],
)
def test_a_damaged_result_is_refused(tmp_path, text, why):
    job = Job("WAE", 0)
    if isinstance(text, dict):
        result = Result("WAE", 0, 0.5, 1.0, [0.5], DIGITS.plan_of("WAE", 0).as_dict())
        text = json.dumps({**asdict(result), **text})
    (tmp_path / f"{job.stem}.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"no result of a training .*{why}.*; without it that training"):
        read_result(tmp_path, job, DIGITS)


def test_a_folder_without_the_data_is_a_clear_error(tmp_path, capsys):
    assert main(["reproduce", "fashion-mnist", "--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_the_table_as_json(tmp_path, capsys, monkeypatch):
    accuracies = {"28 x 28": 0.9, "14 x 14": 0.8, "WAE": 0.89}
    rows = [Row(network, [accuracy], 10, 5.0) for network, accuracy in accuracies.items()]
    monkeypatch.setattr("wae.commands.reproduce._watch", lambda *_: [])
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: rows)
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    found = {row.pop("network"): row for row in json.loads(printed.out)}
    assert found["WAE"] == {
        "accuracies": [0.89], "multiply_adds": 10, "microseconds": 5.0, "won_back": pytest.approx(0.9)
    }  # fmt: skip
    assert "Timing them on this machine" in printed.err
    assert "| WAE | 89.00 % |" in (tmp_path / "table.md").read_text()


def test_the_share_won_back_and_the_table():
    def row(network, *accuracies):
        return Row(network, list(accuracies), 10_000_000, 5.0)

    table = [row("28 x 28", 0.90, 0.92), row("14 x 14", 0.80, 0.82), row("WAE", 0.89, 0.91)]
    assert won_back(table, DIGITS, "WAE") == pytest.approx(0.9)
    assert won_back(table[1:], DIGITS, "WAE") is None
    lines = markdown(table, DIGITS).splitlines()
    alone = markdown([row("WAE", 0.9)], DIGITS).splitlines()
    assert alone[2] == "| WAE | 90.00 % |  |  | 10.00 M | 5 us |"  # one seed has no spread
    assert "| WAE | 90.00 % | 1.41 | 90 % | 10.00 M (100%) | 5 us |" in lines
    lighter = markdown([table[0], replace(table[1], multiply_adds=2_500_000)], DIGITS)
    assert "| 14 x 14 | 81.00 % | 1.41 |  | 2.50 M (25%) | 5 us |" in lighter
    nothing_lost = [row("28 x 28", 0.80), row("14 x 14", 0.82), row("WAE", 0.81)]
    assert won_back(nothing_lost, DIGITS, "WAE") is None


def test_rows_are_the_networks_that_have_results_timed_here():
    results = [
        Result(network, 0, 0.5, 1.0, [0.5], {}, {}, number)
        for network, number in (("WAE", 11), ("28 x 28", 22))
    ]
    table = rows(results, DIGITS, seconds=0)
    assert [row.network for row in table] == ["28 x 28", "WAE"]
    assert [row.multiply_adds for row in table] == [22, 11]
    assert all(row.microseconds > 0 for row in table)


def test_networks_are_timed_as_they_are_used_and_by_their_names(monkeypatch):
    """In evaluation mode, without gradients, WAE's normalisation folded; a batch's time is its images'."""
    models, scores = {name: DIGITS.build(name) for name in ("28 x 28", "WAE")}, {}
    with torch.no_grad():
        models["WAE"].low_norm.running_mean.fill_(9.0)

    images = torch.full((100, 3, 28, 28), 7, dtype=torch.uint8)
    expected = {name: model.eval()(images) for name, model in models.items()}
    normalised, forward = set(), torch.nn.BatchNorm2d.forward
    monkeypatch.setattr(
        torch.nn.BatchNorm2d,
        "forward",
        lambda norm, x: normalised.add(norm.num_features) or forward(norm, x),
    )

    def interleaved(calls, seconds):
        scores.update({name: call() for name, call in calls.items()})
        return {"WAE": Timing(50.0, 1, 1, 1), "28 x 28": Timing(200.0, 1, 1, 1)}

    monkeypatch.setattr("wae.experiments.reproduction.table.interleaved", interleaved)
    monkeypatch.setattr(torch, "randint", lambda low, high, size, dtype: images.reshape(size))
    for model in models.values():
        model.train()
    assert timed(models, DIGITS, 1.0) == {"WAE": 0.5, "28 x 28": 2.0}
    for name, wanted in expected.items():
        assert not scores[name].requires_grad
        torch.testing.assert_close(scores[name], wanted, rtol=1e-3, atol=1e-3, check_stride=False)
    assert normalised
    assert 3 not in normalised  # low and high


def test_a_result_survives_json(tmp_path):
    job = Job("WAE", 0)
    result = Result("WAE", 0, 0.5, 1.0, [0.5], DIGITS.plan_of("WAE", 0).as_dict())
    (tmp_path / f"{job.stem}.json").write_text(json.dumps(asdict(result)))
    assert read_result(tmp_path, job, DIGITS).accuracy == 0.5
