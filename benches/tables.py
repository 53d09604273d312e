"""Markdown tables of result files: targets and what was reached, and everything that was measured."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wae.experiments.bench_report import milliseconds
from wae.models.counting import count
from wae.models.meta import on_meta
from wae.models.registry import build
from wae.wording import counted

from .result_files import Benchmark, Result

OURS = "wae-kernels"

# ------------------------------------------------------------------------------------------------ bounds


class Bound(NamedTuple):
    """A target for the ratio of two times.

    ``slow`` and ``fast`` are patterns that match names of sides in ``table``; the fastest match counts. With
    ``network``, ``aim`` is a share of the ratio between the multiply-adds of this network and those of WAE
    around it.
    """

    what: str
    table: str
    slow: str
    fast: str
    least: float | None = None
    aim: float | None = None
    most: float | None = None
    network: str | None = None
    batches: Sequence[int] = (1, 8)

    def asked(self) -> tuple[str, str]:
        """The table's cells: required, and target."""
        if self.most is not None:
            return f"at most {self.most:g}x", ""
        if self.network is not None:
            return "", f"{self.aim:.0%} of {multiply_adds(self.network):.2f}x"
        least, aim = (f"{x:g}x" if x is not None else "" for x in (self.least, self.aim))
        return least, aim

    def cell(self, ratio: float) -> str:
        """``ratio`` as the table shows it, in bold if it misses the bound."""
        if self.network is not None:
            share = ratio / multiply_adds(self.network)
            text, holds = f"{ratio:.2f}x, {share:.0%}", share >= (self.aim or 0)
        else:
            text = f"{ratio:.2f}x"
            holds = ratio <= self.most if self.most is not None else ratio >= (self.least or 0)
        return text if holds else f"**{text}**"


@functools.cache
def multiply_adds(network: str) -> float:
    """The multiply-adds of ``network``, divided by those of WAE around it with its encoder."""
    stock, wae = (
        count(on_meta(functools.partial(build, name))).multiply_adds
        for name in (network.lower(), f"wae_{network.lower()}")
    )
    return stock / wae


def _of_op(op: str) -> list[Bound]:
    peer = rf"(?!{OURS}$|PyTorch eager$).*"
    return [
        Bound(f"{op} over PyTorch eager", op, "PyTorch eager", OURS, 5.5, 9),
        Bound(f"{op} over the fastest other baseline", op, peer, OURS, 1.6, 2.4),
    ]


def _of_network(network: str, deployed: tuple[float, float]) -> list[Bound]:
    stock, wae, table = f"{network} at 224", f"WAE-{network}, deployed", "end to end"
    return [
        Bound(f"{wae}, over {network}, eager", table, rf"{stock} \| eager", rf"{wae} \| .*", *deployed),
        *(
            Bound(
                f"{wae}, over {network}, both {runner}",
                table,
                rf"{stock} \| {runner}",
                rf"{wae} \| {runner}",
                aim=0.93,
                network=network,
            )
            for runner in ("torch.compile", "Winograd", "ONNX Runtime", "OpenVINO")
        ),
    ]


_IN_PYTORCH = r"\| (eager|channels_last)"
_STOCK_OPS = rf"WAE-VGG16, stock ops {_IN_PYTORCH}"
_OUR_ENCODER = rf"WAE-VGG16, our encoder {_IN_PYTORCH}"

BOUNDS = [
    *_of_network("VGG16", (5, 7)),
    Bound(
        "WAE-VGG16, our encoder, over VGG16, both eager",
        "end to end",
        rf"VGG16 at 224 {_IN_PYTORCH}",
        _OUR_ENCODER,
        3.13,
    ),
    Bound(
        "our ops over stock ops in WAE-VGG16, both eager",
        "end to end",
        _STOCK_OPS,
        rf"WAE-VGG16, our ops {_IN_PYTORCH}",
        1.08,
        1.2,
    ),
    Bound(
        "our encoder over stock ops in WAE-VGG16, both eager",
        "end to end",
        _STOCK_OPS,
        _OUR_ENCODER,
        1.08,
        1.2,
    ),
    *_of_network("ResNet50", (2.5, 4)),
    *_of_op("encode"),
    *_of_op("decode"),
    Bound("encode + backward over PyTorch eager", "encode + backward", "PyTorch eager", OURS, 1.3, 2),
    Bound("encode of uint8 over float32", "input types, encode", "floating point|float32", "uint8", 1),
    Bound("encode in int8 over float32", "int8, encode", "float32", "int8", 1.25, 1.8),
    Bound(
        "encode, time per pixel: 2048 x 2048 relative to 224 x 224",
        "resolution, encode",
        "1 of 2048 x 2048",
        "84 of 224 x 224",
        most=1.15,
    ),
]
"""The targets on a CPU."""


