"""The paper's claim, tried on images that a processor can train on: what the trainings of each claim share.

A :class:`Claim` says which networks are compared, on which images, by which plan. Every training has one core
to itself; what is finished is kept, a file of JSON each, and what is not goes on from its last epoch.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
import shutil
import statistics
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from wae.data.dataset import Dataset
from wae.inference.timing import interleaved
from wae.models.bodies import initialize
from wae.models.counting import count
from wae.models.network import WAENetwork, fold_normalization
from wae.models.registry import build
from wae.storage.checkpoint import Input, load_classifier, save_classifier
from wae.storage.files import written
from wae.storage.weights_file import CheckpointError
from wae.termination import end_with_parent, terminable
from wae.training.plan import Plan, Stage, differences
from wae.training.pretrained import scale_for_photos
from wae.training.trainer import Epoch, Observer, TrainingError, evaluate, train
from wae_kernels.nn import Decoder, Encoder

from .machine import machine

WAVELET, DECOMPOSITION, WAE = "Wavelet+CNN", "Decomposition+CNN", "WAE"
"""Networks that every claim has, in the paper's words."""

_SHARED = (
    *("learning_rate", "optimizer", "momentum", "weight_decay", "schedule", "warmup", "step_epochs"),
    *("step_factor", "label_smoothing", "class_balance", "ema"),
)
"""Entries of WAE's last stage that the networks without an encoder share. What is WAE's own they have not:
it can be chosen anew without training them again."""


class Job(NamedTuple):
    """One training."""

    network: str
    seed: int

    @property
    def stem(self) -> str:
        """The name of its files."""
        letters = "".join(c if c.isalnum() else "-" for c in self.network.lower())
        return f"{letters}-seed{self.seed}"


@dataclass(frozen=True)
class Result:
    """The outcome of one training."""

    network: str
    seed: int
    accuracy: float
    """Share of the test images that are classified rightly after the last epoch; of networks that score
    pixels the mean intersection over union. See :meth:`Claim.kept_out`."""
    seconds: float
    """All epochs together, on one core of the machine that ran it."""
    epochs: list[float]
    """The accuracy after each epoch with labels."""
    plan: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    """Everything besides the plan that decides the outcome: see :meth:`Claim.settings`."""
    multiply_adds: int = 0
    """On one image."""
    start: dict[str, Any] = field(default_factory=dict)
    """Measured before the first epoch: see :meth:`Claim.start`."""
    measured: dict[str, Any] = field(default_factory=dict)
    """All that was measured beside ``accuracy``."""
    made: dict[str, Any] = field(default_factory=dict)
    """Commit, date, machine and versions."""


class Progress(NamedTuple):
    """An epoch of a job has ended."""

    job: Job
    kind: str
    """Of the stage."""
    done: int
    """Epochs of the whole job."""
    of: int
    accuracy: float | None


