"""A plan for a folder of one's own images, for which there is none: from their number and sizes.

The numbers are rules of thumb for some ten to some thousand images, not the outcome of experiments; but an
acceleration's with SGD are those of docs/photos.md.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from PIL import Image

from wae.data.folder import ImageFolder
from wae.data.images import FORMATS

from .plan import Plan, Stage

MODEL = "wae_resnet18"
"""The network that is trained where none is named."""

ADAMW, SGD = OPTIMIZERS = ("adamw", "sgd")
"""Of an acceleration: see :func:`acceleration_plan`."""

_STEPS = 2000  # of the optimizer, where that makes a reasonable number of epochs
_EPOCHS = range(5, 61)
_FINE_TUNED = range(2, 31)  # epochs with labels of a network that is trained already
_SGD_RATE = 0.05  # for a batch of 64, as in docs/photos.md
_BATCH = range(8, 65)
_SIDE = range(64, 225)
_LOOKED_AT = 100  # images whose sizes are read


def small_data_plan(images: int, model: str = MODEL) -> Plan:
    """The plan for so many training images: an epoch or more of stage 1, then everything together."""
    batch = min(_clamped(2 ** (max(images // 16, 1).bit_length() - 1), _BATCH), images)
    epochs = _clamped(round(_STEPS * batch / images), _EPOCHS)
    transform = Stage("transform", max(1, epochs // 10), 1e-3, "adam", warmup=0.1)
    joint = Stage("joint", epochs, 1e-3, "adamw", weight_decay=0.05, encoder_rate=0.1, warmup=epochs / 20)
    return Plan(model, (transform, joint), batch=batch, start="linear")


def acceleration_plan(images: int, model: str, mimic: float = 0.0, optimizer: str = ADAMW) -> Plan:
    """The plan for WAE around a trained network.

    With AdamW the rates are low, for what is there is to be kept: bodies and classifiers first, then
    everything. With SGD everything is trained from the beginning, for as many epochs, by the rate and the
    teacher of what ``wae reproduce`` makes of a trained network.

    Args:
        images: to train on.
        model: the network's name, for the record.
        mimic: how much the distance to the network's scores counts.
        optimizer: of :data:`OPTIMIZERS`.
    """
    small = small_data_plan(images, model)
    epochs = _clamped(round(_STEPS * small.batch / images), _FINE_TUNED)
    transform = Stage("transform", max(1, epochs // 10), 3e-4, "adam", warmup=0.1)
    plan = replace(small, start="random", norm_statistics="kept")
    if optimizer == SGD:
        rate = _SGD_RATE * small.batch / _BATCH[-1]
        everything = Stage(
            "joint", epochs + max(1, epochs // 3), rate, SGD, weight_decay=5e-4, encoder_rate=0.1,
            warmup=epochs / 20, mimic_weight=mimic, mimic_temperature=4.0,
        )  # fmt: skip
        return replace(plan, stages=(transform, everything))
    labelled = Stage(
        "classifier", max(1, epochs // 3), 1e-3, ADAMW,
        weight_decay=0.05, warmup=epochs / 20, mimic_weight=mimic, mimic_temperature=2.0,
    )  # fmt: skip
    joint = replace(labelled, kind="joint", epochs=epochs, learning_rate=3e-4, encoder_rate=0.1)
    return replace(plan, stages=(transform, labelled, joint))


def fitting_size(data: ImageFolder) -> int:
    """The side, in pixels, to which images are scaled: about their own, a multiple of 32 from 64 to 224."""
    every = max(1, len(data) // _LOOKED_AT)
    sides = [side for path, _ in data.samples[::every] if (side := _shorter_side(path))]
    return _clamped(round(median(sides) / 32) * 32, _SIDE) if sides else _SIDE[-1]


def _shorter_side(path: str) -> int:
    """0 where the file cannot be read, which is reported where it is trained on."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(min(image.size))
    except Exception:  # Pillow raises nearly anything on a damaged file
        return 0


def _clamped(value: int, allowed: range) -> int:
    return min(max(value, allowed.start), allowed.stop - 1)
