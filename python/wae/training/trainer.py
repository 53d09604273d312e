"""The one loop that trains: every stage, on one process or many (docs/network.md).

What a step does is a function of the plan, the stage, the epoch and the step alone: the data's order,
augmentation and dropout are drawn afresh, from these, in every epoch. So a training that goes on from a
checkpoint, which is written after each epoch, takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from wae.data.dataset import Dataset
from wae.data.loading import batches, fingerprint
from wae.data.segmentation import SegmentationFolder
from wae.errors import WaeError
from wae.models.evaluating import evaluating
from wae.models.network import WAENetwork
from wae.storage import weights_file
from wae.wording import counted
from wae_kernels.nn import Encoder

from .accuracy import Accuracy as Accuracy
from .accuracy import Counts, PixelAccuracy, counts_for
from .linear_start import best_linear, write_linear_start
from .losses import class_weights
from .norms import kept_norms, measure_norms, measured_images, remeasure_norms, synchronized, to_device
from .objective import Objective, trained
from .optimization import learning_rate, optimizer_for, running_average
from .plan import Plan, Stage, changed, differences
from .processes import of_all_processes, place, summed
from .sparsity import Masks


class TrainingError(WaeError, RuntimeError):
    """A training that cannot go on. The message says where it stopped and why."""


class DivergedError(TrainingError):
    """A loss or a gradient is not finite. It is found by all processes alike, which may go on with
    something else.

    Args:
        what: happened, and why it may have.
        kept: which weights there still are, as the end of a sentence.
    """

    def __init__(self, what: str, kept: str = "") -> None:
        super().__init__(what + kept)
        self.what = what


class OtherPlanError(weights_file.CheckpointError):
    """A checkpoint was made by another plan than the one that is to go on with it."""


@dataclass(frozen=True)
class Epoch:
    """The record of one epoch."""

    stage: int
    """Counted from 0, in the plan's order."""
    kind: str
    epoch: int
    """Counted from 0, within the stage."""
    losses: dict[str, float]
    """Means over the epoch's steps."""
    accuracy: Accuracy | PixelAccuracy | None
    """On the test set; None in a stage that trains no classifier."""
    seconds: float

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "accuracy": self.accuracy and self.accuracy._asdict()}


class Observer:
    """Receives the loop's reports, on the first process alone. Everything here does nothing."""

    def begin(self, plan: Plan, history: list[Epoch]) -> None:
        """The training begins, or goes on after these epochs."""

    def start(self, plan: Plan, stage: int, epoch: int, steps: int) -> None:
        """An epoch of ``steps`` steps begins."""

    def step(self, number: int, losses: Mapping[str, Tensor]) -> None:
        """Step ``number``, counted from 1, was taken; its losses are scalars on the training's device."""

    def left_out(self, messages: Sequence[str]) -> None:
        """These image files could not be read in a pass through the data, and were left out."""

    def end(self, epoch: Epoch, model: nn.Module) -> None:
        """An epoch has ended, and its checkpoint is written."""


@dataclass
class _State:
    """A checkpoint's content besides tensors."""

    plan: dict[str, Any]
    stage: int = 0
    epoch: int = 0  # the next to do
    scaler: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)  # its fingerprint; {} in checkpoints from before it
    sources: dict[str, str] = field(default_factory=dict)  # likewise


