"""The training loop for every stage, on one process or many (docs/network.md).

A step depends only on the plan, the stage, the epoch and the number of the step: the order of the data,
augmentation and dropout are seeded by these in every epoch. So a training that resumes from a checkpoint,
which is written after each epoch, takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from wae.data.dataset import Dataset
from wae.data.loading import batches, fingerprint, to_device
from wae.data.segmentation import SegmentationFolder
from wae.errors import WaeError
from wae.models.evaluating import evaluating
from wae.models.layout import in_format
from wae.models.network import WAENetwork
from wae.storage import weights_file
from wae.wording import counted

from .accuracy import Accuracy, PixelAccuracy, evaluate
from .linear_start import start_linear
from .losses import class_weights, weight_of
from .norms import kept_norms, measure_norms, measured_images, remeasure_norms, synchronized
from .objective import Objective, check, trained
from .optimization import learning_rate, optimizer_for, running_average, spared_from_decay
from .plan import Plan, Stage
from .processes import gathered, rank_and_world, require_same, summed
from .rehearsal import takes_one
from .sparsity import Masks
from .state import Epoch, State, checked, read_epoch


class TrainingError(WaeError, RuntimeError):
    """A training that cannot continue. The message says where it stopped and why."""


class DivergedError(TrainingError):
    """A loss or a gradient is not finite.

    All processes raise it together, so they may catch it and continue with something else.

    Args:
        what: what happened and the likely reason.
        kept: which weights are still available, as the end of a sentence.
    """

    def __init__(self, what: str, kept: str = "") -> None:
        super().__init__(what + kept)
        self.what = what


class Observer:
    """Receives the reports of the loop, in the first process only. The methods of this class do nothing."""

    def begin(self, plan: Plan, history: list[Epoch]) -> None:
        """The training begins, or resumes after these epochs."""

    def start(self, plan: Plan, stage: int, epoch: int, steps: int) -> None:
        """An epoch of ``steps`` steps begins."""

    def step(self, number: int, losses: Mapping[str, Tensor]) -> None:
        """Step ``number``, counted from 1, was taken; its losses are scalars on the training's device."""

    def left_out(self, messages: Sequence[str]) -> None:
        """These image files could not be read in a pass over the data and were left out."""

    def end(self, epoch: Epoch, model: nn.Module) -> None:
        """An epoch has ended, and its checkpoint has been written."""


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
    steps: int | None = None,
) -> list[Epoch]:
    """Train ``model`` by ``plan``, in place; with all processes if torch.distributed is set up.

    Args:
        model: a :class:`WAENetwork`; for stages of kind ``classifier`` any network that scores images or
            pixels, for those of kind ``transform`` also an :class:`AutoEncoder`. All processes must pass the
            same weights.
        plan: the stages and everything else that determines the outcome.
        training, test: see :mod:`wae.data.loading`; ``test`` may be None if no stage has labels.
        state: the checkpoint, which the first process writes before the first epoch and replaces after every
            one; None for no checkpoint.
        resume: resume from ``state``.
        sources: what else determines the outcome, such as the digest of a file of weights, by names that
            users know. It is saved in ``state`` and compared on ``resume``.
        teacher: a network to distil from in stages with a ``mimic_weight``; it is moved to ``device``.
        observer: receives the reports of the loop.
        workers: processes that load data, per training process.
        device: where to train.
        steps: of each stage, shared evenly by its epochs; None for all full batches in each epoch.

    Returns:
        The record of every epoch, including those before a ``resume``.

    Raises:
        CheckpointError: there is nothing to resume from, or it was made by another plan, on other data or
            from other ``sources``.
        DivergedError: the loss or a gradient is not finite, in which case the weights are those before that
            step; or the loss of the test images is not finite after an epoch.
        TrainingError: too few images can be read for a single step of an epoch.
        DatasetError: processes have different images.
        ValueError: the plan does not fit the model, the data or the number of processes.
    """
    observer = observer or Observer()
    run = _Run(model, plan, training, test, state, sources or {}, teacher, observer, workers, device, steps)
    with nullcontext() if teacher is None else evaluating(teacher):
        return run.all_stages(resume)


