"""Make a trained classifier faster: build WAE around it, train, deploy and export (docs/accelerate.md).

This module runs the steps in order; they are implemented in :mod:`wae.experiments.acceleration`. Test images
are never used to choose anything: choices are made by trials on held-out training images.
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
from wae.data.image_files import left_out_of
from wae.models.accelerated import Form
from wae.models.counting import count
from wae.progress import bar
from wae.storage import weights_file
from wae.storage.files import refuse_within
from wae.training import plan
from wae.training.lock import alone_in
from wae.training.observers import shown
from wae.training.processes import is_first, joined
from wae.training.rehearsal import rehearse
from wae.training.session import MODEL, STATE
from wae.wording import counted

from .acceleration import baselines, report, report_files
from .acceleration.data import Loader, in_memory
from .acceleration.deployment import deploy_all, write_onnx
from .acceleration.folder import DEPLOYED, ONNX, ORIGINAL, Record, clear, open_record
from .acceleration.measuring import measure_original
from .acceleration.networks import described, initialised, trained, try_out
from .acceleration.settings import AccelerationError, Recipe, Settings
from .acceleration.target import meet_target
from .acceleration.task import Task, open_task
from .acceleration.training import SHOWN, forget, forget_all, train_accelerated, train_head
from .acceleration.trials import best_distillation, best_optimizer

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
    """Make a trained classifier faster and write the results to ``folder``. If called again, it resumes.

    Args:
        model: the network itself, or its name: see :func:`wae.training.original.open_original`.
        data: a folder with train/CLASS/IMAGE and val/CLASS/IMAGE; or two loaders, one for training and one
            for testing. They yield uint8 images of the network's size, not normalised, and labels; all images
            are kept in memory.
        folder: for the results.
        force: start over: first remove what an earlier acceleration wrote to the folder.
        console: prints the progress; None for standard output.
        options: those of ``wae accelerate``, for example ``input_size=96`` for ``--input-size 96``; ``plan``
            may also be a :class:`wae.training.plan.Plan`.

    Returns the path of the checkpoint. Raises TypeError for an unknown option, and what
    :func:`wae.experiments.accelerate.run` raises.
    """
    known = [entry.name for entry in _OPTIONS]
    if unknown := options.keys() - known:
        raise TypeError(f"accelerate has no option {min(unknown)}; known are {', '.join(known)}")
    chosen: dict[str, Any] = {name: str(o) if isinstance(o, Path) else o for name, o in options.items()}
    if isinstance(chosen.get("plan"), str):
        chosen["plan"] = find_plan(chosen["plan"], Path(folder))
    named = str(model) if isinstance(model, Path) else model
    settings = Settings(named, _loaded(data), Path(folder), **chosen)
    return run(settings, console or Console(), force)


def find_plan(name: str, folder: Path) -> plan.Plan:
    """The plan called ``name``: see :func:`wae.training.plan.find`.

    Raises FileExistsError if it is a file in ``folder``, whose files are replaced, and PlanError.
    """
    if Path(name).is_file():
        refuse_within(folder, {"--plan": Path(name)})
    return plan.find(name)


_OPTIONS = fields(Settings)[3:]  # the first three are accelerate's own arguments


def _signature() -> inspect.Signature:
    """The signature of :func:`accelerate` with every option by name, for help() and editors."""
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


def _loaded(data: str | Path | tuple[Loader, Loader]) -> str | Path | tuple[InMemory, InMemory]:
    """``data``; if it is two loaders, their images in memory."""
    if not isinstance(data, tuple):
        return data
    if len(data) != 2:
        raise DatasetError(f"data: needs two loaders, one for training and one for testing, got {len(data)}")
    return in_memory(*data)


def run(settings: Settings, console: Console, force: bool = False) -> Path:
    """Make the network faster and return the path of its checkpoint. If called again, it resumes.

    Under torchrun all processes train, and the first does everything else.

    Args:
        settings: see :class:`Settings`.
        console: prints the progress.
        force: start over: first remove what an earlier acceleration wrote to the folder.

    Raises:
        FileExistsError: the folder holds something else, or one of the input files.
        CheckpointError: a file of weights cannot be used, or the folder was begun with other settings.
        DatasetError, ImageError, ClassError: the data cannot be used, or its classes do not match.
        TrainingError: the loss is no longer finite.
        EngineError, DisagreementError: no engine runs the network, or none loses at most ``max_drop``.
        ValueError: the network cannot be accelerated.
    """
    refuse_within(settings.folder, settings.files())
    with ExitStack() as folder:
        with joined(settings.device) as device:
            task, first = open_task(settings, console, device), is_first()
            try_out(task)
            if first:
                folder.enter_context(alone_in(settings.folder))
                if force:
                    clear(settings.folder)
            record = open_record(settings.folder, task.as_dict())
            form = train_all(task, record)
        if first:  # the other processes are done: nothing below waits for them
            _finish(task, record, form)
    return settings.folder / MODEL


def train_all(task: Task, record: Record) -> Form:
    """Measure the original, choose what the settings leave open, and train. Returns the form.

    Runs in all processes.
    """
    settings = task.settings
    if is_first() and "training" not in record.found:
        model, (image, _) = initialised(task, task.form), sample(task.sets(task.form.size).test, 1)
        about = *described(task, task.form), task.form, task.original.network
        rehearse(settings.folder, model, *about, image)
    _say_inputs(task)
    if task.new_head:
        _put_head(task, record)
    found = record.once("original", lambda: measure_original(task))
    task.say(f"the original's top-1 accuracy: {100 * found['accuracy']:.2f} %")
    task.say(report.doubt(record.found))
    form = _form(task, record)
    _say_arithmetic(task, record, form)
    recipe = _recipe(task, record, form)
    record.once("training", lambda: train_accelerated(task, form, recipe))
    if is_first():  # only now: until the training is on the record, a stopped run resumes from this file
        (settings.folder / STATE).unlink(missing_ok=True)
    for name in baselines.NAMES if settings.compare else ():
        record.once(f"baseline: {name}", partial(baselines.train_baseline, task, record, name, form, recipe))
        forget(task, name)
    forget_all(task)
    return form


def _say_inputs(task: Task) -> None:
    sets = task.sets(task.form.size)
    task.say(
        f"{task.original.name}: {counted(len(sets.training), 'image')} to train on, "
        f"{len(sets.test):,} to test, {counted(task.original.classes, 'class')}"
    )
    task.say(task.order.note)
    for data in (sets.training, sets.test):
        task.say(left_out_of(data))


def _say_arithmetic(task: Task, record: Record, form: Form) -> None:
    """Before the training, so that users who see that WAE will not pay need not wait for it."""
    if is_first() and "training" not in record.found:
        new = count(initialised(task, form), (form.size, form.size)).multiply_adds
        task.say(report.arithmetic(record.found["original"]["multiply_adds"], new))


def _put_head(task: Task, record: Record) -> None:
    """Train the original's new head, and load it."""
    task.say(task.new_head)
    record.once("head", lambda: train_head(task))
    forget(task, "head")
    weights_file.load(task.settings.folder / ORIGINAL, task.original.network)


