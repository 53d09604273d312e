"""One training from start to end: the network by name, the data, and the folder of the results.

::

    folder/plan.toml            the plan, with which the training can be repeated
          /state.safetensors    the checkpoint to resume from: the start, replaced after every epoch
          /log.jsonl            one line per epoch
          /tensorboard/         curves and images, if tensorboard is installed
          /model.safetensors    the trained network, when all stages are done
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from wae.data.classes import class_order
from wae.data.dataset import Dataset, InMemory, sample
from wae.data.image_files import ImageFiles, OnCorrupt, left_out_of
from wae.data.images import MAX_PIXELS
from wae.data.loading import open_dataset
from wae.data.segmentation import SegmentationFolder
from wae.errors import UsageError
from wae.models.baselines import FullResolution
from wae.models.network import WAENetwork
from wae.models.registry import PARTS, NetworkError, build, check_known
from wae.progress import say
from wae.storage.checkpoint import Input, describe, load_classifier, save_classifier
from wae.storage.files import no_file, refuse_within, sha256, write
from wae.storage.weights_file import CheckpointError
from wae_kernels.nn import Decoder, Encoder

from . import pretrained
from .accuracy import check_kind
from .fine_tuning import initialise_from_original, read_original
from .lock import alone_in
from .objective import InOrder, OnLuma
from .observers import JsonLines, TensorBoard, Terminal, Together, table
from .plan import Plan
from .processes import broadcast, is_first, joined
from .rehearsal import accepted_sizes, rehearse, try_out, try_training
from .state import Epoch, OtherPlanError
from .trainer import Observer, train

STATE, MODEL, PLAN, LOG, TENSORBOARD = (
    "state.safetensors", "model.safetensors", "plan.toml", "log.jsonl", "tensorboard",
)  # fmt: skip
_IMAGES = 8  # shown in TensorBoard
_NO_TENSORBOARD = 'no TensorBoard files: it is not installed (pip install "wae-kernels[tensorboard]")'

Show = Callable[[Plan, Sequence[Epoch]], None]
"""Called with the plan and all epochs."""


@dataclass(frozen=True)
class Session:
    """A training's network, data, initial weights and folder."""

    plan: Plan
    data: str
    """See :func:`wae.data.loading.open_dataset`."""
    folder: Path
    """The folder of the results."""
    size: int | tuple[int, int] | None = None
    """The size of the images in pixels: see :func:`wae.data.loading.open_dataset`."""
    on_corrupt: OnCorrupt = "error"
    max_pixels: int = MAX_PIXELS
    """The limit for an image file: see :func:`wae.data.images.read_image`."""
    weights: Path | None = None
    """A checkpoint of the same network to start from."""
    body_weights: str | None = None
    """The source of the standard body's weights: see :func:`wae.training.pretrained.load_body`."""
    autoencoder: Path | None = None
    """Trained encoder and decoder to start from."""
    original: Path | None = None
    """A checkpoint of the same segmentation network at full resolution to start from. It is also the teacher
    if no other is given. See :func:`wae.training.fine_tuning.fine_tuning_plan` for the plan."""
    teacher: Path | None = None
    """A checkpoint of a network to distil from, for stages with a ``mimic_weight``."""
    resume: bool = False
    """Resume the training in ``folder`` if there is one."""
    force: bool = False
    """Replace the files in ``folder``, each one only when the new one is complete."""
    workers: int = 0
    """Processes that load data."""
    device: str | None = None
    """See :func:`wae.training.processes.joined`."""

    @property
    def state(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / STATE

    def run(self, console: Console, show: Show | None = None) -> Path:
        """Train, and return the path of the trained network.

        Before the first epoch the network is saved and loaded once, as it will be at the end.

        Args:
            console: where the epochs are shown.
            show: called at the end, in the first process only; None prints a table on ``console``.

        Raises:
            FileExistsError: ``folder`` is not empty, and neither ``resume`` nor ``force`` is given; or a file
                to start from is in it.
            FolderInUseError: another training is writing to ``folder``.
            CheckpointError: a file of weights cannot be used, or ``folder`` holds another training.
            DatasetError, ImageError, ClassError: the data cannot be used.
            TrainingError: the loss is no longer finite, or too few images can be read.
            LostProcessError: another process has ended.
            UsageError: there is no such network or device, or the settings cannot be combined.
            ValueError: network, plan and data do not fit together.
        """
        if self.original is None:  # else its file says which networks there are
            check_known(self.plan.model)  # before all files of a large data set are listed
        with joined(self.device) as device, self._alone():
            resumes = broadcast(self.resume and self.state.exists())
            sets = self._in_order_of_weights(self._sets(console), console)
            images, _ = sample(sets[1], _IMAGES)
            input = _input(sets[1], images)
            if self.weights:
                _note(console, _other_input(str(self.weights), describe(self.weights).input, sets[1], input))
            plan, model = self._model(sets[0], input.shape, resumes)
            self._check_kinds(plan, sets[0])
            if isinstance(sets[0], SegmentationFolder) and any(stage.class_balance for stage in plan.stages):
                _note(console, sets[0].missing())
            if isinstance(model, WAENetwork):
                _note(console, getattr(getattr(model, model.bodies[1]), "reason", ""))
            try_out(model, plan.model, images)
            try_training(plan, len(sets[0].labels), images)
            teacher = self._teacher(images, sets[1], input, console)
            described = plan.model, sets[0].labels, input
            with observed(self.folder, console, images) as observer, self._plan_of_before():
                if is_first():
                    rehearse(self.folder, model, *described, images=images[:1])
                history = train(
                    model,
                    plan,
                    *sets,
                    state=self.state,
                    resume=resumes,
                    sources=self._sources(),
                    teacher=teacher,
                    observer=observer,
                    workers=self.workers,
                    device=device,
                )
            if is_first():
                made = {"plan": plan.as_dict(), "accuracy": history[-1].accuracy}
                save_classifier(self.folder / MODEL, model, *described, made, force=True)
                if show is None:
                    console.print(table(plan, history, len(sets[0].labels)))
                else:
                    show(plan, history)
        return self.folder / MODEL

    def _check_kinds(self, plan: Plan, data: Dataset) -> None:
        """Raise ValueError if the network or the teacher scores images but the data label pixels, or vice
        versa."""
        check_kind(plan.model, data)
        if self.teacher:
            check_kind(describe(self.teacher).network, data)

    @contextmanager
    def _plan_of_before(self) -> Iterator[None]:
        """In this block an error about the plan of the training in the folder says where that plan is."""
        try:
            yield
        except OtherPlanError as error:
            known = self.folder / PLAN
            if not known.exists():  # the training was killed before it wrote the plan
                raise
            way = f"with --plan {known}, and no other option that changes a plan, it resumes as it was begun"
            raise CheckpointError(f"{error}; {way}") from None

    def _check_folder(self) -> None:
        refuse_within(self.folder, self._files())
        names = {path.name for path in self.folder.glob("[!.]*")}  # the others are of killed trainings
        if self.force or not names:
            return
        if not self.resume:
            raise FileExistsError(
                f"{self.folder} is not empty; --resume continues the training in it, --force replaces it"
            )
        if not names & {PLAN, STATE}:
            raise CheckpointError(f"{self.folder}: is not empty, but holds no training to resume")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """In this block the first process, the only one that writes, has exclusive use of the folder."""
        if not is_first():
            yield
            return
        with alone_in(self.folder):
            self._check_folder()
            yield

    def _files(self) -> dict[str, Path]:
        """The files to start from, by the names of their options."""
        body = Path(self.body_weights) if self.body_weights else None
        given = {
            "--weights": self.weights,
            "--body-weights": None if self.body_weights == pretrained.TORCHVISION else body,
            "--autoencoder": self.autoencoder,
            "--original": self.original,
            "--teacher": self.teacher,
        }
        return {option: path for option, path in given.items() if path is not None}

    def _sources(self) -> dict[str, str]:
        """The settings besides plan and data that determine the outcome and must not change on resume."""
        for path in self._files().values():
            if why := no_file(path):
                raise CheckpointError(f"{path}: {why}")
        sources = {option: sha256(path) for option, path in self._files().items()}
        if self.body_weights == pretrained.TORCHVISION:
            sources["--body-weights"] = pretrained.TORCHVISION
        if self.on_corrupt != "error" and self.max_pixels != MAX_PIXELS:  # decides which images are left out
            sources["--max-pixels"] = str(self.max_pixels)
        return {**sources, "--on-corrupt": self.on_corrupt}

    def _sets(self, console: Console) -> list[Dataset]:
        """The images to train on and to test with, prepared alike, as for the original if there is one."""
        size: int | tuple[int, int] | Input | None = self.size
        if self.original:
            of_original = describe(self.original).input
            wanted = self.size or of_original.shape
            size = of_original.of_size((wanted, wanted) if isinstance(wanted, int) else wanted)
        training = self._data(True, size, console)
        size = training.input if isinstance(training, ImageFiles) else self.size
        return [training, self._data(False, size, console)]

    def _data(self, train: bool, size: int | tuple[int, int] | Input | None, console: Console) -> Dataset:
        data = open_dataset(self.data, train, train, self.plan.seed, size, self.on_corrupt, self.max_pixels)
        _note(console, left_out_of(data))
        return data

    def _in_order_of_weights(self, sets: list[Dataset], console: Console) -> list[Dataset]:
        """``sets`` with their classes in the order of the network in ``weights`` or ``original``."""
        source = self.weights or self.original
        if source is None:
            return sets
        described = describe(source)
        order = class_order(source, described.labels, described.classes, sets[0].labels)
        _note(console, order.note)
        return [data.renumbered(order.numbers) for data in sets]

    def _model(self, data: Dataset, size: tuple[int, int], resumes: bool) -> tuple[Plan, nn.Module]:
        """The plan adapted to the network; the network for images of ``size``.

        It has its initial weights unless it ``resumes``.
        """
        plan, classes = self.plan, len(data.labels)
        if plan.model in PARTS:
            raise UsageError(f"model: {plan.model} has no classes; wae train-autoencoder trains it")
        original = read_original(self.original, plan.model) if self.original else None
        torch.manual_seed(plan.seed)
        try:
            model = build(plan.model, classes, size=size)
        except NetworkError as error:
            if sizes := accepted_sizes(plan.model):
                raise ValueError(f"{error}{sizes}") from error
            raise
        if not (isinstance(model, WAENetwork) and isinstance(model.encoder, Encoder)):
            plan = plan.without_encoder(low=isinstance(model, WAENetwork))
        elif model.decoder is None:
            model.decoder = Decoder()
        pretrained.scale_for_photos(model)
        if self.weights or self.autoencoder or self.original:
            plan = replace(plan, start="random")  # a linear start would replace the weights loaded here
        elif self.body_weights and plan.start == "linear":
            plan = replace(plan, start="small_image")  # what the body was trained on
        if not resumes:
            self._load(model, plan.model, data, original)
        return plan, model

    def _load(self, model: nn.Module, name: str, data: Dataset, original: FullResolution | None) -> None:
        classes = len(data.labels)
        if original:
            initialise_from_original(model, original, data)
        if self.weights:
            pretrained.load_weights(model, name, classes, self.weights)
        if self.body_weights:
            pretrained.load_body(model, name, self.body_weights)
        if self.autoencoder:
            pretrained.load_autoencoder(model, self.autoencoder)

    def _teacher(self, images: Tensor, data: Dataset, input: Input, console: Console) -> nn.Module | None:
        """The teacher with its scores in the order of ``data``; None without one."""
        mimics = any(stage.mimic_weight for stage in self.plan.stages)
        path = self.teacher or (self.original if mimics else None)
        if path is None:
            if mimics:  # otherwise the error would come only when that stage begins
                raise UsageError("the plan has a mimic_weight, which needs a teacher (--teacher)")
            return None
        teacher, described = load_classifier(path), describe(path)
        scores = try_out(teacher, str(path), images)
        order = class_order(f"the teacher, {path}", described.labels, scores.shape[1], data.labels)
        if not scores.isfinite().all():
            raise ValueError(f"the teacher, {path}: its scores of the test images are not finite")
        if not mimics:
            raise UsageError("a teacher is given, but no stage of the plan has a mimic_weight")
        _note(console, order.note)
        grey = described.input.grayscale
        seen = replace(input, grayscale=grey or input.grayscale)
        _note(console, _other_input(f"the teacher, {path}", described.input, data, seen))
        return InOrder(OnLuma(teacher) if grey else teacher, order.numbers)


@contextmanager
def observed(folder: Path, console: Console, images: Tensor) -> Iterator[Observer]:
    """Yield the observer of a training that writes to ``folder``; only the first process has one that acts.

    Args:
        folder: for the plan, the log and TensorBoard's files.
        console: where the epochs are shown.
        images: (N, 3, H, W) uint8, shown in TensorBoard.
    """
    if not is_first():
        yield Observer()
        return
    with ExitStack() as stack:
        observers: list[Observer] = [_PlanFile(folder / PLAN), JsonLines(folder / LOG)]
        try:
            observers.append(TensorBoard(folder / TENSORBOARD, images))
        except ModuleNotFoundError:
            say(console, _NO_TENSORBOARD)
        observers.append(stack.enter_context(Terminal(console)))
        yield Together(observers)


class _PlanFile(Observer):
    """Writes the plan, after all checks that are possible before the first step.

    It also writes it when a training resumes, which may have been killed between its first checkpoint and
    this.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, plan: Plan, history: list[Epoch]) -> None:
        """See :class:`Observer`."""
        write(self._path, plan.as_toml(), force=True)


def _other_input(name: str, wanted: Input, data: Dataset, seen: Input) -> str:
    """A line if a network for ``wanted`` inputs gets those of ``data``, ``seen``: it may be worse on them.

    How images that were not read from files were scaled and cropped is not known.
    """
    alike = wanted.of_size(seen.size)  # sides are rounded, so shares of two sizes are not comparable
    known = 3 if isinstance(data, ImageFiles) else 1
    pairs = zip(_words(alike)[:known], _words(seen)[:known], strict=True)
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    if not differing and wanted.shape == seen.shape:
        return ""
    one, other = (_named(input, [pair[i] for pair in differing]) for i, input in enumerate((wanted, seen)))
    return f"{name}: is for images of {one}, and sees {other}"


def _words(input: Input) -> Sequence[str]:
    """What describes inputs besides their size: colours, interpolation, the part of the image they are."""
    part = f"the middle {input.size / input.resize:.0%}" + (", squashed" if input.squash else "")
    colours = "grey" if input.grayscale else "in colour"
    return colours, input.interpolation, "the full image" if input.is_whole else part


def _named(input: Input, words: Sequence[str]) -> str:
    height, width = input.shape
    return f"{height} x {width}" + (f" ({', '.join(words)})" if words else "")


def _note(console: Console, note: str) -> None:
    if note and is_first():
        say(console, note)


def _input(data: Dataset, images: Tensor) -> Input:
    """The preprocessing that turns a photo into an input like those the network was trained on."""
    if isinstance(data, ImageFiles):
        return data.input
    size = images.shape[3]
    return Input(size, size, grayscale=isinstance(data, InMemory) and data.images.shape[1] == 1)
