"""The baselines that an accelerated network is compared with: other ways to make the original faster.

They are initialised from the trained original. The rates and the number of epochs of their training are those
of the accelerated network's stages with labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wae.data.dataset import sample
from wae.experiments.machine import timed
from wae.experiments.pruning import PRUNED, pruned, ratio_for
from wae.models.accelerated import Form
from wae.models.baselines import AtSize, FullResolution, HalfResolution
from wae.models.classifier import fold_normalization
from wae.models.counting import count
from wae.models.positions import fit_to
from wae.storage import weights_file
from wae.training.processes import broadcast, is_first
from wae.training.trainer import DivergedError
from wae.wording import first_line
from wae_kernels.checks import half_of

from .data import SAMPLE
from .folder import BASELINES, Record
from .measuring import ROUNDS, SECONDS, call, images_of_a_call
from .networks import teacher, trained
from .plans import plan_for
from .settings import Recipe
from .task import Task
from .training import fit

HALF, EQUAL_COST = "half resolution", "half, equal cost"
NAMES = (HALF, EQUAL_COST, *PRUNED)

_PARTS = 28  # the size of equal cost is searched in steps of 1/28 of the original's


def train_baseline(task: Task, record: Record, name: str, form: Form, recipe: Recipe) -> dict[str, Any]:
    """Train a baseline at the accelerated network's rates and epochs.

    If there is no such baseline, or its loss is no longer finite, the entry ``left out`` says why.
    """
    chosen = record.once(f"chosen: {name}", lambda: broadcast(choose(task, name, form) if is_first() else {}))
    if "left out" in chosen:
        return dict(chosen)
    sets = task.sets(task.side)
    baseline = untrained_baseline(task, name, chosen)
    plan = plan_for(task, len(sets.training), recipe).without_encoder()
    task.say(f"baseline: {name}")
    original = teacher(task, task.side, recipe)
    try:
        history = fit(task, name, baseline, plan, sets.training, sets.test, original)
    except DivergedError as error:  # the rates were chosen for another network
        return {**chosen, "left out": error.what}
    assert history[-1].accuracy is not None
    if is_first():
        weights_file.save(_weights(task, name), baseline.cpu(), {"plan": plan.as_dict()}, force=True)
    return {**chosen, "accuracy": history[-1].accuracy.score}


def untrained_baseline(task: Task, name: str, chosen: Mapping[str, Any]) -> FullResolution:
    """The baseline before its training: see :func:`build`."""
    return build(name, chosen, _copy_of_original(task), _pruning_batches(task))


def trained_baseline(task: Task, name: str, chosen: Mapping[str, Any]) -> FullResolution:
    """The baseline after its training."""
    baseline = untrained_baseline(task, name, chosen)
    weights_file.load(_weights(task, name), baseline)
    return baseline.eval().to(task.device)


def _weights(task: Task, name: str) -> Path:
    return task.settings.folder / BASELINES / f"{name}.safetensors"


def _copy_of_original(task: Task) -> FullResolution:
    """A copy on the CPU that shares nothing with the original."""
    return copy.deepcopy(task.original.classifier()).cpu().requires_grad_(True)


def _pruning_batches(task: Task) -> list[tuple[Tensor, Tensor]]:
    """Training images and labels, for the gradients that pruning uses."""
    return [sample(task.sets(task.side).plain, SAMPLE)]


def choose(task: Task, name: str, form: Form) -> dict[str, Any]:
    """See :func:`size_or_ratio`; or an entry ``left out``, the reason why there is no such baseline.

    If times were measured, ``others`` is how many CPU cores other programs used meanwhile, None if not known.
    """
    accelerated = fold_normalization(trained(task))
    calls = {"accelerated": call(accelerated, images_of_a_call(task, form.size))}
    images, others = images_of_a_call(task, task.side), list[float | None]()

    def share_of_time(baseline: nn.Module) -> float:
        both = {**calls, "baseline": call(baseline.to(task.device), images)}
        times, cores = timed(both, SECONDS / 3, task.device, min_rounds=ROUNDS)
        others.append(cores)
        return times["baseline"].median / times["accelerated"].median

    original, batches = _copy_of_original(task), _pruning_batches(task)
    multiply_adds = count(accelerated, (form.size,) * 2).multiply_adds
    try:
        found = size_or_ratio(name, original, task.side, multiply_adds, batches, share_of_time)
    except Exception as error:  # Torch-Pruning may raise anything for a network that it does not support
        return {"left out": first_line(error)}
    known = [cores for cores in others if cores is not None]
    return {**found, "others": max(known, default=None)} if others else found


def size_or_ratio(
    name: str,
    original: FullResolution,
    side: int,
    multiply_adds: int,
    batches: Sequence[tuple[Tensor, Tensor]],
    share_of_time: Callable[[nn.Module], float],
) -> dict[str, Any]:
    """How the baseline differs from the original: ``side`` of its images, or ``ratio`` of pruned channels.

    Args:
        name: one of :data:`NAMES`.
        original: the trained network.
        side: height and width of its images.
        multiply_adds: of the accelerated network.
        batches: training images and labels.
        share_of_time: the time of a network, divided by the time of the accelerated one.

    Raises ValueError or RuntimeError if this network has no such baseline.
    """
    if name in PRUNED:
        return ratio_for(lambda ratio: pruned(original, batches, PRUNED[name], ratio), share_of_time)
    half = half_of(side)
    if name == HALF:
        if _multiply_adds(original, half) is None:
            raise ValueError(f"the network does not accept images of {half} x {half}")
        return {"side": half}
    sides = range(half, side + 1, max(1, side // _PARTS))
    costs = {side: cost for side in sides if (cost := _multiply_adds(original, side)) is not None}
    if not costs:
        raise ValueError("the network does not accept images of any other size")
    return {"side": min(costs, key=lambda side: abs(costs[side] - multiply_adds))}


def _multiply_adds(original: FullResolution, side: int) -> int | None:
    """For an image of ``side`` x ``side``; None if the network does not accept one."""
    try:
        network = fit_to(copy.deepcopy(original.network), (side, side))
        return count(network, (side, side)).multiply_adds
    except Exception:  # the network's own code may raise anything
        return None


def build(
    name: str,
    chosen: Mapping[str, Any],
    original: FullResolution,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> FullResolution:
    """The baseline that :func:`size_or_ratio` has ``chosen``, with the original's weights."""
    if name in PRUNED:
        return pruned(original, batches, PRUNED[name], chosen["ratio"])
    side = chosen["side"]
    network = fit_to(copy.deepcopy(original.network), (side, side))
    scale, shift = original.image_scale.tolist(), original.image_shift.tolist()
    if name == HALF:
        return HalfResolution(network, scale, shift)
    return AtSize(network, side, scale, shift)
