"""``wae reproduce`` on digits, which are small: its trainings, of which none is repeated, and its table."""

import errno
import json
import os
from dataclasses import asdict, replace

import pytest
from PIL import Image
from reproductions import DIGITS, TINY

from wae import progress
from wae.cli import main
from wae.errors import UsageError
from wae.experiments import reproduce
from wae.experiments.machine import machine
from wae.experiments.pruning import PruningError
from wae.experiments.reproduction import worker
from wae.experiments.reproduction.claim import Job
from wae.experiments.reproduction.fashion_mnist import FashionMnist
from wae.experiments.reproduction.results import (
    NotTrained,
    Result,
    result_path,
    weights_path,
    write_json,
)
from wae.experiments.reproduction.table import Row
from wae.experiments.reproduction.worker import Progress
from wae.storage.checkpoint import describe, load_classifier
from wae.storage.files import sha256
from wae.storage.weights_file import CheckpointError
from wae.training import lock
from wae.training.trainer import DivergedError


@pytest.mark.slow
def test_finished_trainings_are_not_repeated(tmp_path):
    wanted = [Job("WAE, mimic", 0), Job("28 x 28", 0)]
    messages = []
    results = reproduce.run(tmp_path, "digits", wanted, DIGITS, 2, tell=messages.append)
    assert [(r.network, r.seed) for r in results] == wanted
    assert sorted((p.job.network, p.done, p.of) for p in messages) == [
        ("28 x 28", 1, 1),
        ("WAE, mimic", 1, 2),
        ("WAE, mimic", 2, 2),
    ]
    assert reproduce.run(tmp_path, "digits", wanted, DIGITS, 2, tell=messages.append) == results
    assert len(messages) == 3
    weights = weights_path(tmp_path, wanted[0])
    assert describe(weights).labels == tuple("0123456789")
    assert load_classifier(weights).decoder is not None
    assert not list(tmp_path.glob("*.state.*"))
    with pytest.raises(CheckpointError, match="another plan"):
        reproduce.run(tmp_path, "digits", wanted, FashionMnist(replace(TINY, batch=250)), 2)


@pytest.mark.slow
def test_an_error_in_a_training_is_reported(tmp_path):
    with pytest.raises(ValueError, match="the 1,500 images of the training set, got 2000"):
        reproduce.run(tmp_path, "digits", [Job("14 x 14", 0)], FashionMnist(replace(TINY, batch=2000)), 1)


@pytest.mark.slow
def test_a_device_that_cannot_be_used_is_reported(tmp_path):
    with pytest.raises(ValueError, match="device meta cannot be used here: "):
        reproduce.run(tmp_path, "digits", [Job("14 x 14", 0)], DIGITS, 1, device="meta")


def test_a_device_that_does_not_exist_is_named_before_the_data_are_prepared(tmp_path):
    with pytest.raises(UsageError, match="there is no device nonsense: "):
        reproduce.run(tmp_path, "nowhere", [Job("14 x 14", 0)], DIGITS, 1, device="nonsense")


class WithoutFull(FashionMnist):
    """Its network at full resolution cannot be made."""

    def start(self, job, folder, training):
        if job.network == self.full:
            raise PruningError("it is too slow")
        return super().start(job, folder, training)


@pytest.mark.slow
def test_the_others_are_trained_if_a_network_cannot_be_made(tmp_path):
    wanted = [Job("28 x 28", 0), Job("WAE, mimic", 0), Job("14 x 14", 0)]
    told = []
    full, mimic, half = reproduce.run(tmp_path, "digits", wanted, WithoutFull(TINY), 2, tell=told.append)
    assert full == NotTrained("28 x 28", 0, "it is too slow")
    assert mimic == NotTrained("WAE, mimic", 0, "it needs 28 x 28, which is left out")
    assert [training for training in told if isinstance(training, NotTrained)] == [full, mimic]
    assert (half.network, half.seed) == wanted[2]
    assert reproduce.open_jobs(tmp_path, wanted, WithoutFull(TINY)) == wanted[:2]  # the next run tries again


def test_a_training_that_diverges_is_left_out(tmp_path, monkeypatch):
    """It would end every run, because it diverges again."""

    def diverge(*arguments):
        raise DivergedError("the loss is nan", "; x is the checkpoint of the epoch before")

    monkeypatch.setattr(worker, "_train", diverge)
    found = worker._outcome(Job("WAE", 1), tmp_path, "digits", DIGITS, "cpu", None)
    assert found == NotTrained("WAE", 1, "the loss is nan")


