"""The one walk through folders of images, for every command that reads them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from wae.wording import counted

from .images import is_image

_SYSTEM = frozenset(
    (
        *("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)
"""Names in lower case that systems put among a user's files."""

_NAMED = 5  # types that the line names


class Found(NamedTuple):
    """An image file, or a path that cannot be searched and the error."""

    path: Path
    error: str = ""
    content: bytes | None = None
    """The file's, where it was read already."""


class LeftOut:
    """Counts what a walk leaves out, by the reason. As a string it is one line; empty if that is nothing."""

    def __init__(self) -> None:
        self.hidden = 0
        """Files and folders whose names begin with a dot, or are those of a system's own."""
        self.types: Counter[str] = Counter()
        """Files without an image's extension, by their extensions."""
        self.links = 0
        """Links to folders."""
        self.special = 0
        """Pipes, sockets, devices."""
        self.loose = 0
        """Files beside the folders of classes."""

    def __str__(self) -> str:
        endings = ", ".join(ending for ending, _ in self.types.most_common(_NAMED))
        more = ", ..." if len(self.types) > _NAMED else ""
        reasons = (
            f"{self.hidden:,} hidden" if self.hidden else "",
            f"{self.types.total():,} of other types ({endings}{more})" if self.types else "",
            counted(self.links, "linked folder") if self.links else "",
            counted(self.special, "special file") if self.special else "",
            f"{self.loose:,} beside the classes' folders" if self.loose else "",
        )
        found = ", ".join(filter(None, reasons))
        return f"left out: {found}" if found else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own: see :attr:`LeftOut.hidden`."""
    return name.startswith(".") or name.lower() in _SYSTEM


def find(sources: Iterable[Path], left_out: LeftOut | None = None) -> Iterator[Found]:
    """The files in ``sources``, and the images in its folders and their folders, sorted by name in each.

    A source is taken whatever its name, and may be a link. In a folder, images are recognised by their
    extensions, and hidden names, links to folders and what is no regular file are left out. A folder that
    cannot be read is found with its error, as is a link to nothing when it is read.

    Args:
        sources: files and folders.
        left_out: counts what is left out.
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
            yield Found(folder, error.strerror or str(error))
            continue
        folders = []
        for entry in ordered:
            if is_hidden(entry.name):
                left_out.hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry))
            elif os.path.isdir(entry):
                left_out.links += 1  # may lead back to where it stands
            elif os.path.exists(entry) and not os.path.isfile(entry):
                left_out.special += 1
            elif is_image(entry.name):
                yield Found(Path(entry))
            else:
                left_out.types[_ending(entry.name)] += 1
        pending += reversed(folders)


def _ending(name: str) -> str:
    """A file name's extension, as a line can show it."""
    ending = os.path.splitext(name)[1].lower()
    if not ending:
        return "no extension"
    return ending if ending[1:].isalnum() and len(ending) <= 16 else "..."
