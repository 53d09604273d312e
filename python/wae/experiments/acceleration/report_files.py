"""Writes the report of an acceleration: report.md, and report.html, which includes images."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from wae.experiments import panels
from wae.storage import files

from . import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("report.md", "report.html")

_ENLARGED = 192  # the width of an image in the report, in pixels


def write(folder: Path, name: str, found: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
    """Write report.md and report.html: see :func:`markdown` and :func:`page`."""
    for path, text in zip(FILES, (markdown(name, found), page(name, found, parts)), strict=True):
        files.write(folder / path, text, force=True)


# what Markdown would take for markup; not an underscore inside a word
_MARKUP = re.compile(r"[\\`*~\[<&|]|(?<![^\W_])_|_(?![^\W_])")


def markdown(name: str, found: Mapping[str, Any]) -> str:
    """The report without images."""
    lines = [f"# {_plain(name)}, accelerated", "", f"{_plain(report.summary(found))}.", ""]
    for warning in report.warnings(found):
        lines += [f"**Note**: {_plain(warning)}.", ""]
    for title, columns, cells in report.tables(name, found):
        head = _row(columns), "|" + "---|" * len(columns)
        lines += [f"## {_plain(title)}", "", *head, *map(_row, cells), ""]
    return "\n".join([*lines, *(f"- {_plain(note)}" for note in report.notes(found)), ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """``text`` such that Markdown shows it as it is: the names of classes may hold anything."""
    return _MARKUP.sub(r"\\\g<0>", text)


_STYLE = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto}"
    "td,th{padding:.2em .8em;text-align:left}table{border-collapse:collapse}tr{border-bottom:1px solid #ccc}"
    "img{image-rendering:pixelated;margin:2px}figure{display:inline-block;margin:4px}"
)


def page(name: str, found: Mapping[str, Any], parts: Mapping[str, Tensor]) -> str:
    """The report as one self-contained HTML file.

    Args:
        name: the name of the original network.
        found: what each step of the acceleration found.
        parts: see :func:`wae.training.observers.shown`.
    """
    title = html.escape(f"{name}, accelerated")
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>',
        f"<body><h1>{title}</h1><p>{html.escape(report.summary(found))}.</p>",
        *(f"<p><b>Note</b>: {html.escape(warning)}.</p>" for warning in report.warnings(found)),
        f'<p><img alt="accuracy against time" src="{panels.data_url(_plot(report.rows(found)))}"></p>',
        *map(_html_table, report.tables(name, found)),
        "<h2>Test images, and what the bodies see of them</h2>",
        *_figures(parts),
        "<ul>",
        *(f"<li>{html.escape(note)}</li>" for note in report.notes(found)),
        "</ul></body></html>",
        "",
    ]
    return "\n".join(lines)


def _html_table(table: report.Table) -> str:
    rows = [("th", table.columns), *(("td", row) for row in table.cells)]
    cells = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in rows)
    lines = [f"<h2>{html.escape(table.title)}</h2><table>", *(f"<tr>{row}</tr>" for row in cells), "</table>"]
    return "\n".join(lines)


def _figures(parts: Mapping[str, Tensor]) -> Iterator[str]:
    """For each image a paragraph with its parts."""
    for images in zip(*parts.values(), strict=True):
        yield "<p>" + "".join(map(_figure, parts, images)) + "</p>"


def _figure(part: str, image: Tensor) -> str:
    url = panels.data_url(panels.draw(image))
    return (
        f'<figure><img width="{_ENLARGED}" alt="{part}" src="{url}"><figcaption>{part}</figcaption></figure>'
    )


def _plot(table: Sequence[report.Row]) -> Figure:
    """The plot of accuracy against time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for row in table:
        marker = {"original": "o", "accelerated": "s"}.get(row.name, "^")
        axes.plot(1e3 * row.seconds, 100 * row.accuracy, marker, markersize=9, label=f"{row.name}, {row.how}")
    axes.set_xlabel("time of a call, ms")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
