"""A claim to reproduce: which networks are compared, on which images, by which plan."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import nn

from wae.data.dataset import Dataset
from wae.data.folder import ImageFolder
from wae.data.input import Input
from wae.data.loading import fingerprint
from wae.data.segmentation import SegmentationFolder
from wae.models.bodies import initialize
from wae.models.network import WAENetwork
from wae.models.registry import build
from wae.training.plan import Plan, Stage
from wae.training.pretrained import scale_for_photos
from wae_kernels.nn import Decoder, Encoder

WAVELET, DECOMPOSITION, WAE = "Wavelet+CNN", "Decomposition+CNN", "WAE"
"""Networks that several claims share, as the paper calls them. Every claim has WAE."""

_SHARED = (
    *("learning_rate", "optimizer", "momentum", "weight_decay", "schedule", "warmup", "step_epochs"),
    *("step_factor", "label_smoothing", "class_balance", "ema"),
)
"""Entries of WAE's last stage that networks without an encoder share. Entries specific to WAE can be changed
without training these networks again."""


_C = TypeVar("_C", bound="Claim")


class Job(NamedTuple):
    """One training."""

    network: str
    seed: int

    @property
    def stem(self) -> str:
        """The beginning of the names of its files."""
        letters = "".join(c if c.isalnum() else "-" for c in self.network.lower())
        return f"{letters}-seed{self.seed}"


@dataclass(frozen=True)
class Claim(ABC):
    """A claim to reproduce: the networks, the images, the plan. Workers get a copy."""

    wae: Plan
    """WAE's plan, from which the others follow."""

    data: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)
    """What identifies the images, as JSON data: see :meth:`on`. Empty if they are not known."""

    timed_images: ClassVar[int] = 100
    """The batch size when networks are timed."""

    measure: ClassVar[str] = "accuracy"
    """The name of a result's ``accuracy`` in the table."""

    remeasures: ClassVar[bool] = False
    """Whether a result also has the accuracy with BatchNorm statistics re-estimated on images without
    augmentation: see :func:`wae.training.norms.remeasure_norms`."""

    @property
    @abstractmethod
    def full(self) -> str:
        """The network at full resolution."""

    @property
    @abstractmethod
    def half(self) -> str:
        """The network at half the resolution."""

    @property
    @abstractmethod
    def registered(self) -> Mapping[str, str | None]:
        """The networks, in the table's order: each one's name in :mod:`wae.models.registry`, if any."""

    @property
    @abstractmethod
    def input(self) -> Input:
        """How a photo becomes an image of the data."""

    @abstractmethod
    def build(self, network: str) -> nn.Module:
        """The registered ``network`` with random weights, for the data's classes."""

    @abstractmethod
    def parts(self, data: str | Path) -> Mapping[str, Dataset]:
        """All images in ``data`` that trainings and tests use, not augmented, by the names of their parts.

        Raises DatasetError.
        """

    def on(self: _C, data: str | Path) -> _C:
        """The same claim, which knows what identifies ``data``.

        That is the :func:`wae.data.loading.fingerprint` of each part and, for files, their sizes. No image
        file is opened. Raises DatasetError.
        """
        known = {
            f"{name} of {part}": value
            for part, images in self.parts(data).items()
            for name, value in {**fingerprint(images), **_sizes(images)}.items()
        }
        return replace(self, data=json.loads(json.dumps(known)))

    @abstractmethod
    def prepared(self, data: str | Path, folder: Path) -> str | Path:
        """Check ``data`` before any worker starts. Return what workers open; it may be a file in ``folder``.

        Raises DatasetError.
        """

    @abstractmethod
    def sets(self, data: str | Path, seed: int) -> tuple[Dataset, Dataset]:
        """The training and test images, from what :meth:`prepared` returned."""

    def held_out(self, data: str | Path) -> Dataset | None:
        """Held-out images, used once after the last epoch. None: use the test images of every epoch."""
        return None

    def picture(self, data: str | Path, folder: Path) -> Image.Image | None:
        """An image of the results, drawn with the weights in ``folder``; None for a claim without one."""
        return None

    def settings(self) -> dict[str, Any]:
        """Everything besides the plan that determines the outcome of a training, as JSON data."""
        return {}

    def needs(self, network: str) -> str | None:
        """The network whose trained weights of the same seed ``network`` needs, if any."""
        return None

    def needed_by(self, job: Job) -> Job | None:
        """The training whose weights ``job`` needs, if any."""
        network = self.needs(job.network)
        return None if network is None else Job(network, job.seed)

    def start_path(self, folder: Path, job: Job) -> Path:
        """The file in which :meth:`start` keeps its measurements until the training has a result."""
        return folder / f"{job.stem}.start.json"

    def start(self, job: Job, folder: Path, training: Dataset) -> tuple[nn.Module, dict[str, Any]]:
        """The network to train, and what was measured to build it.

        Raises PruningError if there is no such network.
        """
        torch.manual_seed(job.seed)
        return self.build(job.network), {}

    def plan_of(self, network: str, seed: int) -> Plan:
        """WAE's plan adapted to ``network``: the same number of epochs with labels, at the same rates."""
        if network == WAE:
            return replace(self.wae, seed=seed)
        joint = self.wae.stages[-1]
        epochs = sum(stage.epochs for stage in self.wae.stages if stage.kind != "transform")
        if network == DECOMPOSITION:  # like WAE, but without the reconstruction constraint
            stage = replace(joint, epochs=epochs, transform_weight=0.0, encoder_rate=1.0)
        else:
            kept = {entry: getattr(joint, entry) for entry in _SHARED}
            low_weight = joint.low_weight if network == WAVELET else 0.0  # the others have no low classifier
            stage = Stage("classifier", epochs, low_weight=low_weight, **kept)
        return replace(self.wae, seed=seed, start="random", stages=(stage,), model=network)

    def jobs(self, seeds: Sequence[int]) -> list[Job]:
        """All trainings, seed by seed, the main networks first. Those that need trained weights come last."""
        first = (self.full, WAE, self.half)
        networks = sorted(self.registered, key=lambda name: (name not in first, bool(self.needs(name))))
        free = [name for name in networks if not self.needs(name)]
        return [Job(name, seed) for seed in seeds for name in free] + [
            Job(name, seed) for name in networks if self.needs(name) for seed in seeds
        ]


