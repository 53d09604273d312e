"""The output of a running training: the terminal, ``log.jsonl`` and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import TaskID, TextColumn
from rich.table import Table
from torch import Tensor, nn

from wae.models.autoencoder import AutoEncoder, to_uint8
from wae.models.network import WAENetwork
from wae.progress import progress, say
from wae.storage.files import written
from wae.wording import counted

from .plan import Plan
from .stage1 import quality
from .state import Epoch
from .trainer import Observer

_EVERY = 10  # steps between two readings of the losses, because each makes the CPU wait for a GPU


class Together(Observer):
    """Forwards each call to several observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin(self, plan: Plan, history: list[Epoch]) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.begin(plan, history)

    def start(self, plan: Plan, stage: int, epoch: int, steps: int) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.start(plan, stage, epoch, steps)

    def step(self, number: int, losses: Mapping[str, Tensor]) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.step(number, losses)

    def left_out(self, messages: Sequence[str]) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.left_out(messages)

    def end(self, epoch: Epoch, model: nn.Module) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.end(epoch, model)


class Terminal(Observer):
    """Prints a line per epoch, and on a terminal a progress bar below. Use it in a ``with`` statement."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = progress(console, TextColumn("{task.fields[losses]}"))
        self._task: TaskID | None = None
        self._plan: Plan | None = None
        self._reported: set[str] = set()  # images that were left out
        self._left_out = 0  # in this epoch

    def __enter__(self) -> Terminal:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, plan: Plan, history: list[Epoch]) -> None:
        """See :class:`Observer`."""
        self._plan = plan
        if history:
            say(self._console, f"resuming after {_name(plan, history[-1].stage, history[-1].epoch)}")

    def start(self, plan: Plan, stage: int, epoch: int, steps: int) -> None:
        """See :class:`Observer`."""
        self._left_out = 0
        self._task = self._bar.add_task(_name(plan, stage, epoch), total=steps, losses="")

    def step(self, number: int, losses: Mapping[str, Tensor]) -> None:
        """See :class:`Observer`."""
        if self._task is None:
            return
        self._bar.update(self._task, completed=number)
        if number % _EVERY == 1 and not self._bar.disable:
            self._bar.update(self._task, losses=_losses({k: v.item() for k, v in losses.items()}))

    def left_out(self, messages: Sequence[str]) -> None:
        """See :class:`Observer`. Reports each file only once, in one line."""
        self._left_out += len(messages)
        for message in sorted(set(messages) - self._reported):
            say(self._console, f"left out: {message}")
        self._reported.update(messages)

    def end(self, epoch: Epoch, model: nn.Module) -> None:
        """See :class:`Observer`."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        assert self._plan is not None
        accuracy = f", {epoch.accuracy}" if epoch.accuracy else ""
        name = _name(self._plan, epoch.stage, epoch.epoch)
        left_out = f", {counted(self._left_out, 'image')} left out" if self._left_out else ""
        say(self._console, f"{name}: {_losses(epoch.losses)}{accuracy}, {epoch.seconds:.1f} s{left_out}")


class JsonLines(Observer):
    """Writes one line of JSON per epoch to a file that holds exactly the epochs of the checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, plan: Plan, history: list[Epoch]) -> None:
        """See :class:`Observer`.

        Rewrites the file, in case a killed training left an epoch out or wrote it twice.
        """
        with written(self._path, force=True) as file:
            file.writelines(_json_line(epoch) for epoch in history)

    def end(self, epoch: Epoch, model: nn.Module) -> None:
        """See :class:`Observer`."""
        with open(self._path, "ab") as file:
            file.write(_json_line(epoch))


class TensorBoard(Observer):
    """Writes scalars of every tenth step and every epoch, and the auto-encoder's output for a few images.

    Args:
        folder: for the event files.
        images: (N, 3, H, W) uint8.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, images: Tensor) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._folder, self._images = folder, images
        self._writer: Any = None
        self._steps = 0  # in all epochs before this one

    def start(self, plan: Plan, stage: int, epoch: int, steps: int) -> None:
        """See :class:`Observer`."""
        self._steps = (sum(s.epochs for s in plan.stages[:stage]) + epoch) * steps
        self._open_if_needed()

    def step(self, number: int, losses: Mapping[str, Tensor]) -> None:
        """See :class:`Observer`."""
        if number % _EVERY == 0:
            self._scalars("step", losses, self._steps + number)
        self._taken = number

    def end(self, epoch: Epoch, model: nn.Module) -> None:
        """See :class:`Observer`."""
        now = self._steps + self._taken
        self._scalars("epoch", epoch.losses, now)
        if epoch.accuracy:
            self._scalars("test", epoch.accuracy._asdict(), now)
        if isinstance(model, WAENetwork) and model.decoder is not None:
            for name, images in shown(model, self._images).items():
                self._writer.add_images(name, images, now)
        self._writer.flush()

    def _open_if_needed(self) -> None:
        """Open a file if there is none yet, or if the folder was removed, in which case writing would fail.

        TensorBoard then no longer shows later steps that a killed training wrote.
        """
        if self._writer is None or not self._folder.exists():
            self._writer = self._open(str(self._folder), purge_step=self._steps + 1)

    def _scalars(self, group: str, values: Mapping[str, Any], step: int) -> None:
        self._open_if_needed()
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)