@dataclass(frozen=True)
class Claim(ABC):
    """A claim to reproduce: the networks, the images, the plan. Workers get a copy."""

    wae: Plan
    """WAE's plan, from which the others follow."""

    timed_images: ClassVar[int] = 100
    """In a batch whose time is measured."""

    measure: ClassVar[str] = "accuracy"
    """The name of a result's ``accuracy`` in the table."""

    @property
    @abstractmethod
    def full(self) -> str:
        """The network at full resolution."""

    @property
    @abstractmethod
    def half(self) -> str:
        """The network at half the resolution."""

    @property
    @abstractmethod
    def registered(self) -> Mapping[str, str | None]:
        """The networks, in the table's order: each one's name in :mod:`wae.models.registry`, if any."""

    @property
    @abstractmethod
    def input(self) -> Input:
        """How a photo becomes an image of the data."""

    @abstractmethod
    def build(self, network: str) -> nn.Module:
        """One of those that are registered, with random weights, for the data's classes."""

    @abstractmethod
    def prepared(self, data: str | Path, folder: Path) -> str | Path:
        """Check ``data`` before any process is started, and return what workers open; ``folder`` may hold it.

        Raises DatasetError.
        """

    @abstractmethod
    def sets(self, data: str | Path, seed: int) -> tuple[Dataset, Dataset]:
        """The images to train on, and those to test with, of what :meth:`prepared` gave."""

    def kept_out(self, data: str | Path) -> Dataset | None:
        """Images that are looked at once, after the last epoch; None for those of every epoch's test."""
        return None

    def picture(self, data: str | Path, folder: Path) -> Image.Image | None:
        """An image of the results, drawn with the weights in ``folder``; None for a claim without one."""
        return None

    def settings(self) -> dict[str, Any]:
        """Everything besides its plan that decides the outcome of a training, for JSON."""
        return {}

    def needs(self, network: str) -> str | None:
        """The network whose trained weights, of the same seed, ``network`` needs."""
        return None

    def start_path(self, folder: Path, job: Job) -> Path:
        """Where :meth:`start` keeps what it measured, until the training has its result."""
        return folder / f"{job.stem}.start.json"

    def start(self, job: Job, folder: Path, training: Dataset) -> tuple[nn.Module, dict[str, Any]]:
        """The network to train, and what was found out to make it."""
        torch.manual_seed(job.seed)
        return self.build(job.network), {}

    def plan_of(self, network: str, seed: int) -> Plan:
        """WAE's plan as it is for ``network``: as many epochs with labels, at the same rates."""
        if network == WAE:
            return replace(self.wae, seed=seed)
        joint = self.wae.stages[-1]
        epochs = sum(stage.epochs for stage in self.wae.stages if stage.kind != "transform")
        if network == DECOMPOSITION:  # as WAE, without the reconstruction constraint
            stage = replace(joint, epochs=epochs, transform_weight=0.0, encoder_rate=1.0)
        else:
            kept = {entry: getattr(joint, entry) for entry in _SHARED}
            low_weight = joint.low_weight if network == WAVELET else 0.0  # the others have no low classifier
            stage = Stage("classifier", epochs, low_weight=low_weight, **kept)
        return replace(self.wae, seed=seed, start="random", stages=(stage,), model=network)

    def jobs(self, seeds: Sequence[int]) -> list[Job]:
        """All trainings: seed by seed, those that the claim rests on first; last those that need weights."""
        first = (self.full, WAE, self.half)
        networks = sorted(self.registered, key=lambda name: (name not in first, bool(self.needs(name))))
        free = [name for name in networks if not self.needs(name)]
        return [Job(name, seed) for seed in seeds for name in free] + [
            Job(name, seed) for name in networks if self.needs(name) for seed in seeds
        ]


def built_for_photos(name: str, classes: int) -> nn.Module:
    """The registered network ``name`` with random weights, for photos of 0..255; WAE with a decoder.

    Encoder and decoder begin as the bodies' convolutions do, unless the plan's start replaces them.
    """
    model = build(name, classes)
    if isinstance(model, WAENetwork) and isinstance(model.encoder, Encoder):
        model.decoder = model.decoder or Decoder()
        model.encoder.apply(initialize)
        model.decoder.apply(initialize)
    scale_for_photos(model)
    return model


def longer(plan: Plan, times: float) -> Plan:
    """``plan`` with so many times the epochs with labels, or a part of them, at least one."""
    stages = (
        stage if stage.kind == "transform" else replace(stage, epochs=max(1, int(stage.epochs * times)))
        for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages))


def run(
    folder: Path,
    data: str | Path,
    wanted: Sequence[Job],
    claim: Claim,
    processes: int,
    device: str = "cpu",
    tell: Callable[[Progress], None] = lambda progress: None,
) -> list[Result]:
    """Do the ``wanted`` trainings that ``folder`` has no result of, and return all their results.

    A finished training whose weights are needed, and are no longer there, is done again.

    Args:
        folder: where results, weights and checkpoints are kept. The caller has locked it, with
            :func:`wae.training.lock.alone_in`, until its own last file is written there too.
        data: see :meth:`Claim.prepared`.
        claim: what is compared.
        processes: how many trainings at a time, each on one core.
        device: where they train.
        tell: is called, in this process, after each epoch.

    Raises:
        DatasetError: the data is missing or not what was published.
        CheckpointError: ``folder`` is one of another plan or claim, or damaged.
        TrainingError: a training ended without a result.
        ValueError: among the ``wanted`` there is not one whose weights another needs.
    """
    for job in wanted:
        if (needed := _needed(claim, job)) and needed not in wanted:
            raise ValueError(
                f"{job.network} begins with the weights of {needed.network}, seed {needed.seed}: "
                "that must be wanted too (--only)"
            )
    prepared = claim.prepared(data, folder)
    results = {job: read_result(folder, job, claim) for job in wanted}
    todo = open_jobs(folder, wanted, claim)
    results |= dict.fromkeys(todo)
    workers = [_Worker(folder, prepared, claim, device) for _ in range(min(processes, len(todo)))]
    idle = [worker.link for worker in workers]
    try:
        while not all(results.values()):
            for job in _ready(todo, results, claim)[: len(idle)]:
                todo.remove(job)
                with contextlib.suppress(ConnectionError):  # it was killed, as the wait will tell
                    idle.pop().send(job)
            for link in wait([worker.link for worker in workers]):
                assert isinstance(link, Connection)
                message = _next(link)
                if isinstance(message, Progress):
                    tell(message)
                elif isinstance(message, Result):
                    results[Job(message.network, message.seed)] = message
                    idle.append(link)
                else:
                    raise message
    finally:
        for worker in workers:
            worker.process.terminate()
    return [result for result in results.values() if result]


