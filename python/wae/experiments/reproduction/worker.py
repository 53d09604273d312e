"""A process that runs one training after another, each on one core."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from wae.data.dataset import Dataset
from wae.experiments.machine import machine
from wae.experiments.pruning import PruningError
from wae.models.counting import count
from wae.storage.checkpoint import load_classifier, save_classifier
from wae.termination import end_with_parent, terminable
from wae.training.accuracy import Accuracy, PixelAccuracy, evaluate
from wae.training.norms import kept_norms, remeasure_norms
from wae.training.plan import Plan
from wae.training.processes import usable_device
from wae.training.state import Epoch
from wae.training.trainer import DivergedError, Observer, TrainingError, train

from .claim import Claim, Job
from .results import (
    NotTrained,
    Result,
    needed_weights,
    read_result,
    result_path,
    state_path,
    tidy,
    weights_path,
    write_json,
)


class Progress(NamedTuple):
    """An epoch of a job has ended, or a job resumes after it."""

    job: Job
    kind: str
    """The kind of the stage."""
    done: int
    """The job's finished epochs, over all its stages."""
    of: int
    accuracy: float | None
    before: bool = False
    """Whether an earlier run trained the epoch, from which this one resumes."""


class Worker:
    """A process that trains, and the main process's end of its pipe.

    Workers share nothing: if one is killed, even while it writes, its pipe closes, and it holds no lock that
    others wait for.
    """

    def __init__(self, folder: Path, data: str | Path, claim: Claim, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, its_end = context.Pipe()
        self.process = context.Process(target=_work, args=(its_end, folder, data, claim, device), daemon=True)
        self.process.start()
        its_end.close()  # otherwise the pipe would outlive the worker


def next_message(link: Connection) -> Any:
    """The next message of a worker. Raises TrainingError if the worker was killed."""
    try:
        return link.recv()
    except (EOFError, OSError):
        raise TrainingError("a training ended without a result: out of memory?") from None


def _work(link: Connection, folder: Path, data: str | Path, claim: Claim, device: str) -> None:
    """A worker's loop: run one training after another until the main process has ended."""
    torch.set_num_threads(1)
    end_with_parent()  # in the middle of an epoch too
    _commit()
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt), terminable():
        while True:
            job = link.recv()
            message: Result | NotTrained | Exception
            try:
                message = _outcome(job, folder, data, claim, device, link)
            except Exception as error:
                message = _as_sent(job, error)
            link.send(message)


def _outcome(
    job: Job, folder: Path, data: str | Path, claim: Claim, device: str, link: Connection
) -> Result | NotTrained:
    """Train ``job``, or only re-estimate its BatchNorm statistics if that is what its result lacks.

    It is left out if its network cannot be made, or if the loss is no longer finite.
    """
    usable = usable_device(device)  # asked only here: the main process shall not open a GPU
    known = read_result(folder, job, claim)
    if known and lacks_remeasured(folder, job, claim):
        training, test = claim.sets(data, job.seed)
        return _remeasured(known, folder, claim, usable, training, claim.held_out(data) or test)
    try:
        return _train(job, folder, data, claim, usable, link)
    except PruningError as error:
        return NotTrained(job.network, job.seed, str(error))
    except DivergedError as error:  # it would again
        return NotTrained(job.network, job.seed, error.what)


def _as_sent(job: Job, error: Exception) -> Exception:
    """``error``, or one with the same message if it would not survive the pipe unchanged."""
    with contextlib.suppress(Exception):  # its class may raise anything
        found = pickle.loads(pickle.dumps(error))
        if (type(found), str(found)) == (type(error), str(error)):
            return error
    return TrainingError(f"{job.network}, seed {job.seed}: {type(error).__name__}: {error}")


def _train(
    job: Job, folder: Path, data: str | Path, claim: Claim, device: torch.device, link: Connection
) -> Result:
    """Run one training, from its last epoch or from the start; write its weights and result to ``folder``."""
    chosen = claim.plan_of(job.network, job.seed)
    sets = claim.sets(data, job.seed)
    model, start = claim.start(job, folder, sets[0])
    mimics = any(stage.mimic_weight for stage in chosen.stages)
    teacher = load_classifier(weights_path(folder, Job(claim.full, job.seed))) if mimics else None
    state, needed = state_path(folder, job), needed_weights(folder, job, claim)
    observer = _Messenger(job, sum(stage.epochs for stage in chosen.stages), link)
    history = train(
        model,
        chosen,
        *sets,
        state=state,
        resume=state.exists(),
        teacher=teacher,
        observer=observer,
        device=device,
    )
    held_out = claim.held_out(data)
    last = history[-1].accuracy if held_out is None else evaluate(model, held_out, chosen.batch, device)
    assert last is not None
    model = model.cpu().eval()
    cost = count(model, claim.input.shape).multiply_adds
    result = _result(job, claim, history, last, cost, needed, start, device)
    if registered := claim.registered[job.network]:
        made = {"plan": chosen.as_dict(), "accuracy": result.accuracy}
        path = weights_path(folder, job)
        save_classifier(path, model, registered, sets[0].labels, claim.input, made, force=True)
        _forget_dependents(job, folder, claim)
    write_json(result_path(folder, job), asdict(result))
    tidy(folder, job, claim)  # if this process is killed before it, the next run does it
    if claim.remeasures:  # last, because it can be repeated from the weights
        result = _remeasured(result, folder, claim, device, sets[0], held_out or sets[1])
    return result


