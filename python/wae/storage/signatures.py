"""Recognises files of the wrong kind: a web page instead of the download, a Git LFS pointer, a pickle."""

from __future__ import annotations

import codecs
from pathlib import Path

_PICKLE = "a pickle, which can run code and is never read; save it as safetensors"
_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; `git lfs pull` fetches that",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
}


def recognised(path: Path) -> str | None:
    """The kind of the file at ``path``, for an error; None if it is not recognised or cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(200)
    except OSError:
        return None
    if start.startswith(b"PK\x03\x04") and b".pkl" in start:
        return _PICKLE
    text = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    return next(
        (what for mark, what in _STARTS.items() if start.startswith(mark) or text.startswith(mark)), None
    )
