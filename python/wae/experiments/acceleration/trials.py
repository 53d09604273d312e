"""Choices made by short trainings on training images, some of which are held out for testing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from wae.data.dataset import by_class
from wae.models.accelerated import Form
from wae.training.small_data import OPTIMIZERS
from wae.training.trainer import DivergedError, TrainingError
from wae.wording import counted

from .data import Images
from .folder import Record
from .networks import initialised, teacher
from .plans import plan_for
from .report import outcome
from .settings import NO_TEACHER, Recipe, Settings
from .task import Task
from .training import fit, forget

_Key = TypeVar("_Key", bound=Hashable)

_HELD_OUT = 5  # every fifth training image of each class is held out
_SHORTER = 4  # a trial has a quarter of the plan's epochs
_WEIGHT = 1.0  # of the distillation that is tried


def trial(task: Task, record: Record, form: Form, recipe: Recipe) -> float | None:
    """The accuracy on held-out training images after a short training on the others.

    None if the loss was no longer finite.
    """
    name = f"size {form.size}, factor {form.factor}, {recipe}"
    is_new = f"trial: {name}" not in record.found
    accuracy: float | None = record.once(f"trial: {name}", lambda: _tried(task, name, form, recipe))
    forget(task, name)
    if not is_new:  # it was printed already: two choices may share a trial
        return accuracy
    of = "" if accuracy is None else " of the held-out images"
    task.say(f"trial, {name}: {outcome(accuracy)}{of}")
    return accuracy


def best(tried: Mapping[_Key, float | None], settings: Settings) -> _Key:
    """The key with the highest accuracy, the first of equals. None counts as less than 0.

    Raises TrainingError if all are None: the training with these ``settings`` would fail, too.
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
    held_out, rest = _divided(sets.plain)
    plan = plan_for(task, len(rest), recipe, _SHORTER)
    training, test = sets.training.subset(rest), sets.plain.subset(held_out)
    original = teacher(task, form.size, recipe)
    epochs = counted(sum(stage.epochs for stage in plan.stages), "epoch")
    task.say(f"trial, {name}: {epochs} on {counted(len(rest), 'image')}")
    try:
        history = fit(task, name, initialised(task, form), plan, training, test, original)
    except DivergedError as error:  # the rate is too high for this network
        task.say(f"trial, {name}: {error.what}")
        return None
    assert history[-1].accuracy is not None
    return history[-1].accuracy.score


def _divided(data: Images) -> tuple[list[int], list[int]]:
    """The numbers of the images that are held out, a fifth of each class, and of the others."""
    held_out = sorted(by_class(data.targets)[::_HELD_OUT].tolist())
    return held_out, sorted(set(range(len(data))) - set(held_out))


def best_optimizer(task: Task, record: Record, form: Form) -> dict[str, Any]:
    """Choose the optimizer by trials with distillation, unless the settings exclude it."""
    asked = task.settings.asked_distillation
    recipe = Recipe(_WEIGHT, task.settings.mimic_mirrored) if asked is None else asked
    found = {name: trial(task, record, form, recipe._replace(optimizer=name)) for name in OPTIMIZERS}
    return {"name": best(found, task.settings), "accuracies": found}


def best_distillation(task: Task, record: Record, form: Form, optimizer: str) -> dict[str, Any]:
    """Choose the distillation by trials: none, from the original's scores, or from its mirrored scores.

    Mirrored scores cost one more forward pass of the original in each step, so they are tried only if
    distillation helped and training flips images. If the settings name them, they replace the plain scores.
    """
    asked = task.settings.mimic_mirrored
    distilled = Recipe(_WEIGHT, asked, optimizer)
    found = {r: trial(task, record, form, r) for r in (NO_TEACHER._replace(optimizer=optimizer), distilled)}
    helped = best(found, task.settings).weight > 0
    if helped and not asked and task.sets(form.size).flips:
        mirrored = distilled._replace(mirrored=True)
        found[mirrored] = trial(task, record, form, mirrored)
    chosen = best(found, task.settings)
    accuracies = {str(recipe): accuracy for recipe, accuracy in found.items()}
    return {"weight": chosen.weight, "mirrored": chosen.mirrored, "accuracies": accuracies}
