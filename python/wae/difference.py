"""How far numbers are from those that are wanted: the measure of docs/network.md's tolerances."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||, in float64; NaN where either has one. Both are on one device."""
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def largest_difference(found: Tensor | Sequence[Tensor], wanted: Tensor | Sequence[Tensor]) -> float:
    """The largest :func:`relative_difference` of several pairs, or of one; NaN where one is."""
    pairs = zip(_several(found), _several(wanted), strict=True)
    return max((relative_difference(a, b.to(a.device)) for a, b in pairs), key=lambda x: (x != x, x))


def _several(tensors: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else tensors
