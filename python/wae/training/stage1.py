"""Stage 1 by itself: the auto-encoder on photos without labels, by a plan as any other (docs/network.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wae.data.crops import Crops
from wae.data.loading import fingerprint
from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.storage import weights_file

from . import trainer
from .linear_start import best_linear, write_linear_start
from .losses import energy_ratio, psnr
from .plan import PLANS, Plan, read
from .trainer import Observer

STEPS = 500
"""Of an epoch, after which there is a checkpoint: an epoch of random crops has no length of its own."""

CROP = 64
"""Pixels along a side of the largest crop."""

_WARMUP = 0.01  # as a share of the epochs


class Quality(NamedTuple):
    """How well an auto-encoder does on one photo."""

    psnr: float
    """In dB, peak 255, after rounding to 0..255 as an image file does."""
    energy: float
    """See :func:`wae.training.losses.energy_ratio`."""


class Schedule(NamedTuple):
    """A plan for a number of steps."""

    plan: Plan
    steps: int
    """Of each epoch."""


def schedule(steps: int | None = None, **changed: Any) -> Schedule:
    """The plan ``autoencoder`` for ``steps`` steps of the optimizer, in epochs of about :data:`STEPS`.

    Args:
        steps: None for the plan's own. A few more are taken, less than one for each epoch, where the epochs
            could not be equally long else.
        changed: entries with other values: ``batch`` or ``seed`` of the plan, ``learning_rate`` or
            ``energy_weight`` of its stage.

    Raises PlanError where a number is not usable.
    """
    plan = read(PLANS / "autoencoder.toml")
    (stage,) = plan.stages
    steps = stage.epochs * STEPS if steps is None else steps
    epochs = -(-steps // STEPS)
    of_stage = {name: changed.pop(name) for name in ("learning_rate", "energy_weight") if name in changed}
    stage = replace(stage, epochs=epochs, warmup=_WARMUP * epochs, **of_stage)
    return Schedule(replace(plan, stages=(stage,), **changed), -(-steps // epochs))


def initial_model(photos: Sequence[Tensor], seed: int) -> AutoEncoder:
    """An auto-encoder that starts as the best linear transform of the photos' 2x2 blocks.

    Args:
        photos: (3, H, W) uint8 each.
        seed: of the random weights in the channels that the linear transform leaves free.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoEncoder()
    scale, shift = model.image_scale.view(3, 1, 1), model.image_shift.view(3, 1, 1)
    write_linear_start(model.encoder, model.decoder, best_linear(photo * scale + shift for photo in photos))
    return model


def train(
    photos: Sequence[Tensor],
    schedule: Schedule,
    crop: int = CROP,
    names: Sequence[str] = (),
    path: Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> AutoEncoder:
    """Train an auto-encoder from the linear start, in the one loop there is (:mod:`wae.training.trainer`).

    Args:
        photos: (3, H, W) uint8 each, no side shorter than ``crop``.
        schedule: see :func:`schedule`.
        crop: pixels along a side of the largest crop.
        names: of the photos, for the record.
        path: the checkpoint, replaced after every epoch, and at the end by the weights alone.
        resume: go on from ``path``, where that exists. What comes out is what an uninterrupted run gives.
        observer: its methods are called after each step.

    Raises:
        DatasetError: a photo is smaller than a crop, or there is none.
        CheckpointError: ``path`` was made by another plan, on other photos, or by an older version.
        TrainingError: the loss is no longer a number.
    """
    plan, steps = schedule
    crops = Crops(photos, crop, steps * plan.batch, plan.seed)
    model = initial_model(photos, plan.seed)
    resume = resume and path is not None and path.exists()
    if resume and path is not None and _is_finished(path, plan, crops):
        weights_file.load(path, model)
        return model
    trainer.train(model, plan, crops, None, state=path, resume=resume, observer=observer)
    if path is not None:
        made = {"plan": plan.as_dict(), "data": fingerprint(crops), "photos": list(names)}
        weights_file.save(path, model, made, force=True)
    return model.to(memory_format=torch.contiguous_format)


def _is_finished(path: Path, plan: Plan, crops: Crops) -> bool:
    """Whether the file holds what this training ends with. Raises CheckpointError where another made it."""
    made = weights_file.read_recipe(path)
    if "stage" in made:
        return False  # a checkpoint, which the loop checks
    if "plan" not in made:
        raise weights_file.CheckpointError(
            f"{path}: holds weights, or a checkpoint of an older version: training cannot go on from there"
        )
    trainer.check_same(path, made, plan, fingerprint(crops))
    return True


@torch.no_grad()
def quality(model: AutoEncoder, photo: Tensor) -> Quality:
    """Put one (3, H, W) uint8 photo through the model and measure."""
    image, low, high = model(photo[None])
    return Quality(psnr(to_uint8(image[0]), photo), energy_ratio(low, high))