def open_jobs(folder: Path, wanted: Sequence[Job], claim: Claim) -> list[Job]:
    """Those of ``wanted`` that have no result, or whose weights are needed and not there."""
    missing = [job for job in wanted if read_result(folder, job, claim) is None]
    needed = {_needed(claim, job) for job in missing}
    return [
        job for job in wanted if job in missing or (job in needed and not weights_path(folder, job).exists())
    ]


def _needed(claim: Claim, job: Job) -> Job | None:
    """The training whose weights ``job`` needs."""
    network = claim.needs(job.network)
    return None if network is None else Job(network, job.seed)


def _ready(todo: Sequence[Job], results: Mapping[Job, Result | None], claim: Claim) -> list[Job]:
    """Those of ``todo`` that need not wait for another's weights."""
    return [job for job in todo if (needed := _needed(claim, job)) is None or results[needed]]


class _Worker:
    """A process that trains, and the main process's end of a pipe to it alone.

    Nothing is shared with other workers: one that is killed, even while it writes, closes its pipe, and holds
    nothing that somebody waits for.
    """

    def __init__(self, folder: Path, data: str | Path, claim: Claim, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, its_end = context.Pipe()
        self.process = context.Process(target=_work, args=(its_end, folder, data, claim, device), daemon=True)
        self.process.start()
        its_end.close()  # else the pipe would outlive the worker


def _next(link: Connection) -> Any:
    """The next message of a worker. Raises TrainingError where it was killed."""
    try:
        return link.recv()
    except (EOFError, OSError):
        raise TrainingError("a training ended without a result: was it out of memory?") from None


def _work(link: Connection, folder: Path, data: str | Path, claim: Claim, device: str) -> None:
    """A worker: do one training after another, until the main process is gone."""
    torch.set_num_threads(1)
    end_with_parent()  # at once: it can be killed in the middle of an epoch
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt), terminable():
        while True:
            job = link.recv()
            try:
                message: Result | Exception = _train(job, folder, data, claim, device, link)
            except Exception as error:
                message = _as_sent(job, error)
            link.send(message)


def _as_sent(job: Job, error: Exception) -> Exception:
    """``error``; where it would not come out of the pipe as it went in, one that says the same."""
    with contextlib.suppress(Exception):  # any that its class raises
        found = pickle.loads(pickle.dumps(error))
        if (type(found), str(found)) == (type(error), str(error)):
            return error
    return TrainingError(f"{job.network}, seed {job.seed}: {type(error).__name__}: {error}")


def _train(job: Job, folder: Path, data: str | Path, claim: Claim, device: str, link: Connection) -> Result:
    """One training, from its last epoch or from the start; its weights and its result in ``folder``."""
    commit = _commit()  # of the code that trains: at the end there may be another one
    chosen = claim.plan_of(job.network, job.seed)
    sets = claim.sets(data, job.seed)
    model, start = claim.start(job, folder, sets[0])
    mimics = any(stage.mimic_weight for stage in chosen.stages)
    teacher = load_classifier(weights_path(folder, Job(claim.full, job.seed))) if mimics else None
    state = folder / f"{job.stem}.state.safetensors"
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
    accuracies = [epoch.accuracy for epoch in history if epoch.accuracy]
    kept_out = claim.kept_out(data)
    last = accuracies[-1] if kept_out is None else evaluate(model, kept_out, chosen.batch, device)
    model = model.cpu().eval()
    result = Result(
        job.network,
        job.seed,
        last.score,
        sum(epoch.seconds for epoch in history),
        [accuracy.score for accuracy in accuracies],
        chosen.as_dict(),
        claim.settings(),
        count(model, claim.input.shape).multiply_adds,
        start,
        last._asdict(),
        {"commit": commit, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), **machine()},
    )
    if registered := claim.registered[job.network]:
        made = {"plan": chosen.as_dict(), "accuracy": result.accuracy}
        path = weights_path(folder, job)
        save_classifier(path, model, registered, sets[0].labels, claim.input, made, force=True)
    write_json(_result_path(folder, job), asdict(result))
    state.unlink()
    claim.start_path(folder, job).unlink(missing_ok=True)  # it is in the result
    return result


