"""The paper's claim on Fashion-MNIST: WAE wins back the accuracy that halving the resolution costs.

Five networks, each with several seeds, are trained by one plan (``training/plans/fashion_mnist.toml``):
the small VGG at 28 x 28, at 14 x 14, Wavelet+CNN, Decomposition+CNN and WAE; and WAE once more, as a student
of the network at 28 x 28. Every training has one core to itself; what is finished is kept, and what is not
goes on from its last epoch.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wae.data.loading import open_dataset
from wae.inference.timing import interleaved
from wae.models.classifier import WAEClassifier, fold_normalization
from wae.models.counting import count
from wae.models.registry import builder
from wae.storage.checkpoint import Input, load_classifier, save_classifier
from wae.storage.files import written
from wae.storage.weights_file import CheckpointError
from wae.termination import end_with_parent, terminable
from wae.training import plan
from wae.training.plan import Plan
from wae.training.trainer import Epoch, Observer, TrainingError, train

NETWORKS = {
    "28 x 28": "small_vgg",
    "14 x 14": "small_vgg_half",
    "Wavelet+CNN": "wavelet_small_vgg",
    "Decomposition+CNN": "wae_small_vgg",
    "WAE": "wae_small_vgg",
    "WAE, mimic": "wae_small_vgg",
}
"""The networks compared, in the paper's words, and the network's name in :mod:`wae.models.registry`."""

FULL, HALF, WAE, MIMIC = "28 x 28", "14 x 14", "WAE", "WAE, mimic"
_MIMIC_WEIGHT, _MIMIC_TEMPERATURE = 1.0, 2.0
_SIZE = (28, 28)
INPUT = Input(size=28, resize=28, grayscale=True)


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
    """Share of the 10,000 test images that are classified rightly after the last epoch."""
    seconds: float
    """All epochs together, on one core of the machine that ran it."""
    epochs: list[float]
    """The accuracy after each epoch with labels."""
    plan: dict[str, Any]


class Progress(NamedTuple):
    """An epoch of a job has ended."""

    job: Job
    kind: str
    """Of the stage."""
    done: int
    """Epochs of the whole job."""
    of: int
    accuracy: float | None


def build(network: str) -> nn.Module:
    """One of NETWORKS with random weights, for 10 classes of (N, 3, 28, 28)."""
    make = builder(NETWORKS[network])
    assert make is not None
    return make(10)


def wae_plan(quick: bool = False) -> Plan:
    """The plan of WAE; ``quick`` is for a glance: a quarter of the epochs with labels."""
    full = plan.read(plan.PLANS / "fashion_mnist.toml")
    if not quick:
        return full
    stages = (replace(stage, epochs=max(1, stage.epochs // 4)) for stage in full.stages)
    return replace(full, stages=tuple(stages))


def plan_of(network: str, seed: int, wae: Plan) -> Plan:
    """``wae``, WAE's plan, as it is for ``network``: as many epochs with labels, at the same rates."""
    if network == WAE:
        return replace(wae, seed=seed)
    joint = wae.stages[-1]
    if network == MIMIC:
        joint = replace(joint, mimic_weight=_MIMIC_WEIGHT, mimic_temperature=_MIMIC_TEMPERATURE)
        return replace(wae, seed=seed, stages=(*wae.stages[:-1], joint))
    epochs = sum(stage.epochs for stage in wae.stages if stage.kind != "transform")
    if network == "Decomposition+CNN":  # as WAE, without the reconstruction constraint
        stage = replace(joint, epochs=epochs, transform_weight=0.0, encoder_rate=1.0)
    else:
        stage = replace(joint, epochs=epochs, kind="classifier")
    return replace(wae, seed=seed, start="random", stages=(stage,), model=network)


def jobs(seeds: Sequence[int]) -> list[Job]:
    """All trainings: seed by seed, the longest first; the students last, when they have their teachers."""
    longest = (FULL, WAE, "Decomposition+CNN", "Wavelet+CNN", HALF)
    students = [Job(MIMIC, seed) for seed in seeds]
    return [Job(network, seed) for seed in seeds for network in longest] + students


