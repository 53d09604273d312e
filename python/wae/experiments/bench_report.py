"""The report of ``wae bench``: tables, a verdict, notes, and an HTML page with a figure."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from wae.wording import counted, milliseconds

from .bench import Comparison
from .machine import disturbance, limits, machine
from .panels import data_url

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORTH = 1.1  # a smaller speedup is not worth a training


def heads(comparison: Comparison) -> list[str]:
    """The headings of the columns of :func:`cells`."""
    promised = f"of {comparison.promised:.2f}x"
    return ["engine", "precision", "stock ms", "WAE ms", "faster", promised, "images/s"]


def cells(comparison: Comparison) -> list[list[str]]:
    """A row per engine and precision: times, speedup, its share of the promised one, images per second."""
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
    """The title of the comparison's table."""
    return (
        f"{comparison.network}, {comparison.size} x {comparison.size}, batch {comparison.images}; "
        f"PyTorch eager: {milliseconds(comparison.eager.median)} ms"
    )


def table(comparison: Comparison) -> Table:
    """The comparison's table; it fits a terminal of 80 columns."""
    result = Table(title=title(comparison), title_justify="left")
    for number, head in enumerate(heads(comparison)):
        result.add_column(head, justify="left" if number < 2 else "right", no_wrap=True)
    for row in cells(comparison):
        result.add_row(*row)
    return result


def notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Notes for the reader of the tables."""
    lines = [
        f"Medians of interleaved calls, all checked first; {counted(torch.get_num_threads(), 'thread')}.",
        "Column 6: the speedup as a share of the ratio of multiply-adds.",
        "WAE's weights are random, so no accuracy is claimed; `wae eval --deployed` measures it.",
    ]
    if any(row.precision == "int8" for c in comparisons for row in c.rows):
        lines.append(f"int8 was calibrated on {comparisons[0].scales_from}.")
    if set_here := limits():
        settings = ", ".join(f"{name}={value}" for name, value in set_here.items())
        lines.append(f"Limited by {settings}.")
    left_out = dict.fromkeys(missing for c in comparisons for missing in c.left_out)
    return lines + [f"left out: {missing}" for missing in left_out]


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Whether WAE is worth it, in one line. Each network is timed in its own fastest form.

    "perhaps" for a network if other programs used the machine meanwhile, which the line then says too.
    """
    answers, doubts = [], []
    for network in dict.fromkeys(c.network for c in comparisons):
        found = [c for c in comparisons if c.network == network]
        worth = [c for c in found if c.ratio >= _WORTH]
        word = "yes" if len(worth) == len(found) else "no" if not worth else "in part"
        if disturbed := disturbance(max(c.others or 0.0 for c in found)):
            word = f"perhaps {word}"
            doubts.append(f" {network}: {disturbed}.")
        ratios = ", ".join(f"{c.ratio:.2f}x at batch {c.images}" for c in found)
        shares = ", ".join(f"{c.ratio / c.promised:.0%}" for c in found)
        answers.append(
            f"{word} for {network}: {ratios}, against its fastest form today "
            f"({shares} of {found[0].promised:.2f}x, the ratio of multiply-adds)"
        )
    return f"Is WAE worth it here? {'; '.join(answers)}.{''.join(doubts)}"


def page(comparisons: Sequence[Comparison]) -> str:
    """A self-contained HTML page: the verdict, a figure, the tables."""
    about = machine()
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    instructions = f" ({', '.join(about['instructions'])})" if about["instructions"] else ""
    escaped = html.escape
    parts = [
        f"<p><strong>{escaped(verdict(comparisons))}</strong></p>",
        f'<img alt="images per second by engine and precision" src="{data_url(_figure(comparisons))}">',
    ]
    for comparison in comparisons:
        rows = [f"<tr><td>{'<td>'.join(map(escaped, row))}</tr>" for row in cells(comparison)]
        head = "<th>".join(map(escaped, heads(comparison)))
        parts.append(f"<h2>{escaped(title(comparison))}</h2>\n<table><tr><th>{head}</tr>")
        parts += [*rows, "</table>"]
    parts += [f"<p>{escaped(note)}</p>" for note in notes(comparisons)]
    parts.append(
        f"<p>{escaped(about['processor'])}{instructions}, {counted(about['threads'], 'thread')}, "
        f"{about['backend']}. {escaped(versions)}.</p>"
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


def _figure(comparisons: Sequence[Comparison]) -> Figure:
    """Images per second by engine and precision, one panel per comparison."""
    from matplotlib.figure import Figure

    most = max(len(c.rows) for c in comparisons)
    figure = Figure(figsize=(9, len(comparisons) * (1 + 0.4 * most)), dpi=110, layout="constrained")
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
        axis.set_yticks(places, [row.name for row in comparison.rows])
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(f"{comparison.network}, batch {comparison.images}: images per second", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    return figure
