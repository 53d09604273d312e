"""The relative error of tensors: the measure that the tolerances in docs/network.md use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||, computed in float64; NaN if either holds a NaN.

    The tensors have the same shape and are on the same device. A norm of ``wanted`` below 1e-30 counts as
    1e-30.
    """
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def largest_difference(found: Tensor | Sequence[Tensor], wanted: Tensor | Sequence[Tensor]) -> float:
    """The largest :func:`relative_difference` of one pair or of several; NaN if any is NaN.

    Each ``wanted`` is moved to the device of its ``found``. Raises ValueError if the numbers of tensors
    differ.
    """
    pairs = zip(_several(found), _several(wanted), strict=True)
    return max((relative_difference(a, b.to(a.device)) for a, b in pairs), key=lambda x: (x != x, x))


def _several(tensors: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else tensors
