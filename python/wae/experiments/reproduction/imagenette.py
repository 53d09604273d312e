"""The claim on colour photos: Imagenette, ten classes of ImageNet, with networks trained from scratch.

The photos are decoded once, into a file of uint8 images of the training size in the folder of results, so
that an epoch decodes nothing. Besides the paper's networks there are two baselines: the full network on
smaller images at WAE's multiply-adds, and the trained full network pruned to WAE's measured time. WAE and
the networks on smaller images are also trained a second way: initialised from the trained full network and
distilled from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
from torch import Tensor, nn

from wae.data.dataset import Dataset, DatasetError, InMemory, sample
from wae.data.folder import ImageFolder, image_folder
from wae.data.input import Input
from wae.errors import UsageError
from wae.experiments.pruning import PRUNED, pruned, ratio_for
from wae.models.counting import count
from wae.models.meta import on_meta
from wae.models.registry import build
from wae.storage.checkpoint import load_classifier
from wae.storage.files import read_json, write
from wae.storage.weights_file import CheckpointError
from wae.training.plan import find
from wae.wording import first_line

from .claim import DECOMPOSITION, WAE, WAVELET, Job, built_for_photos, longer
from .fine_tuned import FINE_TUNED, FineTuned, fine_tuned
from .results import weights_path, write_json
from .table import timed

NETWORKS = {"small_vgg": "small_photo_vgg", "resnet18": "resnet18", "resnet50": "resnet50"}
"""The networks that have a recipe, and their names in :mod:`wae.models.registry`."""

EQUAL_COST = "half, equal cost"
CLASSES = 10
_HELD_OUT_EVERY = 5  # kept_aside holds out every fifth training image
_MAX_SHIFT = 1 / 16  # of the side, in each direction
_SMALL_VERSION = 160  # pixels of the shorter side in the smaller version that torchvision offers
_PRUNING_IMAGES, _PRUNING_BATCH = 640, 64  # training images for the gradients of pruning
_SECONDS = 2.0  # of timing for each pruning ratio


def claim(
    network: str = "small_vgg",
    size: int | None = None,
    kept_aside: bool = False,
    times: float = 1.0,
    also_at: Sequence[int] = (),
) -> Imagenette:
    """The claim for ``network``, with the network's own plan.

    Args:
        network, kept_aside, also_at: see :class:`Imagenette`.
        size: height and width of the images; None for the network's own.
        times: factor for the plan's epochs with labels.

    Raises:
        UsageError: a side in ``also_at`` is not between ``size // 2`` and ``size``, both exclusive.
    """
    small = network == "small_vgg"
    plan = longer(find("imagenette" if small else "imagenette_resnet"), times)
    plan = replace(plan, model=f"wae_{NETWORKS[network]}")
    size = size or (64 if small else 128)
    if wrong := [side for side in also_at if not size // 2 < side < size]:
        raise UsageError(f"also_at: must be between {size // 2} and {size}, both exclusive, got {wrong[0]}")
    return Imagenette(plan, network, size, kept_aside, tuple(sorted(set(also_at))))


@dataclass(frozen=True)
class Imagenette(FineTuned):
    """See the module."""

    network: str
    """One of :data:`NETWORKS`."""
    size: int
    """Height and width of the images in pixels."""
    kept_aside: bool
    """Hold out a fifth of the training images to test on, and train on the others, to choose a recipe."""
    also_at: tuple[int, ...] = ()
    """More baselines: the full network on images of these heights and widths, for example at WAE's time."""

    timed_images: ClassVar[int] = 32

    @property
    def full(self) -> str:
        """See :attr:`Claim.full`."""
        return f"{self.size} x {self.size}"

    @property
    def half(self) -> str:
        """See :attr:`Claim.half`."""
        return f"{self.size // 2} x {self.size // 2}"

    @property
    def input(self) -> Input:
        """See :attr:`Claim.input`."""
        return Input(self.size, self.size)

    @cached_property
    def registered(self) -> Mapping[str, str | None]:
        """See :attr:`Claim.registered`."""
        stem = NETWORKS[self.network]
        smaller = {self.half: f"{stem}_half", EQUAL_COST: f"{stem}_at_{_equal_side(stem, self.size)}"}
        smaller |= {f"{side} x {side}": f"{stem}_at_{side}" for side in self.also_at}
        return {
            self.full: stem,
            **smaller,
            WAVELET: f"wavelet_{stem}",
            DECOMPOSITION: f"wae_{stem}",
            WAE: f"wae_{stem}",
            **{fine_tuned(name): registered for name, registered in smaller.items()},
            FINE_TUNED: f"wae_{stem}",
            **dict.fromkeys(PRUNED),
        }

    def settings(self) -> dict[str, Any]:
        """See :meth:`Claim.settings`."""
        return {"network": self.network, "size": self.size, "kept aside": self.kept_aside}

    def build(self, network: str) -> nn.Module:
        """See :meth:`Claim.build`."""
        name = self.registered[network]
        assert name is not None
        return built_for_photos(name, CLASSES)

    def needs(self, network: str) -> str | None:
        """See :meth:`Claim.needs`: the pruned networks need the trained full network."""
        return self.full if network in PRUNED else super().needs(network)

    def jobs(self, seeds: Sequence[int]) -> list[Job]:
        """See :meth:`Claim.jobs`. The pruned networks are trained with one seed only."""
        return [job for job in super().jobs(seeds) if job.network not in PRUNED or job.seed == min(seeds)]

    def start(self, job: Job, folder: Path, training: Dataset) -> tuple[nn.Module, dict[str, Any]]:
        """See :meth:`Claim.start`: the trained full network is pruned to WAE's time."""
        if job.network not in PRUNED:
            return super().start(job, folder, training)
        model = load_classifier(weights_path(folder, Job(self.full, job.seed)))
        path = self.start_path(folder, job)  # a resumed run must not measure again
        images, labels = sample(training.plain(), _PRUNING_IMAGES)
        batches = list(zip(images.split(_PRUNING_BATCH), labels.split(_PRUNING_BATCH), strict=True))
        method = PRUNED[job.network]
        if path.exists():
            found = _read_start(path)
        else:
            found = ratio_for(lambda ratio: pruned(model, batches, method, ratio), self._share_of_time)
            write_json(path, found)
        return pruned(model, batches, method, found["ratio"]), found

    def _share_of_time(self, network: nn.Module) -> float:
        """The time of ``network`` divided by WAE's."""
        times = timed({WAE: self.build(WAE), "other": network}, self, _SECONDS)
        return times["other"] / times[WAE]

    # ------------------------------------------------------------------------------------------------ images

    def parts(self, data: str | Path) -> Mapping[str, ImageFolder]:
        """See :meth:`Claim.parts`."""
        return {part: image_folder(Path(data), part == "train", self.input) for part in _PARTS}

    def prepared(self, data: str | Path, folder: Path) -> Path:
        """See :meth:`Claim.prepared`: ``data`` holds train/CLASS/IMAGE and val/CLASS/IMAGE."""
        path = folder / f"images-{self.size}.safetensors"
        parts = self.parts(data)
        if len(labels := parts["train"].labels) != CLASSES:
            raise DatasetError(f"{data}: Imagenette has {CLASSES} classes, got {len(labels)}")
        metadata = {"data": json.dumps(self.on(data).data), "labels": json.dumps(labels)}
        if not path.exists() or _metadata(path) != metadata:
            tensors: dict[str, Tensor] = {}
            for part, images in parts.items():
                tensors[f"{part}.images"], tensors[f"{part}.targets"] = images.batch(range(len(images)), 0)
            write(path, safetensors.torch.save(tensors, metadata), force=True)
        return path

    def sets(self, data: str | Path, seed: int) -> tuple[InMemory, InMemory]:
        """See :meth:`Claim.sets`."""
        tensors, labels = safetensors.torch.load_file(data), json.loads(_metadata(Path(data))["labels"])
        pad = round(self.size * _MAX_SHIFT)
        training, test = (
            InMemory(
                tensors[f"{part}.images"], tensors[f"{part}.targets"], labels, part == "train", seed, pad
            )
            for part in _PARTS
        )
        if not self.kept_aside:
            return training, test
        numbers = range(len(training))
        held_out = numbers[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]
        kept = [number for number in numbers if number not in held_out]
        return training.subset(kept), training.subset(held_out).plain()


