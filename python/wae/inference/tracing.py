"""A module as torch.fx traces it, where that is what it computes."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from wae.models.plain import is_plain

_log = logging.getLogger(__name__)


class _Tracer(fx.Tracer):
    """Refuses modules that enter autocast by themselves: a trace would run their operators without it."""

    def __init__(self) -> None:
        super().__init__()
        self._around = _autocast()

    def create_node(self, *arguments: Any, **options: Any) -> fx.Node:
        """See fx.Tracer, which calls it while the module's own code runs."""
        if _autocast() != self._around:
            raise RuntimeError("it enters autocast, which a trace leaves out")
        return super().create_node(*arguments, **options)


def _autocast() -> list[torch.dtype | None]:
    """What operators are cast to, on each kind of device; None where they are not."""
    return [
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in ("cpu", "cuda")
    ]


def traced(module: nn.Module) -> fx.GraphModule | None:
    """The trace of ``module``; None where it is more than its class's ``forward``, or has no whole trace."""
    if not is_plain(module) or _has_optional_arguments(module):
        return None
    try:
        tracer = _Tracer()
        return fx.GraphModule(module, tracer.trace(module), type(module).__name__)
    except Exception as error:  # any that the module's own code raises when it is traced
        _log.debug("torch.fx cannot trace %s: %s", type(module).__name__, error)
        return None


def put(part: nn.Module, layers: Mapping[str, nn.Module | None]) -> bool:
    """Put ``layers`` into ``part``, which keeps its class, and so the attributes that others may read.

    False, and nothing is changed, where that cannot be: one is None, or what it replaces has another name
    too, by which ``part`` may call it.
    """
    names = Counter(id(layer) for _, layer in part.named_modules(remove_duplicate=False))
    if any(new is None or names[id(part.get_submodule(name))] > 1 for name, new in layers.items()):
        return False
    for name, new in layers.items():
        assert new is not None
        part.set_submodule(name, new)
    return True


def _has_optional_arguments(module: nn.Module) -> bool:
    """A trace would take them for tensors, and fail, or go on without what is done where they are None."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.default is not parameter.empty for parameter in parameters)
