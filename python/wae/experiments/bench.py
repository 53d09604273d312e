"""``wae bench``: is WAE worth it for this network, on this machine?

The stock network against WAE around it, each as :func:`wae.deploy` makes it in an engine and a precision, and
the stock network as PyTorch runs it. Every side is checked before any is timed; then all take turns. The
same functions make the tables of docs/benchmarks.md.
"""

from __future__ import annotations

import base64
import gc
import html
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

import wae_kernels
from wae.data.crops import Crops
from wae.data.folder import evaluation_resize
from wae.data.photos import TRAINING, photo
from wae.inference.agreement import DisagreementError
from wae.inference.calibration import CalibrationError, in_folder
from wae.inference.deploy import deploy
from wae.inference.deployed import Deployed
from wae.inference.engines import ENGINES, Engine, EngineError
from wae.inference.timing import Timing, interleaved
from wae.models.counting import count
from wae.models.pairs import Pair
from wae.storage.checkpoint import Input
from wae.training.pretrained import scale_for_photos
from wae.wording import counted, first_line
from wae_kernels import backends
from wae_kernels.reference import normalize_image

from .info import processor

PHOTOS = "crops of the bundled photos"
"""Where int8's scales come from, unless a folder is given."""

LIMITS = ("WAE_BACKEND", "WAE_AMX", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
"""Environment variables that keep libraries from some instructions or cores."""

QUIET = 0.1
"""Cores that other programs may use while something is timed."""

_SCALES_FROM = 20  # images: enough for a time, too few for an accuracy
_WORTH = 1.1  # times faster; less is not worth a training
_MOST_WRONG = 0.5  # of int8's scores of random weights, relative: a network that is wired wrongly has 1
_PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "nncf", "torchao")
_INSTRUCTIONS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx512_fp16")


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
            [(row.stock.median, _in(row)) for row in self.rows] + [(self.eager.median, "PyTorch eager")]
        )

    @property
    def wae(self) -> tuple[float, str]:
        """Its fastest time, and in what."""
        return min((row.wae.median, _in(row)) for row in self.rows)

    @property
    def ratio(self) -> float:
        """How many times faster WAE is, both in the engine and precision that is fastest for them."""
        return self.stock[0] / self.wae[0]


def _in(row: Row) -> str:
    return f"{row.engine} {row.precision}"


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
    crops = _images(calibrate, size) if "int8" in precisions else _crops(size, batch)
    images = {kind: _as_taken(network, pair.wae, crops) for kind, network in pair.networks.items()}
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
        others = _Others()
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


class _Others:
    """Processor time that other programs take, from now on."""

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), self._seconds()

    def cores(self) -> float | None:
        """How many cores they have used; None where that is not known."""
        now = self._seconds()
        if now is None or self._before is None:
            return None
        return (now - self._before) / (time.perf_counter() - self._start)

    def _seconds(self) -> float | None:
        """Of a core, since the system started."""
        try:
            first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
        except OSError:  # only Linux has it
            return None
        user, nice, system, _, _, interrupts, soft = map(int, first.split()[1:8])
        mine = os.times()
        every = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
        return every - mine.user - mine.system


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


def _crops(size: int, count: int) -> Tensor:
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
        return _crops(size, 2 * _SCALES_FROM)
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


def limits() -> dict[str, str]:
    """Those of :data:`LIMITS` that are set."""
    return {name: os.environ[name] for name in LIMITS if name in os.environ}


def machine() -> dict[str, Any]:
    """The machine and versions that the times depend on."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "processor": processor(),
        "instructions": [name for name in _INSTRUCTIONS if known.get(name)],
        "threads": torch.get_num_threads(),
        "backend": backends.backend_for("cpu"),
        "limits": limits(),
        "versions": {"wae-kernels": wae_kernels.__version__}
        | {name: _version(name) for name in _PACKAGES if find_spec(name)},
    }


def _version(package: str) -> str:
    """Of what is imported as ``package``; onnxruntime, say, may have come as onnxruntime-gpu."""
    try:
        return version(package)
    except PackageNotFoundError:
        others = packages_distributions().get(package, ())
        return ", ".join(f"{name} {version(name)}" for name in others) or "not known"


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


# --------------------------------------------------------------------------------------------- for people


def heads(comparison: Comparison) -> list[str]:
    """Of the columns of :func:`cells`."""
    promised = f"of {comparison.promised:.2f}x"
    return ["engine", "precision", "stock ms", "WAE ms", "faster", promised, "images/s"]


def cells(comparison: Comparison) -> list[list[str]]:
    """A row for each engine and precision: how many times faster, and which share of the promised ratio."""
    return [
        [
            row.engine,
            row.precision,
            milliseconds(row.stock.median),
            milliseconds(row.wae.median),
            f"{row.ratio:.2f}x",
            f"{row.ratio / comparison.promised:.0%}",
            f"{comparison.images / row.wae.median:.4g}",
        ]
        for row in comparison.rows
    ]


def title(comparison: Comparison) -> str:
    """Of its table."""
    return (
        f"{comparison.network}, {comparison.size} x {comparison.size}, {comparison.images} at once; "
        f"PyTorch eager: {milliseconds(comparison.eager.median)} ms"
    )


def table(comparison: Comparison) -> Table:
    """For a terminal of 80 columns."""
    result = Table(title=title(comparison), title_justify="left")
    for number, head in enumerate(heads(comparison)):
        result.add_column(head, justify="left" if number < 2 else "right", no_wrap=True)
    for row in cells(comparison):
        result.add_row(*row)
    return result


def notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Notes for the reader of the tables."""
    lines = [
        f"Medians of calls in turns, each checked first; {counted(torch.get_num_threads(), 'thread')}.",
        "Column 6: the share of the ratio of multiply-adds that is reached.",
        "WAE's weights are random: no accuracy is claimed; `wae eval --deployed` measures it.",
    ]
    if any(row.precision == "int8" for c in comparisons for row in c.rows):
        lines.append(f"int8's scales come from {comparisons[0].scales_from}.")
    if (busiest := max((c.others or 0.0 for c in comparisons), default=0.0)) > QUIET:
        lines.append(f"Other programs used {busiest:.1f} cores meanwhile: do not rely on these times.")
    if set_here := limits():
        settings = ", ".join(f"{name}={value}" for name, value in set_here.items())
        lines.append(f"Limited by {settings}.")
    left_out = {(name, why): None for c in comparisons for name, why in c.left_out.items()}
    return lines + [f"left out: {name}: {why}" for name, why in left_out]