def train(
    model: nn.Module,
    plan: Plan,
    training: Dataset,
    test: Dataset | None,
    *,
    state: Path | None = None,
    resume: bool = False,
    sources: Mapping[str, str] | None = None,
    teacher: nn.Module | None = None,
    observer: Observer | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> list[Epoch]:
    """Train ``model`` by ``plan``, in place. Where torch.distributed is set up, with all its processes.

    Args:
        model: a :class:`WAENetwork`; or any that scores images or pixels for stages of kind ``classifier``,
            or an :class:`AutoEncoder` for those of kind ``transform``. All processes must hand in the same
            weights.
        training, test: see :mod:`wae.data.loading`; ``test`` is None where no stage has labels.
        state: the checkpoint, written before the first epoch and replaced after every one by the first
            process; None for none.
        resume: go on from ``state``.
        sources: what else decides the outcome, such as the digest of a file of weights, by names that a user
            knows: kept in ``state``, and compared with ``resume``.
        teacher: a classifier for stages with a ``mimic_weight``; it is moved to ``device``.
        observer: its methods are called after each step.
        workers: processes that prepare data, per training process.
        device: where to train.

    Returns:
        The record of every epoch, those before a ``resume`` included.

    Raises:
        CheckpointError: there is nothing to go on from, or it was made by another plan, on other data or
            from other ``sources``.
        DivergedError: the loss or a gradient is not finite, and the weights are those of before that step; or
            the loss of the test images is not, after an epoch.
        TrainingError: of a step's images none can be read.
        ValueError: the plan does not fit the model, the data or the number of processes.
    """
    observer = observer or Observer()
    run = _Run(model, plan, training, test, state, sources or {}, teacher, observer, workers, device)
    with nullcontext() if teacher is None else evaluating(teacher):
        return run.all_stages(resume)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Dataset,
    batch: int = 256,
    device: torch.device | str = "cpu",
    workers: int = 0,
    left_out: Callable[[Sequence[str]], None] | None = None,
    advance: Callable[[int], None] | None = None,
    counts: Counts | None = None,
) -> Accuracy | PixelAccuracy:
    """The accuracy of ``model`` on ``data``; where torch.distributed is set up, counted by all processes.

    Of a network that scores pixels it is a :class:`PixelAccuracy`, where ``data`` has labels of pixels.

    ``left_out`` gets a line for each image file that could not be read, those of all processes; ``advance``
    the number of images of each batch, those of all processes; ``counts`` are those to count with, if they
    are to tell more than the accuracy.
    """
    counts = counts_for(data) if counts is None else counts
    rank, world = place()
    together = batch * world
    loader = batches(data, together, 0, 0, False, rank, world, workers)
    with evaluating(model):
        for step, (images, labels) in enumerate(loader):
            if advance is not None:
                advance(min(together, len(data) - step * together))
            if not len(labels):
                continue
            counts.add(model(to_device(images, device)).float(), labels.to(device))
    failed = of_all_processes(loader.failed)
    if left_out is not None:
        left_out(failed)
    counts.total = summed(counts.total)
    return counts.result()