def run(
    folder: Path,
    data: str | Path,
    wanted: Sequence[Job],
    wae: Plan,
    processes: int,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> list[Result]:
    """Do the ``wanted`` trainings that ``folder`` has no result of, and return all their results.

    Args:
        folder: where results, weights and checkpoints are kept.
        data: of 28 x 28 images, for :func:`wae.data.loading.open_dataset`: ``fashion-mnist``, or
            a folder of its files.
        wae: the plan, see :func:`wae_plan`.
        processes: how many trainings at a time, each on one core.
        tell: is called, in this process, after each epoch.

    Raises:
        DatasetError: the data is missing or not what was published.
        CheckpointError: ``folder`` is one of another plan, or damaged.
        TrainingError: a training ended without a result.
        ValueError: a teacher is missing among the ``wanted``.
    """
    if orphans := [job for job in wanted if job.network == MIMIC and Job(FULL, job.seed) not in wanted]:
        raise ValueError(f"wanted must hold {FULL} with seed {orphans[0].seed} too: {MIMIC} learns from it")
    open_dataset(data, train=False, augment=False, seed=0)  # refused before any process is started
    folder.mkdir(parents=True, exist_ok=True)
    results = {job: read_result(folder, job, wae) for job in wanted}
    todo = [job for job in wanted if results[job] is None]
    workers = [_Worker(folder, data, wae) for _ in range(min(processes, len(todo)))]
    idle = [worker.link for worker in workers]
    try:
        while not all(results.values()):
            for job in _ready(todo, results)[: len(idle)]:
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


def _ready(todo: Sequence[Job], results: Mapping[Job, Result | None]) -> list[Job]:
    """Those of ``todo`` that need not wait for a teacher."""
    return [job for job in todo if job.network != MIMIC or results[Job(FULL, job.seed)]]


class _Worker:
    """A process that trains, and the main process's end of a pipe to it alone.

    Nothing is shared with other workers: one that is killed, even while it writes, closes its pipe, and holds
    nothing that somebody waits for.
    """

    def __init__(self, folder: Path, data: str | Path, wae: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, its_end = context.Pipe()
        self.process = context.Process(target=_work, args=(its_end, folder, data, wae), daemon=True)
        self.process.start()
        its_end.close()  # else the pipe would outlive the worker


def _next(link: Connection) -> Any:
    """The next message of a worker. Raises TrainingError where it was killed."""
    try:
        return link.recv()
    except (EOFError, OSError):
        raise TrainingError("a training ended without a result: was it out of memory?") from None


def _work(link: Connection, folder: Path, data: str | Path, wae: Plan) -> None:
    """A worker: do one training after another, until the main process is gone."""
    torch.set_num_threads(1)
    end_with_parent()  # at once: it can be killed in the middle of an epoch
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt), terminable():
        while True:
            job = link.recv()
            try:
                message: Result | Exception = _train(job, folder, data, wae, link)
            except Exception as error:
                message = error
            link.send(message)


def _train(job: Job, folder: Path, data: str | Path, wae: Plan, link: Connection) -> Result:
    """One training, from its last epoch or from the start; its weights and its result in ``folder``."""
    chosen = plan_of(job.network, job.seed, wae)
    torch.manual_seed(job.seed)
    model = build(job.network)
    teacher = load_classifier(weights_path(folder, Job(FULL, job.seed))) if job.network == MIMIC else None
    sets = [open_dataset(data, train=part, augment=part, seed=job.seed) for part in (True, False)]
    state = folder / f"{job.stem}.state.safetensors"
    observer = _Messenger(job, sum(stage.epochs for stage in chosen.stages), link)
    history = train(
        model, chosen, *sets, state=state, resume=state.exists(), teacher=teacher, observer=observer
    )
    accuracies = [epoch.accuracy.top1 for epoch in history if epoch.accuracy]
    seconds = sum(epoch.seconds for epoch in history)
    result = Result(job.network, job.seed, accuracies[-1], seconds, accuracies, chosen.as_dict())
    made = {"plan": chosen.as_dict(), "accuracy": result.accuracy}
    save_classifier(
        weights_path(folder, job), model, NETWORKS[job.network], sets[0].labels, INPUT, made, force=True
    )
    with written(_result_path(folder, job), force=True) as file:
        file.write(json.dumps(asdict(result), indent=1).encode())
    state.unlink()
    return result


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
        top1 = epoch.accuracy.top1 if epoch.accuracy else None
        self.link.send(Progress(self.job, epoch.kind, self.before + 1, self.epochs, top1))


# -------------------------------------------------------------------------------------------- results


def weights_path(folder: Path, job: Job) -> Path:
    """Where a training's weights are kept."""
    return folder / f"{job.stem}.safetensors"


def _result_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.stem}.json"