def _forget_dependents(job: Job, folder: Path, claim: Claim) -> None:
    """Remove what unfinished trainings that began from earlier weights of ``job`` would resume from."""
    for other in claim.jobs([job.seed]):
        if claim.needed_by(other) == job:
            for path in (state_path(folder, other), claim.start_path(folder, other)):
                path.unlink(missing_ok=True)


def _result(
    job: Job,
    claim: Claim,
    history: Sequence[Epoch],
    last: Accuracy | PixelAccuracy,
    multiply_adds: int,
    needed: str,
    start: dict[str, Any],
    device: torch.device,
) -> Result:
    """The result of a training on ``device``; ``last`` is the accuracy of its final weights."""
    return Result(
        job.network,
        job.seed,
        last.score,
        sum(epoch.seconds for epoch in history),
        [epoch.accuracy.score for epoch in history if epoch.accuracy],
        claim.plan_of(job.network, job.seed).as_dict(),
        claim.settings(),
        multiply_adds,
        start,
        last._asdict(),
        needed_weights=needed,
        made={
            "commit": _commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **machine(device),
        },
        data=dict(claim.data),
    )


def lacks_remeasured(folder: Path, job: Job, claim: Claim) -> bool:
    """Whether the finished ``job`` has weights, but not yet an accuracy with re-estimated statistics.

    False if ``folder`` is read-only: the result alone is enough for the table.
    """
    result = read_result(folder, job, claim)
    lacks = claim.remeasures and result and not result.remeasured and weights_path(folder, job).exists()
    return bool(lacks and os.access(folder, os.W_OK))


def _remeasured(
    result: Result,
    folder: Path,
    claim: Claim,
    device: torch.device,
    training: Dataset,
    tested: Dataset,
) -> Result:
    """``result`` with the accuracy of its weights after re-estimating the statistics; also in ``folder``."""
    job = Job(result.network, result.seed)
    plan = claim.plan_of(*job)
    model = load_classifier(weights_path(folder, job)).to(device)
    remeasure_norms(model, training.plain(), plan.batch, device, kept_norms(model, plan))
    accuracy = evaluate(model, tested, plan.batch, device)
    found = {"accuracy": accuracy.score, **accuracy._asdict(), "commit": _commit()}
    result = replace(result, remeasured=found)
    write_json(result_path(folder, job), asdict(result))
    return result


@cache  # first called when a worker starts, because the files may change later
def _commit() -> str | None:
    """The commit of this code, with "-dirty" if files were changed; None if git knows none."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__)
    known = subprocess.run(
        ["git", "ls-files", "--error-unmatch", here.name], cwd=here.parent, capture_output=True
    )
    if known.returncode:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=here.parent, capture_output=True, text=True).stdout.strip()


class _Messenger(Observer):
    """Reports each epoch to the main process. Raises ConnectionError if that has ended."""

    def __init__(self, job: Job, epochs: int, link: Connection) -> None:
        self.job, self.epochs, self.link = job, epochs, link
        self.before = 0

    def begin(self, plan: Plan, history: list[Epoch]) -> None:
        """See :class:`Observer`."""
        if history:
            self._tell(len(history), history[-1], before=True)

    def start(self, plan: Plan, stage: int, epoch: int, steps: int) -> None:
        """See :class:`Observer`."""
        self.before = sum(s.epochs for s in plan.stages[:stage]) + epoch

    def end(self, epoch: Epoch, model: nn.Module) -> None:
        """See :class:`Observer`."""
        self._tell(self.before + 1, epoch)

    def _tell(self, done: int, last: Epoch, before: bool = False) -> None:
        score = last.accuracy.score if last.accuracy else None
        self.link.send(Progress(self.job, last.kind, done, self.epochs, score, before))
