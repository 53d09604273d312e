"""``wae bench``: is WAE worth it for this network, on this machine?

Compares the stock network with WAE around it, both deployed by :func:`wae.deploy` in each engine and
precision, and with the stock network in eager PyTorch. All are checked before any is timed; then the timed
calls are interleaved. The same functions write the tables of docs/benchmarks.md.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.data.crops import Crops
from wae.data.input import Input, evaluation_resize
from wae.data.photos import TRAINING, photo
from wae.inference.agreement import DisagreementError
from wae.inference.calibration import CalibrationError, in_folder
from wae.inference.deploy import deploy
from wae.inference.deployed import Deployed
from wae.inference.engines import ENGINES, Engine, EngineError
from wae.inference.timing import Timing
from wae.models.counting import count
from wae.models.pairs import Pair
from wae.training.pretrained import scale_for_photos
from wae.wording import first_line
from wae_kernels.reference import normalize_image

from .machine import machine, timed

PHOTOS = "crops of the bundled photos"
"""The images that int8 is calibrated on, unless a folder is given."""

_CALIBRATION_IMAGES = 20  # enough to measure a time, too few to measure an accuracy
_MAX_INT8_ERROR = 0.5  # relative, of scores with random weights; a network that is wired wrongly has 1


@dataclass(frozen=True)
class Side:
    """One network in one engine and precision."""

    median: float
    """Seconds per call with the full batch."""
    p10: float
    p90: float
    difference: float
    """||scores - float32 scores|| / ||float32 scores||."""


@dataclass(frozen=True)
class Row:
    """The stock network and WAE in the same engine and precision."""

    engine: str
    precision: str
    stock: Side
    wae: Side

    @property
    def name(self) -> str:
        """Engine and precision."""
        return f"{self.engine} {self.precision}"

    @property
    def ratio(self) -> float:
        """How many times faster WAE is."""
        return self.stock.median / self.wae.median


@dataclass(frozen=True)
class NotTimed:
    """An engine and precision that has no :class:`Row`, and why."""

    engine: str
    precision: str
    reason: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}: {self.reason}"


@dataclass(frozen=True)
class Comparison:
    """Everything measured for one network and one batch size, in one process."""

    network: str
    size: int
    """Height and width of the images in pixels."""
    images: int
    """Images per call."""
    multiply_adds: Mapping[str, int]
    """For one image: "stock", and "wae" including its encoder."""
    scales_from: str
    """The images that int8 was calibrated on."""
    eager: Timing
    """The stock network in float32 in eager PyTorch."""
    rows: Sequence[Row]
    left_out: Sequence[NotTimed] = ()
    others: float | None = None
    """CPU cores that other programs used during the timing; None if that is not known."""

    @property
    def promised(self) -> float:
        """The speedup that the multiply-adds promise: the stock network's over WAE's."""
        return self.multiply_adds["stock"] / self.multiply_adds["wae"]

    @property
    def stock(self) -> tuple[float, str]:
        """The stock network's shortest time, and the engine and precision that reach it."""
        return min(
            [(row.stock.median, row.name) for row in self.rows] + [(self.eager.median, "PyTorch eager")]
        )

    @property
    def wae(self) -> tuple[float, str]:
        """WAE's shortest time, and the engine and precision that reach it."""
        return min((row.wae.median, row.name) for row in self.rows)

    @property
    def ratio(self) -> float:
        """How many times faster WAE is, each network in its own fastest engine and precision."""
        return self.stock[0] / self.wae[0]


# --------------------------------------------------------------------------------------------- measuring