class _Run:
    """One training: what stays the same through all of it, and the stages."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        training: Dataset,
        test: Dataset | None,
        state: Path | None,
        sources: Mapping[str, str],
        teacher: nn.Module | None,
        observer: Observer,
        workers: int,
        device: torch.device | str,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.plan, self.training, self.test = plan, training, test
        self.state, self.sources = state, dict(sources)
        self.teacher = None if teacher is None else teacher.to(self.device)
        self.rank, self.world = place()
        self.observer = observer if self.rank == 0 else Observer()
        self.synchronizes = self.world > 1 and self.device.type == "cuda"
        self.workers = workers
        check_batch(plan, len(training))
        if plan.remeasure_norms and not hasattr(training, "plain"):
            raise ValueError(
                "remeasure_norms: needs training images that can be had without augmentation; "
                f"{type(training).__name__} has no method plain (see wae.data.dataset.Dataset)"
            )
        self.history: list[Epoch] = []
        self.data = {} if state is None else fingerprint(training)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=plan.precision == "float16" and self.device.type == "cuda"
        )

    def all_stages(self, resume: bool) -> list[Epoch]:
        if resume and self.state:
            reached = self._reached()
        else:
            reached = _State(self.plan.as_dict())
            self._save(0, 0, None, None)
        self.observer.begin(self.plan, list(self.history))
        for stage in range(reached.stage, len(self.plan.stages)):
            self._stage(stage, reached.epoch if stage == reached.stage else 0)
        return self.history

    def _stage(self, number: int, first: int) -> None:
        """Stage ``number``, from epoch ``first``."""
        stage = self.plan.stages[number]
        if first == 0:
            self._prepare(number)
        objective = Objective(self.model, stage, self.teacher, self._class_weights(stage))
        with trained(self.model, stage) as parameters, self._synchronized():
            optimizer = optimizer_for(stage, parameters)
            average = running_average(self.model, stage)
            if first and self.state:
                self._restore(self.state, optimizer, average)
            masks = Masks(self.model, stage.sparsity) if stage.sparsity else None
            module = self._distributed(objective)
            for epoch in range(first, stage.epochs):
                started = time.monotonic()
                losses = self._epoch(module, number, epoch, optimizer, average, masks)
                kept = self.model if average is None else average.module
                last = epoch + 1 == stage.epochs
                if last and self.plan.remeasure_norms and number + 1 == len(self.plan.stages):
                    self._remeasure_norms(kept)
                accuracy = None if stage.kind == "transform" else self._evaluate(kept)
                if accuracy and not math.isfinite(accuracy.loss):  # no loss saw the last step's weights
                    where = f"after epoch {epoch + 1} of stage {number + 1} ({stage.kind})"
                    raise self._diverged(f"the loss of the test images is {accuracy.loss:g} {where}")
                record = Epoch(number, stage.kind, epoch, losses, accuracy, time.monotonic() - started)
                self.history.append(record)
                if average is not None and last:
                    self.model.load_state_dict(average.module.state_dict())
                self._save(number + last, 0 if last else epoch + 1, optimizer, None if last else average)
                self.observer.end(record, kept)

    def _prepare(self, number: int) -> None:
        """Measures on the data what a stage needs before it begins."""
        model, plan = self.model, self.plan
        if not isinstance(model, WAENetwork) or (number and plan.norm_statistics == "batch"):
            return
        images = measured_images(self.training)
        if number == 0 and plan.start == "linear":
            if model.decoder is None or not isinstance(model.encoder, Encoder):
                raise ValueError("start = linear needs a model with a learned encoder and a decoder")
            scale, shift = model.image_scale.view(3, 1, 1).cpu(), model.image_shift.view(3, 1, 1).cpu()
            transform = best_linear((image * scale + shift for image in images), least_energy=True)
            write_linear_start(model.encoder, model.decoder, transform)
        if plan.norm_statistics != "batch":
            measure_norms(model, images, low=plan.norm_statistics == "fixed")

    def _remeasure_norms(self, model: nn.Module) -> None:
        """With as many images at once as a BatchNorm sees in a step.

        Processes whose BatchNorms are not synchronized measure all images, each the same ones.
        """
        part = (self.rank, self.world) if self.synchronizes else (0, 1)
        batch = self.plan.batch // self.plan.accumulate // self.world * part[1]
        remeasure_norms(model, self.training.plain(), batch, self.device, kept_norms(model, self.plan), part)

    def _class_weights(self, stage: Stage) -> Tensor | None:
        if not stage.class_balance or stage.kind == "transform":
            return None
        if not isinstance(self.training, SegmentationFolder):
            raise ValueError("class_balance: needs training images with a class for each pixel")
        return class_weights(self.training.shares(), stage.class_balance).float().to(self.device)

    def _epoch(
        self,
        module: nn.Module,
        number: int,
        epoch: int,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        masks: Masks | None,
    ) -> dict[str, float]:
        """Take the steps of one epoch; the means of their losses."""
        plan, stage = self.plan, self.plan.stages[number]
        where = f"epoch {epoch + 1} of stage {number + 1} ({stage.kind})"
        key = (plan.seed * 1009 + number) * 10_007 + epoch
        torch.manual_seed((key * 4099 + self.rank) % 2**64)  # dropout
        self._train_mode()
        loader = batches(
            self.training, plan.batch, epoch + 10_007 * number, plan.seed, True,
            self.rank, self.world, self.workers, drop_last=True,
        )  # fmt: skip
        steps = len(loader)
        self.observer.start(plan, number, epoch, steps)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for step, (images, labels) in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * learning_rate(stage, epoch + step / steps)
            if not len(labels):
                first = f"; the first: {loader.failed[0]}" if loader.failed else ""
                raise TrainingError(f"none of the images of step {step + 1} in {where} can be read{first}")
            optimizer.zero_grad()
            losses = self._gradients(module, to_device(images, self.device), labels.to(self.device))
            if not self._finite(optimizer, losses):
                what = f"the gradients are not finite, and the loss is {losses['loss'].item():g},"
                raise self._diverged(f"{what} in step {step + 1} of {where}")
            self.scaler.step(optimizer)
            self.scaler.update()
            if masks:
                masks.apply()
            if average is not None:
                average.update_parameters(self.model)
            for name, loss in losses.items():
                sums[name] += loss
            self.observer.step(step + 1, losses)
        self.observer.left_out(of_all_processes(loader.failed))
        means = {name: summed(total).item() / steps / self.world for name, total in sums.items()}
        if not all(math.isfinite(mean) for mean in means.values()):
            raise self._diverged(f"the loss is {means['loss']:g} in {where}")
        return means

    def _gradients(self, module: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Add the gradients of a batch to the parameters; its losses, this process's share of them.

        Every image counts the same, however many are in its part of the batch or on its process: some may
        have been left out. Gradients are averaged over the processes, and losses will be.
        """
        # Fewer parts than planned, where images that cannot be read leave too few.
        parts = list(zip(images.chunk(self.plan.accumulate), labels.chunk(self.plan.accumulate), strict=True))
        whole = summed(torch.tensor(len(labels))).item() / self.world
        total: dict[str, Tensor] = {}
        for part, (some, some_labels) in enumerate(parts):
            more = part + 1 < len(parts)  # then the gradients need not be exchanged yet
            share = len(some_labels) / whole
            with module.no_sync() if isinstance(module, DistributedDataParallel) and more else nullcontext():
                with self._autocast():
                    losses = module(some, some_labels)
                self.scaler.scale(losses["loss"] * share).backward()
            total = {name: loss.detach() * share + total.get(name, 0) for name, loss in losses.items()}
        return total

    def _finite(self, optimizer: torch.optim.Optimizer, losses: Mapping[str, Tensor]) -> bool:
        """Whether a step may be taken. Where losses are scaled, the scaler leaves out steps by itself.

        The gradients are the same in all processes, and a loss is each one's own: none goes on by itself.
        """
        if self.scaler.is_enabled():
            return True
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
        finite = torch.stack([losses["loss"].float(), *(norm.float() for norm in norms)]).isfinite().all()
        return not summed((~finite).int()).item()

    def _diverged(self, what: str) -> DivergedError:
        """The error that says ``what`` happened, why it may have, and which weights there still are."""
        kept = f"; {self.state} is the checkpoint of the epoch before" if self.history and self.state else ""
        return DivergedError(f"{what}: images that are not finite, or a learning_rate that is too high", kept)

    def _autocast(self) -> torch.autocast:
        precision = self.plan.precision
        dtype = torch.float16 if precision == "float16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=precision != "float32")

    def _train_mode(self) -> None:
        self.model.train()
        if self.plan.norm_statistics != "batch" and isinstance(self.model, WAENetwork):
            self.model.low_norm.eval()
            self.model.high_norm.eval()

    def _evaluate(self, model: nn.Module) -> Accuracy | PixelAccuracy:
        """With the first process's buffers, which are saved; on processors, BatchNorm's differ in each."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        assert self.test is not None
        batch = 2 * self.plan.batch // self.world
        return evaluate(model, self.test, batch, self.device, self.workers, self.observer.left_out)

    def _distributed(self, objective: Objective) -> nn.Module:
        """``objective`` with gradients averaged over all processes."""
        if self.world == 1:
            return objective
        return DistributedDataParallel(
            objective, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def _synchronized(self) -> AbstractContextManager[None]:
        """Within it BatchNorm takes its statistics from the images of all processes, on GPUs."""
        return synchronized(self.model) if self.synchronizes else nullcontext()

    # ------------------------------------------------------------------------------------- checkpoints

    def _save(
        self, stage: int, epoch: int, optimizer: torch.optim.Optimizer | None, average: AveragedModel | None
    ) -> None:
        if self.state and self.rank == 0:
            history = [asdict(entry) for entry in self.history]
            scaler = self.scaler.state_dict()
            state = _State(self.plan.as_dict(), stage, epoch, scaler, history, self.data, self.sources)
            kept = None if average is None else average.module
            weights_file.save(self.state, self.model, asdict(state), optimizer, force=True, average=kept)
        if self.world > 1:
            dist.barrier()

    def _reached(self) -> _State:
        """Read the checkpoint's weights into the model, and return its state."""
        assert self.state is not None
        try:
            made = weights_file.read_recipe(self.state)
            reached = _state(self.state, made, self.plan, self.data, self.sources)
            self.history = [_epoch(entry) for entry in reached.history]
            if reached.scaler:
                self.scaler.load_state_dict(reached.scaler)
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError):
            raise weights_file.CheckpointError(
                f"{self.state}: this is not the checkpoint of a training"
            ) from None
        weights_file.load(self.state, self.model)
        return reached

    def _restore(self, path: Path, optimizer: torch.optim.Optimizer, average: AveragedModel | None) -> None:
        """Read what :meth:`_save` wrote within a stage."""
        weights_file.load(path, self.model, optimizer, None if average is None else average.module)
        if average is not None:
            average.n_averaged.fill_(1)  # any number but 0: the average has begun


