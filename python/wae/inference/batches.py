"""Any number of images for runners that take a fixed batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def filled(images: Tensor, batch: int) -> Tensor:
    """``images``, at most ``batch`` of them, padded to ``batch`` by images of zeros.

    An engine would have to be prepared again for fewer.
    """
    missing = batch - len(images)
    return torch.cat((images, images.new_zeros(missing, *images.shape[1:]))) if missing else images


def in_chunks(run: Callable[..., Any], size: int) -> Callable[..., Any]:
    """A runner for any number of images, which calls ``run`` on chunks of ``size``; the last is padded.

    ``run`` returns one tensor, (size, ...); the inputs keep their memory format.
    """

    def any_number(*inputs: Tensor) -> Tensor:
        formats = [_format(x) for x in inputs]
        parts = []
        for chunk in zip(*(x.split(size) for x in inputs), strict=True):
            full = [filled(x, size).clone(memory_format=y) for x, y in zip(chunk, formats, strict=True)]
            parts.append(run(*full)[: len(chunk[0])].clone())
        return torch.cat(parts)

    return any_number


def _format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