def _form(task: Task, record: Record) -> Form:
    """The form to train: one that meets the target, or without a target the one in the settings."""
    if task.settings.target is None and task.settings.target_ms is None:
        return task.form
    chosen = record.once("target", lambda: meet_target(task, record))
    form = Form(**chosen["form"])
    task.say(f"images of {form.size}, the light body's factor {form.factor}: {chosen['why']}")
    return form


def _recipe(task: Task, record: Record, form: Form) -> Recipe:
    """How the stages with labels train: as the settings say. Trials choose what these leave open."""
    optimizer, distillation = task.settings.asked_optimizer, task.settings.asked_distillation
    chosen = []
    if optimizer is None:
        optimizer = record.once("optimizer", lambda: best_optimizer(task, record, form))["name"]
        chosen.append(optimizer)
    if distillation is None:
        found = record.once("mimic", lambda: best_distillation(task, record, form, optimizer))
        distillation = Recipe(found["weight"], found["mirrored"])
        chosen.append(str(distillation))
    if chosen:
        task.say(f"chosen by the trials: {', '.join(chosen)}")
    return distillation._replace(optimizer=optimizer)


def _finish(task: Task, record: Record, form: Form) -> None:
    """Deploy and export the trained network, and write the report."""
    folder, model = task.settings.folder, trained(task)
    with bar("deploying, and measuring times", None):
        record.once("deployed", lambda: deploy_all(task, record, model, form.size))
    record.once("onnx", lambda: write_onnx(task, model, form))
    parts = shown(model, sample(task.sets(form.size).test, SHOWN)[0])
    report_files.write(folder, task.original.name, record.found, parts)
    for path in (MODEL, DEPLOYED, ONNX, "report.html"):
        if (folder / path).exists():
            task.say(f"{folder / path}")
    task.say(report.summary(record.found))
    task.say(report.disturbed(record.found))
