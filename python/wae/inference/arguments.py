"""Checks of the arguments of ``deploy`` and ``export``, and example images to try a model on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wae.models.finite import not_finite
from wae.wording import shown

from .front import Front
from .precision import DTYPES

_MOST_PIXELS = 2**28
"""The most pixels in a call, 5,000 images of 224 x 224: more is refused before any memory is allocated."""


def example_images(
    model: nn.Module | Front,
    batch: int,
    size: tuple[int, int],
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Tensor:
    """Images like photos, smooth shapes with some noise, (batch, 3, H, W); the same in every call.

    Their values are 0..255 if the model scales its images itself or they are uint8. Otherwise their mean and
    variance are about those that networks are trained for.

    Args:
        model: the model that the images are for; they are on its device.
        batch: the number of images.
        size: their (H, W).
        dtype: their dtype; None for uint8 if the model scales its images itself, else for the dtype of its
            parameters.
        seed: another number gives other images.
    """
    random = torch.Generator().manual_seed(seed)
    shapes = F.interpolate(_normal(random, batch, 3, 5, 5), size, mode="bicubic")
    photos = (128 + 50 * shapes + 10 * _normal(random, batch, 3, *size)).clamp(0, 255)
    like = first_parameter(model)
    scales = hasattr(model, "image_scale")
    if dtype is None:
        dtype = torch.uint8 if scales else like.dtype
    return (photos if scales or dtype == torch.uint8 else photos / 64 - 2).to(like.device, dtype)


def _normal(random: torch.Generator, *size: int) -> Tensor:
    """Numbers that depend on neither the default dtype nor the default device."""
    return torch.randn(size, generator=random, dtype=torch.float32, device="cpu")


def first_parameter(model: nn.Module | Front) -> Tensor:
    """The model's first parameter, whose dtype and device stand for those of the model."""
    return model.like if isinstance(model, Front) else next(model.parameters())


def check_arguments(model: Any, size: Any, batch: Any) -> None:
    """Raise TypeError or ValueError unless ``model`` can be run on ``batch`` images of ``size``.

    The model must be a module in evaluation mode. Its parameters must be on one device, the first of them in
    a dtype of :data:`wae.inference.precision.DTYPES`; its parameters and buffers must be finite: see
    :func:`wae.models.finite.not_finite`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"model must be in evaluation mode, but {training[0]} is in training mode: call model.eval()"
        )
    devices = {str(tensor.device) for tensor in model.parameters()}
    if len(devices) != 1 or devices == {"meta"}:
        raise ValueError(
            f"model must have its parameters on one device, got {', '.join(sorted(devices)) or 'none'}"
        )
    dtype = first_parameter(model).dtype
    if dtype not in DTYPES.values():
        raise ValueError(f"model must compute in one of {', '.join(map(str, DTYPES.values()))}, got {dtype}")
    parameters: dict[str, Any] = dict(model.named_parameters())
    if lazy := [name for name, tensor in parameters.items() if is_lazy(tensor)]:
        raise ValueError(f"model must be complete, but {lazy[0]} has no shape before the first call")
    if name := not_finite(model):
        raise ValueError(f"model must have finite numbers only, but {name} has some that are not finite")
    if not isinstance(size, Sequence) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(f"size must be (H, W), two integers of at least 1, got {size}")
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch must be an integer of at least 1, got {shown(batch)}")
    if batch * size[0] * size[1] > _MOST_PIXELS:
        raise ValueError(
            f"batch times size must be at most {_MOST_PIXELS} pixels, got {batch} x {size[0]} x {size[1]}"
        )


def check_number(name: str, value: Any) -> None:
    """Raise ValueError unless ``value``, of the argument ``name``, is a real number and not NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"{name} must be a number, got {shown(value)}")
