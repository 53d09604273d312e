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
    """What has to be known before a rival can be built.

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
    if name == HALF:
        return {"side": (size + 1) // 2}
    costs: dict[int, int] = {}
    for side in range((size + 1) // 2, size + 1, max(1, size // _STEPS)):
        try:
            network = fit_to(copy.deepcopy(stock.network), (side, side))
        except ValueError:  # its table of positions cannot become one of that size
            continue
        costs[side] = count(network, (side, side)).multiply_adds
    return {"side": min(costs, key=lambda side: abs(costs[side] - multiply_adds))}


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
