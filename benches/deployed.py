"""Tables from the files that `wae bench --json FILE` wrote to benches/results/deployed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wae.experiments.bench import Comparison, from_data
from wae.experiments.bench_report import cells
from wae.experiments.machine import QUIET
from wae.wording import counted, milliseconds

from .tables import grid

FOLDER = "deployed"
"""Below benches/results."""


class Measured(NamedTuple):
    """One comparison, and the other entries of its file."""

    comparison: Comparison
    about: dict[str, Any]


class Bound(NamedTuple):
    """A target for a ratio of two times, at batch 1 and at batch 8."""

    what: str
    network: str
    engine: str | None
    """Both networks in int8 in this engine; None for the fastest form of WAE over PyTorch eager."""
    least: tuple[float, float]
    aim: tuple[float, float]


def _of(network: str, name: str, int8: Sequence[tuple[float, float]], best: Any) -> list[Bound]:
    both = f"WAE-{name} int8 over {name} int8, both"
    return [
        *(Bound(f"{both} {engine}", network, engine, *int8) for engine in ("openvino", "onnxruntime")),
        Bound(f"WAE-{name}, fastest precision, over {name}, eager float32", network, None, *best),
    ]


BOUNDS = (
    *_of("vgg16", "VGG16", ((3.0, 3.2), (3.4, 3.6)), ((12, 15), (16, 20))),
    *_of("resnet50", "ResNet50", ((1.65, 2.2), (1.9, 2.6)), ((7.5, 11), (9.5, 15))),
)
BATCHES = (1, 8)
_HEADS = (
    "network, batch",
    "PyTorch eager ms",
    "engine",
    "precision",
    "stock ms",
    "WAE ms",
    "faster",
    "share of the ratio of multiply-adds",
    "images/s",
)
"""The columns of :func:`tables`; from the third on those of ``wae bench``."""


def read(folder: Path) -> list[Measured]:
    """The comparisons kept in ``folder``, ordered by network and batch size."""
    found = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        found += [Measured(comparison, data) for comparison in from_data(data)]
    return sorted(found, key=lambda m: (m.comparison.network, m.comparison.images))


def bounds(measured: Sequence[Measured]) -> list[str]:
    """The table of targets; speedups below the required ones are bold."""
    machines = list(dict.fromkeys(machine(m.about) for m in measured))
    rows = []
    for bound in BOUNDS:
        asked = (" / ".join(f"{x:g}x" for x in pair) for pair in (bound.least, bound.aim))
        reached = ([m.comparison for m in measured if machine(m.about) == name] for name in machines)
        rows.append([bound.what, *asked, *(_reached(bound, found) for found in reached)])
    return grid(["speedup, batch 1 / 8", "required", "target", *machines], rows)


def _reached(bound: Bound, measured: Sequence[Comparison]) -> str:
    """A cell of :func:`bounds`: batch 1 / batch 8."""
    reached = []
    for batch, least in zip(BATCHES, bound.least, strict=True):
        found = [_ratio(comparison, bound) for comparison in measured if _fits(comparison, bound, batch)]
        reached += [text if ratio >= least else f"**{text}**" for ratio, text in filter(None, found)]
    return " / ".join(reached) or "not measured"


def _fits(comparison: Comparison, bound: Bound, batch: int) -> bool:
    return (comparison.network, comparison.images) == (bound.network, batch)


def _ratio(comparison: Comparison, bound: Bound) -> tuple[float, str] | None:
    """The ratio, and the text of its cell: in one engine with its share of the ratio of multiply-adds."""
    if bound.engine is None:
        ratio = comparison.eager.median / comparison.wae[0]
        return ratio, f"{ratio:.1f}x"
    for row in comparison.rows:
        if (row.engine, row.precision) == (bound.engine, "int8"):
            return row.ratio, f"{row.ratio:.2f}x, {row.ratio / comparison.promised:.0%}"
    return None


def machine(about: dict[str, Any]) -> str:
    """A short name of the machine."""
    known = about["machine"]
    limited = known.get("limits", {})
    limits = ", ".join(f"`{name}={value}`" for name, value in limited.items())
    return (
        f"{known['processor']}{_instructions(known['instructions'], limited)}, "
        f"{counted(known['threads'], 'thread')}{f', limited by {limits}' if limits else ''}"
    )


def _instructions(known: Sequence[str], limited: Mapping[str, str]) -> str:
    """What the name of a processor does not tell: instructions that some of that name lack."""
    if any(name.startswith("amx") for name in known) and "ONEDNN_MAX_CPU_ISA" not in limited:
        return " with AMX"
    return " without AVX-512" if "avx2" in known and "avx512_f" not in known else ""


def provenance(about: dict[str, Any]) -> str:
    """When and where it was measured, at which commit and with which versions."""
    versions = ", ".join(f"{name} {number}" for name, number in about["machine"]["versions"].items())
    commit = f", commit {about['commit'][:10]}" if "commit" in about else ""
    return f"{machine(about)}. {about['date'][:10]}{commit}. {versions}."


def quiet(measured: Sequence[Measured]) -> list[Measured]:
    """The comparisons to rely on: as far as known, no other programs used the machine meanwhile."""
    return [m for m in measured if (m.comparison.others or 0.0) <= QUIET]


def _disturbed(entry: Measured) -> str:
    if quiet([entry]):
        return ""
    return f" **Not reliable:** other programs used {entry.comparison.others:.1f} cores meanwhile."


def tables(measured: Sequence[Measured]) -> list[str]:
    """Every row of every comparison, in one table for each run."""
    lines: list[str] = []
    for run, entries in _by_run(measured).items():
        lines += [run, ""]
        rows = [[*_case(c), *row] for c, _ in entries for row in cells(c)]
        lines += [*grid(_HEADS, rows), ""]
        left_out = dict.fromkeys(missing for c, _ in entries for missing in c.left_out)
        lines += [line for missing in left_out for line in (f"Left out: {missing}", "")]
    return lines


def _by_run(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """The comparisons by what is said about their runs: machine, date, versions."""
    runs: dict[str, list[Measured]] = {}
    for entry in sorted(measured, key=lambda m: machine(m.about)):
        runs.setdefault(f"{provenance(entry.about)}{_disturbed(entry)}", []).append(entry)
    return runs


def _case(comparison: Comparison) -> list[str]:
    network = f"{comparison.network} at {comparison.size}, {comparison.images}"
    return [network, milliseconds(comparison.eager.median)]


def decision(measured: Sequence[Measured]) -> list[str]:
    """Each stock network and WAE around it, both in the engine and precision that is fastest for them."""

    def named(seconds: float, where: str) -> str:
        return f"{milliseconds(seconds)} ms ({where})"

    rows = [
        [
            f"{c.network}, {c.images}",
            machine(about),
            f"{milliseconds(c.eager.median)} ms",
            named(*c.stock),
            named(*c.wae),
            f"{c.eager.median / c.wae[0]:.1f}x",
            f"{c.ratio:.2f}x",
            f"{c.ratio / c.promised:.0%} of {c.promised:.2f}x",
        ]
        for c, about in measured
    ]
    shown = [
        "network, batch",
        "machine",
        "stock, PyTorch eager float32",
        "stock, fastest",
        "WAE, fastest",
        "speedup over eager",
        "over the fastest",
        "share of the ratio of multiply-adds",
    ]
    return grid(shown, rows)