@cache
def _equal_side(stem: str, size: int) -> int:
    """The image side at which the plain network's multiply-adds are closest to those of WAE at ``size``."""
    allowed = count(on_meta(lambda: build(f"wae_{stem}", CLASSES)), (size, size)).multiply_adds
    plain = on_meta(lambda: build(stem, CLASSES))
    sides = range(size // 2, size + 1)
    return min(sides, key=lambda side: abs(count(plain, (side, side)).multiply_adds - allowed))


_PARTS = ("train", "val")
_PHOTOS = (9469, 3925)  # in each part of the published data set


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a file of images. Empty if it is damaged, so that it is written again."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError:
        return {}


def _read_start(path: Path) -> dict[str, float]:
    """The measurement of an interrupted training of a pruned network. Raises CheckpointError."""
    try:
        found = read_json(path)
        return {name: float(found[name]) for name in found.keys() | {"ratio", "time"}}
    except (ValueError, LookupError, TypeError, AttributeError):
        way = "remove it and the checkpoint beside it to repeat the training"
        raise CheckpointError(f"{path}: is damaged; {way}") from None


def download(folder: Path, size: int) -> Path:
    """Let torchvision download Imagenette to ``folder`` unless it is there. Returns the folder of its images.

    Raises DatasetError if photos are missing, or the download fails.
    """
    from torchvision.datasets import Imagenette as Downloaded

    version = "160px" if size <= _SMALL_VERSION else "320px"
    there = folder / f"imagenette2-{version.removesuffix('px')}"
    if not there.exists():
        try:
            Downloaded(folder, size=version, download=True)
        except Exception as error:  # no connection, a damaged file, or anything else
            raise DatasetError(f"{there}: could not be downloaded: {first_line(error)}") from None
    counts = tuple(sum(1 for _ in there.glob(f"{part}/*/*.JPEG")) for part in _PARTS)
    if counts != _PHOTOS:
        wanted, got = ("{} and {}".format(*numbers) for numbers in (_PHOTOS, counts))
        raise DatasetError(
            f"{there}: has {got} photos, need {wanted}; remove the folder to download it again"
        )
    return there
