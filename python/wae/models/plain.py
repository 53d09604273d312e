"""Tells whether a module is fully described by its class and its tensors, so that another can replace it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def is_plain(module: nn.Module) -> bool:
    """Whether a call of ``module`` runs its class's ``forward`` on its parameters and nothing else.

    It does not if the module has a hook (pruning and the older weight norm use hooks), a ``forward`` set on
    the instance, or a parameter that is computed from others. Its submodules are not examined.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not (hooked or "forward" in vars(module) or is_parametrized(module))


def uncompiled(module: Any) -> Any:
    """The module that :func:`torch.compile` wrapped in ``module``; ``module`` itself if there is none."""
    return getattr(module, "_orig_mod", module)