def _sizes(images: Dataset) -> dict[str, str]:
    """The SHA-256 of the sizes of the files of ``images``, if each has its own, as an entry."""
    if not isinstance(images, (ImageFolder, SegmentationFolder)):
        return {}
    paths = [path for sample in images.samples for path in sample if isinstance(path, str)]
    sizes = json.dumps([Path(path).stat().st_size for path in paths])
    return {"file sizes": hashlib.sha256(sizes.encode()).hexdigest()}


def built_for_photos(name: str, classes: int) -> nn.Module:
    """The registered network ``name`` with random weights, for photos of 0..255; WAE with a decoder.

    Encoder and decoder are initialised like the bodies' convolutions; the start in a plan may replace that.
    """
    model = build(name, classes)
    if isinstance(model, WAENetwork) and isinstance(model.encoder, Encoder):
        model.decoder = model.decoder or Decoder()
        model.encoder.apply(initialize)
        model.decoder.apply(initialize)
    scale_for_photos(model)
    return model


def longer(plan: Plan, times: float) -> Plan:
    """``plan`` with its epochs with labels multiplied by ``times`` and rounded down, at least one per stage.

    The warm-up keeps its length, whereas :meth:`Stage.lasting` scales it: so the results in docs/results were
    trained, and they are read with no other plan.
    """
    stages = (
        stage
        if stage.kind == "transform"
        else replace(stage, epochs=max(1, int(round(stage.epochs * times, 6))))  # 90 * 0.7 is 62.99...
        for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages))
