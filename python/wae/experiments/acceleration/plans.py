"""The plan of an acceleration's trainings: one that fits the number of images, or the user's."""

from __future__ import annotations

from dataclasses import replace

from wae.training.plan import Plan, Stage
from wae.training.processes import processes
from wae.training.small_data import SGD, acceleration_plan, with_sgd

from .settings import NO_TEACHER, Recipe
from .task import Task


def plan_for(task: Task, images: int, recipe: Recipe = NO_TEACHER, shorter: int = 1) -> Plan:
    """The plan for that many ``images``. Its batch is not larger, and divides evenly over the processes.

    Args:
        task: its settings override the plan.
        images: the number of training images.
        recipe: for the stages with labels. A user's plan keeps its own weights and optimizers.
        shorter: a divisor of the number of epochs.
    """
    s = task.settings
    if s.plan is None:
        given = None if s.batch is None else min(s.batch, images)
        plan = _lasting(acceleration_plan(images, task.name, recipe.weight, given), s.epochs, shorter)
        plan = with_sgd(plan) if recipe.optimizer == SGD else plan
    else:
        plan = _lasting(_own(task, s.plan), s.epochs, shorter)
    plan = plan if s.learning_rate is None else plan.at_rate(s.learning_rate)
    stages = tuple(
        replace(stage, mimic_mirrored=stage.mimic_mirrored or recipe.mirrored) for stage in plan.stages
    )
    batch, parts = min(s.batch or plan.batch, images), processes() * plan.accumulate
    return replace(plan, stages=stages, batch=batch - batch % parts or batch, seed=s.seed)


def _lasting(plan: Plan, epochs: int | None, shorter: int) -> Plan:
    """``plan`` with its longest stage lasting ``epochs`` and the others in proportion, then ``shorter``."""
    longest = max(stage.epochs for stage in plan.stages)
    lengths = (max(1, round(stage.epochs * (epochs or longest) / longest)) for stage in plan.stages)
    stages = (
        stage.lasting(max(1, round(length / shorter)))
        for stage, length in zip(plan.stages, lengths, strict=True)
    )
    return replace(plan, stages=tuple(stages))


def _own(task: Task, plan: Plan) -> Plan:
    """The user's ``plan``, for a network that is already trained."""
    stages, weight = plan.stages, task.settings.mimic
    if weight is not None:
        stages = tuple(_mimicking(stage, weight) for stage in stages)
    return replace(plan, model=task.name, stages=stages, start="random")


def _mimicking(stage: Stage, weight: float) -> Stage:
    return stage if stage.kind == "transform" else replace(stage, mimic_weight=weight)
