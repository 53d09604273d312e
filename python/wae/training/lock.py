"""Allows one training at a time in a folder."""

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
"""Seconds to wait for the lock.

If a training was killed, its data readers hold the lock and end within them.
"""


class FolderInUseError(WaeError):
    """Another training is writing to the folder."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """In this block no other process is inside ``alone_in`` with the same folder, which is created if needed.

    The lock is on the folder itself (flock), so it leaves no file behind and ends with the process. File
    systems without such locks, such as some network file systems, are not protected.

    Raises:
        FileExistsError: ``folder`` is not a folder.
        FolderInUseError: another process holds the lock for more than :data:`PATIENCE` seconds.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is not a folder")
    is_new = not folder.exists()
    make_folder(folder)
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened, folder)
        yield
    finally:
        os.close(opened)
        if is_new:
            with suppress(OSError):  # the folder is not empty
                folder.rmdir()


def _lock(opened: int, folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not _taken(opened):
        if time.monotonic() > until:
            raise FolderInUseError(f"{folder}: another training is writing to this folder")
        time.sleep(0.1)


def _taken(opened: int) -> bool:
    """Whether this process now has the lock, or the file system has no locks."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
