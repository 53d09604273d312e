"""Launch plans: tile, grid and slab, as pure functions of the shape and the device.

``kernels.py`` explains tiles, frames and slabs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wae_kernels.checks import half_of

CHANNELS = 16
PRECISIONS = ("half", "tf32", "ieee")
GUARD_PIXELS = 16
"""Pixels before and after a region of the slab, for taps beyond the frame's first and last pixel."""

_REGISTERS = 65536
"""The 32-bit registers of a multiprocessor."""

_L2_SHARE = 0.75
"""The share of the L2 cache that the slabs may take; images stream through the rest."""


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a GPU. Compute capability 8.0 is 80; shared memory is per multiprocessor.

    ``thread_registers`` is the number of registers that the compiler may give a thread if it can exceed
    ``Tile.registers``; else 0.
    """

    name: str
    capability: int
    multiprocessors: int
    shared_bytes: int
    l2_bytes: int
    thread_registers: int = 0


@dataclass(frozen=True)
class Tile:
    """The tile that a program computes, and how.

    Attributes:
        pitch: pixels in a row of the frame, a power of two; the tile is pitch / 2 - 4 half-resolution pixels
            wide. A warp computes 16 pixels of a row.
        half_rows: half-resolution rows of the tile, an even number.
        group: output rows that share the loads of their inputs.
        stages: of Triton's software pipeline; 1 means none.
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
        """One warp for every 16 pixels of a row."""
        return self.pitch // 16

    @property
    def trunk(self) -> int:
        """Numbers in the trunk's region of the slab, of 16 channels a pixel.

        It holds the frame, the rows of a last group beyond it, two rows above for the layers that write
        further up, and the guards.
        """
        return ((2 * self.half_rows + 8 + self.group + 2) * self.pitch + 2 * GUARD_PIXELS) * CHANNELS

    @property
    def slab(self) -> int:
        """Numbers in a program's slab: the region of the trunk, and that of the input, 4 channels a pixel."""
        return self.trunk + ((2 * self.half_rows + 8 + self.group) * self.pitch + 2 * GUARD_PIXELS) * 4

    @property
    def registers(self) -> int:
        """An upper bound, checked by tests, on the 32-bit registers that Triton's compiler gives a thread."""
        return 168 if self.pitch >= 64 else 200

    def shared_bytes(self, element_bytes: int) -> int:
        """An upper bound, which tests check, on the shared memory that Triton's compiler gives a program.

        It holds the blocks of a group and the nine taps of a filter, on their way to the tensor cores.
        """
        blocks = 3 * (self.group + 2) + self.stages - 1
        return (blocks * self.pitch * CHANNELS + 9 * CHANNELS * CHANNELS) * element_bytes

    @property
    def work(self) -> int:
        """Pixels that the three trunk layers compute for a tile, including its halo."""
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
        """Numbers in all slabs: the scratch memory of the launch."""
        return self.programs * self.tile.slab


def tiles_for(precision: str, capability: int) -> list[Tile]:
    """The short list: the tiles that a plan chooses from, all of which compile without spills.

    Args:
        precision: "half" for 16-bit numbers, "tf32" or "ieee" for float32. float32 needs more registers, so
            its rows share no loads.
        capability: on 9.x and 10.x, whose tensor cores have instructions of a warp group (four warps), Triton
            uses those for rows of 64 pixels. They are meant for larger products; with rows of 32 pixels, i.e.
            two warps, Triton uses the instructions of one warp.
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
        tiles: the tiles to choose from; by default the short list.

    Returns:
        Among the plans whose slabs take at most three quarters of the L2 cache (among all, if there is none)
        the one whose busiest multiprocessor computes least; the first one if several are equal.
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
    each = min(  # the programs that registers, shared memory and cache allow on a multiprocessor
        _REGISTERS // (max(tile.registers, device.thread_registers) * 32 * tile.warps),
        device.shared_bytes // (tile.shared_bytes(element_bytes) + 1024),
        int(_L2_SHARE * device.l2_bytes) // (tile.slab * element_bytes * device.multiprocessors),
    )
    return Plan(tile, down, across, tiles, min(tiles, max(each, 1) * device.multiprocessors))