def verdict(comparisons: Sequence[Comparison]) -> str:
    """The answer, in one sentence: whether WAE is worth it, each network in its own fastest form."""
    answers = []
    for network in dict.fromkeys(c.network for c in comparisons):
        found = [c for c in comparisons if c.network == network]
        worth = [c for c in found if c.ratio >= _WORTH]
        word = "yes" if len(worth) == len(found) else "no" if not worth else "in part"
        ratios = ", ".join(f"{c.ratio:.2f}x at batch {c.images}" for c in found)
        shares = ", ".join(f"{c.ratio / c.promised:.0%}" for c in found)
        answers.append(
            f"{word} for {network}: {ratios}, against its fastest form today "
            f"({shares} of {found[0].promised:.2f}x, the ratio of multiply-adds)"
        )
    return f"Is WAE worth it here? {'; '.join(answers)}."


def milliseconds(seconds: float) -> str:
    """Three digits, and all before the point."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def page(comparisons: Sequence[Comparison]) -> str:
    """A page of HTML that needs nothing beside it: the answer, a figure, the tables."""
    figure = base64.b64encode(_figure(comparisons)).decode()
    about = machine()
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    escaped = html.escape
    parts = [
        f"<p><strong>{escaped(verdict(comparisons))}</strong></p>",
        f'<img alt="images a second by engine and precision" src="data:image/png;base64,{figure}">',
    ]
    for comparison in comparisons:
        rows = [f"<tr><td>{'<td>'.join(map(escaped, row))}</tr>" for row in cells(comparison)]
        head = "<th>".join(map(escaped, heads(comparison)))
        parts.append(f"<h2>{escaped(title(comparison))}</h2>\n<table><tr><th>{head}</tr>")
        parts += [*rows, "</table>"]
    parts += [f"<p>{escaped(note)}</p>" for note in notes(comparisons)]
    parts.append(
        f"<p>{escaped(about['processor'])} ({', '.join(about['instructions'])}), "
        f"{counted(about['threads'], 'thread')}, {about['backend']}. {escaped(versions)}.</p>"
    )
    return _PAGE.replace("BODY", "\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>wae bench</title>
<style>
body { font-family: sans-serif; margin: 2em auto; max-width: 60em; }
img { max-width: 100%; }
td, th { padding: .2em .8em; text-align: right; }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
</style>
<h1>wae bench</h1>
BODY
</html>
"""


def _figure(comparisons: Sequence[Comparison]) -> bytes:
    """A PNG: images a second of every engine and precision, a panel for each comparison."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(len(c.rows) for c in comparisons)
    figure = Figure(figsize=(9, len(comparisons) * (1 + 0.4 * most)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(comparisons), squeeze=False)[:, 0]
    for axis, comparison in zip(axes, comparisons, strict=True):
        places = range(len(comparison.rows))
        for offset, label, color in ((-0.2, "stock", "#7f7f7f"), (0.2, "WAE", "#1f77b4")):
            rates = [comparison.images / getattr(row, label.lower()).median for row in comparison.rows]
            bars = axis.barh([y + offset for y in places], rates, 0.38, label=label, color=color)
            axis.bar_label(bars, fmt="%.4g", padding=3, fontsize=8)
        axis.axvline(
            comparison.images / comparison.eager.median, color="black", lw=0.8, label="PyTorch eager"
        )
        axis.set_yticks(places, [_in(row) for row in comparison.rows])
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(f"{comparison.network}, {comparison.images} at once: images a second", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
