"""The file of the tiles that tuning found to be fastest.

Nothing is measured at first use: without a stored choice the plan decides. The file is ``$WAE_TRITON_TILES``
or, by default, ``wae_kernels/triton_tiles.json`` in the user's cache directory.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from .plan import PRECISIONS, Device, Tile, tiles_for


def path() -> Path:
    """The path of the file."""
    if chosen := os.environ.get("WAE_TRITON_TILES"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "wae_kernels" / "triton_tiles.json"


def candidates(precision: str) -> list[Tile]:
    """The tiles that tuning tries: the short lists of all GPUs, with and without software pipelining."""
    tiles = dict.fromkeys(tiles_for(precision, 80) + tiles_for(precision, 90))
    return list(dict.fromkeys(replace(t, stages=stages) for t in tiles for stages in (1, 2)))


def key(op: str, device: Device, precision: str, shape: Sequence[int]) -> str:
    """The key of a stored choice; the sizes of (N, 3, H, W) are rounded up to powers of two."""
    sizes = "x".join(str(1 << (size - 1).bit_length()) for size in (shape[0], *shape[2:]))
    return f"{op} {precision} {sizes} {device.name}"


def choice(op: str, device: Device, precision: str, shape: Sequence[int]) -> Tile | None:
    """The stored tile for a launch, or None. Symbolic sizes have none: a compiled graph has many shapes."""
    stored = _tiles(path())
    if not stored or any(not isinstance(size, int) for size in shape):
        return None
    return stored.get(key(op, device, precision, shape))


def _read(file: Path) -> dict[str, dict[str, int]]:
    """The entries of the file. Raises ValueError if it cannot be read or has another content."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
            raise ValueError("it must be an object of objects")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{file} does not hold tiles: {why}; WAE_TRITON_TILES names another") from error
    return entries


@functools.cache
def _tiles(file: Path) -> dict[str, Tile]:
    """The stored choices that are candidates of this version. A file that cannot be read is reported once."""
    try:
        entries = _read(file)
    except ValueError as error:
        warnings.warn(
            f"wae_kernels chooses tiles without the stored ones: {error}", RuntimeWarning, stacklevel=2
        )
        return {}
    known = [tile for precision in PRECISIONS for tile in candidates(precision)]
    return {name: tile for name, fields in entries.items() for tile in known if asdict(tile) == fields}


@contextmanager
def _replacing(file: Path) -> Iterator[IO[str]]:
    """A context that yields a temporary file and at its end atomically renames it to ``file``.

    Readers never see half of the content. The temporary file is also the lock that keeps other processes and
    threads out. A waiter that gets the lock of a file which has been renamed meanwhile tries again with a new
    one. On file systems without locks nobody waits.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    while True:
        with temporary.open("a", encoding="utf-8") as opened:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX)
            if not _is_at(temporary, opened):
                continue
            try:
                opened.truncate(0)  # a process that was killed may have left content
                yield opened
                opened.flush()
                os.replace(temporary, file)
            except BaseException:
                temporary.unlink()
                raise
            return


def _is_at(path: Path, opened: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


def store(name: str, tile: Tile) -> None:
    """Add a choice to the file. Choices that other processes add at the same time are kept.

    Raises:
        ValueError: the file cannot be read or has another content; it is left as it is.
        OSError: the file cannot be written.
    """
    file = Path(os.path.realpath(path()))  # keeps a symbolic link to the file
    file.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(file) as replacement:
        json.dump(_read(file) | {name: asdict(tile)}, replacement, indent=1)
    _tiles.cache_clear()