def read_result(folder: Path, job: Job, wae: Plan) -> Result | None:
    """The result of ``job`` in ``folder``, if it has one.

    Raises CheckpointError where that was made by another plan, or is damaged.
    """
    path = _result_path(folder, job)
    if not path.exists():
        return None
    try:
        result = Result(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: this is no result of a training ({error})") from None
    if result.plan != json.loads(json.dumps(plan_of(job.network, job.seed, wae).as_dict())):
        raise CheckpointError(f"{path}: was made by another plan; use another folder")
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
    """The median time of one image in a batch of 100, on the machine that made the table."""

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """The standard deviation of a seed's accuracy; None where there is one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def rows(results: Sequence[Result], seconds: float = 10.0) -> list[Row]:
    """The table of ``results``, in the order of NETWORKS; the networks are timed here, taking turns.

    Args:
        results: of any number of seeds.
        seconds: how long to time.
    """
    accuracies = {n: [r.accuracy for r in results if r.network == n] for n in NETWORKS}
    names = [name for name in NETWORKS if accuracies[name]]
    models = {name: build(name).eval() for name in names}
    counts = {name: count(model, _SIZE).multiply_adds for name, model in models.items()}
    images = torch.randint(0, 256, (100, 3, *_SIZE), dtype=torch.uint8)
    with torch.no_grad():
        timings = interleaved({name: _inference(model, images) for name, model in models.items()}, seconds)
    per_image = {name: 1e6 * timing.median / len(images) for name, timing in timings.items()}
    return [Row(name, accuracies[name], counts[name], per_image[name]) for name in names]


def _inference(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    network = fold_normalization(model) if isinstance(model, WAEClassifier) else model
    network = network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    return lambda: network(images)


def won_back(table: Sequence[Row], network: str) -> float | None:
    """The share of the accuracy lost by halving the resolution that ``network`` wins back.

    None where the table has not all three networks, or nothing was lost.
    """
    means = {row.network: row.mean for row in table}
    if not {FULL, HALF, network} <= set(means) or means[FULL] <= means[HALF]:
        return None
    return (means[network] - means[HALF]) / (means[FULL] - means[HALF])


def markdown(table: Sequence[Row]) -> str:
    """The table for people."""
    full = next((row.multiply_adds for row in table if row.network == FULL), None)
    lines = [
        "| network | accuracy, mean of seeds | spread | won back | multiply-adds | time per image |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        share = won_back(table, row.network)
        won = "" if share is None or row.network in (FULL, HALF) else f"{100 * share:.0f} %"
        spread = "" if row.spread is None else f"{100 * row.spread:.2f}"
        cost = f"{row.multiply_adds / 1e6:.2f} M" + (f" ({row.multiply_adds / full:.0%})" if full else "")
        lines.append(
            f"| {row.network} | {100 * row.mean:.2f} % | {spread} | {won} | {cost} "
            f"| {row.microseconds:.0f} us |"
        )
    return "\n".join(lines)
