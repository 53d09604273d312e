"""What the engines' quantizers have in common. Each quantizer is the library that the engine's makers offer.

The scales come from samples of the network's inputs. Each quantizer also reports how far the results of every
convolution and matrix product moved, so that a loss of accuracy can be traced to a layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wae.difference import relative_difference
from wae.inference import precision


class Movement(NamedTuple):
    """How far int8 moved one layer's results."""

    layer: str
    difference: float
    """The norm of the difference over the norm of the float32 results."""


class Simulation(NamedTuple):
    """An int8 network computed in float32, with numbers rounded as in int8, on a few inputs."""

    movements: Sequence[Movement]
    """How far the layers' results moved, the largest movement first."""
    exact: Sequence[Tensor]
    """The float32 network's results."""
    results: Sequence[Tensor]
    """The int8 network's."""


class ByteInput(NamedTuple):
    """An input of bytes, in which the byte b stands for (b - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: torch.dtype
    """uint8 or int8."""


def saturates() -> bool:
    """Whether the CPU, without VNNI, adds pairs of products in 16 bits, which 8-bit numbers may overflow."""
    return not precision.native("int8", torch.device("cpu"))


def listed(results: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """What a network returned, one tensor or several, as a sequence."""
    return [results] if isinstance(results, Tensor) else results


def movements_between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Movement]:
    """The movements of the layers that are in both, with results of one shape; the largest movement first."""
    found = [
        Movement(name, relative_difference(after[name], wanted))
        for name, wanted in before.items()
        if name in after and after[name].shape == wanted.shape
    ]
    return sorted(found, key=lambda movement: -movement.difference)


def require_same(module: nn.Module, run: Callable[..., Any], sets: Iterable[Sequence[Tensor]]) -> None:
    """Raise ValueError unless ``run``, which is to be quantized, computes what ``module`` does.

    In int8 an error of an exporter, or in joining layers, would look like a loss of accuracy, and a small one
    be accepted.

    Args:
        module: the network.
        run: runs the graph that was made of it.
        sets: inputs of both. They need to agree on one set: see :func:`wae.inference.agreement.other_images`.
    """
    for inputs in sets:
        # cloned because a network may change its input, which may give the scales later
        wanted, found = (call(*(x.clone() for x in inputs)) for call in (module, run))
        pairs = [(found, wanted)] if isinstance(wanted, Tensor) else zip(found, wanted, strict=True)
        if all(_is_near(x, y) for x, y in pairs):
            return
    raise ValueError("its graph computes something else than the network, so it is not quantized")


def _is_near(found: Tensor, wanted: Tensor) -> bool:
    most = precision.tolerance(wanted.dtype, wanted.device)
    return found.shape == wanted.shape and relative_difference(found, wanted) <= most


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
