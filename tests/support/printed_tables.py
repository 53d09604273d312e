"""The cells of printed tables."""

from __future__ import annotations


def rich_cells(text: str) -> list[list[str]]:
    """The cells of each line of the tables that rich drew in ``text``, headings excepted."""
    lines = [line for line in text.splitlines() if "│" in line]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def markdown_row(lines: list[str], start: str) -> list[str]:
    """The other cells of the one row of a Markdown table that has ``start`` in its first cell."""
    (found,) = [line for line in lines if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]
