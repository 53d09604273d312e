"""The table of docs/scale.md: how many machines a billion images a day need, by the times of `wae bench`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from wae.experiments.bench import Comparison, Row

from .deployed import Measured, machine, quiet
from .tables import grid

A_DAY = 1_000_000_000
"""Images."""
CORES = 64
"""Cores of the machines that the table counts."""

_SECONDS = 24 * 60 * 60
_HEADS = (
    "network, batch",
    "machine",
    "precision: engine for stock, for WAE",
    "images/s per core, stock",
    "images/s per core, WAE",
    f"{CORES}-core machines, stock",
    f"{CORES}-core machines, WAE",
)


def table(measured: Sequence[Measured]) -> list[str]:
    """A row for each network, machine and precision; stock and WAE each in its fastest engine.

    Of several batch sizes only the largest is shown. Comparisons during which other programs used the machine
    are left out.
    """
    rows = []
    for comparison, about in _largest(quiet(measured)):
        for precision, fastest in _fastest(comparison):
            times = fastest[0].stock.median, fastest[1].wae.median
            rates = [comparison.images / seconds / about["machine"]["threads"] for seconds in times]
            rows.append(
                [
                    f"{comparison.network}, {comparison.images}",
                    machine(about),
                    f"{precision}: {fastest[0].engine}, {fastest[1].engine}",
                    *(f"{rate:.1f}" for rate in rates),
                    *(f"{machines(rate):,}" for rate in rates),
                ]
            )
    return grid(_HEADS, [*rows, ["any", "a GPU", *["not measured"] * 5]])


def _largest(measured: Sequence[Measured]) -> list[Measured]:
    """The comparisons with the largest batch of their network on their machine."""
    largest: dict[tuple[str, str], Measured] = {}
    for entry in sorted(measured, key=lambda m: m.comparison.images):
        largest[entry.comparison.network, machine(entry.about)] = entry
    return [entry for entry in measured if entry in largest.values()]


def machines(rate: float) -> int:
    """How many machines a billion images a day need, at ``rate`` images per second and core."""
    return math.ceil(A_DAY / _SECONDS / rate / CORES)


def _fastest(comparison: Comparison) -> Iterator[tuple[str, tuple[Row, Row]]]:
    """For each precision, the rows in which the stock network and WAE are fastest."""
    for precision in dict.fromkeys(row.precision for row in comparison.rows):
        rows = [row for row in comparison.rows if row.precision == precision]
        yield precision, (min(rows, key=lambda r: r.stock.median), min(rows, key=lambda r: r.wae.median))
