"""Running a network once, to see what it does, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
