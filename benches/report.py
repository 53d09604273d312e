"""Writes the tables of README.md, docs/benchmarks.md, docs/measurements.md and docs/scale.md, the plots, and
the figures of ``wae app``.

python -m benches.report                 reads the result files in benches/results and docs/results
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wae.storage.files import write

from . import accuracy, accuracy_plot, deployed, packaged, plots, sizing, tables, targets
from .result_files import Result, shown

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benches/report.py writes from here -->", "<!-- to here -->"
ACCURACIES = "<!-- benches/report.py writes accuracies from here -->"
TARGETS = (
    "What is *required* and the *target* are this project's own: the least speedup that is accepted, and\n"
    "the one that is aimed at. Cells: the speedup at batch 1 / batch 8, or at the one batch size that has\n"
    "a target. A percentage is the share of the ratio of multiply-adds that the speedup reaches. **Bold**\n"
    "cells miss what is required or, if nothing is required, the target: see\n"
    "[why](#why-some-targets-are-missed)."
)
"""How to read the tables of targets."""


def write_between(path: Path, body: str, begin: str = BEGIN) -> None:
    """Put ``body`` between ``begin`` and the next end mark in a Markdown file."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{path} must hold the lines\n{begin}\n{END}")
    write(path, f"{before}{begin}\n\n{body}\n\n{END}{after}", force=True)


def summary(results: list[Result], measured: list[deployed.Measured], figures: list[Path]) -> str:
    """The generated part of docs/benchmarks.md: the plots and the tables of targets."""
    parts = [f"![{_words(p)}]({p.name})" for p in figures]
    parts += ["## Targets", TARGETS, "\n".join(targets.bounds(results, targets.BOUNDS))]
    on_gpu = [result for result in results if result["machine"]["gpu"]]
    if on_gpu:
        parts += ["\n".join(targets.bounds(on_gpu, targets.GPU_BOUNDS))]
    if measured:
        parts += ["## Reduced precision", "\n".join(deployed.bounds(measured))]
        parts += ["\n".join(deployed.decision(measured))]
    return "\n\n".join(parts)


def everything(results: list[Result], measured: list[deployed.Measured]) -> str:
    """The generated part of docs/measurements.md: all tables of every machine."""
    parts = []
    for result in results:
        parts += [f"## {tables.name(result)}", tables.provenance(result)]
        parts += ["\n".join(lines) for lines in (tables.short(result), tables.full(result)) if lines]
        if reasons := tables.left_out(result):
            parts += ["Not timed:", "\n".join(reasons)]
    if measured:
        parts += ["## In reduced precision", "\n".join(deployed.tables(measured)).strip()]
    return "\n\n".join(parts)


def _words(path: Path) -> str:
    return path.stem.replace("_", " ")


def main() -> None:
    """Parse the arguments, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, metavar="FOLDER", help=argparse.SUPPRESS)
    root: Path = parser.parse_args().root
    folder = root / "benches" / "results"
    results = shown(folder)
    if not results:
        sys.exit(f"no result files in {folder}: run `make bench` first")
    measured = deployed.read(folder / deployed.FOLDER)
    figures = plots.draw(results, root / "docs")
    write_between(root / "README.md", "\n".join(tables.decision(results)))
    trainings = root / "docs" / "results"
    write_between(root / "README.md", "\n".join(accuracy.table(trainings)), ACCURACIES)
    write_between(root / "docs" / "benchmarks.md", summary(results, measured, figures))
    write_between(root / "docs" / "measurements.md", everything(results, measured))
    write_between(root / "docs" / "scale.md", "\n".join(sizing.table(measured)))
    packaged.keep(results, root)
    pages = "README.md, docs/benchmarks.md, docs/measurements.md, docs/scale.md"
    pictures = figures + accuracy_plot.draw(trainings, root / "docs")
    print(f"wrote {pages}, {packaged.FILE} and {', '.join(p.name for p in pictures)}")


if __name__ == "__main__":
    main()