def check_batch(plan: Plan, images: int) -> None:
    """Raise ValueError where the plan's batch does not fit ``images`` to train on, or the processes."""
    _, world = place()
    if plan.batch % (world * plan.accumulate) or images < plan.batch:
        raise ValueError(
            f"batch must divide into {counted(world, 'process')} times {counted(plan.accumulate, 'part')}, "
            f"and be at most the {counted(images, 'image')} of the training set, got {plan.batch}"
        )


def _state(
    path: Path, made: dict[str, Any], plan: Plan, data: dict[str, Any], sources: dict[str, str]
) -> _State:
    """``made``, the recipe in the checkpoint at ``path``, after a check that it is this training's.

    What is malformed raises TypeError, ValueError, AttributeError or LookupError.
    """
    state = _State(**made)
    number, epoch = state.stage, state.epoch
    if type(number) is not int or not 0 <= number <= len(plan.stages):
        raise ValueError("stage")
    if state.data and (different := ", ".join(changed(state.sources, sources))):
        raise weights_file.CheckpointError(f"{path}: was begun with another {different}")
    check_same(path, made, plan, data)
    if type(epoch) is not int or not 0 <= epoch < (
        plan.stages[number].epochs if number < len(plan.stages) else 1
    ):
        raise ValueError("epoch")
    return state


