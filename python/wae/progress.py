"""Progress of a command: lines of text, and progress bars, which are shown only on a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from wae.wording import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

_Item = TypeVar("_Item")

_open: list[Progress] = []  # the set of bars that is on the terminal, if any


def say(console: Console, line: str) -> None:
    """Print ``line`` as a single line, whatever characters the names of files and classes in it contain."""
    console.print(printable(line), soft_wrap=True, highlight=False, markup=False, emoji=False)


def progress(console: Console | None = None, *columns: ProgressColumn) -> Progress:
    """A bar on ``console`` (None: stderr): the task, how much is done, ``columns``, the remaining time.

    It shows nothing if ``console`` is not a terminal.
    """
    # imported here because `rich` belongs to the extra "app"
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())
    left = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(
        *left,
        *columns,
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=math.inf,  # rich's 30 s give no estimate if a single step takes longer
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # otherwise the output goes to a file or pipe
    )


@contextmanager
def bar(what: str, total: float | None, first: bool = True) -> Iterator[Callable[[float], None]]:
    """Show a bar named ``what`` and yield the function that advances it. Without a ``total`` it only pulses.

    With several processes, only the ``first`` one shows it. Inside another bar it is a line below that one.
    """
    if not (first and sys.stderr.isatty()):
        yield lambda _: None
        return
    with _shown() as bars:
        task = bars.add_task(what, total=total)
        try:
            yield lambda done: bars.advance(task, done)
        finally:
            bars.remove_task(task)


@contextmanager
def _shown() -> Iterator[Progress]:
    """The set of bars on the terminal, of which there can be only one at a time."""
    if _open:
        yield _open[0]
        return
    with progress() as bars:
        _open.append(bars)
        try:
            yield bars
        finally:
            _open.clear()


def track(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    """Yield ``items`` and show in a bar named ``what`` how many are done."""
    with bar(what, len(items)) as advance:
        for item in items:
            yield item
            advance(1)
