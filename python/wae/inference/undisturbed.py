"""Keeps the caller's autocast, inference mode and gradients out of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def undisturbed(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context in which autocast, inference mode and gradients are off.

    Only what is on is switched off. Entering all three contexts takes 0.1 ms after a network has run, because
    the network has pushed Python out of the CPU's caches.
    """
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type):
        return _all_off(device)
    return torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext()


@contextlib.contextmanager
def _all_off(device: torch.device) -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
