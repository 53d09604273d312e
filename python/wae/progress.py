"""How far a command is: lines, and progress bars, which are shown on a terminal only."""

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

_open: list[Progress] = []  # the bars on the terminal, or none


def say(console: Console, line: str) -> None:
    """Print ``line``, which may name files and classes: one line, whatever their names are."""
    console.print(printable(line), soft_wrap=True, highlight=False, markup=False, emoji=False)


def progress(console: Console | None = None, *columns: ProgressColumn) -> Progress:
    """A bar on ``console`` (None: on stderr): the task, done of all, ``columns``, the time that is left.

    It shows nothing where ``console`` is no terminal.
    """
    # imported here: `rich` is in the extra "app"
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())
    left = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(
        *left,
        *columns,
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=math.inf,  # rich's half a minute has no time left for steps that take as long
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # else what is printed belongs elsewhere
    )


@contextmanager
def bar(what: str, total: float | None, first: bool = True) -> Iterator[Callable[[float], None]]:
    """A bar named ``what``, which the function that it yields advances. Without a ``total`` it only moves.

    Of several processes only the ``first`` shows one. Within another one it is a line below that.
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
    """The bars on the terminal, which takes one set of them at a time."""
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
    """``items``, with a bar named ``what`` that shows how many are done."""
    with bar(what, len(items)) as advance:
        for item in items:
            yield item
            advance(1)
