"""The rivals of an accelerated network: what else the same time could buy.

They are made of the trained original, and trained as long as the accelerated network, at the same rates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wae.data.dataset import sample
from wae.experiments.pruning import METHODS, pruned, ratio_for
from wae.models.accelerated import Form
from wae.models.baselines import AtSize, FullResolution, HalfResolution
from wae.models.classifier import fold_normalization
from wae.models.counting import count
from wae.models.positions import fit_to
from wae.storage import weights_file
from wae.training.processes import agreed, is_first
from wae.training.trainer import DivergedError
from wae.wording import first_line
from wae_kernels.checks import half_of

from .data import SAMPLE
from .folder import RIVALS, Record
from .measuring import SECONDS, call, images_of_a_call, timed
from .networks import teacher, trained
from .plans import plan_for
from .settings import Recipe
from .task import Task
from .training import fit

HALF, EQUAL_COST = "half resolution", "half, equal cost"
PRUNED = {f"pruned, {method}": method for method in METHODS}
NAMES = (HALF, EQUAL_COST, *PRUNED)

_PARTS = 28  # of the original's size: that of equal cost is searched in steps of one of them


def train_rival(task: Task, record: Record, name: str, form: Form, recipe: Recipe) -> dict[str, Any]:
    """Train a rival as long as the accelerated network, at the same rates; or why there is none."""
    chosen = record.once(f"chosen: {name}", lambda: agreed(choose(task, name, form) if is_first() else {}))
    if "left out" in chosen:
        return dict(chosen)
    sets = task.sets(task.side)
    rival = untrained_rival(task, name, chosen)
    plan = plan_for(task, len(sets.training), recipe).without_encoder()
    task.say(f"the rival: {name}")
    taught_by = teacher(task, task.side, recipe)
    try:
        history = fit(task, name, rival, plan, sets.training, sets.test, taught_by)
    except DivergedError as error:  # at rates that were chosen for another network
        return {**chosen, "left out": error.what}
    assert history[-1].accuracy is not None
    if is_first():
        weights_file.save(_weights(task, name), rival.cpu(), {"plan": plan.as_dict()}, force=True)
    return {**chosen, "accuracy": history[-1].accuracy.score}


def untrained_rival(task: Task, name: str, chosen: Mapping[str, Any]) -> FullResolution:
    """The rival to begin with: see :func:`build`."""
    return build(name, chosen, _copy_of_original(task), _pruning_batches(task))


def trained_rival(task: Task, name: str, chosen: Mapping[str, Any]) -> FullResolution:
    """The rival, when it is trained."""
    rival = untrained_rival(task, name, chosen)
    weights_file.load(_weights(task, name), rival)
    return rival.eval().to(task.device)


def _weights(task: Task, name: str) -> Path:
    return task.settings.folder / RIVALS / f"{name}.safetensors"


def _copy_of_original(task: Task) -> FullResolution:
    """A copy that shares nothing with the original, on the processor."""
    return copy.deepcopy(task.original.classifier()).cpu().requires_grad_(True)


def _pruning_batches(task: Task) -> list[tuple[Tensor, Tensor]]:
    """Training images and labels, for the gradients that pruning goes by."""
    return [sample(task.sets(task.side).plain, SAMPLE)]


def choose(task: Task, name: str, form: Form) -> dict[str, Any]:
    """See :func:`size_or_ratio`; or, as ``left out``, the reason why there is no such rival."""
    accelerated = fold_normalization(trained(task))
    calls = {"accelerated": call(accelerated, images_of_a_call(task, form.size))}
    images = images_of_a_call(task, task.side)

    def share_of_time(rival: nn.Module) -> float:
        both = {**calls, "rival": call(rival.to(task.device), images)}
        times = timed(task, both, SECONDS / 3, settle=0)
        return times["rival"].median / times["accelerated"].median

    original, batches = _copy_of_original(task), _pruning_batches(task)
    multiply_adds = count(accelerated, (form.size,) * 2).multiply_adds
    try:
        return size_or_ratio(name, original, task.side, multiply_adds, batches, share_of_time)
    except Exception as error:  # Torch-Pruning raises what it likes for what it does not know
        return {"left out": first_line(error)}


def size_or_ratio(
    name: str,
    original: FullResolution,
    side: int,
    multiply_adds: int,
    batches: Sequence[tuple[Tensor, Tensor]],
    share_of_time: Callable[[nn.Module], float],
) -> dict[str, Any]:
    """By what the rival differs from the original: ``side``, of its images, or ``ratio``, of pruned channels.

    Args:
        name: one of :data:`NAMES`.
        original: the trained network.
        side: height and width of its images.
        multiply_adds: of the accelerated network.
        batches: training images and labels.
        share_of_time: the time of a network as a share of the accelerated one's.

    Raises ValueError or RuntimeError where there is no such rival of this network.
    """
    if name in PRUNED:
        return ratio_for(lambda ratio: pruned(original, batches, PRUNED[name], ratio), share_of_time)
    half = half_of(side)
    if name == HALF:
        if _multiply_adds(original, half) is None:
            raise ValueError(f"the network takes no images of {half} x {half}")
        return {"side": half}
    sides = range(half, side + 1, max(1, side // _PARTS))
    costs = {side: cost for side in sides if (cost := _multiply_adds(original, side)) is not None}
    if not costs:
        raise ValueError("the network takes images of no other size")
    return {"side": min(costs, key=lambda side: abs(costs[side] - multiply_adds))}


def _multiply_adds(original: FullResolution, side: int) -> int | None:
    """For an image of ``side`` x ``side``; None where the network takes none."""
    try:
        network = fit_to(copy.deepcopy(original.network), (side, side))
        return count(network, (side, side)).multiply_adds
    except Exception:  # any that the network's own code raises
        return None


def build(
    name: str,
    chosen: Mapping[str, Any],
    original: FullResolution,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> FullResolution:
    """The rival with the original's weights, by what :func:`size_or_ratio` has ``chosen`` for it."""
    if name in PRUNED:
        return pruned(original, batches, PRUNED[name], chosen["ratio"])
    side = chosen["side"]
    network = fit_to(copy.deepcopy(original.network), (side, side))
    scale, shift = original.image_scale.tolist(), original.image_shift.tolist()
    if name == HALF:
        return HalfResolution(network, scale, shift)
    return AtSize(network, side, scale, shift)
