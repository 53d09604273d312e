"""Formats numbers, values and errors for messages."""

from __future__ import annotations

import os
from contextlib import suppress


def counted(number: int, noun: str) -> str:
    """``number`` and ``noun``, which is given in the singular: "1 image", "1,000 images", "2 classes"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"


def amount(number: int) -> str:
    """``number``, of multiply-adds, in the unit that suits its size: "0.264 G", "6.48 M", "1.25 K"."""
    if number >= 1e8:
        return f"{number / 1e9:.3f} G"
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number / 1e3:.2f} K"


def milliseconds(seconds: float) -> str:
    """``seconds`` in milliseconds, three significant digits; a whole number from 100 on: "0.0512", "1234"."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def compared_milliseconds(one: float, other: float) -> tuple[str, str]:
    """Both as :func:`milliseconds`, with as many more digits as tell them apart, unless they are equal."""
    texts, digits = (milliseconds(one), milliseconds(other)), 3
    while texts[0] == texts[1] and 1e3 * one != 1e3 * other:
        digits += 1
        texts = f"{1e3 * one:.{digits}g}", f"{1e3 * other:.{digits}g}"
    return texts


def shown(value: object) -> str:
    """``value``, which comes from a file and may be anything, in at most 80 characters for a message."""
    with suppress(ValueError):
        return f"{value!r:.80}"
    return "a number that is too long to print"


def is_unicode(text: str) -> bool:
    """Whether ``text`` has no lone surrogates, by which Python represents bytes that are no UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def first_line(error: Exception) -> str:
    """The first line of the message of ``error``; the name of its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: Exception) -> str:
    """As :func:`first_line`, but of an OSError only the reason: the caller names the file."""
    return getattr(error, "strerror", None) or first_line(error)


def file_of(error: OSError) -> str:
    """The file that ``error`` names (possibly as bytes); "" if it names none."""
    name = error.filename
    return os.fsdecode(name) if isinstance(name, bytes) else str(name or "")


def named_reason(error: OSError) -> str:
    """The file that ``error`` names, if any, and the reason, without the error's number."""
    name, why = file_of(error), error.strerror or str(error)
    return f"{name}: {why}" if name else why


def printable(text: str) -> str:
    """``text`` with escapes in place of characters that a terminal would act on or could not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
