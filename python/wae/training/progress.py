"""Showing a training while it runs, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from wae.models.autoencoder import AutoEncoder

from .stage1 import Step, quality

_SMOOTHING = 0.98  # of the numbers beside the bar: one batch says little


@contextmanager
def progress(console: Console, steps: int) -> Iterator[Callable[[Step], None]]:
    """A progress bar with loss and PSNR; yields what :func:`stage1.train` calls after each step."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.2e}, {task.fields[psnr]:.2f} dB"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=steps, loss=float("nan"), psnr=float("nan"))
        shown: Step | None = None

        def on_step(step: Step) -> None:
            nonlocal shown
            if shown is None:
                shown = step
            loss, psnr = (
                _SMOOTHING * a + (1 - _SMOOTHING) * b for a, b in zip(shown[1:], step[1:], strict=True)
            )
            shown = Step(step.number, loss, psnr)
            bar.update(task, completed=step.number, loss=loss, psnr=psnr)

        yield on_step


def show_quality(console: Console, models: Mapping[str, AutoEncoder], photos: Mapping[str, Tensor]) -> None:
    """Print PSNR and energy of every model on every photo, (3, H, W) uint8 each."""
    table = Table(title="On photos kept out of training", title_justify="left")
    for name in ("model", "photo", "PSNR, dB", "high / low energy"):
        table.add_column(name, justify="left" if name in ("model", "photo") else "right")
    for label, model in models.items():
        for name, photo in photos.items():
            result = quality(model, photo)
            table.add_row(label, name, f"{result.psnr:.2f}", f"{100 * result.energy:.2f} %")
    console.print(table)
