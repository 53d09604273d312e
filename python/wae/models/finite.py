"""Networks whose numbers are not all finite."""

from __future__ import annotations

from torch import Tensor, nn

_NO_MASKS = {"weight", "bias", "running_mean", "running_var", "image_scale", "image_shift"}
"""The names of buffers that the network computes with as with parameters."""


def not_finite(model: nn.Module) -> str:
    """The name of the first parameter or buffer with a number that is not finite; empty if there is none.

    Minus infinity is allowed in other buffers than weights and statistics, if they also hold finite numbers:
    in a mask of attention it excludes a position.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        is_mask = name not in parameters and name.rpartition(".")[2] not in _NO_MASKS
        if not _is_finite(tensor, is_mask):
            return name
    return ""


def _is_finite(tensor: Tensor, is_mask: bool) -> bool:
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    # Both extremes are NaN if a number is. This needs no memory, and a small part of the time of isfinite().
    least, most = tensor.detach().aminmax()
    return bool(most.isfinite()) and bool(is_mask or least.isfinite())