def check_same(path: Path, made: Mapping[str, Any], plan: Plan, data: Mapping[str, Any]) -> None:
    """Check that the file at ``path`` was ``made`` by ``plan``, on the same data.

    Args:
        made: the file's recipe, with its ``plan``, and the fingerprint of its ``data`` if it knows that.
        data: see :func:`wae.data.loading.fingerprint`.

    Raises:
        OtherPlanError: the plan was another one.
        CheckpointError: the data were others.
    """
    if different := differences(made["plan"], plan):
        raise OtherPlanError(f"{path}: was made by a plan with another {different}")
    if made.get("data") and (different := ", ".join(changed(made["data"], data))):
        raise weights_file.CheckpointError(f"{path}: was made on training data that differs in {different}")


def _epoch(entry: Mapping[str, Any]) -> Epoch:
    """An entry of a checkpoint's history. Raises as :func:`_state`."""
    accuracy = entry["accuracy"]
    kinds = {len(kind._fields): kind for kind in (Accuracy, PixelAccuracy)}
    epoch = Epoch(**{**entry, "accuracy": accuracy and kinds[len(accuracy)](*accuracy)})
    numbers = (epoch.stage, epoch.epoch, epoch.seconds, *epoch.losses.values(), *(epoch.accuracy or ()))
    if type(epoch.kind) is not str or not all(type(number) in (int, float) for number in numbers):
        raise TypeError("history")
    return epoch
