"""Opens the trained network to accelerate, and its images."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from wae.data.classes import ClassError, ClassOrder, class_order
from wae.data.dataset import InMemory
from wae.data.loading import fingerprint
from wae.inference.engines import ENGINES
from wae.models.accelerated import Form
from wae.models.last_layer import example_scores, with_classes
from wae.progress import say
from wae.storage.files import sha256
from wae.training.original import Original, check_named, open_original
from wae.training.processes import is_first

from .data import Images, Sets, open_sets, sets_for
from .settings import AccelerationError, Settings


@dataclass(frozen=True)
class Task:
    """The network to accelerate, its settings, images and device."""

    settings: Settings
    console: Console
    device: torch.device
    original: Original
    """With the preprocessing that the settings name."""
    order: ClassOrder
    new_head: str = ""
    """Why the original's last layer has random weights; empty if it has its own."""
    opened: dict[int, Sets] = field(default_factory=dict)
    """The images, by their size."""

    @property
    def name(self) -> str:
        """The name of the accelerated network in the checkpoint."""
        name = self.original.name
        return name if ":" in name else f"wae_{name}"

    @property
    def side(self) -> int:
        """Height and width of the original's images."""
        return self.original.input.size

    @property
    def form(self) -> Form:
        """The form that the settings name, if they have no target."""
        size = self.settings.size
        return Form(self.side if size is None else size, self.settings.light_factor)

    def sets(self, size: int) -> Sets:
        """The images at ``size``, with the classes in the original's order."""
        if size not in self.opened:
            input = self.original.input.of_size(size)
            self.opened[size] = sets_for(self.settings, input, self.order.numbers)
        return self.opened[size]

    def say(self, line: str) -> None:
        """Print it, in the first process."""
        if line and is_first():
            say(self.console, line)

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as JSON: the settings, with digests instead of the files they name."""
        sets = self.sets(self.side)
        entries = {
            **self.settings.as_dict(),
            "name": self.original.name,
            "weights": dict(self.original.sources),
            "data": fingerprint(sets.plain),
            "test data": fingerprint(sets.test),
        }
        if self.settings.start not in ("included", "linear"):
            entries["start"] = sha256(Path(self.settings.start))
        found: dict[str, Any] = json.loads(json.dumps(entries))
        return found


def open_task(settings: Settings, console: Console, device: torch.device) -> Task:
    """Open what the settings name. The original gets a new head if its classes are not the data's."""
    _check_engine(settings, device)
    check_named(settings.model, settings.weights)  # before all files of a large data set are listed
    training = open_sets(settings, None).training
    labels = training.labels
    original = open_original(settings.model, settings.weights, len(labels))
    original = _counted(_prepared_as(training, _overridden(original, settings), settings))
    settings, note = _with_names(settings, original)
    labels = original.labels if note and original.labels else labels
    try:
        order = class_order(original.name, original.labels, original.classes, labels)
        return Task(settings, console, device, original, order._replace(note=note or order.note))
    except ClassError as error:
        new_head = f"{error}; it gets a new head, which is trained first"
    order = class_order(original.name, labels, len(labels), labels)
    return Task(settings, console, device, _with_head(original, labels, settings.seed), order, new_head)


def _with_names(settings: Settings, original: Original) -> tuple[Settings, str]:
    """``settings``, in which images of loaders have the names of the original's classes, and a line on that.

    Loaders yield numbers. As names they would differ, and a trained head would be replaced.
    """
    data, names = settings.data, original.labels
    if names is None or not isinstance(data, tuple):
        return settings, ""
    training, test = data
    if any(of.labels != tuple(map(str, range(len(names)))) for of in data):
        return settings, ""
    named = training.named(names), test.named(names)
    return replace(settings, data=named), f"{original.name}: its classes are matched by number"


def _check_engine(settings: Settings, device: torch.device) -> None:
    """Raise AccelerationError if none of the allowed engines can run here, in this precision."""
    engines = ENGINES.values() if settings.engine == "auto" else [ENGINES[settings.engine]]
    wanted = None if settings.precision == "auto" else settings.precision
    reasons = [engine.why_not(device, wanted) for engine in engines]
    if None not in reasons:
        raise AccelerationError(f"engine: {'; '.join(map(str, reasons))}")


def _overridden(original: Original, settings: Settings) -> Original:
    """``original`` with the preprocessing that the settings name."""
    s, input = settings, original.input
    if s.input_size is not None:
        input = input.of_size(s.input_size)
    if s.interpolation is not None:
        input = replace(input, interpolation=s.interpolation)
    return replace(original, input=input, mean=s.mean or original.mean, std=s.std or original.std)


def _prepared_as(images: Images, original: Original, settings: Settings) -> Original:
    """``original`` with an input that makes a photo like ``images`` in memory, as far as that is known.

    Those of a named set are whole, and those with one channel are grey.
    """
    if not isinstance(images, InMemory):
        return original
    input = original.input
    if not isinstance(settings.data, tuple):
        input = replace(input, resize=input.size)
    return replace(original, input=replace(input, grayscale=input.grayscale or images.images.shape[1] == 1))


def _counted(original: Original) -> Original:
    """``original`` with its number of scores as number of classes: its last layer need not make them."""
    try:
        scores = example_scores(original.network, (original.input.size,) * 2)
    except ValueError:  # try_out raises it
        return original
    return replace(original, classes=scores.shape[1])


def _with_head(original: Original, labels: tuple[str, ...], seed: int) -> Original:
    """``original`` with a random last layer for other classes. Only this layer is to be trained."""
    torch.manual_seed(seed)
    network, head = with_classes(original.network, len(labels), (original.input.size,) * 2)
    network.requires_grad_(False)
    head.requires_grad_(True)
    return replace(original, network=network.eval(), classes=len(labels), labels=labels)
