"""Images for engines that are prepared for a number of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def filled(images: Tensor, batch: int) -> Tensor:
    """``images``, and up to ``batch`` black ones: an engine would be prepared anew for fewer."""
    missing = batch - len(images)
    return torch.cat((images, images.new_zeros(missing, *images.shape[1:]))) if missing else images


def in_turns(run: Callable[..., Any], size: int) -> Callable[..., Any]:
    """``run``, which takes ``size`` images, for any number: in turns, the last filled up."""

    def any_number(*inputs: Tensor) -> Tensor:
        formats = [_format(x) for x in inputs]
        parts = []
        for turn in zip(*(x.split(size) for x in inputs), strict=True):
            full = [filled(x, size).clone(memory_format=y) for x, y in zip(turn, formats, strict=True)]
            parts.append(run(*full)[: len(turn[0])].clone())
        return torch.cat(parts)

    return any_number


def _format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
