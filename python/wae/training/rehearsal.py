"""Tries out before a training what would otherwise fail in the middle of it or at its end."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from wae.data.input import Input
from wae.difference import relative_difference
from wae.models.accelerated import Form
from wae.models.evaluating import evaluating
from wae.models.meta import on_meta
from wae.models.registry import NetworkError, build, builder
from wae.storage.checkpoint import describe, load_classifier, save_classifier
from wae.storage.weights_file import CheckpointError
from wae.wording import counted, first_line

from .plan import Plan
from .processes import processes

_EQUAL = 1e-4  # the largest relative difference of scores that rounding makes
_SIDES = (28, 32, 64, 96, 112, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512)  # tried for an error message


def try_out(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """The scores of ``images``. Raises ValueError if the network does not accept images of their size."""
    shapes = copy.deepcopy(network).to("meta").eval()  # computing would take minutes on large images
    if why := _why_not(shapes, images.shape):
        height, width = images.shape[2:]
        raise ValueError(f"{name} takes no images of {height} x {width} ({why}){accepted_sizes(name)}")
    with torch.no_grad(), evaluating(network):
        scores: Tensor = network(images)
    return scores


def accepted_sizes(name: str) -> str:
    """Which sizes the network accepts, as the end of a sentence; empty for the file of a teacher."""
    if builder(name) is None:
        return ""
    works = [str(side) for side in _SIDES if _works(name, side)]
    return f"; of --size {', '.join(map(str, _SIDES))} these work: {', '.join(works) or 'none'}"


def _works(name: str, side: int) -> bool:
    try:
        network = on_meta(partial(build, name, size=(side, side)))
    except NetworkError:
        return False
    return _why_not(network, (1, 3, side, side)) is None


def _why_not(network: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> str | None:
    """Why a network on "meta" does not accept images of ``shape``; None if it does."""
    try:
        with torch.no_grad():
            network(torch.empty(shape, dtype=dtype, device="meta"))
    except Exception as error:  # any that the network's own code raises
        return first_line(error)
    return None


def try_training(plan: Plan, classes: int, images: Tensor) -> None:
    """Raise ValueError if a process computes too few images at a time for the network's BatchNorm."""
    part = max(1, plan.batch // (processes() * plan.accumulate))
    height, width = images.shape[2:]
    network = on_meta(partial(build, plan.model, classes, size=(height, width))).train()
    if why := _why_not(network, (part, *images.shape[1:])):
        each = f"{counted(part, 'image')} of {height} x {width}"
        raise ValueError(
            f"{plan.model} cannot be trained on parts of {each}: {why}; use a larger --batch or --size, or "
            "fewer processes or --accumulate"
        )


def takes_one(network: nn.Module, images: Tensor) -> bool:
    """Whether ``network``, in its present mode, accepts a single image like ``images``, (N, 3, H, W).

    A BatchNorm in training refuses it if it sees one number per channel, after a global pooling for example.
    """
    return _why_not(copy.deepcopy(network).to("meta"), (1, *images.shape[1:]), images.dtype) is None


def rehearse(
    folder: Path,
    model: nn.Module,
    network: str,
    labels: Sequence[str],
    input: Input,
    form: Form | None = None,
    original: nn.Module | None = None,
    images: Tensor | None = None,
) -> None:
    """Save ``model`` and load it again, as at the end of a training, so that problems show before it begins.

    Args:
        folder: where the network will be saved; the trial file is removed.
        model, network, labels, input, form: as for :func:`wae.storage.checkpoint.save_classifier`.
        original: as for :func:`wae.storage.checkpoint.load_classifier`.
        images: for which the loaded network must give the same scores, (N, 3, H, W) uint8; None for no
            comparison.

    Raises:
        OSError: there is no space, or no permission to write.
        ValueError, CheckpointError: the network cannot be saved, or cannot be loaded again.
    """
    path = folder / ".rehearsal"
    try:
        save_classifier(path, model, network, labels, input, force=True, form=form)
        network_again = load_classifier(path, original)
        loaded = network_again.state_dict()
        if describe(path).labels != tuple(labels):
            raise CheckpointError(f"{network}: its class names change when they are saved and loaded")
        saved = model.state_dict()
        if different := [name for name in saved if not torch.equal(saved[name].cpu(), loaded[name])]:
            raise CheckpointError(f"{network}: {different[0]} changes when it is saved and loaded")
    finally:
        path.unlink(missing_ok=True)
    if images is not None and _differ(network_again, model, images):  # a file says nothing of attributes
        raise CheckpointError(f"{network}: its scores change when it is saved and loaded")


def _differ(one: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Whether the scores of two networks differ by more than rounding; those that are NaN do not."""
    with torch.no_grad(), evaluating(one), evaluating(other):
        return relative_difference(one(images), other(images)) > _EQUAL
