"""Traces modules with torch.fx, if the trace computes what the module does."""

from __future__ import annotations

import inspect
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from wae.models.plain import is_plain

from .one_thread import ONE_THREAD

_log = logging.getLogger(__name__)


class _Tracer(fx.Tracer):
    """Refuses modules that enter autocast themselves: a trace would run their operators without it."""

    proxy_buffer_attributes = True  # else the dtype of a buffer becomes a constant, also after .to(dtype)

    def __init__(self) -> None:
        super().__init__()
        self._around, self._thread = _autocast(), threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See fx.Tracer, which takes the calls of all modules in the process for parts of the trace."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *arguments: Any, **options: Any) -> fx.Node:
        """See fx.Tracer, which calls it while the module's own code runs."""
        if _autocast() != self._around:
            raise RuntimeError("it enters autocast, which a trace does not record")
        return super().create_node(*arguments, **options)


def _autocast() -> list[torch.dtype | None]:
    """The dtype to which autocast casts on each type of device; None if it is off."""
    return [
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in ("cpu", "cuda")
    ]


def traced(module: nn.Module) -> fx.GraphModule | None:
    """The trace of ``module``; None if it does more than its class's ``forward``, or cannot be traced."""
    if not is_plain(module) or _has_optional_arguments(module):
        return None
    try:
        with ONE_THREAD:
            graph = _Tracer().trace(module)
        return fx.GraphModule(module, graph, type(module).__name__)
    except Exception as error:  # the module's own code may raise anything when it is traced
        _log.debug("torch.fx cannot trace %s: %s", type(module).__name__, error)
        return None


def put(part: nn.Module, layers: Mapping[str, nn.Module | None]) -> bool:
    """Replace the submodules of ``part`` named in ``layers``; ``part`` keeps its class and its attributes.

    Returns False, and changes nothing, if that is not possible: a value is None, or the submodule that it
    replaces has a second name, by which ``part`` may call it.
    """
    names = Counter(id(layer) for _, layer in part.named_modules(remove_duplicate=False))
    if any(new is None or names[id(part.get_submodule(name))] > 1 for name, new in layers.items()):
        return False
    for name, new in layers.items():
        assert new is not None
        part.set_submodule(name, new)
    return True


def _has_optional_arguments(module: nn.Module) -> bool:
    """Whether ``forward`` has optional arguments.

    A trace would treat them as tensors, and fail, or leave out what the module does if they are None.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.default is not parameter.empty for parameter in parameters)
