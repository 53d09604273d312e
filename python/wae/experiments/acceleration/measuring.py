"""Measures a network: its accuracy, overall and for each class, and the time of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wae.data.dataset import sample
from wae.models.counting import count
from wae.progress import bar
from wae.training.accuracy import Accuracy, ByClass, evaluate
from wae.training.processes import is_first

from .data import Images
from .plans import plan_for
from .task import Task

SECONDS = 3.0
"""How long a measurement of times takes."""

ROUNDS = 9
"""The least rounds of one that decides something: on a busy machine chance decided with the usual three."""


def measure_original(task: Task) -> dict[str, Any]:
    """The original's accuracy on the test images, and its multiply-adds."""
    sets, side = task.sets(task.side), task.side
    data, batch = sets.test, 2 * plan_for(task, len(sets.training)).batch
    stock = task.original.classifier().to(task.device)
    with bar("testing the original", len(data), is_first()) as advance:
        accuracy, classes = accuracies(task, stock, data, batch, advance)
    return {
        "accuracy": accuracy.score,
        "top5": accuracy.top5,
        "multiply_adds": count(stock, (side, side)).multiply_adds,
        "classes": classes,
        "labels": list(data.labels),
        "size": side,
    }


def accuracies(
    task: Task, model: nn.Module, data: Images, batch: int, advance: Callable[[int], None] | None = None
) -> tuple[Accuracy, list[dict[str, int]]]:
    """The accuracy of ``model`` on ``data``, and the counts of each class: see :meth:`ByClass.by_class`."""
    counts = ByClass(len(data.labels))
    workers = task.settings.workers
    accuracy = evaluate(model, data, batch, task.device, workers, advance=advance, counts=counts)
    assert isinstance(accuracy, Accuracy)  # only classifiers are accelerated
    return accuracy, counts.by_class()


def images_of_a_call(task: Task, size: int) -> Tensor:
    """A batch for one call: copies of one test image of ``size``."""
    image, _ = sample(task.sets(size).test, 1)
    return image.repeat(task.settings.images, 1, 1, 1).to(task.device)


def call(network: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    """A function, to be timed, that calls ``network`` with ``images``, without gradients."""

    def without_gradients() -> Tensor:
        with torch.no_grad():
            return network(images)

    return without_gradients
