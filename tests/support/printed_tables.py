"""The cells of printed tables."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table


def rich_cells(printed: str | Table) -> list[list[str]]:
    """The cells of each line of the tables that rich drew in a text, or would draw; without the headings."""
    if isinstance(printed, Table):
        console = Console(width=200, file=io.StringIO(), record=True)
        console.print(printed)
        printed = console.export_text()
    lines = [line for line in printed.splitlines() if "│" in line]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def markdown_row(lines: list[str], start: str) -> list[str]:
    """The other cells of the one row of a Markdown table that has ``start`` in its first cell."""
    (found,) = [line for line in lines if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]
