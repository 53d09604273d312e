"""``wae bench``: is WAE worth it for this network, on this machine?

The stock network against WAE around it, each as :func:`wae.deploy` makes it in an engine and a precision, and
the stock network as PyTorch runs it. Every side is checked before any is timed; then all take turns. The
same functions make the tables of docs/benchmarks.md.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.data.crops import Crops
from wae.data.folder import evaluation_resize
from wae.data.input import Input
from wae.data.photos import TRAINING, photo
from wae.inference.agreement import DisagreementError
from wae.inference.calibration import CalibrationError, in_folder
from wae.inference.deploy import deploy
from wae.inference.deployed import Deployed
from wae.inference.engines import ENGINES, Engine, EngineError
from wae.inference.timing import Timing, interleaved
from wae.models.counting import count
from wae.models.pairs import Pair
from wae.training.pretrained import scale_for_photos
from wae.wording import first_line
from wae_kernels.reference import normalize_image

from .machine import Others, machine

PHOTOS = "crops of the bundled photos"
"""Where int8's scales come from, unless a folder is given."""

_SCALES_FROM = 20  # images: enough for a time, too few for an accuracy
_MOST_WRONG = 0.5  # of int8's scores of random weights, relative: a network that is wired wrongly has 1


@dataclass(frozen=True)
class Side:
    """One network in one engine and precision."""

    median: float
    """Seconds of a call with all images."""
    p10: float
    p90: float
    difference: float
    """Of its scores from the float32 network's, relative, in the norm."""


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
class Comparison:
    """Everything about one network and one number of images, all of it from one process."""

    network: str
    size: int
    """Of the images, pixels a side."""
    images: int
    """In a call."""
    multiply_adds: Mapping[str, int]
    """Of one image: "stock" and "wae", its encoder included."""
    scales_from: str
    """The images that int8's scales come from."""
    eager: Timing
    """The stock network in float32 as PyTorch runs it."""
    rows: Sequence[Row]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """By engine and precision, why there is no row."""
    others: float | None = None
    """Cores that other programs used while it was timed; None where that is not known."""

    @property
    def promised(self) -> float:
        """The ratio of multiply-adds."""
        return self.multiply_adds["stock"] / self.multiply_adds["wae"]

    @property
    def stock(self) -> tuple[float, str]:
        """Its fastest time, and in what."""
        return min(
            [(row.stock.median, row.name) for row in self.rows] + [(self.eager.median, "PyTorch eager")]
        )

    @property
    def wae(self) -> tuple[float, str]:
        """Its fastest time, and in what."""
        return min((row.wae.median, row.name) for row in self.rows)

    @property
    def ratio(self) -> float:
        """How many times faster WAE is, both in the engine and precision that is fastest for them."""
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
    """Build, check and time ``pair`` on the processor, with as many threads as PyTorch has.

    Args:
        pair: the networks.
        size: of the images, (size, size).
        batch: images of a call.
        engines: of :data:`wae.inference.engines.ENGINES`.
        precisions: what an engine cannot compute in is passed over; what misses a package is left out.
        seconds: to time for, all sides together, at least three rounds.
        calibrate: a folder with 40 images or more, for int8's scales; None for :data:`PHOTOS`.
        step: is called with a name before each side is built, and before the timing.

    Raises:
        EngineError: no side can be timed; the message has the reasons.
        CalibrationError: the folder has too few images.
        ValueError: a network takes no images of this size.
    """
    torch._dynamo.reset()  # a comparison before this one has left gigabytes
    gc.collect()
    scale_for_photos(pair.wae)
    given = _images(calibrate, size) if "int8" in precisions else crops(size, batch)
    images = {kind: _as_taken(network, pair.wae, given) for kind, network in pair.networks.items()}
    left_out: dict[str, str] = {}
    sides = _sides(pair, images, size, batch, _combinations(engines, precisions, left_out), left_out, step)
    step(f"{pair.name}, {batch} at once: timing")
    calls = {kind: given[torch.arange(batch) % len(given)] for kind, given in images.items()}
    timings, others = _timed(sides, pair.stock, calls, seconds)
    costs = {kind: count(network, (size, size)).multiply_adds for kind, network in pair.networks.items()}
    source = str(calibrate.name) if calibrate else PHOTOS
    rows = _rows(sides, timings)
    return Comparison(pair.name, size, batch, costs, source, timings["eager"], rows, left_out, others)


class _Key(NamedTuple):
    """Of a side."""

    kind: str
    """Of the network: see :attr:`Pair.networks`."""
    engine: str
    precision: str


