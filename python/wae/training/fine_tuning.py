"""Fine-tuning: a network is initialised from the trained network at full resolution and distilled from it.

The network on ``low`` gets its weights, and ``low`` becomes the small image that these weights expect.
``wae train --original`` and the fine-tuned networks of ``wae reproduce`` start this way; ``wae accelerate``
starts similarly.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from wae.data.dataset import Dataset, sample
from wae.models.baselines import FullResolution
from wae.models.classifier import WAEClassifier
from wae.models.last_layer import split_last_linear
from wae.models.network import WAENetwork
from wae.models.segmentation.segmenter import FullResolutionSegmenter, WAESegmenter
from wae.storage.checkpoint import describe, load_classifier
from wae.storage.weights_file import CheckpointError
from wae_kernels.checks import half_of

from .linear_start import start_as_small_image
from .plan import Plan

_DISTILLATION: dict[str, Any] = {"mimic_weight": 1.0, "mimic_temperature": 4.0, "mimic_mirrored": True}
"""Entries for distillation in the stages with labels, chosen on held-out photos (docs/photos.md)."""

_STAGE1_RATE = 3e-4  # learning rate of stage 1, because ``low`` is already a small image
_PIXELS = 2000 * 64 * 64  # pixels of the training images on which the linear start is computed
_LEAST_IMAGES = 8  # the least number of these images


def distilled(plan: Plan) -> Plan:
    """``plan`` with distillation from the trained full network in its stages with labels."""
    stages = (
        stage if stage.kind == "transform" else replace(stage, **_DISTILLATION) for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages))


def fine_tuning_plan(plan: Plan) -> Plan:
    """``plan`` for a network that is initialised from the trained full network.

    It is also distilled from the full network, with these entries unless a stage of ``plan`` already has a
    ``mimic_weight``. Plans that keep the statistics of ``low`` were made for such a network, so their
    learning rates do not change.
    """
    has_teacher = any(stage.mimic_weight for stage in plan.stages)
    keeps_low = plan.norm_statistics == "kept"
    stages = (
        replace(stage, learning_rate=_STAGE1_RATE) if stage.kind == "transform" and not keeps_low else stage
        for stage in (plan if has_teacher else distilled(plan)).stages
    )
    return replace(plan, start="random", norm_statistics="kept", stages=tuple(stages))


def read_original(path: Path, model: str) -> FullResolutionSegmenter:
    """The network at full resolution in a checkpoint, from which the network called ``model`` is initialised.

    Raises CheckpointError if the file is missing or damaged, or holds another network.
    """
    original, name = load_classifier(path), describe(path).network
    if not isinstance(original, FullResolutionSegmenter) or model not in (f"wae_{name}", f"{name}_half"):
        raise CheckpointError(
            f"{path}: holds {name}, from which {model} cannot be initialised; wae_NAME and NAME_half need a "
            "segmentation network NAME (for classifiers there is wae accelerate)"
        )
    return original


def initialise_from_original(model: nn.Module, original: FullResolution, training: Dataset) -> None:
    """Initialise the same network at half the resolution, or WAE around it, from ``original``.

    Args:
        model: one of the two. If it is WAE, its ``low`` becomes a small image.
        original: the network at full resolution.
        training: the images on which the linear start is computed.

    Raises:
        DatasetError: none of the images can be read.
    """
    if not isinstance(model, WAENetwork):
        model.load_state_dict(original.state_dict())
        return
    height, width = sample(training, 1)[0].shape[2:]
    _give_weights(model, original, (half_of(height), half_of(width)))
    images, _ = sample(training, max(_LEAST_IMAGES, _PIXELS // (height * width)))
    start_as_small_image(model, images, original.image_scale, original.image_shift)


def _give_weights(model: WAENetwork, original: FullResolution, size: tuple[int, int]) -> None:
    """Give the network on ``low``, which has ``size`` (h, w), the weights of the network in ``original``."""
    if isinstance(model, WAESegmenter):
        model.low_network.load_state_dict(original.network.state_dict())
        return
    assert isinstance(model, WAEClassifier)
    body, linear = split_last_linear(copy.deepcopy(original.network), size)
    named = zip(model.low_body.state_dict(), body.state_dict().values(), strict=True)
    model.low_body.load_state_dict(dict(named))  # the same body with other names
    model.low_classifier.load_state_dict(linear.state_dict())
    for parameter in model.fusion_classifier.parameters():
        nn.init.zeros_(parameter)
