"""A stage's optimizer, its learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .objective import of_transform
from .plan import Stage

_SPARED = frozenset(
    {"class_token", "cls_token", "pos_embed", "pos_embedding", "relative_position_bias_table"}
    | {"layer_scale", "logit_scale"}
)  # what torchvision's networks, and others', call parameters that are no matrices

_Tensors = tuple[Tensor, ...] | list[Tensor]


def optimizer_for(
    stage: Stage, parameters: Mapping[str, nn.Parameter], spared: Collection[str] = ()
) -> torch.optim.Optimizer:
    """The optimizer for ``parameters``, given by name, of which the ``spared`` ones have no weight decay.

    Each of its groups has an entry ``share``: its learning rate as a share of the stage's.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters.items():
        # A stage of kind "classifier" never trains our encoder, but any network may have a part of that name.
        is_ours = of_transform(name) and stage.kind != "classifier"
        share = stage.encoder_rate if is_ours and stage.kind == "joint" else 1.0
        decays = parameter.dim() > 1 and not is_ours and name not in spared
        groups[share, stage.weight_decay if decays else 0.0].append(parameter)
    entries: list[dict[str, Any]] = [
        {"params": members, "share": share, "weight_decay": decay}
        for (share, decay), members in groups.items()
    ]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(
            entries, stage.learning_rate, momentum=stage.momentum, nesterov=stage.momentum > 0
        )
    kind = torch.optim.Adam if stage.optimizer == "adam" else torch.optim.AdamW
    return kind(entries, stage.learning_rate)


def spared_from_decay(model: nn.Module) -> set[str]:
    """The names of parameters that have no weight decay, though they have more than one dimension.

    They are class tokens, position tables and scales, by their usual names, and those that a network names
    itself, as timm's do: its ``no_weight_decay()`` returns names, possibly with wildcards.
    """
    patterns = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if callable(named := getattr(module, "no_weight_decay", None))
        for name in named()
    ]
    return {
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[2] in _SPARED or any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def learning_rate(stage: Stage, epoch: float) -> float:
    """The learning rate at ``epoch``; 2.5, for example, is the middle of the third epoch."""
    if epoch < stage.warmup:
        first = min(0.01, stage.warmup / 20)  # otherwise the rate of the first step would be zero
        return stage.learning_rate * min(1.0, (epoch + first) / stage.warmup)
    if stage.schedule == "step":
        return stage.learning_rate * stage.step_factor ** int(epoch // stage.step_epochs)
    if stage.schedule == "constant":
        return stage.learning_rate
    share = (epoch - stage.warmup) / max(stage.epochs - stage.warmup, 1e-9)
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def running_average(model: nn.Module, stage: Stage) -> AveragedModel | None:
    """The moving average of ``model`` over the steps (``ema``); None if the stage has none."""
    if not stage.ema:
        return None
    decayed = get_ema_multi_avg_fn(stage.ema)
    has_masks = any(buffer.isinf().any() for buffer in model.buffers())

    def averaged(averages: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        """Average tensors of one dtype. Integers are copied: an averaged index would end up one too low."""
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, current)
            return
        decayed(averages, current, count)
        for average, now in zip(averages, current, strict=True) if has_masks else ():
            average.copy_(now.where(now.isinf(), average))  # the average of two infinite numbers is NaN

    return AveragedModel(model, multi_avg_fn=averaged, use_buffers=True)
