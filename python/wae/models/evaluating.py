"""The mode of a network, training or evaluation: switched for a block, or given to what is made around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

_Network = TypeVar("_Network", bound=nn.Module)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put ``network`` into evaluation mode for the block, then restore the mode of each of its modules.

    ``network.train(before)`` would put a frozen normalisation, which stays in evaluation mode, into training
    mode.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def in_the_mode_of(network: nn.Module, model: _Network, *others: nn.Module) -> _Network:
    """Put ``model``, which was made around ``network``, into the mode of ``network``, and return it.

    The modules of ``network`` and of ``others``, which are used as they are, keep their modes.
    """
    kept = {module for part in (network, *others) for module in part.modules()}
    for module in model.modules():
        if module not in kept:
            module.training = network.training
    return model
