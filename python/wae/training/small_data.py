"""Makes a plan for a folder of your own images, from their number and sizes.

The numbers are rules of thumb for tens to thousands of images, not the outcome of experiments. Those of an
acceleration with SGD are from docs/photos.md.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from PIL import Image

from wae.data.folder import ImageFolder
from wae.data.images import FORMATS

from .plan import Plan, Stage

MODEL = "wae_resnet18"
"""The network that is trained by default."""

ADAMW, SGD = OPTIMIZERS = ("adamw", "sgd")
"""The optimizers of an acceleration: see :func:`acceleration_plan` and :func:`with_sgd`."""

_STEPS = 2000  # of the optimizer, if that is a reasonable number of epochs
_EPOCHS = range(5, 61)
_FINE_TUNED = range(2, 31)  # epochs with labels for a network that is already trained
_SGD_RATE = 0.05  # for a batch of 64, as in docs/photos.md
_BATCH = range(8, 65)
_SIDE = range(64, 225)  # pixels
_LOOKED_AT = 100  # images whose sizes are read


def small_data_plan(images: int, model: str = MODEL) -> Plan:
    """The plan for this number of training images: one or more epochs of stage 1, then a joint stage."""
    batch = min(_clamped(2 ** (max(images // 16, 1).bit_length() - 1), _BATCH), images)
    epochs = _clamped(round(_STEPS * batch / images), _EPOCHS)
    transform = Stage("transform", max(1, epochs // 10), 1e-3, "adam", warmup=0.1)
    joint = Stage("joint", epochs, 1e-3, "adamw", weight_decay=0.05, encoder_rate=0.1, warmup=epochs / 20)
    return Plan(model, (transform, joint), batch=batch, start="linear")


def acceleration_plan(images: int, model: str, mimic: float = 0.0, batch: int | None = None) -> Plan:
    """The plan for WAE around a trained network, with AdamW.

    The learning rates are low, to preserve what the network has learned: first bodies and classifiers are
    trained, then everything.

    Args:
        images: the number of training images.
        model: the network's name, for the record.
        mimic: the weight of the distance to the original network's scores.
        batch: images in a step; None for a number that fits ``images``.
    """
    small = small_data_plan(images, model)
    epochs = _clamped(round(_STEPS * small.batch / images), _FINE_TUNED)
    transform = Stage("transform", max(1, epochs // 10), 3e-4, "adam", warmup=0.1)
    labelled = Stage(
        "classifier", max(1, epochs // 3), 1e-3, ADAMW,
        weight_decay=0.05, warmup=epochs / 20, mimic_weight=mimic, mimic_temperature=2.0,
    )  # fmt: skip
    joint = replace(labelled, kind="joint", epochs=epochs, learning_rate=3e-4, encoder_rate=0.1)
    stages = transform, labelled, joint
    return replace(small, stages=stages, batch=batch or small.batch, start="random", norm_statistics="kept")


def with_sgd(plan: Plan) -> Plan:
    """The :func:`acceleration_plan` ``plan``, of any length, with SGD instead.

    Everything is trained from the beginning, for as many epochs as by ``plan``, with the learning rate and
    the distillation of the fine-tuned networks of ``wae reproduce``. The rate is proportional to the batch.
    """
    transform, labelled, joint = plan.stages
    everything = Stage(
        "joint", labelled.epochs + joint.epochs, _SGD_RATE * plan.batch / _BATCH[-1], SGD, weight_decay=5e-4,
        encoder_rate=0.1, warmup=joint.warmup, mimic_weight=joint.mimic_weight, mimic_temperature=4.0,
    )  # fmt: skip
    return replace(plan, stages=(transform, everything))


def fitting_size(data: ImageFolder) -> int:
    """The side to which images are scaled, in pixels: about their median, a multiple of 32, 64 to 224."""
    every = max(1, len(data) // _LOOKED_AT)
    sides = [side for path, _ in data.samples[::every] if (side := _shorter_side(path))]
    return _clamped(round(median(sides) / 32) * 32, _SIDE) if sides else _SIDE[-1]


def _shorter_side(path: str) -> int:
    """The shorter side in pixels; 0 if the file cannot be read, which the training will report."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(min(image.size))
    except Exception:  # Pillow raises almost anything on a damaged file
        return 0


def _clamped(value: int, allowed: range) -> int:
    return min(max(value, allowed.start), allowed.stop - 1)
