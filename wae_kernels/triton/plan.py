"""Launch plans: tile, grid and slab as pure functions of the shape and the device.

``kernels.py`` explains tiles, frames and the slab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wae_kernels.checks import half_of

CHANNELS = 16
PRECISIONS = ("half", "tf32", "ieee")
GUARD_PIXELS = 16
"""Room before and after a region of the slab, for taps that reach beyond the frame's first and last pixel."""

_REGISTERS = 65536
"""32-bit registers of a multiprocessor."""

_L2_SHARE = 0.75
"""How much of the L2 cache the slabs may take; images stream through the rest."""


@dataclass(frozen=True)
class Device:
    """A plan's facts of a GPU. Compute capability 8.0 is 80; shared memory is a multiprocessor's.

    ``thread_registers`` is the number that the compiler may give a thread, where that is more than a tile
    counts with; else 0.
    """

    name: str
    capability: int
    multiprocessors: int
    shared_bytes: int
    l2_bytes: int
    thread_registers: int = 0


@dataclass(frozen=True)
class Tile:
    """How a program cuts the image and its work.

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
        return self.pitch // 16

    @property
    def trunk(self) -> int:
        """Numbers in the slab's region of 16 channels.

        The frame, the rows that a last group has beyond it, two rows for the layers that write further up,
        and the guards.
        """
        return ((2 * self.half_rows + 8 + self.group + 2) * self.pitch + 2 * GUARD_PIXELS) * CHANNELS

    @property
    def slab(self) -> int:
        """Numbers in a program's slab: the trunk's region, and the input's of 4 channels."""
        return self.trunk + ((2 * self.half_rows + 8 + self.group) * self.pitch + 2 * GUARD_PIXELS) * 4

    @property
    def registers(self) -> int:
        """The most 32-bit registers that Triton's compiler gives a thread; tests hold it to that."""
        return 168 if self.pitch >= 64 else 200

    def shared_bytes(self, element_bytes: int) -> int:
        """The most shared memory that Triton's compiler gives a program; tests hold it to that.

        The blocks of a group and the nine taps of a filter, on their way to the tensor cores.
        """
        blocks = 3 * (self.group + 2) + self.stages - 1
        return (blocks * self.pitch * CHANNELS + 9 * CHANNELS * CHANNELS) * element_bytes

    @property
    def work(self) -> int:
        """Pixels that the three trunk layers of a tile compute, those of the halo included."""
        rows = (2 * self.half_rows + margin for margin in (5, 3, 1))
        return sum(-(-r // self.group) * self.group for r in rows) * self.pitch


@dataclass(frozen=True)
class Plan:
    """A launch: ``programs`` programs share ``tiles`` tiles; each has a slab."""

    tile: Tile
    tiles_down: int
    tiles_across: int
    tiles: int
    programs: int

    @property
    def slab_elements(self) -> int:
        """Numbers of scratch memory that the launch needs."""
        return self.programs * self.tile.slab


def tiles_for(precision: str, capability: int) -> list[Tile]:
    """The short list: what a plan chooses from.

    Args:
        precision: "half" for 16-bit numbers, "tf32" or "ieee" for float32 ones. Wide numbers take more
            registers, so their rows share no loads. In the list is what compiles without spills.
        capability: where the tensor cores have instructions for four warps together (9.x and 10.x), Triton
            takes those for rows of 64 pixels. They are made for larger products; with rows of 32 pixels and
            two warps it takes the others.
    """
    if precision == "ieee":
        return [Tile(32 if 90 <= capability < 100 else 64, 8, group=1, stages=2)]
    pitches = (32,) if 90 <= capability < 120 else (64, 32)
    if precision == "tf32":
        return [Tile(pitches[0], 8, group=1)]
    return [Tile(pitch, rows, group=4) for pitch in pitches for rows in (8, 16)] + [Tile(32, 6, group=4)]


def plan(
    batch: int, height: int, width: int, precision: str, device: Device, tiles: Sequence[Tile] = ()
) -> Plan:
    """The launch for (batch, 3, height, width) images, batch at least 1.

    Args:
        precision: as in :func:`tiles_for`.
        tiles: to choose from; by default the short list.

    Returns:
        Of the plans whose slabs take at most three quarters of the L2 cache (of all, if there is none), the
        one whose busiest multiprocessor has the least to compute; of equals the first in the list.
    """
    tiles = tiles or tiles_for(precision, device.capability)
    element_bytes = 2 if precision == "half" else 4
    plans = [_plan(batch, height, width, element_bytes, device, tile) for tile in tiles]
    in_cache = [p for p in plans if p.slab_elements * element_bytes <= _L2_SHARE * device.l2_bytes]
    return min(in_cache or plans, key=lambda p: -(-p.tiles // device.multiprocessors) * p.tile.work)


def _plan(batch: int, height: int, width: int, element_bytes: int, device: Device, tile: Tile) -> Plan:
    down = -(-half_of(height) // tile.half_rows)
    across = -(-half_of(width) // tile.half_columns)
    tiles = batch * down * across
    each = min(  # programs that a multiprocessor has registers, shared memory and cache for
        _REGISTERS // (max(tile.registers, device.thread_registers) * 32 * tile.warps),
        device.shared_bytes // (tile.shared_bytes(element_bytes) + 1024),
        int(_L2_SHARE * device.l2_bytes) // (tile.slab * element_bytes * device.multiprocessors),
    )
    return Plan(tile, down, across, tiles, min(tiles, max(each, 1) * device.multiprocessors))