class _Run:
    """One training: what does not change during it, and its stages."""

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
        steps: int | None,
    ) -> None:
        self.device = torch.device(device)
        self.model = in_format(model.to(self.device), torch.channels_last)
        self.plan, self.training, self.test = plan, training, test
        self.state, self.sources = state, dict(sources)
        self.teacher = None if teacher is None else teacher.to(self.device)
        self.rank, self.world = rank_and_world()
        self.observer = observer if self.rank == 0 else Observer()
        self.synchronizes = self.world > 1 and self.device.type == "cuda"
        self.workers, self.steps = workers, steps
        self.data = {} if state is None and self.world == 1 else fingerprint(training)
        if self.world > 1:
            require_same("training", self.data)
            require_same("test", {} if test is None else fingerprint(test))
        check_batch(plan, len(training))
        for stage in plan.stages:  # before the first begins
            check(model, stage, teacher)
            if _balances(stage) and not isinstance(training, SegmentationFolder):
                raise ValueError("class_balance: needs training images with a class for each pixel")
        if plan.remeasure_norms and not hasattr(training, "plain"):
            raise ValueError(
                "remeasure_norms: needs training images that are available without augmentation; "
                f"{type(training).__name__} has no method plain (see wae.data.dataset.Dataset)"
            )
        self.history: list[Epoch] = []
        self.record = bytearray()  # of the history, for the checkpoint
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "float16")

    def all_stages(self, resume: bool) -> list[Epoch]:
        if resume and self.state:
            reached = self._reached()
        else:
            reached = State(self.plan.as_dict())
            self._save(0, 0, None, None)
        self.observer.begin(self.plan, list(self.history))
        for stage in range(reached.stage, len(self.plan.stages)):
            self._stage(stage, reached.epoch if stage == reached.stage else 0)
        return self.history

    def _stage(self, number: int, first: int) -> None:
        """Train stage ``number``, from epoch ``first``."""
        stage = self.plan.stages[number]
        if first == 0:
            self._prepare(number)
        objective = Objective(self.model, stage, self.teacher, self._class_weights(stage))
        with trained(self.model, stage) as parameters, self._synchronized():
            optimizer = optimizer_for(stage, parameters, spared_from_decay(self.model))
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
                if accuracy and not math.isfinite(accuracy.loss):  # the last step's weights had no loss yet
                    where = f"after epoch {epoch + 1} of stage {number + 1} ({stage.kind})"
                    raise self._diverged(f"the loss of the test images is {accuracy.loss:g} {where}")
                record = Epoch(number, stage.kind, epoch, losses, accuracy, time.monotonic() - started)
                self.history.append(record)
                self.record += record.as_line()
                if average is not None and last:
                    self.model.load_state_dict(average.module.state_dict())
                self._save(number + last, 0 if last else epoch + 1, optimizer, None if last else average)
                self.observer.end(record, kept)

    def _prepare(self, number: int) -> None:
        """Measure on the data what a stage needs before it begins."""
        model, plan = self.model, self.plan
        if not isinstance(model, WAENetwork) or (number and plan.norm_statistics == "batch"):
            return
        images = measured_images(self.training)
        if number == 0 and plan.start != "random":
            start_linear(model, images, least_energy=plan.start == "linear")
        if plan.norm_statistics != "batch":
            measure_norms(model, images, low=plan.norm_statistics == "fixed")

    def _remeasure_norms(self, model: nn.Module) -> None:
        """Re-estimate the BatchNorms' statistics, with the number of images at once of a training step.

        If BatchNorms are not synchronised, each process measures all of the images.
        """
        part = (self.rank, self.world) if self.synchronizes else (0, 1)
        batch = self.plan.batch // self.plan.accumulate // self.world * part[1]
        remeasure_norms(model, self.training.plain(), batch, self.device, kept_norms(model, self.plan), part)

    def _class_weights(self, stage: Stage) -> Tensor | None:
        if not _balances(stage):
            return None
        assert isinstance(self.training, SegmentationFolder)
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
        """Take the steps of one epoch, and return the means of their losses."""
        plan, stage = self.plan, self.plan.stages[number]
        where = f"epoch {epoch + 1} of stage {number + 1} ({stage.kind})"
        key = (plan.seed * 1009 + number) * 10_007 + epoch
        torch.manual_seed((key * 4099 + self.rank) % 2**64)  # dropout
        self._train_mode()
        loader = batches(
            self.training, plan.batch, epoch + 10_007 * number, plan.seed, True,
            self.rank, self.world, self.workers, drop_last=True, device=self.device,
            most=self._most(stage, epoch),
        )  # fmt: skip
        steps = len(loader)
        self.observer.start(plan, number, epoch, steps)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        taken = 0
        for step, (images, labels) in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * learning_rate(stage, epoch + step / steps)
            losses = self._step(module, images, labels, optimizer, f"step {step + 1} of {where}")
            if losses is None:
                continue
            taken += 1
            if masks:
                masks.apply()
            if average is not None:
                average.update_parameters(self.model)
            for name, loss in losses.items():
                sums[name] += loss
            self.observer.step(step + 1, losses)
        failed = gathered(loader.failed)
        self.observer.left_out(failed)
        if steps and not taken:
            first = f"; the first: {failed[0]}" if failed else ""
            raise TrainingError(f"{where}: too few images can be read for a single step{first}")
        means = {name: summed(total).item() / taken / self.world for name, total in sums.items()}
        if not all(math.isfinite(mean) for mean in means.values()):
            raise self._diverged(f"the loss is {means['loss']:g} in {where}")
        return means

    def _shares(self, module: nn.Module, labels: Tensor) -> Tensor:
        """Each process's number of images and weight of labels in a batch, (world, 2)."""
        shares = torch.zeros(self.world, 2, dtype=torch.float64)
        objective = module.module if isinstance(module, DistributedDataParallel) else module
        assert isinstance(objective, Objective)
        shares[self.rank, 0], shares[self.rank, 1] = len(labels), weight_of(labels, objective.weights)
        return summed(shares)

    def _enough(self, shares: Tensor, images: Tensor) -> bool:
        """Whether a step can be taken, which all processes do or none: each of them needs an image.

        If only one is left of several, BatchNorms may refuse it.
        """
        fewest = int(shares[:, 0].min())
        if fewest == 1 < self.plan.batch // self.world:
            return takes_one(self.model, images)
        return fewest > 0

    def _step(
        self, module: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, where: str
    ) -> dict[str, Tensor] | None:
        """Take one step, and return its losses: see :meth:`_gradients`. ``where`` names it in an error.

        Returns None, and takes no step, if too few of the images could be read.
        """
        labels = labels.to(self.device)
        shares = self._shares(module, labels)
        if not self._enough(shares, images):
            return None
        optimizer.zero_grad()
        losses = self._gradients(module, to_device(images, self.device), labels, shares)
        if not self._finite(optimizer, losses):
            loss = losses["loss"].item()
            raise self._diverged(f"the gradients are not finite, and the loss is {loss:g}, in {where}")
        self.scaler.step(optimizer)
        self.scaler.update()
        return losses

    def _most(self, stage: Stage, epoch: int) -> int | None:
        """The steps of this epoch if the number of steps is given: epochs differ by one step at most."""
        if self.steps is None:
            return None
        return self.steps * (epoch + 1) // stage.epochs - self.steps * epoch // stage.epochs

    def _gradients(
        self, module: nn.Module, images: Tensor, labels: Tensor, shares: Tensor
    ) -> dict[str, Tensor]:
        """Compute the gradients of a batch, and return this process's share of the losses.

        They are those of the whole batch, even if the parts of the batch or the shares of the processes
        differ in the number of images, because some were left out, or in the weight of the labels. Gradients
        are averaged over the processes here, losses later.
        """
        size, weight = shares.mean(0).tolist()
        # There may be fewer parts than planned if images were left out, because a BatchNorm needs two images.
        # All processes have the same number, because synchronised BatchNorms wait for each other.
        accumulate = self.plan.accumulate
        least = min(2, self.plan.batch // self.world // accumulate)
        count = max(1, min(accumulate, int(shares[:, 0].min()) // least))
        parts = list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))
        total: dict[str, Tensor] = {}
        for part, (some, some_labels) in enumerate(parts):
            more = part + 1 < len(parts)  # gradients are exchanged only with the last part
            share = len(some_labels) / size
            with module.no_sync() if isinstance(module, DistributedDataParallel) and more else nullcontext():
                with self._autocast():
                    losses = module(some, some_labels, weight * share)
                self.scaler.scale(losses["loss"] * share).backward()
            total = {name: loss.detach() * share + total.get(name, 0) for name, loss in losses.items()}
        return total

    def _finite(self, optimizer: torch.optim.Optimizer, losses: Mapping[str, Tensor]) -> bool:
        """Whether the step may be taken. If losses are scaled, the scaler skips steps itself.

        All processes have the same gradients but different losses, so they decide together.
        """
        if self.scaler.is_enabled():
            return True
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
        finite = torch.stack([losses["loss"].float(), *(norm.float() for norm in norms)]).isfinite().all()
        return not summed((~finite).int()).item()

    def _diverged(self, what: str) -> DivergedError:
        """The error that says ``what`` happened, the likely reason, and which weights are available."""
        kept = f"; {self.state} is the checkpoint of the epoch before" if self.history and self.state else ""
        return DivergedError(
            f"{what}: images or weights that are not finite, or a learning_rate that is too high", kept
        )

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
        """Evaluate with the first process's buffers, which are saved; on CPUs those of BatchNorms differ."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        assert self.test is not None
        batch = 2 * self.plan.batch // self.world
        return evaluate(model, self.test, batch, self.device, self.workers, self.observer.left_out)

    def _distributed(self, objective: Objective) -> nn.Module:
        """``objective``, with its gradients averaged over all processes."""
        if self.world == 1:
            return objective
        return DistributedDataParallel(
            objective, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def _synchronized(self) -> AbstractContextManager[None]:
        """On GPUs, in this block, BatchNorms take their statistics from the images of all processes."""
        return synchronized(self.model) if self.synchronizes else nullcontext()

    # ------------------------------------------------------------------------------------- checkpoints

    def _save(
        self, stage: int, epoch: int, optimizer: torch.optim.Optimizer | None, average: AveragedModel | None
    ) -> None:
        if self.state and self.rank == 0:
            scaler = self.scaler.state_dict()
            state = State(self.plan.as_dict(), stage, epoch, scaler, data=self.data, sources=self.sources)
            kept = None if average is None else average.module
            weights_file.save(
                self.state, self.model, asdict(state), optimizer, force=True, average=kept, record=self.record
            )
        if self.world > 1:
            dist.barrier()

    def _reached(self) -> State:
        """Load the checkpoint's weights into the model, and return its state."""
        assert self.state is not None
        try:
            made = weights_file.read_recipe(self.state)
            reached = checked(self.state, made, self.plan, self.data, self.sources)
            entries = reached.history or weights_file.read_record(self.state)
            self.history = [read_epoch(entry) for entry in entries]
            self.record = bytearray().join(epoch.as_line() for epoch in self.history)
            if len(self.history) != reached.epoch + sum(s.epochs for s in self.plan.stages[: reached.stage]):
                raise ValueError("history")
            if reached.scaler:
                self.scaler.load_state_dict(reached.scaler)
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError):
            raise weights_file.CheckpointError(
                f"{self.state}: this is not the checkpoint of a training"
            ) from None
        weights_file.load(self.state, self.model)
        return reached

    def _restore(self, path: Path, optimizer: torch.optim.Optimizer, average: AveragedModel | None) -> None:
        """Load what :meth:`_save` wrote during a stage."""
        # In float16 the scaler may have skipped every step so far. The optimizer then has no state yet.
        has_state = weights_file.read_header(path).has_optimizer or not self.scaler.is_enabled()
        kept = None if average is None else average.module
        weights_file.load(path, self.model, optimizer if has_state else None, kept)
        if average is not None:
            average.n_averaged.fill_(1)  # any number except 0, which would start the average again


def _balances(stage: Stage) -> bool:
    """Whether the classes have weights in the cross entropy of ``stage``."""
    return bool(stage.class_balance) and stage.kind != "transform"


def check_batch(plan: Plan, images: int) -> None:
    """Raise ValueError if the plan's batch does not fit the number of training ``images`` or of processes."""
    _, world = rank_and_world()
    if plan.batch % (parts := world * plan.accumulate):
        raise ValueError(
            f"batch must be a multiple of {parts}, the number of processes times accumulate, got {plan.batch}"
        )
    if images < plan.batch:
        raise ValueError(
            f"batch must be at most the {counted(images, 'image')} of the training set, got {plan.batch}"
        )