def compare(
    pair: Pair,
    size: int,
    batch: int,
    engines: Sequence[str],
    precisions: Sequence[str],
    seconds: float,
    calibrate: Path | None = None,
    step: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Build, check and time ``pair`` on the CPU, with PyTorch's number of threads.

    Args:
        pair: the networks.
        size: height and width of the images.
        batch: images per call.
        engines: names in :data:`wae.inference.engines.ENGINES`.
        precisions: a precision that an engine does not have is skipped; one that cannot run here, for example
            because a package is missing, is reported in :attr:`Comparison.left_out`.
        seconds: how long to time, all sides together; at least three rounds are timed.
        calibrate: a folder with 40 images or more to calibrate int8 on; None for :data:`PHOTOS`.
        step: called with a description before each side is built, and before the timing.

    Raises:
        EngineError: no side can be timed; the message gives the reasons.
        CalibrationError: the folder has too few images.
        ValueError: a network takes no images of this size.
    """
    torch._dynamo.reset()  # frees the gigabytes that an earlier comparison leaves
    gc.collect()
    scale_for_photos(pair.wae)
    given = _images(calibrate, size) if "int8" in precisions else crops(size, batch)
    images = {kind: _as_taken(network, pair.wae, given) for kind, network in pair.networks.items()}
    left_out: list[NotTimed] = []
    sides = _sides(pair, images, size, batch, _combinations(engines, precisions, left_out), left_out, step)
    step(f"{pair.name}, batch {batch}: timing")
    calls = {kind: given[torch.arange(batch) % len(given)] for kind, given in images.items()}
    timings, others = _timed_sides(sides, pair.stock, calls, seconds)
    costs = {kind: count(network, (size, size)).multiply_adds for kind, network in pair.networks.items()}
    source = str(calibrate.name) if calibrate else PHOTOS
    rows = _rows(sides, timings)
    return Comparison(pair.name, size, batch, costs, source, timings["eager"], rows, left_out, others)


class _Key(NamedTuple):
    """Identifies a side."""

    kind: str
    """A key of :attr:`Pair.networks`."""
    engine: str
    precision: str


def _sides(
    pair: Pair,
    images: Mapping[str, Tensor],
    size: int,
    batch: int,
    combinations: Iterable[tuple[Engine, str]],
    left_out: list[NotTimed],
    step: Callable[[str], None],
) -> dict[_Key, Deployed]:
    """Both networks in each engine and precision. Adds those that cannot be built to ``left_out``.

    Raises EngineError if none can be built.
    """
    sides: dict[_Key, Deployed] = {}
    for engine, precision in combinations:
        made = _both(pair, images, size, batch, engine, precision, step)
        if isinstance(made, str):
            left_out.append(NotTimed(engine.name, precision, made))
        else:
            sides |= {_Key(kind, engine.name, precision): side for kind, side in made.items()}
    if not sides:
        reasons = "; ".join(map(str, left_out))
        raise EngineError(f"nothing can be timed: {reasons or 'no engine computes in this precision'}")
    return sides


def _timed_sides(
    sides: Mapping[_Key, Deployed], stock: nn.Module, calls: Mapping[str, Tensor], seconds: float
) -> tuple[dict[str, Timing], float | None]:
    """Time all sides and, as "eager", ``stock``, interleaved; also the cores that other programs used.

    ``calls`` has the images of a call for each kind of network.
    """
    functions: dict[str, Callable[[], Any]] = {
        " ".join(key): partial(side, calls[key.kind]) for key, side in sides.items()
    }
    functions["eager"] = partial(stock, calls["stock"])
    with torch.no_grad():
        return timed(functions, seconds, torch.device("cpu"), settle=1)


def _rows(sides: Mapping[_Key, Deployed], timings: Mapping[str, Timing]) -> list[Row]:
    """A row with both networks for each engine and precision."""
    made = {key: _side(timings[" ".join(key)], side) for key, side in sides.items()}
    return [
        Row(key.engine, key.precision, made[key], made[key._replace(kind="wae")])
        for key in made
        if key.kind == "stock"
    ]


def _combinations(
    engines: Sequence[str], precisions: Sequence[str], left_out: list[NotTimed]
) -> Iterator[tuple[Engine, str]]:
    """The combinations that can run here. Adds the others to ``left_out``."""
    for precision in precisions:
        for engine in (ENGINES[name] for name in engines):
            if precision not in engine.precisions:
                continue
            if (reason := engine.why_not("cpu", precision)) is not None:
                left_out.append(NotTimed(engine.name, precision, reason))
            else:
                yield engine, precision


def _both(
    pair: Pair,
    images: Mapping[str, Tensor],
    size: int,
    batch: int,
    engine: Engine,
    precision: str,
    step: Callable[[str], None],
) -> dict[str, Deployed] | str:
    """Both networks deployed, or the reason why one of them cannot be."""
    made = {}
    try:
        for kind, network in pair.networks.items():
            step(f"{pair.name}, batch {batch}: {engine.name} {precision}")
            made[kind] = _deployed(network, images[kind], size, batch, engine, precision)
    except (EngineError, DisagreementError) as error:
        return first_line(error)
    return made


def _deployed(
    network: nn.Module, images: Tensor, size: int, batch: int, engine: Engine, precision: str
) -> Deployed:
    """``network`` deployed and checked by wae.deploy; int8 also here, as far as random weights allow it."""
    int8 = precision == "int8"
    deployed = deploy(
        network,
        (size, size),
        batch,
        engine.name,
        precision=precision,
        calibration=images if int8 else None,
        calibration_images=len(images) // 2,
        max_drop=None,
    )
    if int8 and not deployed.difference <= _MAX_INT8_ERROR:  # also true for NaN
        raise DisagreementError(f"int8 scores are wrong by {deployed.difference:.2g}")
    return deployed


def _side(timing: Timing, deployed: Deployed) -> Side:
    return Side(timing.median, timing.p10, timing.p90, deployed.difference)


def crops(size: int, count: int) -> Tensor:
    """Crops of the bundled photos: (count, 3, size, size) uint8."""
    side = size + 1  # because Crops returns images that are sometimes a pixel smaller
    crops = Crops([_at_least(side, photo(name)) for name in TRAINING], side, count, seed=0)
    return torch.cat([crops.batch([number], 0)[0][..., :size, :size] for number in range(count)])


def _at_least(side: int, image: Tensor) -> Tensor:
    """``image``, enlarged if its shorter side is below ``side``."""
    factor = side / min(image.shape[1:])
    if factor <= 1:
        return image
    height, width = (max(side, round(factor * n)) for n in image.shape[1:])
    return F.interpolate(image[None].float(), (height, width), mode="bilinear")[0].round().to(torch.uint8)


def _images(folder: Path | None, size: int) -> Tensor:
    if folder is None:
        return crops(size, 2 * _CALIBRATION_IMAGES)
    described = Input(size, evaluation_resize(size))
    found = list(in_folder(folder, described, 400)) if folder.is_dir() else []
    images = torch.cat(found) if found else torch.empty(0)
    if len(images) < 2 * _CALIBRATION_IMAGES:
        raise CalibrationError(
            f"{folder} must be a folder with at least {2 * _CALIBRATION_IMAGES} images, got {len(images)}"
        )
    return images


def _as_taken(network: nn.Module, wae: nn.Module, crops: Tensor) -> Tensor:
    """``crops`` if the network scales its images itself; otherwise scaled here, outside of the timing."""
    if hasattr(network, "image_scale"):
        return crops
    scale, shift = wae.get_buffer("image_scale"), wae.get_buffer("image_shift")
    return normalize_image(crops, scale.dtype, scale, shift)


def engines_for_cpu() -> list[str]:
    """The engines that run on CPUs, including those that are not installed: these are left out by name."""
    return [name for name, engine in ENGINES.items() if "cpu" in engine.devices]


# ---------------------------------------------------------------------------------------------- as data


def as_data(comparisons: Sequence[Comparison], seconds: float) -> dict[str, Any]:
    """The comparisons as JSON data; times in seconds."""
    return {
        "machine": machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": seconds,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


def from_data(data: Mapping[str, Any]) -> list[Comparison]:
    """The comparisons that :func:`as_data` was given."""
    return [
        Comparison(
            **{
                **entry,
                "eager": Timing(**entry["eager"]),
                "rows": [
                    Row(row["engine"], row["precision"], Side(**row["stock"]), Side(**row["wae"]))
                    for row in entry["rows"]
                ],
                "left_out": [NotTimed(**missing) for missing in entry["left_out"]],
            }
        )
        for entry in data["comparisons"]
    ]
