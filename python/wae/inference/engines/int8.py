"""What the quantizers have in common: each engine's is the library that its makers have for it, none is ours.

The scales come from samples of the network's inputs. Each also tells how far the results of every convolution
and matrix product moved, so that a loss of accuracy has a place.
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
    """Relative, in the norm."""


class ByteInput(NamedTuple):
    """An input of bytes: the byte b stands for (b - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: torch.dtype
    """uint8 or int8."""


def movements_between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Movement]:
    """Of the layers that are in both, the one that moved most first."""
    found = [
        Movement(name, relative_difference(after[name], wanted))
        for name, wanted in before.items()
        if name in after and after[name].shape == wanted.shape
    ]
    return sorted(found, key=lambda movement: -movement.difference)


@contextmanager
def errors_only() -> Iterator[None]:
    """The library's advice goes to the root logger; a caller of ours did not ask for it."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
