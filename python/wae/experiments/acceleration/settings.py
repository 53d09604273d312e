"""The settings of an acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from torch import nn

from wae.data.dataset import InMemory
from wae.data.image_files import OnCorrupt
from wae.data.images import MAX_PIXELS
from wae.data.input import MAX_SIZE
from wae.errors import UsageError, WaeError
from wae.inference.engines import ENGINES
from wae.inference.precision import NAMES
from wae.models.accelerated import Form
from wae.training.original import TIMM
from wae.training.plan import WEIGHT, Plan
from wae.training.pretrained import TORCHVISION
from wae.training.small_data import ADAMW, OPTIMIZERS, SGD


class AccelerationError(WaeError, ValueError):
    """A network that cannot be accelerated with these settings. The message says why."""


class SettingsError(AccelerationError, UsageError):
    """Settings that are out of range or cannot be combined, whatever the network."""


class Recipe(NamedTuple):
    """What trials choose for the stages with labels: the distillation from the original, and the optimizer.

    Distillation adds the distance to the original's scores to the loss.
    """

    weight: float = 0.0
    """The weight of the distance; 0 for no distillation."""
    mirrored: bool = False
    """Whether the original's scores are averaged over the image and its mirror image."""
    optimizer: str = ADAMW
    """One of :data:`OPTIMIZERS`: see :func:`wae.training.small_data.with_sgd`."""

    def __str__(self) -> str:
        mirrored = ", mirrored" if self.weight and self.mirrored else ""
        return f"mimic {self.weight:g}{mirrored}" + (f", {SGD}" if self.optimizer == SGD else "")


NO_TEACHER = Recipe()
"""No distillation."""


class _Numbers(NamedTuple):
    """The numbers that a setting accepts."""

    described: str
    are_whole: bool
    fits: Callable[[float], bool]

    def check(self, name: str, value: Any) -> None:
        """Raise SettingsError if ``value`` is not such a number."""
        kinds = (int,) if self.are_whole else (int, float)
        is_number = isinstance(value, kinds) and type(value) is not bool
        if not (is_number and self.fits(value)):
            raise SettingsError(f"{name} must be {self.described}, got {value!r}")


_MOST = WEIGHT[1]  # infinity is above it; NaN fails every comparison
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
"""The types of the settings that are neither numbers nor one of a few names."""


def _check_kind(name: str, value: Any) -> None:
    described, kinds = _KINDS[name]
    if not isinstance(value, kinds):
        got = f"the class {value.__name__}: call it" if isinstance(value, type) else type(value).__name__
        raise SettingsError(f"{name} must be {described}, got {got}")


def _are_three(value: Any, least: float) -> bool:
    are_numbers = isinstance(value, (tuple, list)) and all(isinstance(x, (int, float)) for x in value)
    return are_numbers and len(value) == 3 and all(least <= x <= _MOST for x in value)  # NaN is not


@dataclass(frozen=True)
class Settings:
    """The network to accelerate, its data, and how. Everything but the first three has a default."""

    model: str | nn.Module
    """See :func:`wae.training.original.open_original`."""
    data: str | Path | tuple[InMemory, InMemory]
    """See :func:`wae.data.loading.open_dataset`; or images to train on and to test, in memory."""
    folder: Path
    """For the results."""
    weights: str | None = None
    plan: Plan | None = None
    """None for a plan that fits the number of images."""
    epochs: int | None = None
    """Of the longest stage of the AdamW plan, or of ``plan``; the other stages are scaled in proportion. With
    SGD one stage lasts as long as both with labels."""
    learning_rate: float | None = None
    """The peak one of the stages with labels; None for the plan's."""
    optimizer: str | None = None
    """One of :data:`OPTIMIZERS`. None for the ``plan``'s, AdamW if there is a ``learning_rate``, else what
    trials find."""
    batch: int | None = None
    seed: int = 0
    start: str = "included"
    """The initial auto-encoder: ``included``, ``linear`` (fitted to the images), or a file."""
    compare: bool = False
    """Also train, deploy and report the baselines: see :mod:`wae.experiments.acceleration.baselines`."""
    mimic: float | None = None
    """The weight of the distance to the original's scores; None for what trials find: see
    :func:`wae.experiments.acceleration.trials.best_distillation`."""
    mimic_mirrored: bool = False
    """Whether distillation uses mirror images too: see :class:`Stage`. If it is False and ``mimic`` is None,
    a trial decides."""
    size: int | None = None
    """Of the accelerated network's images; None for the original's, or for what the target chooses."""
    factor: int | None = None
    """Of the light body; None for 4, or for what the target chooses."""
    target: float | None = None
    """How many times as fast as the original in the same engine; chooses ``size`` and ``factor``."""
    target_ms: float | None = None
    """Milliseconds for a call, instead of ``target``."""
    precision: str = "auto"
    engine: str = "auto"
    images: int = 1
    """In a call of the deployed network."""
    max_drop: float = 0.01
    """The accuracy that a precision may cost, 0..1."""
    input_size: int | None = None
    """Of the original's images. For this and the next three, None means its library's, else ImageNet's."""
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    """Of red, green and blue in 0..1, as the original expects."""
    std: tuple[float, float, float] | None = None
    on_corrupt: OnCorrupt = "error"
    max_pixels: int = MAX_PIXELS
    workers: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        self._check_target()
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
                raise SettingsError(
                    f"{name} must be one of {', '.join(filter(None, known))}, got {getattr(self, name)!r}"
                )
        if self.plan is not None:
            self.plan.only("classifier", "joint")  # a stage with labels: else there is nothing to test
        if self.plan is not None and self.optimizer is not None:
            raise SettingsError("optimizer: the plan already names those of its stages; give one of the two")
        if self.asked_distillation == Recipe(0.0, mirrored=True):
            raise SettingsError("mimic_mirrored needs a mimic above 0, got 0: there is no distillation")
        for name, least in (("mean", -_MOST), ("std", 1e-6)):
            value = getattr(self, name)
            if value is not None and not _are_three(value, least):
                raise SettingsError(f"{name} must be 3 numbers from {least:g} to {_MOST:g}, got {value!r}")

    def _check_target(self) -> None:
        if self.target is None and self.target_ms is None:
            return
        if self.target is not None and self.target_ms is not None:
            raise SettingsError("target and target_ms: give one of the two")
        for name in ("size", "factor"):
            if (value := getattr(self, name)) is not None:
                raise SettingsError(
                    f"{name} cannot be combined with a target, which chooses it, got {value!r}"
                )

    @property
    def light_factor(self) -> int:
        """The factor of the light body, if there is no target."""
        return Form.factor if self.factor is None else self.factor

    @property
    def asked_optimizer(self) -> str | None:
        """The optimizer that the settings name; None for what trials find. A learning rate implies AdamW."""
        if self.optimizer is None and (self.plan is not None or self.learning_rate is not None):
            return ADAMW
        return self.optimizer

    @property
    def asked_distillation(self) -> Recipe | None:
        """The distillation that the settings name, with the weight ``mimic`` or else the largest in the plan;
        None for what trials find."""
        weight = self.mimic
        if weight is None and self.plan is not None:
            weight = max(stage.mimic_weight for stage in self.plan.stages)
        return None if weight is None else Recipe(weight, self.mimic_mirrored)

    def files(self) -> dict[str, Path]:
        """The input files, by the options that name them."""
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
        plan = None if self.plan is None else self.plan.as_dict()
        return {**entries, "factor": self.light_factor, "plan": plan}