@pytest.mark.parametrize("cores", [0.05, 0.5, None])
def test_trainings_that_were_left_out_are_named_below_the_table(tmp_path, monkeypatch, capsys, cores):
    """With --json too, as is a busy machine."""
    reason = "pruned by 90% the network still takes 1.10 times as long"
    outcomes = [NotTrained("pruned, Taylor", 0, reason), Result("WAE", 0, 0.5, 1.0, [0.5], {})]
    said = f"pruned, Taylor, seed 0, is left out: {reason}"

    def rows(results, claim):
        assert results == outcomes[1:]
        return [Row("WAE", [0], [0.5], 10, 5.0)]

    monkeypatch.setattr("wae.experiments.machine.OtherPrograms.cores", lambda others: cores)
    monkeypatch.setattr(reproduce, "run", lambda *_: outcomes)
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", rows)
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == 1
    printed, table = capsys.readouterr(), (tmp_path / "table.md").read_text()
    assert printed.err == f"wae: {said}\n"
    assert printed.out.endswith(table)
    assert "| WAE | 50.00 % |" in table
    assert f"\n\n{said}.\n" in table
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [row["network"] for row in data.pop("networks")] == ["WAE"]
    assert data.pop("machine") == machine()
    left_out = [{"network": "pruned, Taylor", "seed": 0, "reason": reason}]
    assert data == {"left_out": left_out, "others": cores}


def test_two_runs_do_not_share_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with lock.alone_in(tmp_path):
        assert main(["reproduce", "fashion-mnist", "--data", "digits", "-o", str(tmp_path)]) == 1
    assert f"{tmp_path}: another training is writing to this folder" in capsys.readouterr().err


def test_the_folder_is_locked_until_its_last_file_is_written(tmp_path, monkeypatch):
    steps = []

    def assert_locked(step):
        with pytest.raises(lock.FolderInUseError), lock.alone_in(tmp_path):
            pass
        steps.append(step)

    picture = Image.new("RGB", (1, 1))
    monkeypatch.setattr(lock, "PATIENCE", 0)
    monkeypatch.setattr(reproduce, "run", lambda *_: assert_locked("trained") or [])
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: assert_locked("timed") or [])
    monkeypatch.setattr(FashionMnist, "picture", lambda *_: picture)
    monkeypatch.setattr(picture, "save", lambda *_: assert_locked("written"))
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == 0
    assert steps == ["trained", "timed", "written"]
    assert {file.name for file in tmp_path.iterdir()} == {"table.md", "picture.png"}
    with lock.alone_in(tmp_path):
        pass


def test_by_default_one_training_runs_on_each_core_of_the_process(tmp_path, monkeypatch):
    """Under taskset, say, these are fewer than the machine's."""
    processes = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(reproduce, "run", lambda *arguments: processes.append(arguments[4]) or [])
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: [])
    for more in ([], ["--processes", "2"], ["--device", "cuda"]):
        assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path), *more]) == 0
    assert processes == [3, 2, 1]


@pytest.mark.parametrize(("number", "status"), [(errno.EROFS, 0), (errno.EACCES, 0), (errno.ENOSPC, 1)])
def test_the_table_of_a_read_only_folder_is_printed(tmp_path, monkeypatch, capsys, number, status):
    """There is nothing left to train."""

    def written(path, force):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("wae.storage.files.written", written)
    monkeypatch.setattr(reproduce, "run", lambda *_: [])
    monkeypatch.setattr(
        "wae.experiments.reproduction.table.rows", lambda *_: [Row("WAE", [0], [0.5], 10, 5.0)]
    )
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == status
    printed = capsys.readouterr()
    said = f"wae: {tmp_path}: {os.strerror(number)}; the table is printed but not saved\n"
    assert (printed.err == said) == ("| WAE | 50.00 %" in printed.out) == (not status)


@pytest.mark.parametrize(("cores", "warnings"), [(0.5, 1), (0.05, 0), (None, 0)])
def test_a_machine_that_was_busy_during_the_timing_is_reported(
    tmp_path, monkeypatch, capsys, cores, warnings
):
    monkeypatch.setattr("wae.experiments.machine.OtherPrograms.cores", lambda others: cores)
    monkeypatch.setattr(reproduce, "run", lambda *_: [])
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: [])
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == 0
    for text in (capsys.readouterr().out, (tmp_path / "table.md").read_text()):
        assert text.count("Other programs used 0.5 cores meanwhile: do not rely on these times.") == warnings


def test_the_bar_does_not_count_epochs_that_are_not_trained(tmp_path, monkeypatch, capsys):
    """With those of an earlier run it would show no remaining time if epochs are long.

    With those of trainings that are left out it would never become full.
    """
    bars, make, now = [], progress.progress, [0.0]

    def made(*given):
        bars.append(make(*given))
        bars[0].get_time = lambda: now[0]
        return bars[0]

    def run(folder, data, wanted, claim, processes, device, tell):
        (task,) = bars[0].tasks
        total = task.total
        tell(Progress(wanted[0], "joint", 3, 9, 0.5, before=True))
        assert (task.completed, task.total) == (0, total - 3)
        for done in (4, 5):
            now[0] += 600.0
            tell(Progress(wanted[0], "joint", done, 9, 0.5))
        assert (task.completed, task.speed) == (2, pytest.approx(1 / 600))
        for network, seed in wanted:
            tell(NotTrained(network, seed, "the loss is nan"))
        assert (task.completed, task.total, task.speed) == (2, 2, pytest.approx(1 / 600))
        return []

    monkeypatch.setattr(progress, "progress", made)
    monkeypatch.setattr(reproduce, "run", run)
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: [])
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == 0
    assert "seed 0: resuming after epoch 3 of 9 (joint), accuracy 50.00 %" in capsys.readouterr().out


