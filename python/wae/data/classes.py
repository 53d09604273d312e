"""Matches the classes of a network with those of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wae.errors import WaeError
from wae.wording import counted

_NAMED = 10  # classes listed in an error


class ClassError(WaeError, ValueError):
    """The classes of a network differ from those of the data. The message names the network and says how."""


class ClassOrder(NamedTuple):
    """Which class of the network corresponds to which class of the data."""

    numbers: tuple[int, ...]
    """For each class of the data, its number in the network."""
    note: str = ""
    """A line for the user if the order had to be assumed; otherwise empty."""


def class_order(source: object, known: Sequence[str] | None, count: int, labels: Sequence[str]) -> ClassOrder:
    """Match the classes of a network with those of the data by name.

    Args:
        source: the network's file or name, for messages.
        known: the names of the network's classes; None if it has none, in which case they match by number.
        count: the number of classes of the network.
        labels: the names of the data's classes.

    Raises:
        ClassError: the names or their number differ, or a name occurs twice and the orders differ.
    """
    if known is None and count == len(labels):
        return ClassOrder(
            tuple(range(count)), f"{source}: has no class names; its classes are matched by number"
        )
    if known is None:
        raise ClassError(f"{source}: has {counted(count, 'class')}, the data has {len(labels)}")
    if sorted(known) != sorted(labels):
        raise ClassError(
            f"{source}: its classes differ from those of the data: {_differences(known, labels)}"
        )
    if tuple(known) == tuple(labels):  # works even if a name occurs twice
        return ClassOrder(tuple(range(count)))
    if len(set(known)) < count:
        raise ClassError(f"{source}: a class name occurs twice, and the order differs from the data's")
    numbers = {label: number for number, label in enumerate(known)}
    return ClassOrder(tuple(numbers[label] for label in labels))


def _differences(known: Sequence[str], labels: Sequence[str]) -> str:
    """The names that only one side has."""
    sides = (("only the network has", known, labels), ("only the data has", labels, known))
    lines = [f"{who} {_list(set(one) - set(other))}" for who, one, other in sides if set(one) - set(other)]
    return "; ".join(lines) or f"{len(known)} and {len(labels)}, some of them twice"


def _list(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    shown = [first, *rest[: _NAMED - 1]]
    more = f" and {1 + len(rest) - len(shown):,} more" if len(rest) >= _NAMED else ""
    return ", ".join(shown) + more
