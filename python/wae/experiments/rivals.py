"""The rivals of an accelerated network: what else the same time could buy.

They are made of the trained original, and trained as long as the accelerated network, at the same rates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from wae.models.baselines import AtSize, FullResolution, HalfResolution
from wae.models.counting import count
from wae.models.positions import fit_to
from wae_kernels.checks import half_of

from .pruning import METHODS, pruned, ratio_for

HALF, EQUAL_COST = "half resolution", "half, equal cost"
PRUNED = {f"pruned, {method}": method for method in METHODS}
NAMES = (HALF, EQUAL_COST, *PRUNED)

_STEPS = 28  # in which the size of the images is searched


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
