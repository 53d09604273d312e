"""How far a training has come: the record of its epochs, and the state that a checkpoint keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wae.storage.weights_file import CheckpointError

from .accuracy import Accuracy, PixelAccuracy
from .plan import Plan, changed, differences


class OtherPlanError(CheckpointError):
    """A checkpoint was made by another plan than the one that is to resume from it."""


@dataclass(frozen=True)
class Epoch:
    """The record of one epoch."""

    stage: int
    """The number of the stage in the plan, from 0."""
    kind: str
    """The kind of the stage."""
    epoch: int
    """The number of the epoch in the stage, from 0."""
    losses: dict[str, float]
    """Means over the steps of the epoch."""
    accuracy: Accuracy | PixelAccuracy | None
    """On the test set; None for a stage without labels."""
    seconds: float
    """The duration, including the evaluation."""

    def as_data(self) -> dict[str, Any]:
        """The record as JSON data."""
        return {**asdict(self), "accuracy": self.accuracy and self.accuracy._asdict()}

    def as_line(self) -> bytes:
        """The record as a line of JSON, for :func:`read_epoch`."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass
class State:
    """The content of a checkpoint besides tensors, as JSON data."""

    plan: dict[str, Any]
    stage: int = 0
    epoch: int = 0  # the next one to train
    scaler: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # only in checkpoints of old versions
    data: dict[str, Any] = field(default_factory=dict)  # the fingerprint; {} in checkpoints of old versions
    sources: dict[str, str] = field(default_factory=dict)  # likewise


def checked(
    path: Path, made: dict[str, Any], plan: Plan, data: dict[str, Any], sources: dict[str, str]
) -> State:
    """``made``, the recipe in the checkpoint at ``path``, after a check that it belongs to this training.

    Malformed content raises TypeError, ValueError, AttributeError or LookupError.
    """
    state = State(**made)
    number, epoch = state.stage, state.epoch
    if type(number) is not int or not 0 <= number <= len(plan.stages):
        raise ValueError("stage")
    check_same(path, made, plan, data, sources)
    if type(epoch) is not int or not 0 <= epoch < (
        plan.stages[number].epochs if number < len(plan.stages) else 1
    ):
        raise ValueError("epoch")
    return state


def check_same(
    path: Path, made: Mapping[str, Any], plan: Plan, data: Mapping[str, Any], sources: Mapping[str, str]
) -> None:
    """Check that the file at ``path`` was made by ``plan`` on the same data from the same ``sources``.

    Args:
        path: the file, for messages.
        made: the file's recipe, with its ``plan``, and possibly the fingerprint of its ``data`` and its
            ``sources``.
        plan: the plan to compare with.
        data: the fingerprint to compare with: see :func:`wae.data.loading.fingerprint`.
        sources: see :func:`wae.training.trainer.train`.

    Raises:
        OtherPlanError: the plan differs.
        CheckpointError: the data or the sources differ.
    """
    if made.get("data") and (different := ", ".join(changed(made.get("sources", {}), sources))):
        raise CheckpointError(f"{path}: was begun with other options: {different}")
    if different := differences(made["plan"], plan):
        raise OtherPlanError(f"{path}: was made by a different plan: {different}")
    if made.get("data") and (different := ", ".join(changed(made["data"], data))):
        raise CheckpointError(f"{path}: was made on training data that differs in {different}")


def read_epoch(entry: Mapping[str, Any]) -> Epoch:
    """An entry of a checkpoint's record. Raises as :func:`checked` does."""
    accuracy = entry["accuracy"]
    kinds = {len(kind._fields): kind for kind in (Accuracy, PixelAccuracy)}
    epoch = Epoch(**{**entry, "accuracy": accuracy and kinds[len(accuracy)](*accuracy)})
    numbers = (epoch.stage, epoch.epoch, epoch.seconds, *epoch.losses.values(), *(epoch.accuracy or ()))
    if type(epoch.kind) is not str or not all(type(number) in (int, float) for number in numbers):
        raise TypeError("history")
    return epoch
