"""The start of a training from the trained network at full resolution, which teaches as well.

Its weights go where the same network works on ``low``, and ``low`` becomes the small image that they know.
``wae train --original`` and what ``wae reproduce`` fine-tunes begin so; ``wae accelerate`` begins alike.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from wae.data.dataset import Dataset, sample
from wae.models.accelerated import split
from wae.models.baselines import FullResolution
from wae.models.classifier import WAEClassifier
from wae.models.network import WAENetwork
from wae.models.segmentation.segmenter import FullResolutionSegmenter, WAESegmenter
from wae.storage.checkpoint import describe, load_classifier
from wae.storage.weights_file import CheckpointError
from wae_kernels.checks import half_of

from .linear_start import start_as_small_image
from .plan import Plan

_TAUGHT: dict[str, Any] = {"mimic_weight": 1.0, "mimic_temperature": 4.0, "mimic_mirrored": True}
"""Entries of the stages in which it teaches, chosen on photos kept aside (docs/photos.md)."""

_CAREFUL = 3e-4  # rate of stage 1, where ``low`` is a small image already
_SAMPLE = 2000 * 64 * 64  # pixels of the training images that it is made one on
_FEW = 8  # images at least


def taught(plan: Plan) -> Plan:
    """``plan`` with the trained full network as the teacher of its stages with labels."""
    stages = (stage if stage.kind == "transform" else replace(stage, **_TAUGHT) for stage in plan.stages)
    return replace(plan, stages=tuple(stages))


def made_of_original(plan: Plan) -> Plan:
    """``plan`` for a network that begins with the weights of the trained full network.

    The full network also teaches, unless a stage of ``plan`` has a ``mimic_weight`` already. Plans that keep
    the statistics of ``low`` were made for such a network: their rates stay.
    """
    has_teacher = any(stage.mimic_weight for stage in plan.stages)
    is_made = plan.norm_statistics == "kept"
    stages = (
        replace(stage, learning_rate=_CAREFUL) if stage.kind == "transform" and not is_made else stage
        for stage in (plan if has_teacher else taught(plan)).stages
    )
    return replace(plan, start="random", norm_statistics="kept", stages=tuple(stages))


def read_original(path: Path, model: str) -> FullResolutionSegmenter:
    """The network at full resolution, in a checkpoint, that the one called ``model`` can be made of.

    Raises CheckpointError where the file is missing or damaged, or holds another.
    """
    original, name = load_classifier(path), describe(path).network
    if not isinstance(original, FullResolutionSegmenter) or model not in (f"wae_{name}", f"{name}_half"):
        raise CheckpointError(
            f"{path}: holds {name}, of which {model} cannot be made; that needs a network NAME that scores "
            "pixels, for wae_NAME or NAME_half (wae accelerate makes a classifier faster)"
        )
    return original


def start_as_original(model: nn.Module, original: FullResolution, training: Dataset) -> None:
    """Put the weights of ``original`` into the same network at half the resolution, or into WAE around it.

    Args:
        model: the one or the other; ``low`` of WAE becomes a small image.
        original: the network at full resolution.
        training: images that ``low`` is made a small image on.

    Raises DatasetError where none of the images can be read.
    """
    if not isinstance(model, WAENetwork):
        model.load_state_dict(original.state_dict())
        return
    height, width = sample(training, 1)[0].shape[2:]
    _give_weights(model, original, (half_of(height), half_of(width)))
    images, _ = sample(training, max(_FEW, _SAMPLE // (height * width)))
    start_as_small_image(model, images, original.image_scale, original.image_shift)


def _give_weights(model: WAENetwork, original: FullResolution, size: tuple[int, int]) -> None:
    """Give the network on ``low``, of ``size`` (h, w), the weights of that in ``original``."""
    if isinstance(model, WAESegmenter):
        model.low_network.load_state_dict(original.network.state_dict())
        return
    assert isinstance(model, WAEClassifier)
    body, matrix = split(copy.deepcopy(original.network), size)
    named = zip(model.low_body.state_dict(), body.state_dict().values(), strict=True)
    model.low_body.load_state_dict(dict(named))  # the same body, by names of its own
    model.low_classifier.load_state_dict(matrix.state_dict())
    for parameter in model.fusion_classifier.parameters():
        nn.init.zeros_(parameter)
