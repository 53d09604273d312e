"""The mode of a network, training or evaluation: to run it once without a trace, and around a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

_Network = TypeVar("_Network", bound=nn.Module)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within it ``network`` is in evaluation mode; behind it each of its modules is in the mode of before.

    ``network.train(before)`` would put a frozen normalisation, which is in evaluation mode for good, into
    training.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def in_the_mode_of(network: nn.Module, model: _Network, *others: nn.Module) -> _Network:
    """``model``, which was made around ``network``, with every module in the mode of that one.

    ``network`` itself and ``others``, which are used as they are, keep the modes of their modules.
    """
    kept = {module for part in (network, *others) for module in part.modules()}
    for module in model.modules():
        if module not in kept:
            module.training = network.training
    return model
