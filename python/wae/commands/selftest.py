"""``wae selftest``."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from . import shared, types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from wae.experiments.selftest import Row

HELP = "check every op on every backend of this machine against the float64 reference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--seconds", type=types.seconds, default=20.0, metavar="S", help="duration (default: 20)"
    )
    parser.add_argument(
        "--first", type=types.whole, default=0, metavar="N", help="number of the first problem (default: 0)"
    )
    parser.add_argument("--only", type=types.whole, metavar="N", help="run only problem N")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run random problems and print the table; return 1 if an op was wrong."""
    from wae.experiments import selftest
    from wae.progress import bar

    with bar("checking", options.seconds) as advance:
        rows: list[Row] = []
        before = time.monotonic()
        for rows in selftest.run(options.seconds, options.first, options.only):  # noqa: B007 (the last counts)
            now = time.monotonic()
            advance(now - before)
            before = now
    if options.json:
        shared.print_json([asdict(row) for row in rows])
    else:
        shared.console().print(_table(rows))
    failed = [row for row in rows if row.failures]
    for row in failed:
        for failure in row.failures[:3]:
            shared.complain(f"{row.op} in {row.dtype} on {row.backend}: problem {failure}")
    if failed:
        shared.complain(
            "please report this with the output of `wae info`; --only N repeats problem N on any machine"
        )
    return int(bool(failed))


def _table(rows: Sequence[Row]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = "Largest ||out - ref|| / ||ref|| over all calls, ref in float64"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("backend", "op", "dtype", "calls", "error", "of limit", ""):
        table.add_column(name, justify="right" if name in ("calls", "error", "of limit") else "left")
    before = rows[0].backend
    for row in rows:
        if row.backend != before:
            table.add_section()
        before = row.backend
        verdict = Text("WRONG", "bold red") if row.failures else "ok"
        numbers = (str(row.calls), f"{row.error:.1e}", f"{row.share:.0%}")
        table.add_row(row.backend, row.op, row.dtype, *numbers, verdict)
    return table