def _on_gpu(network: str, least: float, aim: float) -> Bound:
    engine = r"\| float16, (CUDA graph|TensorRT|torch.compile.*)"
    return Bound(
        f"WAE-{network} over {network}, both in the fastest engine",
        "end to end, GPU",
        rf"{network} at 224 {engine}",
        rf"WAE-{network}, deployed {engine}",
        least,
        aim,
        batches=(128,),
    )


def _as_one_graph(network: str) -> Bound:
    return Bound(
        f"WAE-{network} over {network}, each one CUDA graph",
        "end to end, GPU",
        rf"{network} at 224 \| float16, CUDA graph",
        rf"WAE-{network}, deployed \| float16, CUDA graph",
        1.5,
        2.2,
        batches=(1,),
    )


_PEER = rf"(?!{OURS}).*"
GPU_BOUNDS = [
    Bound(
        "encode float16 over the fastest baseline", "encode, GPU, float16", _PEER, OURS, 3, 6, batches=(64,)
    ),
    Bound(
        "encode + backward over eager AMP",
        "encode + backward, GPU, float16",
        "PyTorch eager, autocast",
        rf"{OURS}, autocast",
        2,
        4,
        batches=(64,),
    ),
    _on_gpu("VGG16", 2.6, 3.0),
    _on_gpu("ResNet50", 1.9, 2.2),
    _as_one_graph("VGG16"),
    _as_one_graph("ResNet50"),
]
"""The targets on an H100."""


def ratio(benchmark: Benchmark, slow: str, fast: str) -> float | None:
    """The time of the fastest side that matches ``slow``, divided by that of the fastest matching ``fast``.

    Times are per pixel if the sides differ in pixels. None if one of the two was not measured.
    """
    times = [_least_time(benchmark, pattern) for pattern in (slow, fast)]
    return times[0] / times[1] if times[0] and times[1] else None


def fastest(benchmark: Benchmark, pattern: str) -> str | None:
    """The fastest side whose name matches ``pattern``; None if there is none."""
    timings = benchmark["timings"]
    found = [side for side in timings if re.fullmatch(pattern, side)]
    return min(found, key=lambda side: timings[side]["median"], default=None)


def _least_time(benchmark: Benchmark, pattern: str) -> float | None:
    pixels = benchmark.get("megapixels", {})
    return min(
        (
            timing["median"] / pixels.get(side, 1)
            for side, timing in benchmark["timings"].items()
            if re.fullmatch(pattern, side)
        ),
        default=None,
    )


def bounds(results: Sequence[Result], asked: Sequence[Bound]) -> list[str]:
    """The table of targets, with a column for each result file."""
    lines = [
        "| speedup | required | target | " + " | ".join(name(r) for r in results) + " |",
        "|---|---|---|" + "---|" * len(results),
    ]
    for bound in asked:
        cells = [*bound.asked(), *(_reached(bound, result) for result in results)]
        lines.append(f"| {bound.what} | " + " | ".join(cells) + " |")
    return lines


def _reached(bound: Bound, result: Result) -> str:
    measured = sorted(_tables(result, bound.table), key=lambda b: b.get("images", 0))
    ratios = [ratio(b, bound.slow, bound.fast) for b in measured if b.get("images", 1) in bound.batches]
    return " / ".join(bound.cell(r) for r in ratios if r is not None) or "not measured"


# ---------------------------------------------------------------------------------------- for a decision

ACCURACY = {
    "VGG16": "top-5 error 11.65 % to 11.87 %",
    "ResNet50": "0.8 points lost",
}
"""Published for ImageNet: docs/network.md."""
_DECISION = {"cpu": (8, 1), "cuda": (128, 1)}
"""Batch sizes in the README's table; with three machines or more, only the first."""


