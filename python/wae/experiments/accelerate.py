"""A trained classifier made faster: WAE around it, trained, deployed, exported (docs/accelerate.md).

This module runs the steps one after the other; they are implemented in :mod:`wae.experiments.acceleration`.
Test images decide nothing: choices are made by trials on held-out training images.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from rich.console import Console
from torch import nn

from wae.data.dataset import DatasetError, InMemory, sample
from wae.data.folder import left_out_of
from wae.models.accelerated import Form
from wae.models.counting import count
from wae.progress import bar
from wae.storage import weights_file
from wae.storage.files import refuse_within
from wae.training import plan
from wae.training.observers import shown
from wae.training.processes import is_first, joined
from wae.training.session import MODEL, STATE, rehearse
from wae.wording import counted

from .acceleration import report, rivals
from .acceleration.data import Loader, in_memory
from .acceleration.deployment import deploy_all, write_onnx
from .acceleration.folder import DEPLOYED, ONNX, ORIGINAL, Record, alone, clear, open_record
from .acceleration.measuring import measure_original
from .acceleration.networks import begun, described, trained, try_out
from .acceleration.settings import AccelerationError, Recipe, Settings
from .acceleration.target import meet_target
from .acceleration.task import Task, open_task
from .acceleration.training import SHOWN, forget, forget_all, train_accelerated, train_head
from .acceleration.trials import best_optimizer, best_teaching

__all__ = ["AccelerationError", "Settings", "accelerate", "run"]


def accelerate(
    model: str | Path | nn.Module,
    data: str | Path | tuple[Loader, Loader],
    folder: str | Path,
    *,
    force: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Path:
    """Make a trained classifier faster, with the results in ``folder``. Called again, it resumes.

    Args:
        model: the network itself, or its name: see :func:`wae.training.original.open_original`.
        data: a folder with train/CLASS/IMAGE and val/CLASS/IMAGE; or two loaders, of the images to train on
            and of those to test with, which are held in memory: uint8, in the network's size, not normalised.
        folder: of the results.
        force: begin anew: what an acceleration left in the folder is removed.
        console: where it says how far it is; None for standard output.
        options: those of ``wae accelerate``, ``input_size=96`` for ``--input-size 96``; ``plan`` may be a
            :class:`wae.training.plan.Plan` as well.

    Returns the path of the checkpoint. Raises as :func:`wae.experiments.accelerate.run`, and TypeError for an
    option that is not known.
    """
    known = [entry.name for entry in _OPTIONS]
    if unknown := options.keys() - known:
        raise TypeError(f"accelerate has no option {min(unknown)}; known are {', '.join(known)}")
    chosen: dict[str, Any] = {name: str(o) if isinstance(o, Path) else o for name, o in options.items()}
    if isinstance(chosen.get("plan"), str):
        chosen["plan"] = plan.find(chosen["plan"])
    named = str(model) if isinstance(model, Path) else model
    settings = Settings(named, _held(data), Path(folder), **chosen)
    return run(settings, console or Console(), force)


_OPTIONS = fields(Settings)[3:]  # all but accelerate's own arguments


def _signature() -> inspect.Signature:
    """Of :func:`accelerate`, with each option by its name: for help() and editors."""
    own, types = inspect.signature(accelerate), get_type_hints(Settings)
    named = [
        inspect.Parameter(
            entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=types[entry.name]
        )
        for entry in _OPTIONS
    ]
    first = [one for one in own.parameters.values() if one.kind != inspect.Parameter.VAR_KEYWORD]
    return own.replace(parameters=[*first, *named])


accelerate.__signature__ = _signature()  # type: ignore[attr-defined]


def _held(data: str | Path | tuple[Loader, Loader]) -> str | Path | tuple[InMemory, InMemory]:
    """``data`` with the images of its loaders in memory."""
    if not isinstance(data, tuple):
        return data
    if len(data) != 2:
        raise DatasetError(f"data: loaders must be two, to train and to test, got {len(data)}")
    return in_memory(*data)


def run(settings: Settings, console: Console, force: bool = False) -> Path:
    """Make the network faster, and return the path of its checkpoint. Called again, it resumes.

    Under torchrun all processes train, and the first does the rest.

    Args:
        settings: see there.
        console: where it says how far it is.
        force: begin anew: what an acceleration left in the folder is removed.

    Raises:
        FileExistsError: the folder holds something else, or a file to begin with.
        CheckpointError: a file of weights cannot be used, or the folder is that of other settings.
        DatasetError, ImageError, ClassError: the data cannot be used, or its classes are others.
        TrainingError: the loss is no longer finite.
        EngineError, DisagreementError: no engine runs the network, or none within ``max_drop``.
        ValueError: the network cannot be accelerated.
    """
    refuse_within(settings.folder, settings.files())
    with ExitStack() as folder:
        with joined(settings.device) as device:
            task, first = open_task(settings, console, device), is_first()
            try_out(task)
            if first:
                folder.enter_context(alone(settings.folder))
                if force:
                    clear(settings.folder)
            record = open_record(settings.folder, task.as_dict())
            form = train_all(task, record)
        if first:  # the others are done: nothing below waits for them
            _finish(task, record, form)
    return settings.folder / MODEL


def train_all(task: Task, record: Record) -> Form:
    """Measure the original, choose what is to be chosen, and train: in all processes. Returns the form."""
    settings = task.settings
    if is_first() and "training" not in record.found:
        model = begun(task, task.form)
        rehearse(settings.folder, model, *described(task, task.form), task.form, task.original.network)
    _say_what_is_there(task)
    if task.new_head:
        _put_head(task, record)
    found = record.once("original", lambda: measure_original(task))
    task.say(f"the original's top-1 accuracy: {100 * found['accuracy']:.2f} %")
    task.say(report.doubt(record.found))
    form = _form(task, record)
    _say_what_it_computes(task, record, form)
    recipe = _recipe(task, record, form)
    record.once("training", lambda: train_accelerated(task, form, recipe))
    if is_first():  # only now: until it is on the record, a stopped run goes on from there
        (settings.folder / STATE).unlink(missing_ok=True)
    for name in rivals.NAMES if settings.compare else ():
        record.once(f"rival: {name}", partial(rivals.train_rival, task, record, name, form, recipe))
        forget(task, name)
    forget_all(task)
    return form


def _say_what_is_there(task: Task) -> None:
    sets = task.sets(task.form.size)
    task.say(
        f"{task.original.name}: {counted(len(sets.training), 'image')} to train on, "
        f"{len(sets.test):,} to test, {counted(task.original.classes, 'class')}"
    )
    task.say(task.order.note)
    for data in (sets.training, sets.test):
        task.say(left_out_of(data))


def _say_what_it_computes(task: Task, record: Record, form: Form) -> None:
    """Before the training: who sees that WAE will not pay need not wait for it."""
    if is_first() and "training" not in record.found:
        new = count(begun(task, form), (form.size, form.size)).multiply_adds
        task.say(report.arithmetic(record.found["original"]["multiply_adds"], new))


def _put_head(task: Task, record: Record) -> None:
    """Give the original its new head, trained."""
    task.say(task.new_head)
    record.once("head", lambda: train_head(task))
    forget(task, "head")
    weights_file.load(task.settings.folder / ORIGINAL, task.original.network)


def _form(task: Task, record: Record) -> Form:
    """The form to train: the one that meets the target, or without a target that of the settings."""
    if task.settings.target is None and task.settings.target_ms is None:
        return task.form
    chosen = record.once("target", lambda: meet_target(task, record))
    form = Form(**chosen["form"])
    task.say(f"images of {form.size}, the light body's factor {form.factor}: {chosen['why']}")
    return form


def _recipe(task: Task, record: Record, form: Form) -> Recipe:
    """How the stages with labels train: as the settings ask, and what they leave open by trials."""
    optimizer, teaching = task.settings.asked_optimizer, task.settings.asked_teaching
    chosen = []
    if optimizer is None:
        optimizer = record.once("optimizer", lambda: best_optimizer(task, record, form))["name"]
        chosen.append(optimizer)
    if teaching is None:
        found = record.once("mimic", lambda: best_teaching(task, record, form, optimizer))
        # a record from before mirrored scores were tried lacks the entry, and is gone on with as it is
        teaching = Recipe(found["weight"], found.get("mirrored", task.settings.mimic_mirrored))
        chosen.append(str(teaching))
    if chosen:
        task.say(f"chosen by the trials: {', '.join(chosen)}")
    return teaching._replace(optimizer=optimizer)


def _finish(task: Task, record: Record, form: Form) -> None:
    """Deploy, export and report what was trained."""
    folder, model = task.settings.folder, trained(task)
    with bar("deploying, and measuring times", None):
        record.once("deployed", lambda: deploy_all(task, record, model, form.size))
    record.once("onnx", lambda: write_onnx(task, model, form.size))
    parts = shown(model, sample(task.sets(form.size).test, SHOWN)[0])
    report.write(folder, task.original.name, record.found, parts)
    for path in (MODEL, DEPLOYED, ONNX, "report.html"):
        if (folder / path).exists():
            task.say(f"{folder / path}")
    task.say(report.summary(record.found))
