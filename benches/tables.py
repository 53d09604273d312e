"""Markdown tables of result files: for a decision, and everything that was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from wae.wording import counted, milliseconds

from .result_files import Benchmark, Result

IN_PYTORCH = r"\| (eager|channels_last)"
"""A pattern of the ends of names of sides."""


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


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


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
    rows = []
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
        rows.append([f"{network}, {images}", machine, *cells])
    return grid(heads, rows[:8])


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
    commits: dict[str, dict[str, None]] = {}  # of each kind of run, in order
    for run in runs:
        length = f"{'' if run['full'] else 'a short run, '}{run['seconds']:g} s per comparison"
        commit = f"{str(run['commit'])[:10]}{' with uncommitted changes' if run['dirty'] else ''}"
        commits.setdefault(f"{run['datetime'][:10]}, {length}", {})[commit] = None
    made = (f"{kind}, commit{'s' * (len(of) > 1)} {', '.join(of)}" for kind, of in commits.items())
    versions = dict.fromkeys(f"{package} {v}" for run in runs for package, v in run["versions"].items() if v)
    return (
        f"{counted(machine['threads'], 'thread')}"
        + (f", limited by {limits(result)}" if machine["limits"] else "")
        + f". {'; '.join(made)}. {', '.join(versions)}."
    )


def limits(result: Result) -> str:
    """The environment variables that kept libraries from using some of the CPU's instructions."""
    return ", ".join(f"`{variable}={value}`" for variable, value in result["machine"]["limits"].items())


def short(result: Result) -> list[str]:
    """The fastest way to run each form of a network."""
    measured = sorted(in_table(result, "end to end"), key=lambda b: b["images"])
    batches = sorted({b["images"] for b in measured})
    rows = []
    for network in dict.fromkeys(b["network"] for b in measured):
        of_network = {b["images"]: b for b in measured if b["network"] == network}
        for row, pattern in (
            (f"{network} at 224, eager", rf"{network} at 224 \| eager"),
            (f"{network} at 224, optimised", rf"{network} at 224 \| (?!eager|channels_last).*"),
            (f"{network} at 112, eager", rf"{network} at 112 \| eager"),
            (f"WAE-{network}, stock ops, eager", rf"WAE-{network}, stock ops {IN_PYTORCH}"),
            (f"WAE-{network}, our encoder, eager", rf"WAE-{network}, our encoder {IN_PYTORCH}"),
            (f"WAE-{network}, our ops, eager", rf"WAE-{network}, our ops {IN_PYTORCH}"),
            (f"WAE-{network}, deployed", rf"WAE-{network}, deployed \| .*"),
        ):
            cells = [
                _best(of_network[batch], pattern, network) if batch in of_network else "" for batch in batches
            ]
            if any(cells):
                rows.append([row, *cells])
    return grid([name(result), *(f"batch {batch}" for batch in batches)], rows) if rows else []


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
        benchmarks = in_table(result, table)
        for part in _LAYOUTS.get(table, _sides)(table, benchmarks):
            lines += ["", *part]
    return lines[1:]


def in_table(result: Result, table: str) -> list[Benchmark]:
    """The benchmarks that belong to a table."""
    return [b for b in result["benchmarks"] if table_of(b) == table]


def _sides(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    """A row for each side and a column for each batch size: the time, also as a multiple of ours."""
    sides = list(dict.fromkeys(side for b in benchmarks for side in b["timings"]))
    heads = [
        f"batch {b['images']}" if "images" in b else f"{max(b['megapixels'].values()):.1f} megapixels"
        for b in benchmarks
    ]
    rows = [[side, *(_cell(b, side) if side in b["timings"] else "" for b in benchmarks)] for side in sides]
    yield grid([title, *heads], rows)


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
        yield _forms_by_runners(f"{title}, batch {b['images']}", cells)


def _memory(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    for b in benchmarks:
        cells = {side: f"{megabytes:.0f}" for side, megabytes in b["megabytes"].items()}
        yield _forms_by_runners(f"{title}, MB, batch {b['images']}", cells)


def _forms_by_runners(title: str, cells: dict[str, str]) -> list[str]:
    """A table of ``cells``, whose keys are ``FORM | RUNNER``."""
    rows, columns = (list(dict.fromkeys(key.split(" | ")[i] for key in cells)) for i in (0, 1))
    return grid(
        [title, *columns],
        [[row, *(cells.get(f"{row} | {column}", "") for column in columns)] for row in rows],
    )


def _parts(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    """Each part's time, and its share of the time of all parts."""
    heads = [f"WAE-{b['network']}, batch {b['images']}" for b in benchmarks]
    rows = []
    for part in benchmarks[0]["timings"]:
        cells = []
        for b in benchmarks:
            medians = {side: timing["median"] for side, timing in b["timings"].items()}
            share = medians[part] / sum(seconds for side, seconds in medians.items() if side != b["ours"])
            cells.append(spread(b["timings"][part]) + ("" if part == b["ours"] else f", {share:.1%}"))
        rows.append([part, *cells])
    yield grid([title, *heads], rows)


def _sizes(title: str, benchmarks: list[Benchmark]) -> Iterable[list[str]]:
    for b in benchmarks:
        cells = {side: spread(timing) for side, timing in b["timings"].items()}
        yield _forms_by_runners(f"one image, side in pixels, {b['runner']}", cells)


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
