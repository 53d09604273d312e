"""One training at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wae.errors import WaeError
from wae.storage.files import make_folder

PATIENCE = 10.0
"""Seconds: processes that read data for a training that was killed end within them, and hold its lock."""


class FolderInUseError(WaeError):
    """Another training writes to the folder."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within it no other process is in ``alone_in`` with the same folder, which is made if there is none.

    The lock is on the folder itself (flock): it leaves no file behind, and ends with the process. There is no
    guard on file systems without such locks, as some network ones are.

    Raises FolderInUseError where another process stays in for :data:`PATIENCE`.
    """
    is_new = not folder.exists()
    make_folder(folder)
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened, folder)
        yield
    finally:
        os.close(opened)
        if is_new:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def _lock(opened: int, folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not _taken(opened):
        if time.monotonic() > until:
            raise FolderInUseError(f"{folder}: another training is writing to this folder")
        time.sleep(0.1)


def _taken(opened: int) -> bool:
    """Whether the lock is ours, or there are no locks here."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
