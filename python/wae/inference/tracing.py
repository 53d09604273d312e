"""A module as torch.fx traces it, where that is what it computes."""

from __future__ import annotations

import inspect
import logging

from torch import fx, nn

from wae.models.plain import is_plain

_log = logging.getLogger(__name__)


def traced(module: nn.Module) -> fx.GraphModule | None:
    """The trace of ``module``; None where it is more than its class's ``forward``, or has no trace."""
    if not is_plain(module) or _has_optional_arguments(module):
        return None
    try:
        return fx.symbolic_trace(module)
    except Exception as error:  # any that the module's own code raises when it is traced
        _log.debug("torch.fx cannot trace %s: %s", type(module).__name__, error)
        return None


def _has_optional_arguments(module: nn.Module) -> bool:
    """A trace would take them for tensors, and fail, or go on without what is done where they are None."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.default is not parameter.empty for parameter in parameters)
