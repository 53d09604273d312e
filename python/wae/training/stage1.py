"""Stage 1 alone: trains the auto-encoder on photos without labels (docs/network.md)."""

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
from .linear_start import start_linear
from .losses import energy_ratio, psnr
from .plan import EPOCH_STEPS, PLANS, Plan, read
from .state import check_same
from .trainer import Observer

CROP = 64
"""The side of the largest crop, in pixels."""

_WARMUP = 0.01  # as a share of the epochs


class Quality(NamedTuple):
    """The quality of an auto-encoder on one photo."""

    psnr: float
    """In dB with peak 255, after rounding to 0..255 as in an image file."""
    energy: float
    """See :func:`wae.training.losses.energy_ratio`."""


class Schedule(NamedTuple):
    """A plan, and its number of steps."""

    plan: Plan
    steps: int
    """Steps of the optimizer, which the epochs share evenly."""

    @property
    def longest(self) -> int:
        """The steps of the longest epoch, which may have one more than others."""
        return -(-self.steps // self.plan.stages[0].epochs)

    @property
    def sources(self) -> dict[str, str]:
        """See :func:`wae.training.trainer.train`: plan and data do not tell the steps of unequal epochs."""
        return {"--steps": str(self.steps)} if self.steps % self.plan.stages[0].epochs else {}


def schedule(steps: int | None = None, **changed: Any) -> Schedule:
    """The plan ``autoencoder`` for ``steps`` steps, in epochs of at most :data:`.plan.EPOCH_STEPS`.

    Args:
        steps: of the optimizer, at least 1; None for the number in the plan.
        changed: entries to replace: ``batch`` or ``seed`` of the plan, ``learning_rate`` or ``energy_weight``
            of its stage.

    Raises PlanError if a number cannot be used.
    """
    plan = read(PLANS / "autoencoder.toml")
    (stage,) = plan.stages
    steps = stage.epochs * EPOCH_STEPS if steps is None else steps
    epochs = -(-steps // EPOCH_STEPS)
    of_stage = {name: changed.pop(name) for name in ("learning_rate", "energy_weight") if name in changed}
    stage = replace(stage, epochs=epochs, warmup=_WARMUP * epochs, **of_stage)
    return Schedule(replace(plan, stages=(stage,), **changed), steps)


def initial_model(photos: Sequence[Tensor], seed: int) -> AutoEncoder:
    """An auto-encoder initialised as the best linear transform of the photos' 2x2 blocks.

    Args:
        photos: (3, H, W) uint8 each.
        seed: seeds the random weights in the channels that the linear transform does not use.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoEncoder()
    start_linear(model, photos)
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
    """Train an auto-encoder from the linear start, in the loop of :mod:`wae.training.trainer`.

    Args:
        photos: (3, H, W) uint8 each, no side shorter than ``crop``.
        schedule: see :func:`schedule`.
        crop: side of the largest crop in pixels.
        names: the names of the photos, for the record.
        path: the checkpoint, replaced after every epoch, and at the end by the weights alone.
        resume: resume from ``path`` if it exists. The result is that of an uninterrupted run.
        observer: receives the loop's reports.

    Raises:
        DatasetError: a photo is smaller than a crop, or there is none.
        CheckpointError: ``path`` was made by another plan, on other photos, or by an older version.
        TrainingError: the loss is no longer finite.
    """
    plan = schedule.plan
    crops = Crops(photos, crop, schedule.longest * plan.batch, plan.seed)
    model = initial_model(photos, plan.seed)
    resume = resume and path is not None and path.exists()
    if resume and path is not None and _is_finished(path, schedule, crops):
        weights_file.load(path, model)
        return model
    trainer.train(
        model,
        plan,
        crops,
        None,
        state=path,
        resume=resume,
        sources=schedule.sources,
        observer=observer,
        steps=schedule.steps,
    )
    if path is not None:
        made = {
            "plan": plan.as_dict(),
            "data": fingerprint(crops),
            "sources": schedule.sources,
            "photos": list(names),
        }
        weights_file.save(path, model, made, force=True)
    return model.to(memory_format=torch.contiguous_format)


def _is_finished(path: Path, schedule: Schedule, crops: Crops) -> bool:
    """Whether the file holds the result of this training. Raises CheckpointError if it is that of another."""
    made = weights_file.read_recipe(path)
    if "stage" in made:
        return False  # a checkpoint, which the training loop checks
    if "plan" not in made:
        raise weights_file.CheckpointError(
            f"{path}: holds weights, or a checkpoint of an older version; training cannot resume from it"
        )
    check_same(path, made, schedule.plan, fingerprint(crops), schedule.sources)
    return True


@torch.no_grad()
def quality(model: AutoEncoder, photo: Tensor) -> Quality:
    """The quality of the model on one photo, (3, H, W) uint8."""
    image, low, high = model(photo[None])
    return Quality(psnr(to_uint8(image[0]), photo), energy_ratio(low, high))
