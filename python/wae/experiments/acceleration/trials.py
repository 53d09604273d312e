"""What is chosen by short trainings: on training images, a part of which is kept aside to test with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from wae.models.accelerated import Form
from wae.training.small_data import OPTIMIZERS
from wae.training.trainer import DivergedError, TrainingError

from .folder import Record
from .networks import begun, teacher
from .plans import plan_for
from .report import outcome
from .settings import NOBODY, Recipe, Settings
from .task import Task
from .training import fit, forget

_Key = TypeVar("_Key", bound=Hashable)

_KEPT = 5  # every fifth training image is kept aside for what has to be chosen
_TRIAL = 4  # a trial has one epoch of the plan's in so many
_WEIGHT = 1.0  # that is tried, of the distance to the original's scores


def trial(task: Task, record: Record, form: Form, recipe: Recipe) -> float | None:
    """The accuracy on kept-aside training images after a short training on the others.

    None where its loss was no longer a number.
    """
    name = f"size {form.size}, factor {form.factor}, {recipe}"
    is_new = f"trial: {name}" not in record.found
    accuracy: float | None = record.once(f"trial: {name}", lambda: _tried(task, name, form, recipe))
    forget(task, name)
    if not is_new:  # two choices may share a trial
        return accuracy
    of = "" if accuracy is None else " of the held-out images"
    task.say(f"trial, {name}: {outcome(accuracy)}{of}")
    return accuracy


def best(tried: Mapping[_Key, float | None], settings: Settings) -> _Key:
    """What has the highest accuracy, the first of equals; what has none loses to one that is 0.

    Raises TrainingError where nothing has one: by the same ``settings`` the training would end so, too.
    """
    if all(accuracy is None for accuracy in tried.values()):
        rate = settings.learning_rate
        got = "those of the plan" if rate is None else f"{rate:g}"
        raise TrainingError(
            f"learning_rate must be lower, got {got}: in each of the trials the loss was no longer finite; "
            "start over with a lower --learning-rate and --force"
        )
    accuracies = {key: -1.0 if accuracy is None else accuracy for key, accuracy in tried.items()}
    return max(accuracies, key=accuracies.__getitem__)


def _tried(task: Task, name: str, form: Form, recipe: Recipe) -> float | None:
    sets = task.sets(form.size)
    kept = range(0, len(sets.plain), _KEPT)
    rest = [number for number in range(len(sets.plain)) if number % _KEPT]
    plan = plan_for(task, len(rest), recipe)
    stages = (stage.lasting(max(1, round(stage.epochs / _TRIAL))) for stage in plan.stages)
    plan = replace(plan, stages=tuple(stages))
    training, test = sets.training.subset(rest), sets.plain.subset(kept)
    taught_by = teacher(task, form.size, recipe)
    try:
        history = fit(task, name, begun(task, form), plan, training, test, taught_by)
    except DivergedError as error:  # too high a rate for this network
        task.say(f"trial, {name}: {error.what}")
        return None
    assert history[-1].accuracy is not None
    return history[-1].accuracy.score


def best_optimizer(task: Task, record: Record, form: Form) -> dict[str, Any]:
    """The optimizer, by trials in which the original teaches, unless the settings forbid it."""
    asked = task.settings.asked_teaching
    taught = Recipe(_WEIGHT, task.settings.mimic_mirrored) if asked is None else asked
    found = {name: trial(task, record, form, taught._replace(optimizer=name)) for name in OPTIMIZERS}
    return {"name": best(found, task.settings), "accuracies": found}


def best_teaching(task: Task, record: Record, form: Form, optimizer: str) -> dict[str, Any]:
    """How the original is to teach, by trials: not at all, by its scores, or by its mirrored scores.

    The last are tried only where teaching helped and images are flipped to train on, for they cost one more
    pass of the original in each step; or in place of the plain scores, where the settings ask for them.
    """
    asked = task.settings.mimic_mirrored
    taught = Recipe(_WEIGHT, asked, optimizer)
    found = {r: trial(task, record, form, r) for r in (NOBODY._replace(optimizer=optimizer), taught)}
    helped = best(found, task.settings).weight > 0
    if helped and not asked and task.sets(form.size).flips:
        mirrored = taught._replace(mirrored=True)
        found[mirrored] = trial(task, record, form, mirrored)
    chosen = best(found, task.settings)
    accuracies = {str(recipe): accuracy for recipe, accuracy in found.items()}
    return {"weight": chosen.weight, "mirrored": chosen.mirrored, "accuracies": accuracies}
