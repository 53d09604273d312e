"""Trained classifiers side by side: error, time per image, multiply-adds (the table of docs/network.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from wae.inference.timing import interleaved
from wae.models.classifier import WAEClassifier, fold_normalization
from wae.models.counting import count
from wae.storage.checkpoint import Description, describe, load_classifier
from wae.training.trainer import Accuracy

HOW_TIMED = (
    "Time: of one image, medians of eager PyTorch on this machine, all networks in turns; "
    "wae.deploy makes each of them faster."
)


@dataclass
class Candidate:
    """One trained classifier, and what is found out about it."""

    path: Path
    described: Description
    model: nn.Module
    """As it is deployed: in evaluation mode, a WAE network with its normalisation folded."""
    accuracy: Accuracy | None = None
    seconds: float = 0.0
    """Of one image."""
    multiply_adds: int = 0
    """Of one image."""


def candidate(path: Path, device: torch.device) -> Candidate:
    """The classifier in the checkpoint at ``path``. Raises CheckpointError."""
    model = load_classifier(path)
    if isinstance(model, WAEClassifier):
        model = fold_normalization(model)
    return Candidate(path, describe(path), model.to(device).to(memory_format=torch.channels_last))


@torch.no_grad()
def measure(candidates: Sequence[Candidate], seconds: float) -> None:
    """Fill in multiply-adds, and times taken in turns during about ``seconds``, all together."""
    functions = {}
    for number, entry in enumerate(candidates):
        device, size = next(entry.model.parameters()).device, entry.described.input.size
        entry.multiply_adds = count(entry.model, (size, size)).multiply_adds
        image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
        image = image.contiguous(memory_format=torch.channels_last)
        functions[str(number)] = lambda model=entry.model, image=image: model(image)
    on_gpu = any(next(entry.model.parameters()).is_cuda for entry in candidates)
    timings = (
        interleaved(functions, seconds, synchronize=torch.cuda.synchronize)
        if on_gpu
        else interleaved(functions, seconds)
    )
    for entry, timing in zip(candidates, timings.values(), strict=True):
        entry.seconds = timing.median


def table(candidates: Sequence[Candidate]) -> Table:
    """The paper's columns; times and multiply-adds also as multiples of the first network's, turned round."""
    result = Table()
    for column in ("network", "top-1 error", "top-5 error", "ms per image", "multiply-adds"):
        result.add_column(column, justify="left" if column == "network" else "right")
    first = candidates[0]
    for entry in candidates:
        assert entry.accuracy is not None
        result.add_row(
            f"{entry.described.network} ({entry.path})",
            *(f"{100 * (1 - share):.2f} %" for share in (entry.accuracy.top1, entry.accuracy.top5)),
            f"{1e3 * entry.seconds:.2f} ({first.seconds / entry.seconds:.2f}x)",
            f"{entry.multiply_adds / 1e9:.3f} G ({first.multiply_adds / entry.multiply_adds:.2f}x)",
        )
    return result
