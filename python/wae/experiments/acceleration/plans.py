"""What a training of an acceleration does: a plan that fits the images, or the user's."""

from __future__ import annotations

from dataclasses import replace

from wae.training.plan import Plan, Stage
from wae.training.processes import processes
from wae.training.small_data import acceleration_plan

from .settings import NOBODY, Recipe
from .task import Task


def plan_for(task: Task, images: int, recipe: Recipe = NOBODY) -> Plan:
    """The plan for so many ``images``. Its batch is no larger, and divides into the processes.

    Args:
        task: whose settings replace what the plan says.
        images: to train on.
        recipe: of the stages with labels; a plan of the user's has its own weights and optimizers.
    """
    s = task.settings
    plan = _fitting(task, images, recipe) if s.plan is None else _own(task, s.plan)
    longest = max(stage.epochs for stage in plan.stages)
    stages = tuple(
        replace(
            stage.lasting(max(1, round(stage.epochs * (s.epochs or longest) / longest))),
            learning_rate=stage.learning_rate if s.learning_rate is None else s.learning_rate,
            mimic_mirrored=stage.mimic_mirrored or recipe.mirrored,
        )
        for stage in plan.stages
    )
    batch, parts = min(s.batch or plan.batch, images), processes() * plan.accumulate
    return replace(plan, stages=stages, batch=batch - batch % parts or batch, seed=s.seed)


def _fitting(task: Task, images: int, recipe: Recipe) -> Plan:
    return acceleration_plan(images, task.name, recipe.weight, recipe.optimizer)


def _own(task: Task, plan: Plan) -> Plan:
    """The user's ``plan``, for a network that is trained already."""
    stages, weight = plan.stages, task.settings.mimic
    if weight is not None:
        stages = tuple(_mimicking(stage, weight) for stage in stages)
    return replace(plan, model=task.name, stages=stages, start="random")


def _mimicking(stage: Stage, weight: float) -> Stage:
    return stage if stage.kind == "transform" else replace(stage, mimic_weight=weight)
