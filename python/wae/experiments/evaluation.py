"""The tables of ``wae eval``: trained networks side by side, with error, time per image and multiply-adds.

With ``--deployed``: the accuracy, speed and memory of what :func:`wae.deploy` makes of them, in several
precisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from wae.data.dataset import Dataset, sample
from wae.inference.batches import filled
from wae.inference.deploy import deploy
from wae.inference.deployed import Deployed
from wae.inference.footprint import footprint_of
from wae.models.counting import count
from wae.models.layout import in_format
from wae.models.network import WAENetwork, fold_normalization
from wae.storage.checkpoint import Description, describe
from wae.training.accuracy import Accuracy, PixelAccuracy
from wae.wording import amount, first_line, milliseconds, printable

from .machine import timed

HOW_TIMED = (
    "Time: of one image in eager PyTorch on this machine, medians of interleaved runs; "
    "wae.deploy makes each network faster."
)


@dataclass
class Candidate:
    """One trained network and its measurements."""

    path: Path
    described: Description
    model: nn.Module
    """As it is deployed: in evaluation mode, with the normalisation of a WAE network folded."""
    accuracy: Accuracy | PixelAccuracy | None = None
    seconds: float = 0.0
    """Per image."""
    multiply_adds: int = 0
    """Per image."""


def candidate(path: Path, model: nn.Module, device: torch.device) -> Candidate:
    """The network ``model`` of the checkpoint at ``path``. Raises CheckpointError."""
    if isinstance(model, WAENetwork):
        model = fold_normalization(model)
    return Candidate(path, describe(path), in_format(model.to(device), torch.channels_last))


@torch.no_grad()
def check_sizes(entry: Candidate, data: Dataset) -> None:
    """Raise ValueError if the network does not take images of its own size or of that of ``data``."""
    images, _ = sample(data, 1)
    device = next(entry.model.parameters()).device
    height, width = images.shape[2:]
    try:
        entry.model(images.to(device))
        height, width = entry.described.input.shape
        entry.model(images.new_zeros(1, 3, height, width).to(device))
    except Exception as error:  # any that the network's own code raises
        why = first_line(error)
        raise ValueError(f"{entry.path}: takes no images of {height} x {width} ({why})") from None


@torch.no_grad()
def measure(candidates: Sequence[Candidate], seconds: float) -> float | None:
    """Fill in the multiply-adds, and the times: all networks interleaved, for about ``seconds`` in all.

    Returns the CPU cores that other programs used meanwhile, None if that is not known.
    """
    functions = {}
    for number, entry in enumerate(candidates):
        device, size = next(entry.model.parameters()).device, entry.described.input.shape
        entry.multiply_adds = count(entry.model, size).multiply_adds
        image = torch.zeros(1, 3, *size, dtype=torch.uint8, device=device)
        image = image.contiguous(memory_format=torch.channels_last)
        functions[str(number)] = lambda model=entry.model, image=image: model(image)
    timings, others = timed(functions, seconds, next(candidates[0].model.parameters()).device)
    for entry, timing in zip(candidates, timings.values(), strict=True):
        entry.seconds = timing.median
    return others


def as_data(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """:func:`table` for programs; times in seconds."""
    return [
        {
            "network": entry.described.network,
            "path": str(entry.path),
            **({} if entry.accuracy is None else entry.accuracy._asdict()),
            "seconds_per_image": entry.seconds,
            "multiply_adds": entry.multiply_adds,
        }
        for entry in candidates
    ]


def table(candidates: Sequence[Candidate]) -> Table:
    """The paper's columns. For times and multiply-adds also how many times the first network has."""
    result = Table()
    first = candidates[0]
    for column in ("network", *_measured(first), "ms per image", "multiply-adds"):
        result.add_column(column, justify="left" if column == "network" else "right", overflow="fold")
    for entry in candidates:
        result.add_row(
            _title(entry),
            *_measured(entry).values(),
            f"{milliseconds(entry.seconds)} ({first.seconds / entry.seconds:.2f}x)",
            f"{amount(entry.multiply_adds)} ({first.multiply_adds / entry.multiply_adds:.2f}x)",
        )
    return result


