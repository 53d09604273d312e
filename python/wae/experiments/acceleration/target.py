"""Chooses the image size and the light body with which a network meets its target speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from torch import Tensor, nn

from wae.experiments.machine import disturbance, timed
from wae.inference.agreement import DisagreementError
from wae.inference.deploy import deploy
from wae.inference.engines import EngineError
from wae.inference.precision import DTYPES
from wae.models.accelerated import Form
from wae.progress import bar
from wae.training.processes import broadcast, is_first
from wae.wording import compared_milliseconds, milliseconds

from .deployment import fastest
from .folder import Record
from .measuring import ROUNDS, SECONDS, call, images_of_a_call
from .networks import initialised
from .report import outcome
from .settings import NO_TEACHER, AccelerationError, Recipe, Settings
from .task import Task
from .trials import best, trial

_FACTORS = (2, 4, 8)
_SCALES = (1.25, 0.875, 0.75, 0.625, 0.5)  # sizes relative to the original's, which is measured too
_STEP = 32  # the sizes are multiples of it, so that half of each is a multiple of a patch
_TRIED = 3  # how many of the forms that meet the target are tried


def meet_target(task: Task, record: Record) -> dict[str, Any]:
    """The most accurate form that meets the target: measure times, then try a few forms."""
    with bar("measuring times", None, is_first()):
        times = record.once("times", lambda: broadcast(timed_forms(task) if is_first() else {}))
    name, allowed = _allowed(task.settings, times["original"])
    # of those that meet it, the slowest compute most
    tried = sorted(_meeting(name, allowed, times), key=lambda entry: -entry["seconds"])[:_TRIED]
    recipe = _tried_with(task.settings)
    for entry in tried:
        form = Form(entry["size"], entry["factor"])
        entry["kept"] = trial(task, record, form, recipe)
    accuracies = {number: entry["kept"] for number, entry in enumerate(tried)}
    chosen = tried[best(accuracies, task.settings)]
    kept = f"{outcome(chosen['kept'])} in a trial, the best of {len(tried)}"
    return {
        "form": {"size": chosen["size"], "factor": chosen["factor"]},
        "why": f"{milliseconds(chosen['seconds'])} ms, {kept}",
        "allowed": allowed,
        "original": times["original"],
        "engine": times["engine"],
        "precision": times["precision"],
        "curve": times["curve"],
    }


def _tried_with(settings: Settings) -> Recipe:
    """The recipe that the settings name. What they leave open is chosen later, for the chosen form."""
    recipe = settings.asked_distillation or NO_TEACHER
    return recipe._replace(optimizer=settings.asked_optimizer or recipe.optimizer)


def _allowed(settings: Settings, original: float) -> tuple[str, float]:
    """The setting that is the target, and the seconds that a call may take if the original's takes
    ``original``."""
    if settings.target_ms is not None:
        return "target_ms", settings.target_ms / 1e3
    assert settings.target is not None
    return "target", original / settings.target


def _meeting(name: str, allowed: float, times: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measured forms that take at most ``allowed`` seconds.

    Raises AccelerationError, which begins with the setting's ``name``, if none does.
    """
    curve: list[dict[str, Any]] = times["curve"]
    if not curve:
        raise AccelerationError(
            f"{name}: needs a form that accepts these images and runs in {times['engine']}, got none"
        )
    if found := [entry for entry in curve if entry["seconds"] <= allowed]:
        return found
    best = min(curve, key=lambda entry: entry["seconds"])
    disturbed = disturbance(times.get("others"))
    taken, most = compared_milliseconds(best["seconds"], allowed)
    raise AccelerationError(
        f"{name}: needs at most {most} ms, but the fastest form measured takes {taken} ms "
        f"(images of {best['size']}, factor {best['factor']})"
        + (f"; {disturbed}, --force measures again" if disturbed else "")
    )


def _sizes(side: int) -> list[int]:
    """The sizes to measure, largest first. They include ``side``, the only one that images in memory have."""
    # of small originals the sizes are multiples of a power of two near an eighth of the side
    step = _STEP if side >= 2 * _STEP else 1 << max(0, (side // 8).bit_length() - 1)
    scaled = {max(step, round(side * scale / step) * step) for scale in _SCALES}
    return sorted({side, *scaled}, reverse=True)


def timed_forms(task: Task) -> dict[str, Any]:
    """Interleaved times of a call of the original and of each form, in one engine and precision."""
    first = fastest(task, initialised(task, task.form).eval().to(task.device), task.form.size)
    # int8 would be calibrated for each
    precision = first.precision if first.precision in DTYPES else "float32"
    options = {"engine": first.engine, "precision": precision, "batch": task.settings.images}
    forms: dict[str, Form] = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    for size, factor in product(_sizes(task.side), _FACTORS):
        name = f"{size} {factor}"
        try:
            form = Form(size, factor)
            calls[name] = _deployed_call(task, initialised(task, form).eval(), form.size, options)
        except (ValueError, EngineError, DisagreementError):
            continue  # this form does not fit images in memory, position embeddings or the engine
        forms[name] = form
    calls["original"] = _deployed_call(task, task.original.classifier(), task.side, options)
    times, others = timed(calls, SECONDS * 2, task.device, settle=1, min_rounds=ROUNDS)
    curve = [
        {"size": form.size, "factor": form.factor, "seconds": times[name].median}
        for name, form in forms.items()
    ]
    original = times["original"]
    measured = {"original": original.median, "runs": original.runs, "curve": curve, "others": others}
    return {"engine": first.engine, "precision": precision, **measured}


def _deployed_call(
    task: Task, model: nn.Module, side: int, options: Mapping[str, Any]
) -> Callable[[], Tensor]:
    deployed = deploy(model.to(task.device), (side, side), **options)
    return call(deployed, images_of_a_call(task, side))
