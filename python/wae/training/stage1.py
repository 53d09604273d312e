"""Stage 1 (docs/network.md): the auto-encoder alone, on the transform loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.storage import weights_file

from .linear_start import best_linear, write_linear_start
from .losses import energy_ratio, psnr, transform_loss
from .recipe import Recipe


class Step(NamedTuple):
    """What the loop tells its caller after each step."""

    number: int
    loss: float
    psnr: float
    """Of this batch, in dB, neither clamped nor rounded."""


class Quality(NamedTuple):
    """How well an auto-encoder does on one photo."""

    psnr: float
    """In dB, peak 255, after rounding to 0..255 as an image file does."""
    energy: float
    """See :func:`wae.training.losses.energy_ratio`."""


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


def random_batch(photos: Sequence[Tensor], recipe: Recipe, step: int) -> Tensor:
    """The crops of one step, (batch, 3, h, w) uint8: a function of the recipe's seed and the step alone.

    Every photo is equally likely. Crops are flipped, transposed, and their colours exchanged at random, for
    what is learned to be true of any photo, not of the colours of these. They are one pixel less high or wide
    in half of the steps each, so that odd sizes are trained too.
    """
    random = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=random))

    height, width = recipe.crop - draw(2), recipe.crop - draw(2)
    crops = []
    for _ in range(recipe.batch):
        photo = photos[draw(len(photos))]
        if draw(2):
            photo = photo.transpose(1, 2)
        top, left = (
            draw(have - want + 1) for have, want in zip(photo.shape[1:], (height, width), strict=True)
        )
        crop = photo[:, top : top + height, left : left + width]
        crop = crop.flip([d for d in (1, 2) if draw(2)])
        crops.append(crop[torch.randperm(3, generator=random)])
    return torch.stack(crops)


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of one step: a short rise, then half a cosine down to zero."""
    rise = max(1, recipe.steps // 100)
    if step < rise:
        return recipe.learning_rate * (step + 1) / rise
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, recipe.steps - rise)))


def train(
    photos: Sequence[Tensor],
    recipe: Recipe,
    on_step: Callable[[Step], None] = lambda step: None,
    checkpoint_path: Path | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
) -> AutoEncoder:
    """Train an auto-encoder from the linear start.

    Args:
        photos: (3, H, W) uint8 each, no side shorter than ``recipe.crop``.
        on_step: called after every step. It may raise to stop the training.
        checkpoint_path: replaced every ``checkpoint_every`` steps, and at the end by the weights alone.
        resume: go on from ``checkpoint_path``; the recipe must be the one that it was made with. What comes
            out is what an uninterrupted run gives.

    Raises:
        ValueError: a photo is smaller than a crop, or there is none.
        CheckpointError: there is nothing to go on from, or it was made with another recipe.
    """
    _check(photos, recipe.crop)
    model = initial_model(photos, recipe.seed)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.999))
    first = _resumed(checkpoint_path, model, optimizer, recipe) if resume and checkpoint_path else 0

    scale, shift = model.image_scale.view(1, 3, 1, 1), model.image_shift.view(1, 3, 1, 1)
    for step in range(first, recipe.steps):
        batch = random_batch(photos, recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        low, high = model.decompose(batch)
        decoded = model.decoder(low, high, batch.shape[2:])
        loss = transform_loss(decoded, batch * scale + shift, high, recipe.energy_weight)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        error = loss.reconstruction.item()
        on_step(Step(step + 1, loss.total.item(), 10 * math.log10(4 / error) if error else math.inf))
        if checkpoint_path and (step + 1) % checkpoint_every == 0:
            weights_file.save(checkpoint_path, model, _made(recipe, step + 1), optimizer, force=True)
    if checkpoint_path:
        weights_file.save(checkpoint_path, model, _made(recipe, recipe.steps), force=True)
    return model


def _check(photos: Sequence[Tensor], crop: int) -> None:
    if not photos:
        raise ValueError("training needs at least one photo")
    for photo in photos:
        if min(photo.shape[1:]) < crop:
            height, width = photo.shape[1:]
            raise ValueError(f"a photo of {height} x {width} is smaller than a crop of {crop} x {crop}")


def _made(recipe: Recipe, step: int) -> dict[str, Any]:
    """The record that goes into a checkpoint. JSON knows no tuples."""
    return {"step": step, **asdict(recipe), "photos": list(recipe.photos)}


def _resumed(path: Path, model: AutoEncoder, optimizer: torch.optim.Optimizer, recipe: Recipe) -> int:
    """Read a checkpoint; the number of the step to go on with."""
    made = weights_file.load(path, model, optimizer)
    wanted = _made(recipe, made.get("step", 0))
    different = sorted(key for key in {*made, *wanted} if made.get(key) != wanted.get(key))
    if different:
        raise weights_file.CheckpointError(f"{path}: was made with another {', '.join(different)}")
    return int(wanted["step"])


@torch.no_grad()
def quality(model: AutoEncoder, photo: Tensor) -> Quality:
    """Put one (3, H, W) uint8 photo through the model and measure."""
    image, low, high = model(photo[None])
    return Quality(psnr(to_uint8(image[0]), photo), energy_ratio(low, high))
