"""Launch plans: tile, grid and slab as pure functions of the shape and the device.

What a tile, its frame and the slab are is told in ``kernels.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHANNELS = 16
GUARD_PIXELS = 16
"""Room before and after a region of the slab, for taps that reach beyond the frame's first and last pixel."""

_PROGRAM_THREADS = 512
"""How many threads of programs share a multiprocessor: 128 registers for each thread fit everywhere."""


@dataclass(frozen=True)
class Device:
    """What a plan must know of a GPU."""

    name: str
    multiprocessors: int
    l2_bytes: int


@dataclass(frozen=True)
class Tile:
    """How a program cuts the picture and its work.

    Attributes:
        pitch: pixels in a row of the frame, a power of two; the tile itself is pitch / 2 - 4 half-resolution
            pixels wide. One warp computes 16 of them.
        half_rows: half-resolution rows of the tile, even.
        group: output rows that share what is loaded for them.
        stages: of Triton's software pipeline. 1 is none.
    """

    pitch: int
    half_rows: int
    group: int
    stages: int = 1

    @property
    def half_columns(self) -> int:
        """Half-resolution columns of the tile."""
        return self.pitch // 2 - 4

    @property
    def warps(self) -> int:
        """One for every 16 pixels of a row."""
        return max(1, self.pitch // 16)

    @property
    def region(self) -> int:
        """Numbers in a region of the slab: the frame, rows of a last group beyond it, and the guards."""
        return ((2 * self.half_rows + 8 + self.group) * self.pitch + 2 * GUARD_PIXELS) * CHANNELS

    @property
    def work(self) -> int:
        """Pixels that the three trunk layers of a tile compute, those of the halo included."""
        rows = (2 * self.half_rows + margin for margin in (5, 3, 1))
        return sum(-(-r // self.group) * self.group for r in rows) * self.pitch


@dataclass(frozen=True)
class Plan:
    """A launch: ``programs`` programs share ``tiles`` tiles; each has a slab of two regions."""

    tile: Tile
    tiles_down: int
    tiles_across: int
    tiles: int
    programs: int

    @property
    def slab_elements(self) -> int:
        """Numbers of scratch memory that the launch needs."""
        return self.programs * 2 * self.tile.region


def tiles_for(element_bytes: int) -> list[Tile]:
    """The short list: what a plan chooses from, for numbers of this many bytes between the layers.

    Wide numbers take more registers, so fewer rows share their loads.
    """
    group = 4 if element_bytes == 2 else 2
    return [Tile(pitch, rows, group) for pitch in (64, 32) for rows in (8, 16, 4)]


def plan(
    batch: int, height: int, width: int, element_bytes: int, device: Device, tiles: Sequence[Tile] = ()
) -> Plan:
    """The launch for (batch, 3, height, width) pictures, batch at least 1.

    Args:
        element_bytes: of a number between the layers: 2 or 4.
        tiles: to choose from; by default the short list for ``element_bytes``.

    Returns:
        The plan whose busiest multiprocessor has the least to compute; of equals the first in the list. Its
        slabs take at most half of the L2 cache, as long as every multiprocessor can have one program.
    """
    plans = [_plan(batch, height, width, element_bytes, device, t) for t in tiles or tiles_for(element_bytes)]
    return min(plans, key=lambda p: -(-p.tiles // device.multiprocessors) * p.tile.work)


def _plan(batch: int, height: int, width: int, element_bytes: int, device: Device, tile: Tile) -> Plan:
    down = -(-((height + 1) // 2) // tile.half_rows)
    across = -(-((width + 1) // 2) // tile.half_columns)
    slab_bytes = 2 * tile.region * element_bytes
    each = min(
        _PROGRAM_THREADS // (32 * tile.warps), device.l2_bytes // 2 // slab_bytes // device.multiprocessors
    )
    programs = min(batch * down * across, max(each, 1) * device.multiprocessors)
    return Plan(tile, down, across, batch * down * across, programs)