def _title(entry: Candidate) -> str:
    return printable(f"{entry.described.network} ({entry.path})")


def _measured(entry: Candidate) -> dict[str, str]:
    """The measured columns, in percent, by title."""
    assert entry.accuracy is not None
    return entry.accuracy.columns(entry.described.classes)


# ------------------------------------------------------------------------------------------------ deployed


class DeployedCandidate(nn.Module):
    """A candidate deployed by :func:`wae.deploy` for ``batch`` images, and its measurements.

    Called with that many images or fewer, (N, 3, H, W) uint8, it returns their scores, (N, classes) or
    (N, classes, H, W).

    Args:
        candidate: what to deploy; its model stays as it is.
        precision: see :func:`wae.deploy`.
        engine: see :func:`wae.deploy`.
        batch: images per call.
        calibration: labelled images to calibrate int8 on; None for other precisions.

    Raises:
        CalibrationError, EngineError, DisagreementError: see :func:`wae.deploy`. A drop of accuracy of any
            size is accepted, because it is what is measured here.
    """

    def __init__(
        self, candidate: Candidate, precision: str, engine: str, batch: int, calibration: Dataset | None
    ) -> None:
        super().__init__()
        self.candidate = candidate
        self.deployed: Deployed = deploy(
            candidate.model,
            candidate.described.input.shape,
            batch,
            engine,
            precision=precision,
            calibration=calibration,
            max_drop=None,
        )
        self.accuracy: Accuracy | PixelAccuracy | None = None
        self.seconds = 0.0
        """Per call with ``batch`` images."""
        self.megabytes: float | None = None
        """The peak memory of the network in a process of its own; None if that is not known."""

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.deployed(filled(images, self.deployed.batch))[: len(images)]


def measure_deployed(entries: Sequence[DeployedCandidate], seconds: float) -> float | None:
    """Fill in the memory, and the times of full batches: all interleaved, for about ``seconds`` in all.

    Returns the CPU cores that other programs used during the timing, None if that is not known.
    """
    functions = {}
    for number, entry in enumerate(entries):
        device = next(entry.candidate.model.parameters()).device
        images = torch.zeros(entry.deployed.batch, 3, *entry.deployed.size, dtype=torch.uint8, device=device)
        functions[str(number)] = lambda entry=entry, images=images: entry.deployed(images)
    device = next(entries[0].candidate.model.parameters()).device
    timings, others = timed(functions, seconds, device, settle=1)
    for entry, timing in zip(entries, timings.values(), strict=True):
        entry.seconds = timing.median
        taken = footprint_of(entry.deployed)
        entry.megabytes = taken.peak if taken else None
    return others


def deployed_as_data(entries: Sequence[DeployedCandidate]) -> list[dict[str, Any]]:
    """:func:`deployed_table` for programs; times in seconds."""
    return [
        {
            "network": entry.candidate.described.network,
            "path": str(entry.candidate.path),
            "precision": entry.deployed.precision,
            "engine": entry.deployed.engine,
            "batch": entry.deployed.batch,
            **({} if entry.accuracy is None else entry.accuracy._asdict()),
            "seconds_per_call": entry.seconds,
            "megabytes": entry.megabytes,
        }
        for entry in entries
    ]


def deployed_table(entries: Sequence[DeployedCandidate]) -> Table:
    """A row per network and precision: accuracy, milliseconds per call, images per second, memory.

    ``entries`` must not be empty, and all of them must have been tested on the same images.
    """
    result = Table()
    measure = entries[0].accuracy.measure if entries[0].accuracy else ""
    columns = ("network", "precision", "engine", measure, "ms per call", "images/s", "MB")
    for number, column in enumerate(columns):
        result.add_column(column, justify="left" if number < 3 else "right", overflow="fold")
    for entry in entries:
        assert entry.accuracy is not None
        result.add_row(
            _title(entry.candidate),
            entry.deployed.precision,
            entry.deployed.engine,
            f"{100 * entry.accuracy.score:.2f} %",
            milliseconds(entry.seconds),
            f"{entry.deployed.batch / entry.seconds:.1f}",
            "" if entry.megabytes is None else f"{entry.megabytes:.0f}",
        )
    return result
