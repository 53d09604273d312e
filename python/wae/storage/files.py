"""Writing files so that nothing is lost: not by accident, not halfway."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def written(path: Path, force: bool = False) -> Iterator[IO[bytes]]:
    """``with written(path) as file: ...`` writes ``path`` whole or not at all.

    The bytes go to a temporary name in the same folder first, which then takes the place of ``path``.
    The folder is made if there is none.

    Raises:
        FileExistsError: there is a file at ``path``, and ``force`` is false.
    """
    refuse_existing(path, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
        refuse_existing(path, force)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: Path, force: bool = False) -> None:
    """Raise FileExistsError if something is at ``path`` that may not be replaced."""
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; --force replaces it")