def test_a_student_needs_its_teacher(tmp_path):
    with pytest.raises(ValueError, match="28 x 28, seed 1"):
        reproduce.run(tmp_path, "digits", [Job("WAE, mimic", 1), Job("28 x 28", 0)], DIGITS, 1)


@pytest.mark.slow
def test_a_finished_teacher_need_not_be_among_the_jobs(tmp_path):
    """And a finished student needs neither a teacher nor data."""
    teacher, student = Job("28 x 28", 0), Job("WAE, mimic", 0)
    reproduce.run(tmp_path, "digits", [teacher], DIGITS, 1)
    (result,) = reproduce.run(tmp_path, "digits", [student], DIGITS, 1)
    assert (result.network, result.seed) == student
    weights_path(tmp_path, teacher).unlink()
    assert reproduce.run(tmp_path, "there is none", [student], DIGITS, 1) == [result]
    result_path(tmp_path, student).unlink()
    with pytest.raises(ValueError, match=f"must be wanted too .*, or be finished in {tmp_path}"):
        reproduce.run(tmp_path, "digits", [student], DIGITS, 1)


@pytest.mark.slow
def test_a_student_of_earlier_weights_is_trained_again_after_its_teacher(tmp_path):
    wanted = teacher, student = Job("28 x 28", 0), Job("WAE, mimic", 0)
    results = reproduce.run(tmp_path, "digits", wanted, DIGITS, 1)
    assert [result.needed_weights for result in results] == ["", sha256(weights_path(tmp_path, teacher))]
    write_json(result_path(tmp_path, student), asdict(replace(results[1], needed_weights="of others")))
    for path in (result_path, weights_path):
        path(tmp_path, teacher).unlink()
    messages = []
    again = reproduce.run(tmp_path, "digits", wanted, DIGITS, 1, tell=messages.append)
    assert [result.needed_weights for result in again] == [result.needed_weights for result in results]
    assert [(told.job, told.before) for told in messages] == [
        (job, False) for job in (teacher, student, student)
    ]


def test_the_bar_counts_a_training_that_another_one_made_necessary(tmp_path, monkeypatch):
    bars, make = [], progress.progress

    def run(folder, data, wanted, claim, processes, device, tell):
        (task,) = bars[0].tasks
        tell(Progress(wanted[0], "joint", 1, 3, 0.5))
        assert (task.completed, task.total) == (1, 3)
        return []

    monkeypatch.setattr(progress, "progress", lambda *given: bars.append(make(*given)) or bars[0])
    monkeypatch.setattr(reproduce, "to_train", lambda *_: [])
    monkeypatch.setattr(reproduce, "run", run)
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: [])
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == 0
    assert bars


def test_a_folder_without_the_data_is_an_error_that_names_it(tmp_path, capsys):
    assert main(["reproduce", "fashion-mnist", "--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table.md", "picture.png"])
def test_a_file_of_the_users_is_not_replaced(tmp_path, monkeypatch, capsys, name):
    """Beside a table of an earlier run there may be its picture."""
    monkeypatch.setattr(reproduce, "run", lambda *_: [])
    monkeypatch.setattr(
        "wae.experiments.reproduction.table.rows", lambda *_: [Row("WAE", [0], [0.5], 10, 5.0)]
    )
    (tmp_path / name).write_text("mine")
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"wae: {tmp_path / name}: is not of wae reproduce; move it, or name another folder\n"
    )
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "table.md").write_text("| network | accuracy |")
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path)]) == 0


def test_the_table_as_json(tmp_path, capsys, monkeypatch):
    accuracies = {"28 x 28": 0.9, "14 x 14": 0.8, "WAE": 0.89}
    rows = [Row(network, [0], [accuracy], 10, 5.0, [accuracy**2]) for network, accuracy in accuracies.items()]
    monkeypatch.setattr("wae.commands.reproduce._watch", lambda *_: [])
    monkeypatch.setattr("wae.experiments.reproduction.table.rows", lambda *_: rows)
    assert main(["reproduce", "fashion-mnist", "-o", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    found = {row.pop("network"): row for row in json.loads(printed.out)["networks"]}
    assert found["WAE"] == {
        "seeds": [0], "accuracies": [0.89], "multiply_adds": 10, "microseconds": 5.0,
        "recovered": pytest.approx(0.9), "remeasured": [0.89**2],
        "recovered_remeasured": pytest.approx((0.89**2 - 0.64) / 0.17),
    }  # fmt: skip
    assert "Measuring their times on this machine" in printed.err
    assert "| WAE | 89.00 % |" in (tmp_path / "table.md").read_text()
