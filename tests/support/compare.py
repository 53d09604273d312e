"""Comparing a result with the float64 reference: the measure and the limits of docs/network.md."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PLAIN, WINOGRAD = 1e-6, 1e-5
EXACT = 1e-13
"""For float64, which the table leaves out: the same sums as the oracle's, in another order."""


def tolerance(dtype: torch.dtype, backend: str = "reference", device: str = "cpu") -> float:
    """The largest ``relative_error`` that the specification's table allows.

    Args:
        dtype: of the computation, which is that of the parameters.
        backend: as :func:`wae_kernels.backends.backend_for` names it. The compiled kernels use Winograd
            arithmetic; so may the convolution library under the reference on a GPU.
        device: the device's type.
    """
    if dtype == torch.float32:
        return PLAIN if backend == "reference" and device == "cpu" else WINOGRAD
    return {torch.float64: EXACT, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]


def relative_error(out: Tensor, ref: Tensor) -> float:
    """``||out - ref|| / ||ref||`` in float64; NaN if ``out`` holds one.

    Where ``ref`` is all zeros (or has no elements), 0 if ``out`` is the same and infinity if it is not.
    """
    assert out.shape == ref.shape, f"shape {tuple(out.shape)}, expected {tuple(ref.shape)}"
    out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
    difference, norm = (out - ref).norm().item(), ref.norm().item()
    if norm > 0:
        return difference / norm
    return 0.0 if difference == 0 else math.nan if math.isnan(difference) else math.inf


def border_error(out: Tensor, ref: Tensor) -> float:
    """The largest error of a pixel on the rim of (N, C, H, W) images, in units of ``ref``'s rms.

    A wrong rim is few pixels, which the norm over a large image hides.
    """
    out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
    rim = torch.zeros(ref.shape[2:], dtype=torch.bool)
    rim[[0, -1], :] = True
    rim[:, [0, -1]] = True
    error = (out - ref)[..., rim].abs()
    return (error.max() / ref.square().mean().sqrt()).item() if error.numel() else 0.0


def assert_close(out: Tensor, ref: Tensor, limit: float, what: str = "result") -> None:
    """Fail unless ``out`` has ``ref``'s shape and is within ``limit`` of it.

    Images are also held to it pixel by pixel on the rim: no error there beyond eight times the limit
    (the limit is on the errors' rms; eight standard deviations do not happen in a million numbers).
    """
    error = relative_error(out, ref)
    assert error <= limit, f"{what}: relative error {error:.3g}, allowed {limit:.3g}"
    if ref.dim() == 4 and min(ref.shape[2:]) > 3:  # not 3x3 kernels
        rim = border_error(out, ref)
        assert rim <= 8 * limit, f"{what}: error {rim:.3g} of the rms on the rim, allowed {8 * limit:.3g}"
