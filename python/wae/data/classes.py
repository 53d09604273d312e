"""The order of classes: a network's and that of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wae.errors import WaeError
from wae.wording import counted

_NAMED = 10  # classes that an error lists


class ClassError(WaeError, ValueError):
    """The classes of a network are not those of the data. The message names the network and says why."""


class ClassOrder(NamedTuple):
    """Which class of a network is which class of the data."""

    numbers: tuple[int, ...]
    """The network's number of each class of the data."""
    note: str = ""
    """A line for the user where the order is assumed; else empty."""


def class_order(source: object, known: Sequence[str] | None, count: int, labels: Sequence[str]) -> ClassOrder:
    """Match the classes of a network with those of the data, by their names.

    Args:
        source: the network's file or name, for messages.
        known: the names of the network's classes; None where it has none, and numbers decide.
        count: how many classes the network has.
        labels: the names of the data's classes.

    Raises ClassError where the names differ, or their number.
    """
    if known is None and count == len(labels):
        return ClassOrder(tuple(range(count)), f"{source}: has no names of classes; they are taken by number")
    if known is None:
        raise ClassError(f"{source}: knows {counted(count, 'class')}, the data has {len(labels)}")
    if sorted(known) != sorted(labels):
        raise ClassError(f"{source}: its classes are not those of the data: {_differences(known, labels)}")
    if tuple(known) == tuple(labels):  # also where a name comes twice
        return ClassOrder(tuple(range(count)))
    if len(set(known)) < count:
        raise ClassError(f"{source}: a name of its classes comes twice, in another order than the data's")
    return ClassOrder(tuple(map(list(known).index, labels)))


def _differences(known: Sequence[str], labels: Sequence[str]) -> str:
    """The names that only one of the two has."""
    sides = (("only the network has", known, labels), ("only the data has", labels, known))
    lines = [f"{who} {_list(set(one) - set(other))}" for who, one, other in sides if set(one) - set(other)]
    return "; ".join(lines) or f"{len(known)} and {len(labels)}, some of them twice"


def _list(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    shown = [first, *rest[: _NAMED - 1]]
    more = f" and {1 + len(rest) - len(shown):,} more" if len(rest) >= _NAMED else ""
    return ", ".join(shown) + more
