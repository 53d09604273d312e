"""Finds images in folders, for every command that reads them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from wae.wording import counted, reason

from .images import is_image

_SYSTEM = frozenset(
    (
        *("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)
"""Names, in lower case, that operating systems and file servers put among a user's files."""

PARTS = ("train", "val", "test")
"""The folders of a data set's parts."""

_NAMED = 5  # file types named in the line


class Found(NamedTuple):
    """An image file, or a folder that cannot be searched."""

    path: Path
    error: str = ""
    """Why the folder cannot be searched; empty for an image file."""
    content: bytes | None = None
    """The file's content if it was already read."""


class LeftOut:
    """Counts, by reason, what a search leaves out. Its string is one line, empty if nothing was left out."""

    def __init__(self) -> None:
        self.hidden = 0
        """Files and folders whose names begin with a dot or belong to the system (``_SYSTEM``)."""
        self.types: Counter[str] = Counter()
        """Files without an image extension, by extension."""
        self.links = 0
        """Links to folders."""
        self.special = 0
        """Pipes, sockets, devices."""
        self.loose = 0
        """Files beside the class folders."""

    def __str__(self) -> str:
        endings = ", ".join(ending for ending, _ in self.types.most_common(_NAMED))
        more = ", ..." if len(self.types) > _NAMED else ""
        reasons = (
            f"{self.hidden:,} hidden" if self.hidden else "",
            f"{self.types.total():,} of other types ({endings}{more})" if self.types else "",
            counted(self.links, "linked folder") if self.links else "",
            counted(self.special, "special file") if self.special else "",
            f"{self.loose:,} beside the class folders" if self.loose else "",
        )
        found = ", ".join(filter(None, reasons))
        return f"left out: {found}" if found else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or the system's: see :attr:`LeftOut.hidden`."""
    return name.startswith(".") or name.lower() in _SYSTEM


def labels_among(folder: Path) -> str:
    """One line on the labels of pixels in ``folder``, which :func:`find` takes for images; empty if none.

    They are found if ``folder`` is a data set as in :mod:`wae.data.segmentation`, or a part of one.
    """
    for part in (folder, *(folder / name for name in PARTS)):
        if (part / "images").is_dir() and (part / "labels").is_dir():
            return f"{folder}: holds labels of pixels beside its images; name {part / 'images'} instead"
    return ""


def find(sources: Iterable[Path], left_out: LeftOut | None = None) -> Iterator[Found]:
    """Yield the files in ``sources`` and, recursively, the images in its folders, sorted by name in each.

    A source is taken whatever its name is, and may be a link. In a folder, images are recognised by their
    extensions; hidden names, links to folders, and anything that is not a regular file are left out. A folder
    that cannot be read is yielded with its error. A dangling link is yielded, and fails when it is read.

    Args:
        sources: files and folders.
        left_out: updated with what is left out.
    """
    left_out = LeftOut() if left_out is None else left_out
    for source in sources:
        if source.is_dir():
            yield from _walk(source, left_out)
        else:
            yield Found(source)


def _walk(top: Path, left_out: LeftOut) -> Iterator[Found]:
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(folder, reason(error))
            continue
        folders = []
        for entry in ordered:
            if is_hidden(entry.name):
                left_out.hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry))
            elif os.path.isdir(entry):
                left_out.links += 1  # may lead back to a folder that contains it
            elif os.path.exists(entry) and not os.path.isfile(entry):
                left_out.special += 1
            elif is_image(entry.name):
                yield Found(Path(entry))
            else:
                left_out.types[_ending(entry.name)] += 1
        pending += reversed(folders)


def _ending(name: str) -> str:
    """The extension of a file name, in a form that fits into the line."""
    ending = os.path.splitext(name)[1].lower()
    if not ending:
        return "no extension"
    return ending if ending[1:].isalnum() and len(ending) <= 16 else "..."
