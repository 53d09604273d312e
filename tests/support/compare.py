"""Compares results with the float64 reference: the error measure and tolerances of docs/network.md."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PLAIN, WINOGRAD = 1e-6, 1e-5
EXACT = 1e-13
"""The tolerance of float64, which the table leaves out: the oracle's sums in another order."""


def tolerance(dtype: torch.dtype, backend: str = "reference", device: str = "cpu") -> float:
    """The largest ``relative_error`` that the specification's table allows.

    Args:
        dtype: of the computation, which is that of the parameters.
        backend: as :func:`wae_kernels.backends.backend_for` names it. The compiled kernels use Winograd
            arithmetic; on a GPU, the convolution library that the reference calls may do so, too.
        device: the device's type.
    """
    if dtype == torch.float32:
        return PLAIN if backend == "reference" and device == "cpu" else WINOGRAD
    return {torch.float64: EXACT, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]


def relative_error(out: Tensor, ref: Tensor) -> float:
    """``||out - ref|| / ||ref||`` in float64; NaN if ``out`` holds one.

    If ``ref`` is all zeros (or has no elements), 0 if ``out`` is the same and infinity if it is not.
    """
    assert out.shape == ref.shape, f"shape {tuple(out.shape)}, expected {tuple(ref.shape)}"
    out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
    difference, norm = (out - ref).norm().item(), ref.norm().item()
    if norm > 0:
        return difference / norm
    return 0.0 if difference == 0 else math.nan if math.isnan(difference) else math.inf


def border_error(out: Tensor, ref: Tensor) -> float:
    """The largest error on the border of (N, C, H, W) images, in units of ``ref``'s RMS.

    The border has so few pixels that the norm over a large image hides errors there.
    """
    out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
    border = torch.zeros(ref.shape[2:], dtype=torch.bool)
    border[[0, -1], :] = True
    border[:, [0, -1]] = True
    error = (out - ref)[..., border].abs()
    return (error.max() / ref.square().mean().sqrt()).item() if error.numel() else 0.0


def assert_close(out: Tensor, ref: Tensor, limit: float, what: str = "result") -> None:
    """Fail unless ``out`` has ``ref``'s shape and a relative error of at most ``limit``.

    On the border of images, no single pixel may be off by more than eight times the limit. (The limit applies
    to the RMS of the errors; eight standard deviations do not occur in a million numbers.)
    """
    error = relative_error(out, ref)
    assert error <= limit, f"{what}: relative error {error:.3g}, allowed {limit:.3g}"
    if ref.dim() == 4 and min(ref.shape[2:]) > 3:  # not 3x3 kernels
        error = border_error(out, ref)
        assert error <= 8 * limit, f"{what}: border error {error:.3g} of the RMS, allowed {8 * limit:.3g}"
