"""Whether a module is no more than its class and its tensors: only then may another take its place."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def is_plain(module: nn.Module) -> bool:
    """Whether a call of ``module`` is its class's ``forward`` on its parameters, and nothing besides.

    It is not where there is a hook (pruning and the older weight norm are hooks, too), a ``forward`` of its
    own, or a parameter that is computed from others. The modules in it are not looked at.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not (hooked or "forward" in vars(module) or is_parametrized(module))
