"""Tells whether a module is fully described by its class and its tensors, so that another can replace it; and
which modules only wrap another."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.swa_utils import AveragedModel


def is_plain(module: nn.Module) -> bool:
    """Whether a call of ``module`` runs its class's ``forward`` on its parameters and nothing else.

    It does not if the module has a hook (pruning and the older weight norm use hooks), a ``forward`` set on
    the instance, or a parameter that is computed from others. Its submodules are not examined.
    """
    return not (is_hooked(module) or "forward" in vars(module) or is_parametrized(module))


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of ``module`` runs hooks of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class Wrapper(nn.Module):
    """A module that does nothing but call its ``model``, so that :func:`unwrapped` can take ``model``.

    Args:
        model: maps images, (N, 3, H, W), to scores.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """The scores of ``image``, (N, 3, H, W)."""
        scores: Tensor = self.model(image)
        return scores


_TORCHS_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(module: Any) -> Any:
    """The network inside ``module``, if that is a wrapper that only calls it; else ``module`` itself.

    Wrappers are those of :func:`torch.compile`, of torch's parallel classes and averaged models, and
    :class:`Wrapper`. One with a hook is kept, because the hook may change the scores.
    """
    while isinstance(module, nn.Module) and not is_hooked(module):
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif type(module) in _TORCHS_WRAPPERS:
            module = module.module
        elif isinstance(module, Wrapper) and type(module).forward is Wrapper.forward:
            module = module.model
        else:
            break
    return module
