"""What a user asks of an acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from torch import nn

from wae.data.dataset import InMemory
from wae.data.folder import OnCorrupt
from wae.data.images import MAX_PIXELS
from wae.data.input import MAX_SIZE
from wae.errors import WaeError
from wae.inference.engines import ENGINES
from wae.inference.precision import NAMES
from wae.training.original import TIMM
from wae.training.plan import Plan
from wae.training.pretrained import TORCHVISION
from wae.training.small_data import ADAMW, OPTIMIZERS, SGD


class AccelerationError(WaeError, ValueError):
    """A network that cannot be accelerated as asked. The message says why."""


MIRRORED = "mirrored"


class Recipe(NamedTuple):
    """What trials choose: how the original teaches, and the optimizer, in the stages with labels.

    It teaches by the distance to its scores in the loss.
    """

    weight: float = 0.0
    """Of the distance; at 0 nobody teaches."""
    mirrored: bool = False
    """Whether its scores are the mean of those of the image and of its mirror image."""
    optimizer: str = ADAMW
    """See :func:`acceleration_plan`."""

    def __str__(self) -> str:
        mirrored = f", {MIRRORED}" if self.weight and self.mirrored else ""
        return f"mimic {self.weight:g}{mirrored}" + (f", {SGD}" if self.optimizer == SGD else "")


NOBODY = Recipe()
"""No teacher."""


class _Numbers(NamedTuple):
    """The numbers that a setting takes."""

    described: str
    are_whole: bool
    fits: Callable[[float], bool]

    def check(self, name: str, value: Any) -> None:
        """Raise AccelerationError where ``value`` is no such number."""
        kinds = (int,) if self.are_whole else (int, float)
        is_number = isinstance(value, kinds) and type(value) is not bool
        if not (is_number and self.fits(value)):
            raise AccelerationError(f"{name} must be {self.described}, got {value!r}")


_MOST = 1e6  # infinity is above it; NaN fails every comparison
_FROM_0 = _Numbers(f"a number from 0 to {_MOST:g}", False, lambda value: 0 <= value <= _MOST)
_WHOLE_FROM_1 = _Numbers("a whole number from 1", True, lambda value: value >= 1)
_NUMBERS = {
    "target": _Numbers(f"a number above 1, up to {_MOST:g}", False, lambda value: 1 < value <= _MOST),
    "target_ms": _Numbers(f"a number above 0, up to {_MOST:g}", False, lambda value: 0 < value <= _MOST),
    "mimic": _FROM_0,
    "learning_rate": _FROM_0,
    "max_drop": _Numbers("a number from 0 to 1", False, lambda value: 0 <= value <= 1),
    "images": _WHOLE_FROM_1,
    "epochs": _WHOLE_FROM_1,
    "batch": _WHOLE_FROM_1,
    "max_pixels": _WHOLE_FROM_1,
    "workers": _Numbers("a whole number from 0", True, lambda value: value >= 0),
    "seed": _Numbers("a whole number", True, lambda value: True),
    "input_size": _Numbers(
        f"a whole number from 1 to {MAX_SIZE}", True, lambda value: 1 <= value <= MAX_SIZE
    ),
}

_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "model": ("a network, which is a torch.nn.Module, or its name", (nn.Module, str)),
    "data": ("a folder, a name, or two loaders", (str, Path, tuple)),
    "weights": ("a file, torchvision or timm", (str, NoneType)),
    "plan": ("a wae.training.plan.Plan", (Plan, NoneType)),
    "start": ("included, linear or a file", (str,)),
    "compare": ("True or False", (bool,)),
    "mimic_mirrored": ("True or False", (bool,)),
}
"""What a setting is that is neither a number nor one of a few names."""


def _check_kind(name: str, value: Any) -> None:
    described, kinds = _KINDS[name]
    if not isinstance(value, kinds):
        got = f"the class {value.__name__}: call it" if isinstance(value, type) else type(value).__name__
        raise AccelerationError(f"{name} must be {described}, got {got}")


def _are_three(value: Any, least: float) -> bool:
    are_numbers = isinstance(value, (tuple, list)) and all(isinstance(x, (int, float)) for x in value)
    return are_numbers and len(value) == 3 and all(least <= x <= 1e6 for x in value)  # NaN is not


@dataclass(frozen=True)
class Settings:
    """The network to accelerate, its data, and how. Everything but the first three has a default."""

    model: str | nn.Module
    """See :func:`wae.training.original.open_original`."""
    data: str | Path | tuple[InMemory, InMemory]
    """See :func:`wae.data.loading.open_dataset`; or images to train on and to test, in memory."""
    folder: Path
    """Of the results."""
    weights: str | None = None
    plan: Plan | None = None
    """None for one that fits the number of images."""
    epochs: int | None = None
    """Of the longest stage; the others' keep their share."""
    learning_rate: float | None = None
    optimizer: str | None = None
    """Of :data:`OPTIMIZERS`; None for what a trial finds, AdamW where there is a ``learning_rate``, or the
    ``plan``'s."""
    batch: int | None = None
    seed: int = 0
    start: str = "included"
    """The auto-encoder to begin with: ``included``, ``linear`` (fitted to the images), or a file."""
    compare: bool = False
    """Train, deploy and report the rivals too: see :mod:`wae.experiments.acceleration.rivals`."""
    mimic: float | None = None
    """How much the distance to the original's scores counts; None for what a trial finds: see
    :func:`wae.experiments.acceleration.trials.best_teaching`."""
    mimic_mirrored: bool = False
    """Whether the original, where it teaches, sees the mirror images too: see :class:`Stage`. If it is
    False, and there is no ``mimic``, a trial decides."""
    size: int | None = None
    """Of the accelerated network's images; None for the original's."""
    factor: int = 4
    """Of the light body."""
    target: float | None = None
    """How many times faster than the original in the same engine: chooses ``size`` and ``factor``."""
    target_ms: float | None = None
    """Milliseconds of a call, instead of ``target``."""
    precision: str = "auto"
    engine: str = "auto"
    images: int = 1
    """In a call of the deployed network."""
    max_drop: float = 0.01
    """Of accuracy, that a precision may cost."""
    input_size: int | None = None
    """Of the original's images; this and the next three: None for its library's, else ImageNet's."""
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    """Of red, green and blue, 0..1, as the original takes them."""
    std: tuple[float, float, float] | None = None
    on_corrupt: OnCorrupt = "error"
    max_pixels: int = MAX_PIXELS
    workers: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if self.target is not None and self.target_ms is not None:
            raise AccelerationError("target and target_ms: give one of them")
        for name in _KINDS:
            _check_kind(name, getattr(self, name))
        optional = {entry.name for entry in fields(self) if entry.default is None}
        for name, numbers in _NUMBERS.items():
            if (value := getattr(self, name)) is not None or name not in optional:
                numbers.check(name, value)
        names = {
            "engine": ("auto", *ENGINES),
            "precision": ("auto", *NAMES),
            "optimizer": (None, *OPTIMIZERS),
        }
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise AccelerationError(
                    f"{name} must be one of {', '.join(filter(None, known))}, got {getattr(self, name)!r}"
                )
        if self.plan is not None:
            self.plan.only("classifier", "joint")  # what has labels: there is something to test
        if self.plan is not None and self.optimizer is not None:
            raise AccelerationError("optimizer: the plan names those of its stages; give one of them")
        if self.asked_teaching == Recipe(0.0, mirrored=True):
            raise AccelerationError("mimic_mirrored needs a mimic above 0, got 0: nobody teaches")
        for name, least in (("mean", -1e6), ("std", 1e-6)):
            value = getattr(self, name)
            if value is not None and not _are_three(value, least):
                raise AccelerationError(f"{name} must be 3 numbers from {least:g} to 1e+06, got {value!r}")

    @property
    def asked_optimizer(self) -> str | None:
        """None for what a trial finds. A rate that is asked for is AdamW's, unless SGD is asked for too."""
        if self.optimizer is None and (self.plan is not None or self.learning_rate is not None):
            return ADAMW
        return self.optimizer

    @property
    def asked_teaching(self) -> Recipe | None:
        """How the original teaches: with the weight ``mimic``, or the largest of the plan's stages; None for
        what a trial finds."""
        weight = self.mimic
        if weight is None and self.plan is not None:
            weight = max(stage.mimic_weight for stage in self.plan.stages)
        return None if weight is None else Recipe(weight, self.mimic_mirrored)

    def files(self) -> dict[str, Path]:
        """The files to begin with, by the options that name them."""
        is_file = isinstance(self.model, str) and self.model.endswith(".safetensors")
        given = {
            "--model": str(self.model) if is_file else None,
            "--weights": None if self.weights in (TORCHVISION, TIMM) else self.weights,
            "--start": None if self.start in ("included", "linear") else self.start,
        }
        return {option: Path(path) for option, path in given.items() if path is not None}

    def as_dict(self) -> dict[str, Any]:
        """The settings that decide the outcome, for JSON."""
        machine = ("folder", "workers", "device", "data", "model", "plan")
        entries = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in machine}
        return {**entries, "plan": None if self.plan is None else self.plan.as_dict()}


DEFAULTS = Settings("", "", Path()).as_dict()
"""A setting that there was not yet, when a folder was begun, had its default."""
