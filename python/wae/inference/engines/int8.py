"""What the engines' quantizers have in common. Each quantizer is the library that the engine's makers offer.

The scales come from samples of the network's inputs. Each quantizer also reports how far the results of every
convolution and matrix product moved, so that a loss of accuracy can be traced to a layer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from wae.difference import relative_difference


class Movement(NamedTuple):
    """How far int8 moved one layer's results."""

    layer: str
    difference: float
    """The norm of the difference over the norm of the float32 results."""


class ByteInput(NamedTuple):
    """An input of bytes, in which the byte b stands for (b - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: torch.dtype
    """uint8 or int8."""


def movements_between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Movement]:
    """The movements of the layers that are in both, with results of one shape; the largest movement first."""
    found = [
        Movement(name, relative_difference(after[name], wanted))
        for name, wanted in before.items()
        if name in after and after[name].shape == wanted.shape
    ]
    return sorted(found, key=lambda movement: -movement.difference)


@contextmanager
def errors_only() -> Iterator[None]:
    """Show only errors in the block: the libraries log advice, for which our caller did not ask, as root."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
