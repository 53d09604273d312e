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
from wae.wording import first_line
from wae_kernels.checks import half_of

from .data import SAMPLE
from .folder import RIVALS, Record
from .measuring import SECONDS, call, images_of_a_call, timed
from .networks import teacher, trained
from .plans import plan_for
from .settings import Mimic
from .task import Task
from .training import fit

HALF, EQUAL_COST = "half resolution", "half, equal cost"
PRUNED = {f"pruned, {method}": method for method in METHODS}
NAMES = (HALF, EQUAL_COST, *PRUNED)

_STEPS = 28  # in which the size of the images is searched


def train_rival(task: Task, record: Record, name: str, form: Form, mimic: Mimic) -> dict[str, Any]:
    """Train a rival as long as the accelerated network, at the same rates; or why there is none."""
    found = record.once(f"chosen: {name}", lambda: agreed(find_for(task, name, form) if is_first() else {}))
    if "left out" in found:
        return dict(found)
    sets = task.sets(task.side)
    model = made(task, name, found)
    plan = plan_for(task, len(sets.training), mimic).without_encoder()
    task.say(f"the rival: {name}")
    history = fit(task, name, model, plan, sets.training, sets.test, teacher(task, task.side, mimic))
    assert history[-1].accuracy is not None
    if is_first():
        weights_file.save(_weights(task, name), model.cpu(), {"plan": plan.as_dict()}, force=True)
    return {**found, "accuracy": history[-1].accuracy.score}


def made(task: Task, name: str, found: Mapping[str, Any]) -> FullResolution:
    """The rival to begin with: see :func:`build`."""
    return build(name, found, _stock(task), _examples(task))


def trained_rival(task: Task, name: str, found: Mapping[str, Any]) -> FullResolution:
    """The rival, when it is trained."""
    rival = made(task, name, found)
    weights_file.load(_weights(task, name), rival)
    return rival.eval().to(task.device)


def _weights(task: Task, name: str) -> Path:
    return task.settings.folder / RIVALS / f"{name}.safetensors"


def find_for(task: Task, name: str, form: Form) -> dict[str, Any]:
    """See :func:`find`; or the reason why there is no such rival."""
    model, side = fold_normalization(trained(task)), task.side
    images, ours = images_of_a_call(task, side), call(model, images_of_a_call(task, form.size))

    def share_of_time(network: nn.Module) -> float:
        calls = {"ours": ours, "other": call(network.to(task.device), images)}
        times = timed(task, calls, SECONDS / 3, settle=0)
        return times["other"].median / times["ours"].median

    multiply_adds = count(model, (form.size,) * 2).multiply_adds
    try:
        return find(name, _stock(task), side, multiply_adds, _examples(task), share_of_time)
    except Exception as error:  # Torch-Pruning raises what it likes for what it does not know
        return {"left out": first_line(error)}


def _stock(task: Task) -> FullResolution:
    """A copy of the original that shares nothing."""
    return copy.deepcopy(task.original.classifier()).cpu().requires_grad_(True)


def _examples(task: Task) -> list[tuple[Tensor, Tensor]]:
    """Training images, for the gradients that pruning goes by."""
    return [sample(task.sets(task.side).plain, SAMPLE)]


def find(
    name: str,
    stock: FullResolution,
    size: int,
    multiply_adds: int,
    batches: Sequence[tuple[Tensor, Tensor]],
    share_of_time: Callable[[nn.Module], float],
) -> dict[str, Any]:
    """Facts that are needed before a rival can be built.

    Args:
        name: one of :data:`NAMES`.
        stock: the trained original.
        size: of its images in pixels.
        multiply_adds: of the accelerated network.
        batches: training images and labels.
        share_of_time: the time of a network as a share of the accelerated one's.

    Raises ValueError or RuntimeError where there is no such rival of this network.
    """
    if name in PRUNED:
        return ratio_for(lambda ratio: pruned(stock, batches, PRUNED[name], ratio), share_of_time)
    half = half_of(size)
    if name == HALF:
        if _cost(stock, half) is None:
            raise ValueError(f"the network takes no images of {half} x {half}")
        return {"side": half}
    sides = range(half, size + 1, max(1, size // _STEPS))
    costs = {side: cost for side in sides if (cost := _cost(stock, side)) is not None}
    if not costs:
        raise ValueError("the network takes images of no other size")
    return {"side": min(costs, key=lambda side: abs(costs[side] - multiply_adds))}


def _cost(stock: FullResolution, side: int) -> int | None:
    """Multiply-adds on an image of ``side`` x ``side``; None where the network takes none."""
    try:
        return count(fit_to(copy.deepcopy(stock.network), (side, side)), (side, side)).multiply_adds
    except Exception:  # any that the network's own code raises
        return None


def build(
    name: str,
    found: Mapping[str, Any],
    stock: FullResolution,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> FullResolution:
    """The rival with the original's weights. The arguments are those of :func:`find`, and its result."""
    if name in PRUNED:
        return pruned(stock, batches, PRUNED[name], found["ratio"])
    network = fit_to(copy.deepcopy(stock.network), (found["side"],) * 2)
    scale, shift = stock.image_scale.tolist(), stock.image_shift.tolist()
    if name == HALF:
        return HalfResolution(network, scale, shift)
    return AtSize(network, found["side"], scale, shift)
