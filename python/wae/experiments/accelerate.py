"""A trained classifier made faster: WAE around it, trained, deployed, exported (docs/accelerate.md).

::

    folder/accelerate.json   the settings, and what each step found: what a stopped run goes on from
          /plan.toml, state.safetensors, log.jsonl, tensorboard/, model.safetensors: as wae train's
          /deployed/         for wae.load_deployed
          /model.onnx        where ONNX Runtime is installed
          /original.safetensors: its weights, where it was given a new head
          /report.md, report.html

Nothing is chosen by the test images: what has to be chosen is tried on training images that are kept aside.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from wae.data.classes import ClassError, class_order
from wae.data.dataset import Dataset, DatasetError, InMemory, spread
from wae.data.folder import ImageFolder, OnCorrupt
from wae.data.images import MAX_PIXELS
from wae.data.input import Input
from wae.data.loading import batches, fingerprint, open_dataset
from wae.data.segmentation import SegmentationFolder
from wae.data.shards import Shards
from wae.errors import WaeError
from wae.inference.deployed import Deployed, DisagreementError, deploy
from wae.inference.engines import ENGINES, EngineError, in_turns
from wae.inference.export import export
from wae.inference.precision import DTYPES, NAMES
from wae.inference.timing import Timing, interleaved
from wae.models.accelerated import Form, accelerated, show_small_image, with_classes
from wae.models.baselines import AtSize, FullResolution
from wae.models.classifier import WAEClassifier, fold_normalization
from wae.models.counting import count
from wae.models.registry import build, on_meta
from wae.progress import bar
from wae.storage import weights_file
from wae.storage.checkpoint import load_classifier, save_classifier
from wae.storage.files import refuse_within, sha256, written
from wae.storage.weights_file import WEIGHTS, CheckpointError
from wae.training.accuracy import Accuracy
from wae.training.linear_start import start_as_small_image
from wae.training.lock import alone_in
from wae.training.observers import Terminal, shown
from wae.training.original import TIMM, Original, open_original
from wae.training.plan import Plan, Stage, changed
from wae.training.pretrained import TORCHVISION, load_autoencoder
from wae.training.processes import agreed, is_first, joined, processes
from wae.training.session import LOG, MODEL, PLAN, STATE, TENSORBOARD, observed, rehearse
from wae.training.small_data import acceleration_plan
from wae.training.trainer import Epoch, Observer, evaluate, train
from wae.wording import counted, first_line

from . import acceleration_report, rivals

RECORD, DEPLOYED, ONNX, TRIALS, RIVALS = "accelerate.json", "deployed", "model.onnx", "trials", "rivals"
ORIGINAL = "original.safetensors"
SHOWN = 4
"""Images of the report."""

_KEPT = 5  # every fifth training image is kept aside for what has to be chosen
_TRIAL = 4  # a trial has one epoch of the plan's in so many
_SAMPLE = 64  # training images that the start is fitted to
_MIMIC = 1.0  # the weight that is tried
_HEAD_RATE = 1e-2  # at which a new head is trained: higher than others, for no other weight changes
_FACTORS = (2, 4, 8)
_SCALES = (1.25, 1.0, 0.875, 0.75, 0.625, 0.5)  # of the original's size, that are measured for a target
_STEP = 32  # sizes are multiples of it: halves of them are multiples of a patch
_TRIED = 3  # of the networks that meet the target
_SECONDS = 3.0  # of timing
_CALIBRATED = 100  # images at most, and as many to check on
_AT_ONCE = 64  # images that a deployed network is evaluated on


class AccelerationError(WaeError, ValueError):
    """A network that cannot be accelerated as asked. The message says why."""


@dataclass(frozen=True)
class Settings:
    """The network to accelerate, its data, and how. Everything but the first three has a default."""

    model: str | nn.Module
    """See :func:`wae.training.original.open_original`."""
    data: str | Path | tuple[InMemory, InMemory]
    """See :func:`wae.data.loading.open_dataset`; or images to train on and to test, in memory."""
    folder: Path
    """Of the results."""
    weights: str | None = None
    plan: Plan | None = None
    """None for one that fits the number of images."""
    epochs: int | None = None
    """Of the longest stage; the others' keep their share."""
    learning_rate: float | None = None
    batch: int | None = None
    seed: int = 0
    start: str = "included"
    """The auto-encoder to begin with: ``included``, ``linear`` (fitted to the images), or a file."""
    compare: bool = False
    """Train, deploy and report the rivals too: see :mod:`wae.experiments.rivals`."""
    mimic: float | None = None
    """How much the distance to the original's scores counts; None for 0 or 1, by a trial."""
    mimic_mirrored: bool = False
    """Whether the original, where it teaches, sees the mirror images too: see :class:`Stage`."""
    size: int | None = None
    """Of the accelerated network's images; None for the original's."""
    factor: int = 4
    """Of the light body."""
    target: float | None = None
    """How many times faster than the original in the same engine: chooses ``size`` and ``factor``."""
    target_ms: float | None = None
    """Milliseconds of a call, instead of ``target``."""
    precision: str = "auto"
    engine: str = "auto"
    images: int = 1
    """In a call of the deployed network."""
    max_drop: float = 0.01
    """Of accuracy, that a precision may cost."""
    input_size: int | None = None
    """Of the original's images; this and the next three: None for its library's, else ImageNet's."""
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    """Of red, green and blue, 0..1, as the original takes them."""
    std: tuple[float, float, float] | None = None
    on_corrupt: OnCorrupt = "error"
    max_pixels: int = MAX_PIXELS
    workers: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if self.target is not None and self.target_ms is not None:
            raise AccelerationError("target and target_ms: give one of them")
        for name in ("target", "target_ms", "mimic", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e6:
                raise AccelerationError(f"{name} must be a number of 0 or more, got {value!r}")
        for name, known in (("engine", ("auto", *ENGINES)), ("precision", ("auto", *NAMES))):
            if getattr(self, name) not in known:
                raise AccelerationError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.plan is not None:
            self.plan.only("classifier", "joint")  # what has labels: there is something to test
        if self.mimic_mirrored and self.asked_mimic == 0:
            raise AccelerationError("mimic_mirrored needs a mimic above 0, got 0: nobody teaches")
        if not 0 <= self.max_drop <= 1:
            raise AccelerationError(f"max_drop must be a number from 0 to 1, got {self.max_drop!r}")
        for name, least in (("mean", -1e6), ("std", 1e-6)):
            value = getattr(self, name)
            if value is not None and not all(least <= x <= 1e6 for x in value):  # NaN neither
                raise AccelerationError(f"{name} must be numbers from {least:g} to 1e+06, got {value!r}")
        for name in ("images", "epochs", "batch"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise AccelerationError(f"{name} must be 1 or more, got {value!r}")

    @property
    def asked_mimic(self) -> float | None:
        """``mimic``, or the largest of the plan's stages; None for a trial's."""
        if self.mimic is None and self.plan is not None:
            return max(stage.mimic_weight for stage in self.plan.stages)
        return self.mimic

    def files(self) -> dict[str, Path]:
        """The files to begin with, by the options that name them."""
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
        return {**entries, "plan": None if self.plan is None else self.plan.as_dict()}


_DEFAULTS = Settings("", "", Path()).as_dict()
"""A setting that there was not yet, when a folder was begun, had its default."""


class Sets(NamedTuple):
    """The images in the size of a network."""

    training: ImageFolder | Shards | InMemory
    """Augmented."""
    plain: ImageFolder | Shards | InMemory
    """The same images as for a test."""
    test: ImageFolder | Shards | InMemory


class _Side(NamedTuple):
    """A network, with the images that are of its size, and its fastest form."""

    network: nn.Module
    data: Sets
    deployed: Deployed


@dataclass
class _Record:
    """The results so far, on disk after each step; the same in all processes."""

    path: Path
    settings: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """The result of ``find``, which is called once; later calls and runs read it from the record."""
        if name not in self.found:
            self.found[name] = json.loads(json.dumps(find()))
            self.write()
        return self.found[name]

    def write(self) -> None:
        if is_first():
            with written(self.path, force=True) as file:
                file.write(json.dumps({"settings": self.settings, "found": self.found}, indent=1).encode())


Loader = Iterable[tuple[Tensor, Tensor]]
"""Images, (N, 3, H, W) uint8, and labels, (N,) int64: a DataLoader, say."""


def accelerate(
    model: str | nn.Module,
    data: str | Path | tuple[Loader, Loader],
    folder: str | Path,
    *,
    force: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Path:
    """Make a trained classifier faster; what comes of it is in ``folder``. Called again, it goes on.

    Args:
        model: the network itself, or its name: see :func:`wae.training.original.open_original`.
        data: a folder with train/CLASS/IMAGE and val/CLASS/IMAGE; or two loaders, of the images to train on
            and of those to test with, which are held in memory: uint8, in the network's size, not normalised.
        folder: of the results.
        force: begin anew: what an acceleration left in the folder is removed.
        console: where it says how far it is; None for standard output.
        options: entries of :class:`Settings`.

    Returns the path of the checkpoint. Raises as :func:`run`.
    """
    held = _in_memory(*data) if isinstance(data, tuple) else data
    settings = Settings(model, held, Path(folder), **options)
    return run(settings, console or Console(), force)


def _in_memory(training: Loader, test: Loader) -> tuple[InMemory, InMemory]:
    """What the loaders give, of the same classes: those that either has. Raises DatasetError."""
    read = [tuple(map(torch.cat, zip(*loader, strict=True))) for loader in (training, test)]
    if not all(read):
        raise DatasetError("data: a loader must give images and labels, got one that gives nothing")
    classes = [str(number) for number in range(1 + max(int(labels.max()) for _, labels in read))]
    one, other = (InMemory(images, labels, classes, False, 0) for images, labels in read)
    return one, other


def run(settings: Settings, console: Console, force: bool = False) -> Path:
    """Make the network faster, and return the path of its checkpoint. Called again, it goes on.

    Under torchrun all processes train, and the first does the rest.

    Args:
        settings: see there.
        console: where it says how far it is.
        force: begin anew: what an acceleration left in the folder is removed.

    Raises:
        FileExistsError: the folder holds something else, or a file to begin with.
        CheckpointError: a file of weights cannot be used, or the folder is that of other settings.
        DatasetError, ImageError, ClassError: the data cannot be used, or its classes are others.
        TrainingError: the loss is no longer a number.
        EngineError, DisagreementError: no engine runs the network, or none within ``max_drop``.
        ValueError: the network cannot be accelerated.
    """
    refuse_within(settings.folder, settings.files())
    with ExitStack() as folder:
        with joined(settings.device) as device:
            steps, first = _Acceleration(settings, console, device), is_first()
            if first:
                folder.enter_context(_alone(settings.folder))
                if force:
                    _clear(settings.folder)
            record = steps.train()
        if first:  # the others are done: nothing below waits for them
            steps.finish(record)
    return settings.folder / MODEL


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is no folder")
    with alone_in(folder):
        yield


def _clear(folder: Path) -> None:
    """Remove what an acceleration left, the record last; what is not one's stays."""
    if not (folder / RECORD).exists():
        return
    for name in (TENSORBOARD, TRIALS, DEPLOYED, RIVALS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (STATE, MODEL, ORIGINAL, PLAN, LOG, ONNX, *acceleration_report.FILES, RECORD):
        (folder / name).unlink(missing_ok=True)


class _Acceleration:
    """One run: what is checked at its beginning, and the steps."""

    def __init__(self, settings: Settings, console: Console, device: torch.device) -> None:
        self.settings, self.console, self.device = settings, console, device
        _check_engine(settings, device)
        self._opened_sets: dict[int, Sets] = {}
        classes = len(self._opened(None)[0].labels)
        self.original = _overridden(open_original(settings.model, settings.weights, classes), settings)
        self.new_head = ""
        self._match_classes(self._opened(None)[0].labels)
        self.form = Form(settings.size or self.original.input.size, settings.factor)
        self.stock = self.original.classifier()
        self.sets = self._sets(self.form)
        self._network(self.form)  # what cannot be built, or does not take the images, is found out first
        if ":" not in self._name():  # nor loaded again by its name
            on_meta(lambda: build(self._name(), self.original.classes, self.form))
        with torch.no_grad():
            self.stock(_readable(self._sets(Form(self.original.input.size)).test, 1))

    def _match_classes(self, labels: tuple[str, ...]) -> None:
        """The order of the classes. Where the original has others it gets a new head, with random weights."""
        original = self.original
        try:
            self.order = class_order(original.name, original.labels, original.classes, labels)
        except ClassError as error:
            self.new_head = f"{error}: it gets a new head, which is trained first"
            torch.manual_seed(self.settings.seed)
            network, head = with_classes(original.network, len(labels), (original.input.size,) * 2)
            for parameter in network.parameters():
                parameter.requires_grad_(False)
            for parameter in head.parameters():
                parameter.requires_grad_(True)
            self.original = replace(original, network=network.eval(), classes=len(labels), labels=labels)
            self.order = class_order(original.name, labels, len(labels), labels)

    # ---------------------------------------------------------------------------------------- data, networks

    def _opened(self, input: Input | None) -> tuple[Any, Any, Any]:
        s = self.settings
        if isinstance(s.data, tuple):
            training, test = s.data
            plain = training.subset(range(len(training)))
            plain.augment = False
            return training, plain, test
        kinds = ((True, True), (True, False), (False, False))
        found = [
            open_dataset(s.data, train, augment, s.seed, input, s.on_corrupt, s.max_pixels)
            for train, augment in kinds
        ]
        if isinstance(found[0], SegmentationFolder):
            raise AccelerationError(f"{s.data}: has classes of pixels; classifiers alone are accelerated")
        return tuple(found)  # type: ignore[return-value]

    def _sets(self, form: Form) -> Sets:
        """The images for a network of this form, their classes in the original's order."""
        if form.size not in self._opened_sets:
            self._opened_sets[form.size] = self._new_sets(form)
        return self._opened_sets[form.size]

    def _new_sets(self, form: Form) -> Sets:
        found = self._opened(self.original.input.of_size(form.size))
        sets = Sets(*(data.renumbered(self.order.numbers) for data in found))
        for data in sets:
            if isinstance(data, InMemory) and set(data.images.shape[2:]) != {form.size}:
                height, width = data.images.shape[2:]
                raise DatasetError(
                    f"images of {height} x {width} are not of the network's {form.size}: see size"
                )
        return sets

    def _network(self, form: Form) -> WAEClassifier:
        """The network to begin with."""
        start = self.settings.start
        torch.manual_seed(self.settings.seed)
        model = accelerated(self.original.network, form).cpu().requires_grad_(True)  # what was frozen too
        plain = self._sets(form).plain
        sample = _readable(plain, _SAMPLE)
        scale, shift = self.stock.image_scale.cpu(), self.stock.image_shift.cpu()
        if start == "linear":
            start_as_small_image(model, sample, scale, shift)
        else:
            load_autoencoder(
                model, WEIGHTS / "autoencoder.safetensors" if start == "included" else Path(start)
            )
            show_small_image(model, sample, scale, shift)
        return model

    def _plan(self, images: int, mimic: float) -> Plan:
        s = self.settings
        plan = s.plan or acceleration_plan(images, self._name(), mimic)
        if s.plan is not None:
            stages_given = plan.stages
            if s.mimic is not None:
                stages_given = tuple(_mimicking(stage, mimic) for stage in plan.stages)
            plan = replace(plan, model=self._name(), stages=stages_given, start="random")
        if s.mimic_mirrored:
            plan = replace(plan, stages=tuple(replace(stage, mimic_mirrored=True) for stage in plan.stages))
        longest = max(stage.epochs for stage in plan.stages)
        stages = [
            replace(
                stage,
                epochs=max(1, round(stage.epochs * (s.epochs or longest) / longest)),
                learning_rate=stage.learning_rate if s.learning_rate is None else s.learning_rate,
            )
            for stage in plan.stages
        ]
        batch = s.batch or min(plan.batch, images)
        shared = processes() if s.batch is None else 1  # what a user asks for is checked by the training
        return replace(plan, stages=tuple(stages), batch=batch - batch % shared or batch, seed=s.seed)

    def _described(self) -> tuple[str, tuple[str, ...], Input]:
        """In the checkpoint: the network's name, the classes' names, and what an image becomes."""
        return self._name(), self.sets.test.labels, self.original.input.of_size(self.form.size)

    def _name(self) -> str:
        """In the checkpoint."""
        name = self.original.name
        return name if ":" in name else f"wae_{name}"

    # ------------------------------------------------------------------------------------------------ steps

    def train(self) -> _Record:
        """Measure the original, choose what is to be chosen, and train: in all processes."""
        settings = self.settings
        record = self._record()
        if is_first() and "training" not in record.found:
            model = self._network(self.form)
            rehearse(settings.folder, model, *self._described(), self.form, self.original.network)
        self._say(f"{self.original.name}: {counted(len(self.sets.training), 'image')} to train on, "
                  f"{len(self.sets.test):,} to test, {counted(self.original.classes, 'class')}")  # fmt: skip
        if self.new_head:
            self._say(self.new_head)
            record.once("head", self._train_head)
            self._forget("head")
            weights_file.load(settings.folder / ORIGINAL, self.original.network)
        found = record.once("original", self._measure_original)
        self._say(f"the original's top-1 accuracy: {100 * found['accuracy']:.2f} %")
        if settings.target is not None or settings.target_ms is not None:
            chosen = record.once("target", lambda: self._meet_target(record))
            self.form = Form(**chosen["form"])
            self.sets = self._sets(self.form)
            self._say(
                f"images of {self.form.size}, the light body's factor {self.form.factor}: {chosen['why']}"
            )
        mimic = settings.asked_mimic
        if mimic is None:
            mimic = record.once("mimic", lambda: self._try_mimic(record))["weight"]
        record.once("training", lambda: self._train(mimic))
        if is_first():  # only now: until it is on the record, a stopped run goes on from there
            (settings.folder / STATE).unlink(missing_ok=True)
        for name in rivals.NAMES if settings.compare else ():
            record.once(f"rival: {name}", partial(self._train_rival, name, mimic, record))
            self._forget(name)
        return record

    def finish(self, record: _Record) -> None:
        """Deploy, export and report what was trained."""
        folder, model = self.settings.folder, self._trained()
        with bar("deploying, and measuring times", None):
            record.once("deployed", lambda: self._deploy(model, record))
        record.once("onnx", lambda: self._export(model))
        images = _readable(self.sets.test, SHOWN)
        parts = shown(model, images)
        acceleration_report.write(folder, self.original.name, record.found, parts)
        for path in (MODEL, DEPLOYED, ONNX, "report.html"):
            if (folder / path).exists():
                self._say(f"{folder / path}")
        self._say(acceleration_report.summary(record.found))

    def _record(self) -> _Record:
        """The folder's, after a check that it is this run's; or a new one."""
        path = self.settings.folder / RECORD
        sets = self._sets(Form(self.original.input.size))
        settings = json.loads(json.dumps({
            **self.settings.as_dict(),
            "name": self.original.name,
            "sources": dict(self.original.sources),
            "data": fingerprint(sets.plain),
            "test data": fingerprint(sets.test),
        }))  # fmt: skip
        if self.settings.start not in ("included", "linear"):
            settings["start"] = sha256(Path(self.settings.start))
        record = _Record(path, settings)
        entries = {entry.name for entry in self.settings.folder.glob("[!.]*")} if is_first() else set()
        if agreed(path.exists()):
            try:
                made: Any = agreed(json.loads(path.read_bytes()) if is_first() else None)
                known_later = {**_DEFAULTS, "test data": settings["test data"]}
                before, record.found = {**known_later, **made["settings"]}, dict(made["found"])
            except (ValueError, LookupError, TypeError):
                raise CheckpointError(f"{path}: is damaged; --force begins anew") from None
            if different := ", ".join(changed(before, settings)):
                raise CheckpointError(
                    f"{self.settings.folder}: was begun with another {different}; --force begins anew"
                )
        elif entries:
            raise FileExistsError(f"{self.settings.folder} is not empty, and holds no acceleration; "
                                  "name another folder")  # fmt: skip
        else:
            record.write()
        return record

    def _say(self, line: str) -> None:
        if line and is_first():
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _measure_original(self) -> dict[str, Any]:
        data = self._sets(Form(self.original.input.size)).test
        batch = 2 * self._plan(len(self.sets.training), 0.0).batch
        stock = self.stock.to(self.device)
        with bar("testing the original", len(data), is_first()) as advance:
            accuracy = evaluate(stock, data, batch, self.device, self.settings.workers, advance=advance)
        assert isinstance(accuracy, Accuracy)  # classifiers alone are accelerated
        size = (self.original.input.size,) * 2
        return {
            "accuracy": accuracy.score,
            "top5": accuracy.top5,
            "multiply_adds": count(stock, size).multiply_adds,
            "classes": _by_class(stock, data, batch, self.device),
            "labels": list(data.labels),
            "size": self.original.input.size,
        }

    def _train_head(self) -> dict[str, Any]:
        """Train the original's new head alone; the network is kept in the folder."""
        sets = self._sets(Form(self.original.input.size))
        images = len(sets.training)
        *_, joint = acceleration_plan(images, self._name()).stages
        stage = replace(joint, kind="classifier", learning_rate=_HEAD_RATE)
        plan = Plan(self._name(), (stage,), self._plan(images, 0.0).batch, seed=self.settings.seed)
        history = self._fit("head", self.stock, plan, sets.training, sets.test)
        self.stock.cpu().eval()
        if is_first():
            path = self.settings.folder / ORIGINAL
            weights_file.save(path, self.original.network, {"plan": plan.as_dict()}, force=True)
        return agreed({"epochs": len(history)})  # the others wait for the file

    def _trial(self, record: _Record, form: Form, mimic: float) -> float:
        """The accuracy on kept-aside training images after a short training on the others."""
        name = f"size {form.size}, factor {form.factor}, mimic {mimic:g}"

        def find() -> float:
            sets = self._sets(form)
            kept = range(0, len(sets.plain), _KEPT)
            rest = [number for number in range(len(sets.plain)) if number % _KEPT]
            plan = self._plan(len(rest), mimic)
            stages = (replace(stage, epochs=max(1, round(stage.epochs / _TRIAL))) for stage in plan.stages)
            plan = replace(plan, stages=tuple(stages))
            training, test = sets.training.subset(rest), sets.plain.subset(kept)
            teacher = self._teacher(form) if mimic else None
            history = self._fit(name, self._network(form), plan, training, test, teacher)
            assert history[-1].accuracy is not None
            return history[-1].accuracy.score

        accuracy: float = record.once(f"trial: {name}", find)
        self._forget(name)
        self._say(f"trial, {name}: {100 * accuracy:.2f} % of the images kept aside")
        return accuracy

    def _fit(
        self,
        name: str,
        model: nn.Module,
        plan: Plan,
        training: Dataset,
        test: Dataset,
        teacher: nn.Module | None = None,
    ) -> list[Epoch]:
        """Train. A stopped run goes on from the checkpoint called ``name``, until that is forgotten."""
        state = self._checkpoint(name)
        if is_first():
            state.parent.mkdir(exist_ok=True)
        with self._terminal() as observer:
            return train(
                model,
                plan,
                training,
                test,
                state=state,
                resume=agreed(state.exists()),
                teacher=teacher,
                observer=observer,
                workers=self.settings.workers,
                device=self.device,
            )

    def _checkpoint(self, name: str) -> Path:
        return self.settings.folder / TRIALS / f"{name}.safetensors"

    def _forget(self, name: str) -> None:
        """Remove the checkpoint of a training that is on the record."""
        if is_first():
            self._checkpoint(name).unlink(missing_ok=True)

    @contextmanager
    def _terminal(self) -> Iterator[Observer]:
        if not is_first():
            yield Observer()
            return
        with Terminal(self.console) as observer:
            yield observer

    def _try_mimic(self, record: _Record) -> dict[str, Any]:
        accuracies = {weight: self._trial(record, self.form, weight) for weight in (0.0, _MIMIC)}
        best = max(accuracies, key=lambda weight: accuracies[weight])
        return {"weight": best, "accuracies": {str(weight): x for weight, x in accuracies.items()}}

    def _teacher(self, form: Form) -> nn.Module:
        stock = self.original.classifier()
        side = self.original.input.size
        return (
            stock
            if form.size == side
            else AtSize(stock.network, side, stock.image_scale.tolist(), stock.image_shift.tolist())
        )

    def _train(self, mimic: float) -> dict[str, Any]:
        folder, state = self.settings.folder, self.settings.folder / STATE
        plan = self._plan(len(self.sets.training), mimic)
        model = self._network(self.form)
        self._say(getattr(model.high_body, "reason", ""))
        images = _readable(self.sets.test, SHOWN)
        with observed(folder, self.console, images) as observer:
            history = train(
                model,
                plan,
                self.sets.training,
                self.sets.test,
                state=state,
                resume=agreed(state.exists()),
                teacher=self._teacher(self.form) if mimic else None,
                observer=observer,
                workers=self.settings.workers,
                device=self.device,
            )
        accuracy = history[-1].accuracy
        assert isinstance(accuracy, Accuracy)
        if is_first():
            made = {"plan": plan.as_dict(), "accuracy": accuracy}
            save_classifier(folder / MODEL, model.cpu(), *self._described(), made, force=True, form=self.form)
        return {
            "accuracy": accuracy.score,
            "top5": accuracy.top5,
            "seconds": sum(epoch.seconds for epoch in history),
            "mimic": mimic,
            "size": self.form.size,
            "factor": self.form.factor,
            "high body": getattr(model.high_body, "reason", f"1/{self.form.factor} of the channels"),
        }

    def _train_rival(self, name: str, mimic: float, record: _Record) -> dict[str, Any]:
        """Train a rival as long as the accelerated network, at the same rates; or why there is none."""
        found = record.once(f"chosen: {name}", lambda: agreed(self._find_rival(name) if is_first() else {}))
        if "left out" in found:
            return dict(found)
        sets = self._sets(Form(self.original.input.size))
        model = self._rival(name, found)
        plan = self._plan(len(sets.training), mimic).without_encoder()
        self._say(f"the rival: {name}")
        teacher = self.original.classifier() if mimic else None
        history = self._fit(name, model, plan, sets.training, sets.test, teacher)
        assert history[-1].accuracy is not None
        if is_first():
            path = self.settings.folder / RIVALS / f"{name}.safetensors"
            weights_file.save(path, model.cpu(), {"plan": plan.as_dict()}, force=True)
        return {**found, "accuracy": history[-1].accuracy.score}

    def _find_rival(self, name: str) -> dict[str, Any]:
        """See :func:`wae.experiments.rivals.find`; or the reason why there is no such rival."""
        model = fold_normalization(self._trained())
        size = self.original.input.size
        images, ours = (
            _readable(sets.test, 1).repeat(self.settings.images, 1, 1, 1).to(self.device)
            for sets in (self._sets(Form(size)), self.sets)
        )

        def share_of_time(network: nn.Module) -> float:
            calls = {
                "ours": _without_gradients(model, ours),
                "other": _without_gradients(network.to(self.device), images),
            }
            times = interleaved(calls, _SECONDS / 3, synchronize=self._synchronize())
            return times["other"].median / times["ours"].median

        multiply_adds = count(model, (self.form.size,) * 2).multiply_adds
        try:
            return rivals.find(name, self._stock(), size, multiply_adds, self._batches(), share_of_time)
        except Exception as error:  # Torch-Pruning raises what it likes for what it does not know
            return {"left out": first_line(error)}

    def _stock(self) -> FullResolution:
        """A copy of the original that shares nothing."""
        return copy.deepcopy(self.original.classifier()).cpu().requires_grad_(True)

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        """Training images, for the gradients that pruning goes by."""
        plain = self._sets(Form(self.original.input.size)).plain
        return [plain.batch(spread(len(plain), _SAMPLE).tolist(), 0)]

    def _rival(self, name: str, found: Mapping[str, Any]) -> FullResolution:
        return rivals.build(name, found, self._stock(), self._batches())

    def _trained(self) -> WAEClassifier:
        model = load_classifier(self.settings.folder / MODEL, self.original.network)
        assert isinstance(model, WAEClassifier)
        return model.to(self.device)

    # ----------------------------------------------------------------------------------- deployed, exported

    def _deployed(self, model: nn.Module, data: Sets) -> Deployed:
        s = self.settings
        size = (data.test.batch([0], 0)[0].shape[2],) * 2
        readable = _readable(data.plain, 2 * _CALIBRATED)
        images = min(_CALIBRATED, len(readable) // 2)
        return deploy(
            model, size, s.images, s.engine, precision=s.precision, calibration=data.plain,
            calibration_images=images, max_drop=s.max_drop, seconds=_SECONDS,
        )  # fmt: skip

    def _sides(self, model: WAEClassifier, record: _Record) -> dict[str, _Side]:
        """Each network in its fastest form; a rival that no engine runs is left out, on the record too."""
        full = self._sets(Form(self.original.input.size))
        stock = self.stock.to(self.device)
        sides = {
            "original": _Side(stock, full, self._deployed(stock, full)),
            "accelerated": _Side(model, self.sets, self._deployed(model, self.sets)),
        }
        for name in rivals.NAMES:
            found = record.found.get(f"rival: {name}", {"left out": ""})
            if "left out" in found:
                continue
            rival = self._rival(name, found)
            weights_file.load(self.settings.folder / RIVALS / f"{name}.safetensors", rival)
            rival = rival.eval().to(self.device)
            try:
                sides[name] = _Side(rival, full, self._deployed(rival, full))
            except (EngineError, DisagreementError) as error:
                found["left out"] = first_line(error)
        return sides

    def _timed_sides(self, sides: Mapping[str, _Side]) -> Mapping[str, Timing]:
        """The times of a call of each, in PyTorch and deployed, in turns."""
        calls: dict[str, Callable[[], Tensor]] = {}
        for name, side in sides.items():
            images = _readable(side.data.test, 1).repeat(self.settings.images, 1, 1, 1).to(self.device)
            calls[f"{name}, PyTorch"] = _without_gradients(side.network, images)
            calls[f"{name}, deployed"] = _without_gradients(side.deployed, images)
        return interleaved(calls, _SECONDS, settle=1, synchronize=self._synchronize())

    def _deploy(self, model: WAEClassifier, record: _Record) -> dict[str, Any]:
        """All networks in their fastest forms, timed in turns; the new one saved."""
        sides = self._sides(model, record)
        times = self._timed_sides(sides)
        found: dict[str, Any] = {"images": self.settings.images}
        for name, (network, data, deployed) in sides.items():
            size = data.test.batch([0], 0)[0].shape[2:]
            found[name] = {
                "engine": deployed.engine,
                "precision": deployed.precision,
                "accuracy": evaluate(_Filled(deployed), data.test, _AT_ONCE, self.device).score,
                "seconds": times[f"{name}, deployed"].median,
                "eager seconds": times[f"{name}, PyTorch"].median,
                "drop": deployed.report["drop"],
                "multiply_adds": count(network, size).multiply_adds,
            }
        deployed = sides["accelerated"].deployed
        found["accelerated"]["classes"] = _by_class(_Filled(deployed), self.sets.test, _AT_ONCE, self.device)
        try:
            deployed.save(self.settings.folder / DEPLOYED, force=True)
        except EngineError as error:  # as all on GPUs
            found["accelerated"]["not saved"] = first_line(error)
        return found

    def _synchronize(self) -> Callable[[], None]:
        return torch.cuda.synchronize if self.device.type == "cuda" else lambda: None

    def _export(self, model: WAEClassifier) -> dict[str, Any]:
        """The ONNX file, or why there is none."""
        try:
            report = export(
                model.cpu(), self.settings.folder / ONNX, "onnx", (self.form.size,) * 2, force=True
            )
        except (EngineError, DisagreementError) as error:
            return {"not written": first_line(error)}
        finally:
            model.to(self.device)
        return {"difference": report["difference"]}

    # -------------------------------------------------------------------------------------------- the target

    def _meet_target(self, record: _Record) -> dict[str, Any]:
        """The form that meets the target with the least loss: measured times, then trials of a few."""
        with bar("measuring times", None, is_first()):
            times = record.once("times", self._measure_forms)
        if not times["curve"]:
            raise AccelerationError(
                f"target: needs a form that takes these images and runs in {times['engine']}, got none"
            )
        s = self.settings
        allowed = s.target_ms / 1e3 if s.target_ms is not None else times["original"] / (s.target or 1.0)
        curve = [entry for entry in times["curve"] if entry["seconds"] <= allowed]
        if not curve:
            fastest = min(times["curve"], key=lambda entry: entry["seconds"])
            raise AccelerationError(
                f"target: needs at most {1e3 * allowed:.2f} ms, the fastest form that was measured takes "
                f"{1e3 * fastest['seconds']:.2f} ms (images of {fastest['size']}, factor {fastest['factor']})"
            )
        mimic = s.asked_mimic or 0.0
        # of those that meet it the slowest have the most to compute with
        tried = sorted(curve, key=lambda entry: -entry["seconds"])[:_TRIED]
        for entry in tried:
            entry["kept"] = self._trial(record, Form(entry["size"], entry["factor"]), mimic)
        best = max(tried, key=lambda entry: entry["kept"])
        trial = f"{100 * best['kept']:.2f} % in a trial, the best of {len(tried)}"
        return {
            "form": {"size": best["size"], "factor": best["factor"]},
            "why": f"{1e3 * best['seconds']:.2f} ms, {trial}",
            "allowed": allowed,
            "original": times["original"],
            "curve": times["curve"],
        }

    def _measure_forms(self) -> dict[str, Any]:
        """The time of a call of the original and of each form, in one engine and precision, in turns."""
        return agreed(self._timed_forms() if is_first() else {})

    def _timed_forms(self) -> dict[str, Any]:
        side, s = self.original.input.size, self.settings
        sizes = sorted({max(_STEP, round(side * scale / _STEP) * _STEP) for scale in _SCALES}, reverse=True)
        first = self._deployed(self._network(self.form).eval().to(self.device), self.sets)
        precision = first.precision if first.precision in DTYPES else "float32"  # int8 needs images for each
        options = {"engine": first.engine, "precision": precision, "batch": s.images}
        forms: dict[str, Form] = {}
        calls: dict[str, Callable[[], Tensor]] = {}
        for form in (Form(size, factor) for size in sizes for factor in _FACTORS):
            name = f"{form.size} {form.factor}"
            try:
                model = self._network(form).eval().to(self.device)
                calls[name] = self._timed(model, form.size, options)
            except (ValueError, EngineError, DisagreementError):
                continue  # images in memory have one size, positions theirs, and engines what they run
            forms[name] = form
        calls["original"] = self._timed(self.stock.to(self.device), side, options)
        times = interleaved(calls, _SECONDS * 2, settle=1, synchronize=self._synchronize())
        curve = [
            {"size": form.size, "factor": form.factor, "seconds": times[name].median}
            for name, form in forms.items()
        ]
        return {"original": times["original"].median, "engine": first.engine, "curve": curve}

    def _timed(self, model: nn.Module, side: int, options: Mapping[str, Any]) -> Callable[[], Tensor]:
        deployed = deploy(model, (side, side), **options)
        images = torch.zeros(options["batch"], 3, side, side, dtype=torch.uint8, device=self.device)
        return lambda: deployed(images)


def _check_engine(settings: Settings, device: torch.device) -> None:
    """Raise AccelerationError where no engine that may be taken can run here, or in this precision."""
    engines = ENGINES.values() if settings.engine == "auto" else [ENGINES[settings.engine]]
    wanted = None if settings.precision == "auto" else settings.precision
    reasons = [engine.why_not(device, wanted) for engine in engines]
    if None not in reasons:
        raise AccelerationError(f"engine: {'; '.join(map(str, reasons))}")


def _overridden(original: Original, settings: Settings) -> Original:
    """``original`` with the preprocessing that the settings ask for."""
    input = original.input.of_size(settings.input_size or original.input.size)
    input = replace(input, interpolation=settings.interpolation or input.interpolation)
    return replace(
        original, input=input, mean=settings.mean or original.mean, std=settings.std or original.std
    )


class _Filled(nn.Module):
    """A deployed network as a module that takes any number of images."""

    def __init__(self, deployed: Deployed) -> None:
        super().__init__()
        self.forward = in_turns(deployed, deployed.batch)


def _readable(data: ImageFolder | Shards | InMemory, count: int) -> Tensor:
    """``count`` images, or fewer, from all over ``data``; files that cannot be read may be left out.

    Raises DatasetError where all that were tried are left out.
    """
    tried = spread(len(data), max(count, _SAMPLE))
    images = data.batch(tried.tolist(), 0)[0]
    if not len(images):
        raise DatasetError(f"none of {len(tried)} images that were tried can be read")
    return images[spread(len(images), count)]


def _mimicking(stage: Stage, weight: float) -> Stage:
    return stage if stage.kind == "transform" else replace(stage, mimic_weight=weight)


def _without_gradients(network: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return network(images)

    return call


@torch.no_grad()
def _by_class(
    model: nn.Module, data: ImageFolder | Shards | InMemory, batch: int, device: torch.device
) -> list[dict[str, int]]:
    """For each class of ``data`` its images, and those of them that are classified rightly."""
    right, of = (torch.zeros(len(data.labels), dtype=torch.int64) for _ in range(2))
    model.eval()
    for images, labels in batches(data, batch, 0, 0, False):
        if len(labels):
            found = model(images.to(device)).argmax(1).cpu()
            of += torch.bincount(labels, minlength=len(of))
            right += torch.bincount(labels[found == labels], minlength=len(of))
    return [{"right": int(a), "of": int(b)} for a, b in zip(right, of, strict=True)]
