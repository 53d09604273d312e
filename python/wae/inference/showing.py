"""A bar for what takes a while, on a terminal's stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def track(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    """``items``, with a bar named ``what`` that shows how many are done."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as tracked

    yield from tracked(items, what, console=Console(stderr=True), transient=True)