def _sides(
    pair: Pair,
    images: Mapping[str, Tensor],
    size: int,
    batch: int,
    combinations: Iterable[tuple[Engine, str]],
    left_out: dict[str, str],
    step: Callable[[str], None],
) -> dict[_Key, Deployed]:
    """Both networks in each engine and precision; why some are not, goes into ``left_out``.

    Raises EngineError where none is.
    """
    sides: dict[_Key, Deployed] = {}
    for engine, precision in combinations:
        made = _both(pair, images, size, batch, engine, precision, step)
        if isinstance(made, str):
            left_out[f"{engine.name} {precision}"] = made
        else:
            sides |= {_Key(kind, engine.name, precision): side for kind, side in made.items()}
    if not sides:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise EngineError(f"nothing can be timed: {reasons or 'no engine computes in this precision'}")
    return sides


def _timed(
    sides: Mapping[_Key, Deployed], stock: nn.Module, calls: Mapping[str, Tensor], seconds: float
) -> tuple[dict[str, Timing], float | None]:
    """The times of each side, and of ``stock`` as "eager"; and the cores that others used meanwhile.

    All take turns. ``calls`` has the images of a call, for each kind of network.
    """
    functions: dict[str, Callable[[], Any]] = {
        " ".join(key): partial(side, calls[key.kind]) for key, side in sides.items()
    }
    functions["eager"] = partial(stock, calls["stock"])
    with torch.no_grad():
        others = Others()
        timings = interleaved(functions, seconds, settle=1)
        return timings, others.cores()


def _rows(sides: Mapping[_Key, Deployed], timings: Mapping[str, Timing]) -> list[Row]:
    """A row of both networks for each engine and precision."""
    made = {key: _side(timings[" ".join(key)], side) for key, side in sides.items()}
    return [
        Row(key.engine, key.precision, made[key], made[key._replace(kind="wae")])
        for key in made
        if key.kind == "stock"
    ]


def _combinations(
    engines: Sequence[str], precisions: Sequence[str], left_out: dict[str, str]
) -> Iterator[tuple[Engine, str]]:
    """Those that can run here; the others that were meant go into ``left_out``."""
    for precision in precisions:
        for engine in (ENGINES[name] for name in engines):
            if precision not in engine.precisions:
                continue
            if (reason := engine.why_not("cpu", precision)) is not None:
                left_out[f"{engine.name} {precision}"] = reason
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
    """Both networks deployed; or the reason why one cannot be."""
    made = {}
    try:
        for kind, network in pair.networks.items():
            step(f"{pair.name}, {batch} at once: {engine.name} {precision}")
            made[kind] = _deployed(network, images[kind], size, batch, engine, precision)
    except (EngineError, DisagreementError) as error:
        return first_line(error)
    return made


def _deployed(
    network: nn.Module, images: Tensor, size: int, batch: int, engine: Engine, precision: str
) -> Deployed:
    """Checked: by wae.deploy, and int8 here as well as random weights allow."""
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
    if int8 and not deployed.difference <= _MOST_WRONG:  # NaN neither
        raise DisagreementError(f"scores in int8 are wrong by {deployed.difference:.2g}")
    return deployed


def _side(timing: Timing, deployed: Deployed) -> Side:
    return Side(timing.median, timing.p10, timing.p90, deployed.difference)


def crops(size: int, count: int) -> Tensor:
    """(count, 3, size, size) uint8, out of the bundled photos."""
    side = size + 1  # Crops' own are a pixel smaller at times
    crops = Crops([_at_least(side, photo(name)) for name in TRAINING], side, count, seed=0)
    return torch.cat([crops.batch([number], 0)[0][..., :size, :size] for number in range(count)])


def _at_least(side: int, image: Tensor) -> Tensor:
    """``image``, enlarged where it is smaller."""
    factor = side / min(image.shape[1:])
    if factor <= 1:
        return image
    height, width = (max(side, round(factor * n)) for n in image.shape[1:])
    return F.interpolate(image[None].float(), (height, width), mode="bilinear")[0].round().to(torch.uint8)


def _images(folder: Path | None, size: int) -> Tensor:
    if folder is None:
        return crops(size, 2 * _SCALES_FROM)
    described = Input(size, evaluation_resize(size))
    found = list(in_folder(folder, described, 400)) if folder.is_dir() else []
    images = torch.cat(found) if found else torch.empty(0)
    if len(images) < 2 * _SCALES_FROM:
        raise CalibrationError(
            f"{folder} must be a folder with at least {2 * _SCALES_FROM} images, got {len(images)}"
        )
    return images


def _as_taken(network: nn.Module, wae: nn.Module, crops: Tensor) -> Tensor:
    """``crops`` for a network that scales its images itself; else already scaled, which is not timed."""
    if hasattr(network, "image_scale"):
        return crops
    scale, shift = wae.get_buffer("image_scale"), wae.get_buffer("image_shift")
    return normalize_image(crops, scale.dtype, scale, shift)


def installed() -> list[str]:
    """The engines that run on this processor."""
    return [name for name, engine in ENGINES.items() if engine.why_not("cpu") is None]


# ---------------------------------------------------------------------------------------------- as data


def as_data(comparisons: Sequence[Comparison], seconds: float) -> dict[str, Any]:
    """For a file of JSON; times in seconds."""
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
            }
        )
        for entry in data["comparisons"]
    ]
