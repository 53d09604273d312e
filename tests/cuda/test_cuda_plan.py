"""Tile geometry and launch plans of the CUDA kernels: pure functions, tested without a GPU."""

from __future__ import annotations

import math
from typing import Any

import chips
import cuda_bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wae_kernels.checks import DECODER_SHAPES, ENCODER_SHAPES

BINDINGS = cuda_bindings.load()
MODES = ["float16", "bfloat16", "tf32", "float32", "bfloat16_plain"]
MULTIPROCESSORS = {"RTX 2080 Ti": 68, "A100": 108, "RTX 4090": 128, "H100": 132}


def plan(batch: int, height: int, width: int, multiprocessors: int = 132, **options: int) -> object:
    """The plan of an encode launch, for half-resolution sizes."""
    return BINDINGS.plan(
        "encode", BINDINGS.Mode.float16, batch, height, width, multiprocessors=multiprocessors, **options
    )


@pytest.mark.parametrize("op", ["encode", "decode"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capability", chips.OF_BLOCK)
def test_shared_memory_suffices(op: str, mode: str, capability: int) -> None:
    which = getattr(BINDINGS.Mode, mode)
    if BINDINGS.runs_on(which, capability):
        made = BINDINGS.plan(op, which, 1, 112, 112, multiprocessors=10)
        assert 0 < made.shared_bytes <= chips.OF_BLOCK[capability] * 1024


@pytest.mark.parametrize("capability", chips.OF_BLOCK)
def test_every_dtype_has_a_mode(capability: int) -> None:
    runs = {mode for mode in MODES if BINDINGS.runs_on(getattr(BINDINGS.Mode, mode), capability)}
    assert {"float16", "float32"} <= runs
    assert len(runs & {"bfloat16", "bfloat16_plain"}) == 1
    assert ("tf32" in runs) == (capability >= 80)


SIDES = st.integers(1, 5000)


def assert_covered(height: int, width: int, tiling: Any) -> None:
    """The tiles cover the image, and none is entirely outside."""
    assert (tiling.rows - 1) * tiling.tile_height < height <= tiling.rows * tiling.tile_height
    assert (tiling.columns - 1) * tiling.tile_width < width <= tiling.columns * tiling.tile_width


@given(st.integers(1, 5000), SIDES, SIDES, st.integers(1, 200), st.integers(1, 4))
def test_tiles_cover_every_image_once(batch: int, height: int, width: int, chips: int, each: int) -> None:
    made = plan(batch, height, width, chips, blocks_each=each)
    tiling = made.tiling
    assert tiling.tiles == batch * tiling.rows * tiling.columns
    assert 1 <= tiling.tile_width <= BINDINGS.TILE_COLUMNS
    assert_covered(height, width, tiling)
    assert 1 <= made.grid == min(tiling.tiles, chips * each)


@given(st.integers(1, 300), SIDES, SIDES)
def test_no_more_steps_than_with_full_columns(batch: int, height: int, width: int) -> None:
    columns = math.ceil(width / BINDINGS.TILE_COLUMNS)
    rounds = math.ceil(batch * columns / 132)
    assert BINDINGS.steps_of(plan(batch, height, width).tiling, 132) <= rounds * (height + 4) + 8


@pytest.mark.parametrize("name", MULTIPROCESSORS)
def test_one_image_fills_the_chip(name: str) -> None:
    """A 224 x 224 image is cut into nearly as many tiles as there are multiprocessors."""
    made = plan(1, 112, 112, MULTIPROCESSORS[name])
    assert 0.8 * MULTIPROCESSORS[name] <= made.grid <= MULTIPROCESSORS[name]
    assert made.tiling.tiles == made.grid  # one tile for each block


def test_large_batch_has_tall_tiles() -> None:
    """The halo adds few rows to those of the image."""
    tiling = plan(256, 112, 112).tiling
    assert tiling.tile_width == BINDINGS.TILE_COLUMNS
    assert (tiling.tile_height + 4) / tiling.tile_height < 1.08
    assert BINDINGS.steps_of(tiling, 132) < 1.1 * 256 * 4 * 112 / 132


def test_sizes_beyond_32_bits() -> None:
    tiling = plan(2**31, 2**20, 2**20).tiling
    assert tiling.tiles == 2**31 * tiling.rows * tiling.columns


# --------------------------------------------------------------------------------------------------- backward


@pytest.mark.parametrize("op", ["encode", "decode"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capability", chips.OF_BLOCK)
def test_backward_fits_the_shared_memory_of_every_chip(op: str, mode: str, capability: int) -> None:
    which, limit = getattr(BINDINGS.Mode, mode), chips.OF_BLOCK[capability] * 1024
    if BINDINGS.runs_on(which, capability):
        layout = BINDINGS.backward_layout(op, which, capability, limit, 256, 112, 112, 132)
        assert layout.bytes <= limit
        if limit >= 163 * 1024:
            assert layout.strips == (8 if mode in {"float16", "bfloat16"} else 4)
        else:
            assert 2 <= layout.strips <= 4


@pytest.mark.parametrize(
    ("kilobytes", "batch", "half_width", "strips"),
    [
        (163, 256, 1, 2),
        (163, 256, 10, 2),
        (163, 256, 11, 3),
        (163, 256, 26, 4),
        (163, 256, 58, 8),
        (163, 256, 112, 8),
        (163, 1, 112, 4),
        (99, 256, 112, 4),
        (64, 256, 112, 3),
    ],
)
def test_backward_rows_are_as_wide_as_the_work_needs(
    kilobytes: int, batch: int, half_width: int, strips: int
) -> None:
    """The four schedulers cover 52 pixels in one round and 116 in two; a single image has narrower tiles."""
    layout = BINDINGS.backward_layout(
        "encode", BINDINGS.Mode.float16, 80, kilobytes * 1024, batch, 112, half_width, 132
    )
    assert layout.strips == strips


@given(st.integers(1, 300), SIDES, SIDES, st.sampled_from([64, 99, 163]))
def test_backward_tiles_cover_every_image_once(batch: int, height: int, width: int, shared: int) -> None:
    size = batch, height, width, 132
    layout = BINDINGS.backward_layout("encode", BINDINGS.Mode.float16, 80, shared * 1024, *size)
    tiling = BINDINGS.backward_plan(layout, *size, 1).tiling
    assert tiling.tiles == batch * tiling.rows * tiling.columns
    assert 2 * tiling.tile_width + 12 <= 16 * layout.strips  # the tile and its halo fit
    assert tiling.tile_height <= BINDINGS.LONGEST_SUM
    assert_covered(height, width, tiling)


@pytest.mark.parametrize("op", ["encode", "decode"])
def test_partial_sums_have_the_sizes_of_the_parameters(op: str) -> None:
    sizes = BINDINGS.result_sizes(op)
    shapes = {"encode": ENCODER_SHAPES, "decode": DECODER_SHAPES}[op].values()
    assert sizes[:10] == [math.prod(16 if isinstance(n, str) else n for n in shape) for shape in shapes]
    assert BINDINGS.partial_floats(op) == sum(sizes)
