"""The trainings that a claim of the paper needs, several at a time, on images that a processor can train on.

A claim (:mod:`.reproduction.claim`) says which networks are compared, on which images, by which plan. Every
training has one core to itself; what is finished is kept, a file of JSON each, and what is not goes on from
its last epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from wae.data.dataset import DatasetError

from .reproduction.claim import Claim, Job
from .reproduction.results import Result, read_result, weights_path
from .reproduction.worker import Progress, Worker, lacks_remeasured, next_message


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

    A finished training whose weights are needed, and are no longer there, is done again. One that has its
    weights, and lacks the accuracy with statistics measured anew, gets it, if ``data`` is there and
    ``folder`` may be written to.

    Args:
        folder: where results, weights and checkpoints are kept. The caller has locked it, with
            :func:`wae.training.lock.alone_in`, until its own last file is written there too.
        data: see :meth:`Claim.prepared`; not looked at where there is nothing to train.
        claim: what is compared.
        processes: how many trainings at a time, each on one core.
        device: where they train.
        tell: is called, in this process, after each epoch, and before the first of what an earlier run began.

    Raises:
        DatasetError: the data is missing or not what was published.
        CheckpointError: ``folder`` is one of another plan or claim, or damaged.
        TrainingError: a training ended without a result.
        ValueError: one whose weights another needs is neither among the ``wanted`` nor finished.
    """
    todo = open_jobs(folder, wanted, claim)
    training = to_train(folder, todo, claim)
    for job in training:
        if (needed := _needed(claim, job)) and needed not in wanted and not _is_kept(folder, needed, claim):
            raise ValueError(
                f"{job.network} begins with the weights of {needed.network}, seed {needed.seed}: "
                f"that must be wanted too (--only), or be finished in {folder}"
            )
    try:
        prepared = claim.prepared(data, folder) if todo else data
    except DatasetError:
        if training:
            raise
        todo, prepared = [], data
    results = {job: read_result(folder, job, claim) for job in wanted}
    results |= dict.fromkeys(todo)
    workers = [Worker(folder, prepared, claim, device) for _ in range(min(processes, len(todo)))]
    idle = [worker.link for worker in workers]
    try:
        while not all(results.values()):
            for job in _ready(todo, results, claim)[: len(idle)]:
                todo.remove(job)
                with contextlib.suppress(ConnectionError):  # it was killed, as the wait will tell
                    idle.pop().send(job)
            for link in wait([worker.link for worker in workers]):
                assert isinstance(link, Connection)
                message = next_message(link)
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
    """Those of ``wanted`` that have no result, or half of one, or whose weights are needed and not there."""
    missing = [job for job in wanted if read_result(folder, job, claim) is None]
    needed = {_needed(claim, job) for job in missing}
    return [
        job
        for job in wanted
        if job in missing
        or (job in needed and not weights_path(folder, job).exists())
        or lacks_remeasured(folder, job, claim)
    ]


def to_train(folder: Path, todo: Sequence[Job], claim: Claim) -> list[Job]:
    """Those of the open jobs that are to be trained: of the others statistics are measured anew."""
    return [job for job in todo if not lacks_remeasured(folder, job, claim)]


def _is_kept(folder: Path, job: Job, claim: Claim) -> bool:
    """Whether the training is finished, and its weights are there."""
    return read_result(folder, job, claim) is not None and weights_path(folder, job).exists()


def _needed(claim: Claim, job: Job) -> Job | None:
    """The training whose weights ``job`` needs."""
    network = claim.needs(job.network)
    return None if network is None else Job(network, job.seed)


def _ready(todo: Sequence[Job], results: Mapping[Job, Result | None], claim: Claim) -> list[Job]:
    """Those of ``todo`` that need not wait for another's weights: what is not wanted is there."""
    return [job for job in todo if (needed := _needed(claim, job)) is None or results.get(needed, True)]
