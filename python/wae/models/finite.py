"""Networks whose numbers are not all finite."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with a number that is not finite; empty if there is none."""
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), "")


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    # Both extremes are NaN if a number is. This needs no memory, and a small part of the time of isfinite().
    return all(bool(extreme.isfinite()) for extreme in tensor.detach().aminmax())
