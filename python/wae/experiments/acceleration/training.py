"""The trainings of an acceleration. A stopped training resumes after its last finished epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from wae.data.dataset import Dataset, sample
from wae.models.accelerated import Form
from wae.storage import weights_file
from wae.storage.checkpoint import save_classifier
from wae.training.accuracy import Accuracy
from wae.training.observers import Terminal
from wae.training.plan import Plan
from wae.training.processes import broadcast, is_first
from wae.training.session import MODEL, STATE, observed
from wae.training.small_data import acceleration_plan
from wae.training.state import Epoch
from wae.training.trainer import Observer, train

from .folder import ORIGINAL, TRIALS, clear_subfolder
from .networks import described, initialised, teacher
from .plans import plan_for
from .settings import Recipe
from .task import Task

SHOWN = 4
"""Images in the report."""

_HEAD_RATE = 1e-2  # of a new head: higher than other rates, because no other weight is trained


def train_accelerated(task: Task, form: Form, recipe: Recipe) -> dict[str, Any]:
    """Train the accelerated network, and write its checkpoint."""
    folder, sets = task.settings.folder, task.sets(form.size)
    plan = plan_for(task, len(sets.training), recipe)
    model = initialised(task, form)
    task.say(getattr(model.high_body, "reason", ""))
    original = teacher(task, form.size, recipe)
    with observed(folder, task.console, sample(sets.test, SHOWN)[0]) as observer:
        history = _fit(task, folder / STATE, model, plan, sets.training, sets.test, original, observer)
    accuracy = history[-1].accuracy
    assert isinstance(accuracy, Accuracy)
    if is_first():
        made = {"plan": plan.as_dict(), "accuracy": accuracy}
        save_classifier(folder / MODEL, model.cpu(), *described(task, form), made, force=True, form=form)
    return {
        "accuracy": accuracy.score,
        "top5": accuracy.top5,
        "seconds": sum(epoch.seconds for epoch in history),
        "mimic": recipe.weight,
        "mirrored": any(stage.mimic_weight and stage.mimic_mirrored for stage in plan.stages),
        "optimizer": plan.stages[-1].optimizer,
        "size": form.size,
        "factor": form.factor,
        "high body": getattr(model.high_body, "reason", f"the high body has 1/{form.factor} of the channels"),
    }


def train_head(task: Task) -> dict[str, Any]:
    """Train only the original's new head, and save the network in the folder.

    The number of epochs is that of the settings, or else that of the longest stage by default.
    """
    sets, stock = task.sets(task.side), task.original.classifier()
    images = len(sets.training)
    *_, joint = acceleration_plan(images, task.name).stages
    longest = joint.lasting(task.settings.epochs or joint.epochs)
    stage = replace(longest, kind="classifier", learning_rate=_HEAD_RATE)
    plan = Plan(task.name, (stage,), plan_for(task, images).batch, seed=task.settings.seed)
    history = fit(task, "head", stock, plan, sets.training, sets.test)
    stock.cpu().eval()
    if is_first():
        path = task.settings.folder / ORIGINAL
        weights_file.save(path, stock.network, {"plan": plan.as_dict()}, force=True)
    return broadcast({"epochs": len(history)})  # the other processes wait for the file


def fit(
    task: Task,
    name: str,
    model: nn.Module,
    plan: Plan,
    training: Dataset,
    test: Dataset,
    teacher: nn.Module | None = None,
) -> list[Epoch]:
    """Train. A stopped run resumes from the checkpoint called ``name``, until :func:`forget` removes it."""
    state = _checkpoint(task, name)
    if is_first():
        state.parent.mkdir(exist_ok=True)
    with _terminal(task.console) as observer:
        return _fit(task, state, model, plan, training, test, teacher, observer)


def forget(task: Task, name: str) -> None:
    """Remove the checkpoint of a training whose result is on the record."""
    if is_first():
        _checkpoint(task, name).unlink(missing_ok=True)


def forget_all(task: Task) -> None:
    """Remove all of these checkpoints when all trainings are on the record."""
    if is_first():
        clear_subfolder(task.settings.folder, TRIALS)


def _checkpoint(task: Task, name: str) -> Path:
    return task.settings.folder / TRIALS / f"{name}.safetensors"


def _fit(
    task: Task,
    state: Path,
    model: nn.Module,
    plan: Plan,
    training: Dataset,
    test: Dataset,
    teacher: nn.Module | None,
    observer: Observer,
) -> list[Epoch]:
    try:
        return train(
            model,
            plan,
            training,
            test,
            state=state,
            resume=broadcast(state.exists()),
            teacher=teacher,
            observer=observer,
            workers=task.settings.workers,
            device=task.device,
        )
    except weights_file.CheckpointError as error:  # damaged, or written with another version's plan
        way = "remove this file to repeat that training, or use --force to start over"
        raise weights_file.CheckpointError(f"{error}; {way}") from None


@contextmanager
def _terminal(console: Console) -> Iterator[Observer]:
    if not is_first():
        yield Observer()
        return
    with Terminal(console) as observer:
        yield observer
