"""A baseline for WAE: a trained network, pruned by Torch-Pruning until it takes no longer than WAE."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from wae.errors import WaeError
from wae.models.baselines import FullResolution
from wae.models.last_layer import last_linear

METHODS = ("L1 groups", "Taylor")
"""L1 groups: removes the same share of each layer's channels, those with the smallest weights. The weights of
other layers that depend on a channel count too. Taylor: removes the channels of any layer that change the
loss least, estimated by its gradient."""

PRUNED = {f"pruned, {method}": method for method in METHODS}
"""The pruned networks by their names in tables, and the method of each."""

_MAX_RATIO = 0.9  # of a layer's channels
_BISECTIONS = 6


class PruningError(WaeError, RuntimeError):
    """A network that cannot be pruned as requested. The message says why."""


def pruned(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], method: str, ratio: float
) -> FullResolution:
    """A copy of ``model`` without ``ratio`` of the channels. Deterministic.

    Args:
        model: a :class:`FullResolution`.
        batches: training images and labels, for the gradients.
        method: one of :data:`METHODS`.
        ratio: 0..1, of the channels of each layer, or of all of them.

    Raises:
        PruningError: Torch-Pruning is not installed.
        ValueError: ``model`` does not end in a linear layer.
    """
    try:
        import torch_pruning
    except ModuleNotFoundError:
        raise PruningError('Torch-Pruning is not installed: pip install "wae-kernels[reproduce]"') from None
    assert isinstance(model, FullResolution)
    copied = copy.deepcopy(model).eval().requires_grad_(True)  # frozen parameters would not be pruned
    taylor = method == "Taylor"
    importance = torch_pruning.importance
    if taylor:
        for images, labels in batches:
            F.cross_entropy(copied(images), labels).backward()
    image = batches[0][0][:1].float()
    last = copied.network.get_submodule(last_linear(copied.network, (image.shape[2], image.shape[3])))
    pruner = torch_pruning.pruner.BasePruner(
        copied.network,
        image,
        importance=importance.GroupTaylorImportance() if taylor else importance.GroupMagnitudeImportance(p=1),
        global_pruning=taylor,
        pruning_ratio=ratio,
        max_pruning_ratio=_MAX_RATIO,
        ignored_layers=[last],
    )
    pruner.step()
    copied.zero_grad()
    return copied


def ratio_for(
    prune: Callable[[float], nn.Module], share_of_time: Callable[[nn.Module], float]
) -> dict[str, Any]:
    """The smallest ratio, to within 0.015, at which a pruned network takes no longer than another one.

    Args:
        prune: prunes the network by a ratio.
        share_of_time: the time of the pruned network divided by the other network's.

    Returns ``ratio``, and ``time``, the share of time that was measured for it. Raises PruningError if even
    the largest ratio does not suffice.
    """
    too_little, enough = 0.0, _MAX_RATIO
    time = share_of_time(prune(enough))
    if time > 1:
        raise PruningError(f"pruned by {enough:.0%} the network still takes {time:.2f} times as long")
    for _ in range(_BISECTIONS):
        middle = (too_little + enough) / 2
        share = share_of_time(prune(middle))
        if share <= 1:
            enough, time = middle, share
        else:
            too_little = middle
    return {"ratio": enough, "time": time}
