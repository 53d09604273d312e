"""Runs the trainings that a claim of the paper needs, several in parallel, on images that a CPU can train on.

A claim (:mod:`.reproduction.claim`) defines which networks are compared, on which images and by which plan.
Every training has its own core. A finished training leaves a JSON file; an unfinished one resumes after its
last epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from wae.data.dataset import DatasetError
from wae.errors import UsageError
from wae.training.processes import named_device

from .reproduction.claim import Claim, Job
from .reproduction.results import NotTrained, Result, read_result, tidy, weights_path
from .reproduction.worker import Progress, Worker, lacks_remeasured, next_message


def run(
    folder: Path,
    data: str | Path,
    wanted: Sequence[Job],
    claim: Claim,
    processes: int,
    device: str = "cpu",
    tell: Callable[[Progress | NotTrained], None] = lambda told: None,
) -> list[Result | NotTrained]:
    """Run those of the ``wanted`` trainings that have no result in ``folder``, and return the results of all.

    A training is :class:`NotTrained` if its network cannot be made, which for one that is pruned to WAE's
    time depends on the machine, if its loss is no longer finite, or if it needs the weights of such a
    training. The next run tries again.

    A finished training is repeated if another needs its weights and they are missing, or if those that it
    needed itself have been trained again and differ. One that has its weights but lacks the accuracy with
    re-estimated statistics gets it, if ``data`` is available and ``folder`` is writable. What a killed run
    left of finished trainings is removed.

    Args:
        folder: for results, weights and checkpoints. The caller has locked it with
            :func:`wae.training.lock.alone_in`, until it has written its own last file there.
        data: see :meth:`Claim.prepared`. It may be missing if there is nothing to do; if it is there, results
            must have come from the same images, unless they do not say from which.
        wanted: the trainings.
        claim: defines what is compared.
        processes: the number of parallel trainings, each on one core.
        device: where to train.
        tell: called in this process after each epoch, and once for each training that resumes or is
            left out.

    Raises:
        DatasetError: the data are missing or not the published ones.
        CheckpointError: ``folder`` belongs to another plan or claim, or to other images, or is damaged.
        TrainingError: a training ended without a result.
        UsageError: there is no such device, or a training whose weights another needs is neither among the
            ``wanted`` nor finished.
    """
    named_device(device)  # which the workers use only when the data are prepared
    with contextlib.suppress(DatasetError):  # raised below if something is to be trained
        claim = claim.on(data)
    todo = open_jobs(folder, wanted, claim)
    training = to_train(folder, todo, claim)
    _check_needed(folder, wanted, training, claim)
    try:
        prepared = claim.prepared(data, folder) if todo else data
    except DatasetError:
        if training:
            raise
        todo, prepared = [], data
    results: dict[Job, Result | NotTrained | None] = {job: read_result(folder, job, claim) for job in wanted}
    for job in filter(results.get, wanted):  # an earlier run may have been killed before it did this
        tidy(folder, job, claim)
    results |= dict.fromkeys(todo)
    workers = [Worker(folder, prepared, claim, device) for _ in range(min(processes, len(todo)))]
    try:
        _distribute(todo, results, workers, folder, claim, tell)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:  # they write to the folder, which the caller unlocks
            worker.process.join()
    return [result for result in results.values() if result]


def _check_needed(folder: Path, wanted: Sequence[Job], training: Sequence[Job], claim: Claim) -> None:
    """Raise UsageError if weights that a training needs are neither wanted nor there."""
    for job in training:
        if (needed := claim.needed_by(job)) and needed not in wanted and not _is_kept(folder, needed, claim):
            raise UsageError(
                f"{job.network} is initialised from {needed.network}, seed {needed.seed}: "
                f"that must be wanted too (--only), or be finished in {folder}"
            )


def _distribute(
    todo: list[Job],
    results: dict[Job, Result | NotTrained | None],
    workers: Sequence[Worker],
    folder: Path,
    claim: Claim,
    tell: Callable[[Progress | NotTrained], None],
) -> None:
    """Give the jobs in ``todo`` to ``workers`` until all ``results`` are there; both change."""
    idle = [worker.link for worker in workers]
    while not all(results.values()):
        for job in _ready(todo, results, claim)[: len(idle)]:
            todo.remove(job)
            with contextlib.suppress(ConnectionError):  # the worker was killed, which `wait` will report
                idle.pop().send(job)
        for link in wait([worker.link for worker in workers]):
            assert isinstance(link, Connection)
            message = next_message(link)
            if isinstance(message, Progress):
                tell(message)
            elif isinstance(message, (Result, NotTrained)):
                job = Job(message.network, message.seed)
                results[job] = message
                outdated = _outdated_by(job, results, folder, claim)
                todo += outdated
                results |= dict.fromkeys(outdated)
                if isinstance(message, NotTrained):
                    left_out = _without_dependents(job, todo, claim)
                    results |= left_out
                    for training in (message, *left_out.values()):
                        tell(training)
                idle.append(link)
            else:
                raise message


def _outdated_by(
    trained: Job, results: Mapping[Job, Result | NotTrained | None], folder: Path, claim: Claim
) -> list[Job]:
    """Those whose ``results`` came from other weights of the training that has just ended."""
    return [
        job
        for job, result in results.items()
        if isinstance(result, Result)
        and claim.needed_by(job) == trained
        and read_result(folder, job, claim) is None
    ]


def _without_dependents(missing: Job, todo: list[Job], claim: Claim) -> dict[Job, NotTrained]:
    """Those of ``todo`` that need the weights of the ``missing`` training; they are removed from it."""
    dependents = [job for job in todo if claim.needed_by(job) == missing]
    for job in dependents:
        todo.remove(job)
    return {job: NotTrained(*job, f"it needs {missing.network}, which is left out") for job in dependents}


def open_jobs(folder: Path, wanted: Sequence[Job], claim: Claim) -> list[Job]:
    """Those of ``wanted`` without a complete result, or whose weights are needed but missing."""
    missing = [job for job in wanted if read_result(folder, job, claim) is None]
    needed = {claim.needed_by(job) for job in missing}
    return [
        job
        for job in wanted
        if job in missing
        or (job in needed and not weights_path(folder, job).exists())
        or lacks_remeasured(folder, job, claim)
    ]


def to_train(folder: Path, todo: Sequence[Job], claim: Claim) -> list[Job]:
    """Those of the open jobs that must be trained; the others only need re-estimated statistics."""
    return [job for job in todo if not lacks_remeasured(folder, job, claim)]


def _is_kept(folder: Path, job: Job, claim: Claim) -> bool:
    """Whether the training is finished and its weights exist."""
    return read_result(folder, job, claim) is not None and weights_path(folder, job).exists()


def _ready(todo: Sequence[Job], results: Mapping[Job, Result | NotTrained | None], claim: Claim) -> list[Job]:
    """Those of ``todo`` that need not wait for the weights of another job."""
    return [job for job in todo if (needed := claim.needed_by(job)) is None or results.get(needed, True)]
