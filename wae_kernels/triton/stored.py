"""Tuning on demand: the choice of tile that :func:`tune` measured to be best, kept in a file.

Nothing is ever measured at a first use; without a stored choice the plan decides. The file is
``$WAE_TRITON_TILES``, else ``wae_kernels/triton_tiles.json`` in the user's cache folder.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import triton

from .plan import PRECISIONS, Device, Tile, tiles_for


def path() -> Path:
    """The file of stored choices."""
    if chosen := os.environ.get("WAE_TRITON_TILES"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "wae_kernels" / "triton_tiles.json"


def candidates(precision: str) -> list[Tile]:
    """What :func:`tune` tries: the short lists of all GPUs, without and with Triton's software pipeline."""
    tiles = dict.fromkeys(tiles_for(precision, 80) + tiles_for(precision, 90))
    return list(dict.fromkeys(replace(t, stages=stages) for t in tiles for stages in (1, 2)))


def key(op: str, device: Device, precision: str, shape: Sequence[int]) -> str:
    """What a choice is stored for: the device's name, and sizes of (N, 3, H, W) up to a power of two."""
    sizes = "x".join(str(1 << (size - 1).bit_length()) for size in (shape[0], *shape[2:]))
    return f"{op} {precision} {sizes} {device.name}"


def choice(op: str, device: Device, precision: str, shape: Sequence[int]) -> Tile | None:
    """The stored tile for a launch, or None. Symbolic sizes have none: a compiled graph is for many."""
    stored = _tiles(path())
    if not stored or any(not isinstance(size, int) for size in shape):
        return None
    return stored.get(key(op, device, precision, shape))


def _read(file: Path) -> dict[str, dict[str, int]]:
    """The file's entries; ValueError if it is not one of ours."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{file} does not hold tiles: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise ValueError(f"{file} does not hold tiles: it must be an object of objects")
    return entries


@functools.cache
def _tiles(file: Path) -> dict[str, Tile]:
    """The stored choices that this version knows. A file that cannot be read is told of once."""
    try:
        entries = _read(file)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"wae_kernels chooses tiles without the stored ones: {error}", RuntimeWarning, stacklevel=2
        )
        return {}
    known = {tuple(asdict(tile).items()): tile for precision in PRECISIONS for tile in candidates(precision)}
    tiles = {name: known.get(tuple(fields.items())) for name, fields in entries.items()}
    return {name: tile for name, tile in tiles.items() if tile is not None}


def store(name: str, tile: Tile) -> None:
    """Add one choice to the file, which is replaced in one step, so that no reader sees half of it.

    Raises:
        ValueError: the file holds something else, which is left as it is.
    """
    file = path()
    entries = _read(file) | {name: asdict(tile)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
        json.dump(entries, temporary, indent=1)
    os.replace(temporary.name, file)
    _tiles.cache_clear()


def tune(op: str, *args: Any, measure: Callable[[Callable[[], object]], float] | None = None) -> Tile:
    """Time every candidate on one call of ``wae::encode`` or ``wae::decode``; store and return the fastest.

    Compiles all candidates, which takes minutes. Later launches of that op on such a device, with such
    numbers, on pictures whose sizes round up to the same powers of two use the stored tile, in every process.

    Args:
        op: "encode" or "decode".
        args: the op's arguments, with at least one picture.
        measure: takes a function of no arguments and returns its time; by default Triton's ``do_bench``.

    Raises:
        ValueError: ``op`` is neither, or there is nothing to tune: no picture, or no kernel for it.
    """
    from . import launch, ops

    if op not in ("encode", "decode"):
        raise ValueError(f"op must be encode or decode, got {op!r}")
    function = getattr(ops, op)
    function(*args)  # checks them
    first, conv1_weight = args[0], args[1 if op == "encode" else 6]
    shape = first.shape if op == "encode" else (first.shape[0], 3, *args[-1])
    if shape[0] == 0 or not launch.has_kernel(first.device, conv1_weight.dtype, conv1_weight.shape[0]):
        raise ValueError(
            f"tune needs a picture, and parameters that {op}_triton has a kernel for; got {shape[0]} "
            f"pictures and {conv1_weight.dtype} of width {conv1_weight.shape[0]} on {first.device}"
        )
    time = measure or triton.testing.do_bench
    precision = launch.precision_of(conv1_weight.dtype)
    best = min(candidates(precision), key=lambda tile: time(functools.partial(function, *args, tile=tile)))
    store(key(op, launch.device_of(first.device), precision, shape), best)
    return best
