"""What is chosen by short trainings: on training images, a part of which is kept aside to test with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wae.models.accelerated import Form

from .folder import Record
from .networks import begun, teacher
from .plans import plan_for
from .settings import NOBODY, Mimic
from .task import Task
from .training import fit, forget

_KEPT = 5  # every fifth training image is kept aside for what has to be chosen
_TRIAL = 4  # a trial has one epoch of the plan's in so many
_WEIGHT = 1.0  # that is tried, of the distance to the original's scores


def trial(task: Task, record: Record, form: Form, mimic: Mimic) -> float:
    """The accuracy on kept-aside training images after a short training on the others."""
    name = f"size {form.size}, factor {form.factor}, {mimic}"
    accuracy: float = record.once(f"trial: {name}", lambda: _tried(task, name, form, mimic))
    forget(task, name)
    task.say(f"trial, {name}: {100 * accuracy:.2f} % of the images kept aside")
    return accuracy


def _tried(task: Task, name: str, form: Form, mimic: Mimic) -> float:
    sets = task.sets(form.size)
    kept = range(0, len(sets.plain), _KEPT)
    rest = [number for number in range(len(sets.plain)) if number % _KEPT]
    plan = plan_for(task, len(rest), mimic)
    stages = (stage.lasting(max(1, round(stage.epochs / _TRIAL))) for stage in plan.stages)
    plan = replace(plan, stages=tuple(stages))
    training, test = sets.training.subset(rest), sets.plain.subset(kept)
    history = fit(task, name, begun(task, form), plan, training, test, teacher(task, form.size, mimic))
    assert history[-1].accuracy is not None
    return history[-1].accuracy.score


def best_mimic(task: Task, record: Record, form: Form) -> dict[str, Any]:
    """How the original is to teach, by trials: not at all, by its scores, or by its mirrored scores.

    The last are tried only where teaching helped and images are flipped to train on, for they cost one more
    pass of the original in each step; or in place of the plain scores, where the settings ask for them.
    """
    asked = task.settings.mimic_mirrored
    found = {mimic: trial(task, record, form, mimic) for mimic in (NOBODY, Mimic(_WEIGHT, asked))}
    helped = max(found, key=found.__getitem__).weight > 0
    if helped and not asked and task.sets(form.size).flips:
        mirrored = Mimic(_WEIGHT, mirrored=True)
        found[mirrored] = trial(task, record, form, mirrored)
    best = max(found, key=found.__getitem__)
    accuracies = {str(mimic): accuracy for mimic, accuracy in found.items()}
    return {"weight": best.weight, "mirrored": best.mirrored, "accuracies": accuracies}
