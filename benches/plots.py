"""Plots of result files: throughput, time by resolution, peak memory, and times of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from wae.storage.files import written
from wae.wording import counted

from .result_files import Benchmark, Result
from .tables import fastest, name, table_of

matplotlib.use("Agg")
from matplotlib import pyplot

SHOWN_BATCH = 8
Axes = Any
Fill = Callable[[Axes, list[Benchmark]], None]


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the plots that the result files have numbers for into ``folder``; returns the files."""
    drawn = _throughput(results, folder / "end_to_end.png")
    for file, wanted, key, height, title, fill in FIGURES:
        rows = []
        for result in results:
            panels: dict[str, list[Benchmark]] = {}
            for b in result["benchmarks"]:
                if table_of(b) in wanted:
                    panels.setdefault(b[key], []).append(b)
            if panels:
                rows.append((name(result), panels))
        if rows:
            _save(folder / file, title, height, rows, fill)
            drawn.append(folder / file)
    return drawn


def _save(
    path: Path,
    title: str,
    height: float,
    rows: list[tuple[str, dict[str, list[Benchmark]]]],
    fill: Fill,
) -> None:
    """A row of panels for each result file."""
    columns = max(len(panels) for _, panels in rows)
    size = (max(3.75 * columns, 5.5 if columns == 1 else 11), height * len(rows))
    figure, axes = pyplot.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for row, (machine, panels) in zip(axes, rows, strict=True):
        for axis in row[len(panels) :]:
            axis.set_visible(False)
        for axis, (panel, benchmarks) in zip(row, panels.items(), strict=False):
            fill(axis, benchmarks)
            axis.set_title(f"{panel}\n{machine}", fontsize=8)
            axis.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write the figure to a PNG, and close it."""
    with written(path, force=True) as file:
        figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)


def _throughput(results: Sequence[Result], path: Path) -> list[Path]:
    """Images per second of each network with and without WAE, on the first machine that has all networks."""
    for result in results:
        measured = {
            b["network"]: b
            for b in result["benchmarks"]
            if table_of(b) == "end to end" and b["images"] == SHOWN_BATCH and not result["machine"]["limits"]
        }
        if len(measured) > 1:
            break
    else:
        return []
    figure, axes = pyplot.subplots(1, len(measured), figsize=(9, 2.2), layout="constrained")
    for axis, (network, b) in zip(axes, measured.items(), strict=True):
        bars = {}
        for label, pattern in (
            (f"{network}, PyTorch", rf"{network} at 224 \| eager"),
            (f"{network}, fastest engine", rf"{network} at 224 \| .*"),
            (f"WAE-{network}", rf"WAE-{network}, deployed \| .*"),
        ):
            bars[label] = b["timings"][fastest(b, pattern)]["images_per_second"]
        drawn = axis.barh(list(bars), list(bars.values()), 0.7, color=("#b0b0b0", "#7f7f7f", "#1f77b4"))
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=9)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    threads = counted(result["machine"]["threads"], "thread")
    figure.suptitle(f"Images per second, batch {SHOWN_BATCH}, {name(result)}, {threads}", fontsize=10)
    save(figure, path)
    return [path]


def _bars(axis: Axes, groups: dict[str, dict[str, float]], form: str) -> None:
    """``groups`` holds heights of bars, by legend and label."""
    labels = list(dict.fromkeys(label for heights in groups.values() for label in heights))
    width = 0.8 / len(groups)
    for i, (group, heights) in enumerate(groups.items()):
        places = [labels.index(label) + (i - (len(groups) - 1) / 2) * width for label in heights]
        bars = axis.barh(places, list(heights.values()), 0.95 * width, label=group)
        axis.bar_label(bars, fmt=form, padding=2, fontsize=6)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.margins(x=0.3)


def _peers(axis: Axes, benchmarks: list[Benchmark]) -> None:
    groups = {}
    for b in benchmarks:
        ours = b["timings"][b["ours"]]["median"]
        groups[f"batch {b['images']}"] = {
            side: timing["median"] / ours for side, timing in b["timings"].items() if side != b["ours"]
        }
    _bars(axis, groups, "%.1fx")
    axis.axvline(1, color="black", linewidth=0.8)


def _sizes(axis: Axes, benchmarks: list[Benchmark]) -> None:
    for b in benchmarks:
        lines: dict[str, list[tuple[int, float]]] = {}
        for side, timing in b["timings"].items():
            network, _, size = side.partition(" | ")
            lines.setdefault(network, []).append((int(size), 1e3 * timing["median"]))
        for network, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=network)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("n", fontsize=7)


def _memory(axis: Axes, benchmarks: list[Benchmark]) -> None:
    groups: dict[str, dict[str, float]] = {}
    for b in benchmarks:
        for side, megabytes in b["megabytes"].items():
            form, _, runner = side.partition(" | ")
            for end, legend in (("at 224", "stock at 224"), ("deployed", "WAE, deployed")):
                if form.endswith(end):
                    groups.setdefault(legend, {})[runner] = megabytes
    _bars(axis, groups, "%.0f")


OPS = ("encode", "decode", "encode + backward", "decode + backward")
# File, the tables it shows, what distinguishes its panels, height of a panel, title, what fills a panel.
FIGURES: tuple[tuple[str, tuple[str, ...], str, float, str, Fill], ...] = (
    ("resolution.png", ("sizes",), "runner", 3.2, "One image of n x n pixels, milliseconds", _sizes),
    ("memory.png", ("memory",), "network", 2.8, "Peak memory with weights, MB, batch 8", _memory),
    ("speed.png", OPS, "table", 2.8, "Time relative to wae-kernels (224 x 224, float32)", _peers),
)