@torch.no_grad()
def shown(model: WAENetwork, images: Tensor) -> dict[str, Tensor]:
    """``image``, ``low``, ``high`` and ``reconstruction`` of ``images`` for viewing: (N, 3, h, w) uint8 each.

    ``low`` is scaled to the range from black to white; ``high`` is drawn around a medium grey.

    Args:
        images: (N, 3, H, W) uint8, on any device.
    """
    images = images.to(model.image_scale.device)
    low, high = (part.float() for part in model.decompose(images))
    least, most = low.amin(), low.amax()
    drawn = {
        "image": images,
        "low": (low - least) * (255 / (most - least).clamp(min=1e-12)),
        "high": 127.5 + high * (127.5 / high.abs().amax().clamp(min=1e-12)),
        "reconstruction": model.reconstruct(low, high, images.shape[2:]),
    }
    return {name: to_uint8(image.float()).cpu() for name, image in drawn.items()}


def table(plan: Plan, history: Sequence[Epoch], classes: int) -> Table:
    """A table of each stage's last losses and errors, and of the time that it took."""
    result = Table(title=plan.model, title_justify="left")
    last = [epoch.accuracy.columns(classes) for epoch in history if epoch.accuracy][-1:]
    measures = list(last[0]) if last else []
    for column in ("stage", "epochs", "last losses", *measures, "minutes"):
        result.add_column(column, justify="left" if column in ("stage", "last losses") else "right")
    for number, stage in enumerate(plan.stages):
        epochs = [epoch for epoch in history if epoch.stage == number]
        if not epochs:
            continue
        accuracy, minutes = epochs[-1].accuracy, sum(epoch.seconds for epoch in epochs) / 60
        measured = list(accuracy.columns(classes).values()) if accuracy else [""] * len(measures)
        title = f"{number + 1} {stage.kind}"
        losses = _losses(epochs[-1].losses, "\n")
        result.add_row(title, str(len(epochs)), losses, *measured, f"{minutes:.1f}")
    return result


def quality_table(models: Mapping[str, AutoEncoder], photos: Mapping[str, Tensor]) -> Table:
    """A table of the PSNR and energy ratio of every model on every photo, (3, H, W) uint8 each."""
    result = Table(title="On held-out photos", title_justify="left")
    for name in ("model", "photo", "PSNR, dB", "high / low energy"):
        result.add_column(name, justify="left" if name in ("model", "photo") else "right")
    for label, model in models.items():
        for name, photo in photos.items():
            found = quality(model, photo)
            result.add_row(label, name, f"{found.psnr:.2f}", f"{100 * found.energy:.2f} %")
    return result


def _name(plan: Plan, stage: int, epoch: int) -> str:
    """The name of an epoch for messages; ``stage`` and ``epoch`` are counted from 0."""
    entry = plan.stages[stage]
    return f"stage {stage + 1}/{len(plan.stages)} {entry.kind}, epoch {epoch + 1}/{entry.epochs}"


def _losses(losses: Mapping[str, float], between: str = ", ") -> str:
    return between.join(f"{name} {value:.4g}" for name, value in losses.items())


def _json_line(epoch: Epoch) -> bytes:
    return json.dumps(epoch.as_data()).encode() + b"\n"
