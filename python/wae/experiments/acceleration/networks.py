"""The networks of an acceleration: WAE before and after the training, and the teacher."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from wae.data.dataset import DatasetError, sample
from wae.data.input import Input
from wae.models.accelerated import Form, accelerated, show_small_image
from wae.models.baselines import AtSize
from wae.models.classifier import WAEClassifier
from wae.models.meta import on_meta
from wae.models.registry import build
from wae.storage.checkpoint import load_classifier
from wae.storage.weights_file import AUTOENCODER
from wae.training.linear_start import start_as_small_image
from wae.training.pretrained import load_autoencoder
from wae.training.session import MODEL
from wae.training.trainer import check_batch
from wae.wording import first_line

from .data import SAMPLE
from .plans import plan_for
from .settings import Recipe
from .task import Task


def initialised(task: Task, form: Form) -> WAEClassifier:
    """WAE around the original before its training, on the CPU."""
    original, start = task.original, task.settings.start
    network = copy.deepcopy(original.network).cpu()  # a GPU would draw other random weights
    torch.manual_seed(task.settings.seed)
    model = accelerated(network, form).requires_grad_(True)  # frozen weights too
    (images, _), stock = sample(task.sets(form.size).plain, SAMPLE), original.classifier()
    scale, shift = stock.image_scale.cpu(), stock.image_shift.cpu()
    if start == "linear":
        start_as_small_image(model, images, scale, shift)
    else:
        load_autoencoder(model, AUTOENCODER if start == "included" else Path(start))
        show_small_image(model, images, scale, shift)
    return model


def try_out(task: Task) -> None:
    """Build everything and run the original once, so that errors are raised before anything is trained."""
    if len(sample(task.sets(task.form.size).plain, 2)[0]) < 2:
        raise DatasetError("the images to train on: needs 2 or more, because some are held out, got 1")
    _check_plan(task)
    initialised(task, task.form)
    if ":" not in task.name:  # else loading the checkpoint would fail: it builds the network by its name
        on_meta(lambda: build(task.name, task.original.classes, task.form))
    with torch.no_grad():
        task.original.classifier()(sample(task.sets(task.side).test, 1)[0])
    _check_scores_in_training(task)


def _check_scores_in_training(task: Task) -> None:
    """Raise ValueError unless the original returns scores in training mode, too.

    GoogLeNet and Inception, for example, may have auxiliary classifiers, whose scores they return as well.
    """
    stock = copy.deepcopy(task.original.classifier()).train()  # its statistics would change
    images, _ = sample(task.sets(task.side).plain, 2)
    name = type(task.original.network).__name__
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # dropout
            scores: object = stock(images)
    except Exception as error:  # the network's own code may raise anything
        raise ValueError(f"{name} must run in training mode too, but: {first_line(error)}") from error
    if not isinstance(scores, Tensor):
        raise ValueError(
            f"{name} must return scores (N, classes) in training mode too, got {type(scores).__name__}: "
            "switch off its auxiliary outputs"
        )


def _check_plan(task: Task) -> None:
    """Raise ValueError if the settings give no valid plan, or if their batch does not fit."""
    images, batch = len(task.sets(task.form.size).training), task.settings.batch
    plan = plan_for(task, images)
    check_batch(plan if batch is None else replace(plan, batch=batch), images)


def described(task: Task, form: Form) -> tuple[str, tuple[str, ...], Input]:
    """What the checkpoint stores: the network's name, the names of the classes, and the preprocessing."""
    return task.name, task.sets(form.size).test.labels, task.original.input.of_size(form.size)


def trained(task: Task) -> WAEClassifier:
    """The accelerated network after its training."""
    model = load_classifier(task.settings.folder / MODEL, task.original.network)
    assert isinstance(model, WAEClassifier)
    return model.to(task.device)


def teacher(task: Task, size: int, recipe: Recipe) -> nn.Module | None:
    """The original, for images of ``size``; None if ``recipe`` has no distillation."""
    if not recipe.weight:
        return None
    stock = task.original.classifier()
    if size == task.side:
        return stock
    return AtSize(stock.network, task.side, stock.image_scale.tolist(), stock.image_shift.tolist())