def _commit() -> str | None:
    """The commit that this code is of, with "-dirty" where files were changed; None where git knows none."""
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
    """Tells the main process of each epoch. Raises ConnectionError where that is gone."""

    def __init__(self, job: Job, epochs: int, link: Connection) -> None:
        self.job, self.epochs, self.link = job, epochs, link
        self.before = 0

    def start(self, plan: Plan, stage: int, epoch: int, steps: int) -> None:
        """See :class:`Observer`."""
        self.before = sum(s.epochs for s in plan.stages[:stage]) + epoch

    def end(self, epoch: Epoch, model: nn.Module) -> None:
        """See :class:`Observer`."""
        score = epoch.accuracy.score if epoch.accuracy else None
        self.link.send(Progress(self.job, epoch.kind, self.before + 1, self.epochs, score))


# -------------------------------------------------------------------------------------------- results


def weights_path(folder: Path, job: Job) -> Path:
    """Where a training's weights are kept."""
    return folder / f"{job.stem}.safetensors"


def _result_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.stem}.json"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content``, or leave what was there."""
    with written(path, force=True) as file:
        file.write(f"{json.dumps(content, indent=1)}\n".encode())


def read_result(folder: Path, job: Job, claim: Claim) -> Result | None:
    """The result of ``job`` in ``folder``, if it has one.

    Raises CheckpointError where that is of another plan or claim, or is damaged.
    """
    path = _result_path(folder, job)
    if not path.exists():
        return None
    try:
        result = Result(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: this is no result of a training ({error})") from None
    if made := differences(result.plan, claim.plan_of(job.network, job.seed)):
        raise CheckpointError(f"{path}: was made by another plan: {made}; use another folder")
    if result.settings != json.loads(json.dumps(claim.settings())):
        raise CheckpointError(f"{path}: is of other settings: {result.settings}; use another folder")
    return result


@dataclass(frozen=True)
class Row:
    """One network's line in the table."""

    network: str
    accuracies: list[float]
    """Of each seed."""
    multiply_adds: int
    """On one image."""
    microseconds: float
    """The median time of one image in a batch of :attr:`Claim.timed_images`, where the table was made."""

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """The standard deviation of a seed's accuracy; None where there is one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def rows(results: Sequence[Result], claim: Claim, seconds: float = 10.0) -> list[Row]:
    """The table of ``results``, in the claim's order; the networks are timed here, taking turns.

    One without a name of its own was pruned to a measured share of WAE's time, and has that share of it here.

    Args:
        results: of any number of seeds.
        claim: what they are of.
        seconds: how long to time.
    """
    of = {name: [r for r in results if r.network == name] for name in claim.registered}
    names = [name for name in claim.registered if of[name]]
    models = {name: claim.build(name) for name in {*names, WAE} if claim.registered[name]}
    times = timed(models, claim, seconds)
    return [
        Row(
            name,
            [result.accuracy for result in of[name]],
            of[name][0].multiply_adds,
            1e6 * times[name] if name in times else 1e6 * times[WAE] * of[name][0].start["time"],
        )
        for name in names
    ]


def timed(models: Mapping[str, nn.Module], claim: Claim, seconds: float) -> dict[str, float]:
    """Seconds that each network takes for an image, in a batch: medians of runs that took turns."""
    size = claim.timed_images, 3, *claim.input.shape
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    calls = {name: _inference(model.eval(), images) for name, model in models.items()}
    with torch.no_grad():
        timings = interleaved(calls, seconds)
    return {name: timing.median / len(images) for name, timing in timings.items()}


def _inference(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    network = fold_normalization(model) if isinstance(model, WAENetwork) else model
    network = network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda: network(images)


def won_back(table: Sequence[Row], claim: Claim, network: str) -> float | None:
    """The share of the accuracy lost by halving the resolution that ``network`` wins back.

    None where the table has not all three networks, or nothing was lost.
    """
    means = {row.network: row.mean for row in table}
    full, half = means.get(claim.full), means.get(claim.half)
    if full is None or half is None or network not in means or full <= half:
        return None
    return (means[network] - half) / (full - half)


def markdown(table: Sequence[Row], claim: Claim) -> str:
    """The table for people."""
    full = next((row.multiply_adds for row in table if row.network == claim.full), None)
    lines = [
        f"| network | {claim.measure}, mean of seeds | spread | won back | multiply-adds | time per image |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        share = won_back(table, claim, row.network)
        won = "" if share is None or row.network in (claim.full, claim.half) else f"{100 * share:.0f} %"
        spread = "" if row.spread is None else f"{100 * row.spread:.2f}"
        cost = f"{row.multiply_adds / 1e6:.2f} M" + (f" ({row.multiply_adds / full:.0%})" if full else "")
        lines.append(
            f"| {row.network} | {100 * row.mean:.2f} % | {spread} | {won} | {cost} "
            f"| {row.microseconds:.0f} us |"
        )
    return "\n".join(lines)
