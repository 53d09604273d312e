"""The files of a training in a folder: its checkpoint, and what it leaves, a result in JSON and weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from wae.storage.files import read_json, remove_parts, sha256, write
from wae.storage.weights_file import CheckpointError
from wae.training.plan import changed, differences
from wae.wording import shown

from .claim import Claim, Job

_KINDS: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "list[float]": list,
    "dict[str, Any]": dict,
}


@dataclass(frozen=True)
class Result:
    """The outcome of one training."""

    network: str
    seed: int
    accuracy: float
    """Share of the test images that are classified correctly after the last epoch; for segmentation networks
    the mean intersection over union. See :meth:`Claim.held_out`."""
    seconds: float
    """The duration of all epochs, on one core of the machine that ran them."""
    epochs: list[float]
    """The accuracy after each epoch with labels."""
    plan: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    """Everything besides the plan that determines the outcome: see :meth:`Claim.settings`."""
    multiply_adds: int = 0
    """For one image."""
    start: dict[str, Any] = field(default_factory=dict)
    """Measured before the first epoch: see :meth:`Claim.start`."""
    measured: dict[str, Any] = field(default_factory=dict)
    """All measures of the test, including ``accuracy``."""
    remeasured: dict[str, Any] = field(default_factory=dict)
    """``accuracy`` and all measures for the same weights with re-estimated BatchNorm statistics, and the
    commit. See :attr:`Claim.remeasures`."""
    needed_weights: str = ""
    """The SHA-256 of the weights that the training needed: see :meth:`Claim.needs`. Empty if it needed none,
    and in results of earlier versions."""
    made: dict[str, Any] = field(default_factory=dict)
    """Commit, date, machine and versions."""
    data: dict[str, Any] = field(default_factory=dict)
    """What identifies the images: see :meth:`Claim.on`. Empty in results of earlier versions."""

    def __post_init__(self) -> None:
        """Raise TypeError if an entry, which may come from a file, has another type."""
        for entry in fields(self):
            if not isinstance(value := getattr(self, entry.name), _KINDS[str(entry.type)]):
                raise TypeError(f"{entry.name} must be of kind {entry.type}, got {shown(value)}")


class NotTrained(NamedTuple):
    """A training that has no result, and why."""

    network: str
    seed: int
    reason: str


def weights_path(folder: Path, job: Job) -> Path:
    """Where a training's weights are kept."""
    return folder / f"{job.stem}.safetensors"


def result_path(folder: Path, job: Job) -> Path:
    """Where a training's result is kept."""
    return folder / f"{job.stem}.json"


def state_path(folder: Path, job: Job) -> Path:
    """Where an unfinished training keeps its checkpoint."""
    return folder / f"{job.stem}.state.safetensors"


def needed_weights(folder: Path, job: Job, claim: Claim) -> str:
    """The SHA-256 of the weights that ``job`` needs; empty if it needs none, or if they are missing."""
    needed = claim.needed_by(job)
    if needed is None or not (path := weights_path(folder, needed)).exists():
        return ""
    return sha256(path)


def tidy(folder: Path, job: Job, claim: Claim) -> None:
    """Remove what a finished training no longer needs, and what one that was killed left half-written.

    The checkpoint stays if the weights, which it holds too, are missing. So does everything in a folder that
    is read-only.
    """
    if claim.registered[job.network] and not weights_path(folder, job).exists():
        return
    unneeded = state_path(folder, job), claim.start_path(folder, job)  # the result contains the second
    with contextlib.suppress(OSError):
        for path in unneeded:
            path.unlink(missing_ok=True)
    for path in (*unneeded, weights_path(folder, job), result_path(folder, job)):
        remove_parts(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content``; if that fails, the previous file remains."""
    write(path, f"{json.dumps(content, indent=1)}\n", force=True)


def read_result(folder: Path, job: Job, claim: Claim) -> Result | None:
    """The result of ``job`` in ``folder``, if it has one that came from the weights there that it needs.

    It may also have come from weights that are missing now, or not known.

    Raises CheckpointError if it belongs to another plan or claim, or to other images if both are known, or is
    damaged.
    """
    path = result_path(folder, job)
    if not path.exists():
        return None
    try:
        result = Result(**read_json(path))
        if (result.network, result.seed) != job:
            raise ValueError(f"it is the result of {result.network}, seed {result.seed}")
    except (ValueError, TypeError) as error:
        way = "remove it to repeat the training"
        raise CheckpointError(f"{path}: this is not the result of a training ({error}); {way}") from None
    if made := differences(result.plan, claim.plan_of(job.network, job.seed)):
        raise CheckpointError(f"{path}: comes from another plan: {made}; use another folder")
    if result.settings != json.loads(json.dumps(claim.settings())):
        raise CheckpointError(f"{path}: comes from other settings: {result.settings}; use another folder")
    if result.data and claim.data and (different := changed(result.data, claim.data)):
        raise CheckpointError(
            f"{path}: comes from other images: {', '.join(different)}; use another folder, or these images"
        )
    now = needed_weights(folder, job, claim) if result.needed_weights else ""
    return None if now and now != result.needed_weights else result