def decision(results: Sequence[Result]) -> list[str]:
    """The README's table, of at most eight rows: a network in eager, in its fastest engine, and with WAE."""
    heads = (
        "network, batch",
        "machine",
        "stock, PyTorch eager",
        "stock, fastest engine",
        "WAE, fastest engine",
        "speedup over eager",
        "over the fastest engine",
        "accuracy, published",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    results = [r for r in results if any(b["table"] == "end to end" for b in r["benchmarks"])]
    measured = [
        (b["network"], b["images"], name(result), b)
        for result in results
        for b in result["benchmarks"]
        if b["table"] == "end to end"
        and b["images"] in _DECISION[b["device"]][: 2 if len(results) < 3 else 1]
    ]
    order = list(ACCURACY)
    for network, images, machine, b in sorted(measured, key=lambda row: (order.index(row[0]), row[1:3])):
        patterns = (rf"{network} at 224 \| eager", rf"{network} at 224 \| .*", rf"WAE-{network}, .*")
        sides = [fastest(b, pattern) for pattern in patterns]
        if None in sides:
            continue  # the run was cut off
        today, engine, wae = (b["timings"][side]["median"] for side in sides)
        cells = [f"{milliseconds(today)} ms", *(_time_in(b, side) for side in sides[1:])]
        cells += [f"{today / wae:.1f}x", f"{engine / wae:.1f}x", ACCURACY[network]]
        lines.append(f"| {network}, {images} | {machine} | {' | '.join(cells)} |")
    return lines[:10]


def _time_in(benchmark: Benchmark, side: str) -> str:
    return f"{milliseconds(benchmark['timings'][side]['median'])} ms ({side.partition(' | ')[2]})"


# -------------------------------------------------------------------------------------- one result file


def name(result: Result) -> str:
    """A short name of a result file's machine."""
    machine = result["machine"]
    return f"{machine['processor']}, {machine['backend']}" + (f", {machine['gpu']}" if machine["gpu"] else "")


def table_of(benchmark: Benchmark) -> str:
    """The name of the table that a benchmark belongs to. Benchmarks on a GPU have their own tables."""
    table = str(benchmark["table"])
    if benchmark.get("device") != "cuda":
        return table
    return f"{table}, GPU" if "network" in benchmark else f"{table}, GPU, {benchmark['precision']}"


def provenance(result: Result) -> str:
    """When a file was measured, at which commits, with which versions and under which limits."""
    machine, runs = result["machine"], [b["run"] for b in result["benchmarks"]]
    commits = dict.fromkeys(
        f"{run['datetime'][:10]}, commit {str(run['commit'])[:10]}"
        f"{' with uncommitted changes' if run['dirty'] else ''}, "
        f"{'' if run['full'] else 'a short run, '}{run['seconds']:g} s per comparison"
        for run in runs
    )
    versions = dict.fromkeys(f"{package} {v}" for run in runs for package, v in run["versions"].items() if v)
    return (
        f"{counted(machine['threads'], 'thread')}"
        + (f", limited by {limits(result)}" if machine["limits"] else "")
        + f". {'; '.join(commits)}. {', '.join(versions)}."
    )


def limits(result: Result) -> str:
    """The environment variables that kept libraries from using some of the CPU's instructions."""
    return ", ".join(f"`{variable}={value}`" for variable, value in result["machine"]["limits"].items())


def short(result: Result) -> list[str]:
    """The fastest way to run each form of a network."""
    measured = sorted(_tables(result, "end to end"), key=lambda b: b["images"])
    batches = sorted({b["images"] for b in measured})
    lines = [
        f"| {name(result)} | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---|" + "---|" * len(batches),
    ]
    for network in dict.fromkeys(b["network"] for b in measured):
        of_network = {b["images"]: b for b in measured if b["network"] == network}
        for row, pattern in (
            (f"{network} at 224, eager", rf"{network} at 224 \| eager"),
            (f"{network} at 224, optimised", rf"{network} at 224 \| (?!eager|channels_last).*"),
            (f"{network} at 112, eager", rf"{network} at 112 \| eager"),
            (f"WAE-{network}, stock ops, eager", rf"WAE-{network}, stock ops {_IN_PYTORCH}"),
            (f"WAE-{network}, our encoder, eager", rf"WAE-{network}, our encoder {_IN_PYTORCH}"),
            (f"WAE-{network}, our ops, eager", rf"WAE-{network}, our ops {_IN_PYTORCH}"),
            (f"WAE-{network}, deployed", rf"WAE-{network}, deployed \| .*"),
        ):
            cells = [
                _best(of_network[batch], pattern, network) if batch in of_network else "" for batch in batches
            ]
            if any(cells):
                lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


def _best(benchmark: Benchmark, pattern: str, network: str) -> str:
    """The fastest side that matches ``pattern``: time, images per second, speedup over stock, and runner."""
    side = fastest(benchmark, pattern)
    if side is None:
        return ""
    timings = benchmark["timings"]
    times = ratio(benchmark, rf"{network} at 224 \| eager", re.escape(side))
    runner = side.partition(" | ")[2]
    return (
        f"{milliseconds(timings[side]['median'])} ms, {timings[side]['images_per_second']:.3g}/s"
        + (f", {times:.2f}x" if times is not None else "")
        + (f" ({runner})" if runner != "eager" else "")
    )


def left_out(result: Result) -> list[str]:
    """A line for each side that was not timed, saying why."""
    return [
        f"- {table_of(b)}, {b['name'].partition('[')[2].rstrip(']')}: {side}: {reason}"
        for b in result["benchmarks"]
        for side, reason in b.get("left_out", {}).items()
    ]


def full(result: Result) -> list[str]:
    """All tables of one result file."""
    lines = []
    for table in dict.fromkeys(table_of(b) for b in result["benchmarks"]):
        benchmarks = _tables(result, table)
        for part in _LAYOUTS.get(table, _sides)(table, benchmarks):
            lines += ["", *part]
    return lines[1:]


def _tables(result: Result, table: str) -> list[Benchmark]:
    return [b for b in result["benchmarks"] if table_of(b) == table]


def _sides(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    """A row for each side and a column for each batch size: the time, also as a multiple of ours."""
    sides = list(dict.fromkeys(side for b in benchmarks for side in b["timings"]))
    heads = [
        f"batch {b['images']}" if "images" in b else f"{max(b['megapixels'].values()):.1f} megapixels"
        for b in benchmarks
    ]
    rows = [f"| {title} | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for side in sides:
        cells = [_cell(b, side) if side in b["timings"] else "" for b in benchmarks]
        rows.append(f"| {side} | " + " | ".join(cells) + " |")
    yield rows


def _cell(benchmark: Benchmark, side: str) -> str:
    ours = benchmark["timings"].get(benchmark["ours"])
    timing = benchmark["timings"][side]
    if ours is None or ours is timing:
        return spread(timing)
    return f"{spread(timing)}, {timing['median'] / ours['median']:.2f}x"


def _forms(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    """A table for each network and batch size: forms by runners, with the speedup over stock, eager.

    Stock, eager is the first side, because it is built before all others.
    """
    for b in sorted(benchmarks, key=lambda b: (not b["network"].startswith("VGG"), b["images"])):
        reference = next(iter(b["timings"]))
        cells = {
            side: f"{spread(timing)}, {b['timings'][reference]['median'] / timing['median']:.2f}x"
            for side, timing in b["timings"].items()
        }
        yield _grid(f"{title}, batch {b['images']}", cells)


def _memory(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    for b in benchmarks:
        cells = {side: f"{megabytes:.0f}" for side, megabytes in b["megabytes"].items()}
        yield _grid(f"{title}, MB, batch {b['images']}", cells)


def _grid(title: str, cells: dict[str, str]) -> list[str]:
    """A table of ``cells``, whose keys are ``FORM | RUNNER``."""
    rows, columns = (list(dict.fromkeys(key.split(" | ")[i] for key in cells)) for i in (0, 1))
    return [
        f"| {title} | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
        *(f"| {row} | " + " | ".join(cells.get(f"{row} | {c}", "") for c in columns) + " |" for row in rows),
    ]


def _parts(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    """Each part's time, and its share of the time of all parts."""
    heads = [f"WAE-{b['network']}, batch {b['images']}" for b in benchmarks]
    lines = [f"| {title} | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for part in benchmarks[0]["timings"]:
        cells = []
        for b in benchmarks:
            medians = {side: timing["median"] for side, timing in b["timings"].items()}
            share = medians[part] / sum(seconds for side, seconds in medians.items() if side != b["ours"])
            cells.append(spread(b["timings"][part]) + ("" if part == b["ours"] else f", {share:.1%}"))
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    yield lines


def _sizes(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    for b in benchmarks:
        cells = {side: spread(timing) for side, timing in b["timings"].items()}
        yield _grid(f"one image, side in pixels, {b['runner']}", cells)


_LAYOUTS = {
    "end to end": _forms,
    "end to end, GPU": _forms,
    "training step": _forms,
    "training step, GPU": _forms,
    "memory": _memory,
    "parts": _parts,
    "sizes": _sizes,
}


def spread(timing: dict[str, float]) -> str:
    """The median and the 10th and 90th percentiles, in milliseconds."""
    median, low, high = (milliseconds(timing[key]) for key in ("median", "p10", "p90"))
    return f"{median} ({low}-{high})"
