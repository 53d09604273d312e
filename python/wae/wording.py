"""Numbers and errors in sentences."""

from __future__ import annotations

import os
from contextlib import suppress


def counted(number: int, noun: str) -> str:
    """``number`` of what ``noun``, in the singular, names: "1 image", "1,000 images", "2 classes"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"


def shown(value: object) -> str:
    """``value``, which comes from a file and may be anything, for people to read."""
    with suppress(ValueError):
        return f"{value!r:.80}"
    return "a number that is too long to print"


def first_line(error: Exception) -> str:
    """Of what ``error`` says; its kind where it says nothing, as an ``assert`` without a message does."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def file_of(error: OSError) -> str:
    """The file that ``error`` names, which may do so in bytes; "" where it names none."""
    name = error.filename
    return os.fsdecode(name) if isinstance(name, bytes) else str(name or "")


def printable(text: str) -> str:
    """``text``, maybe a file's name, with escapes for what a terminal would act on or could not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
