# Triton compiles these functions. It needs tuples to be joined with +, and no annotations but constexpr.
# ruff: noqa: RUF005, SIM108
# mypy: disable-error-code="no-untyped-def, assignment"
"""The encoder and the decoder, one kernel each. docs/triton.md has diagrams.

A program computes one tile of the outputs through all layers, then the next tile of its share.

Frame
    A tile of HALF_ROWS x (PITCH / 2 - 4) half-resolution pixels is computed in a frame of 2 * HALF_ROWS + 8
    rows of PITCH full-resolution pixels, whose corner is 4 pixels above and to the left of the tile's corner.
    All layers use the coordinates of the frame. Each 3x3 layer is valid in one pixel less on each side; the
    pixels outside, which are wrong or were never written, are not used. Pixels outside the image are stored
    as zeros, the padding of the next layer.
Slab
    Triton has no shared memory that a kernel can index freely. The activations between layers are stored in a
    slab of global memory, one for each program and small enough to stay in the caches. It has a region for
    the input (4 channels a pixel; in the decoder 8 channels a half-resolution pixel) and one for the trunk
    (16 channels a pixel). A filter tap therefore reads a block of PITCH x 16 numbers at a constant offset;
    three neighbouring pixels of 4 channels, or two of 8, are also one block. A trunk layer overwrites its own
    input, one row further up, so that one region is enough for all of them. Barriers separate the layers, and
    within a layer the reads of a group of rows from its writes.
Arithmetic
    A product is a tl.dot of a block (PITCH pixels x 16 channels) and a filter tap (16 x 16 output channels),
    summed in float32. Each block is loaded once for all three rows of the filter: GROUP rows of outputs need
    GROUP + 2 rows of inputs.
"""

from __future__ import annotations

import builtins

import triton
import triton.language as tl

from . import plan

CHANNELS = tl.constexpr(plan.CHANNELS)
GUARD = tl.constexpr(plan.GUARD_PIXELS)
STAGED_ROWS = tl.constexpr(4)  # of the image, read at a time
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

if INTERPRETED:  # its scalars are arrays of one element, with which numpy 2.4 cannot count (Triton 3.6)

    def range(*ends):
        """Python's ``range``, which also takes scalars of the interpreter."""
        return builtins.range(*(e.handle.data.item() if isinstance(e, tl.tensor) else e for e in ends))


@triton.jit
def half_of(size):
    """As :func:`wae_kernels.checks.half_of`, whose module has no ``tl``, which the interpreter needs."""
    return (size + 1) // 2


@triton.jit
def _cut(x, BITS: tl.constexpr):
    """float32 ``x`` rounded, ties to even, to a number whose BITS lowest bits are zero.

    Every NaN becomes the same one: without its lowest bits, ``x`` might be infinity.
    """
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + ((1 << (BITS - 1)) - 1) + ((bits >> BITS) & 1)) & -(1 << BITS)
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), float("nan"))


@triton.jit
def _round(x, to, TF32: tl.constexpr):
    """float32 ``x`` as dtype ``to``; with TF32, rounded to the bits that the tensor cores read.

    They would truncate the other bits, which makes every product slightly too small.
    """
    if TF32:
        x = _cut(x, 13)
    elif INTERPRETED and to == tl.bfloat16:  # the interpreter would truncate, too
        x = _cut(x, 16)
    return x.to(to)


@triton.jit
def _dot(a, b, sums, TF32: tl.constexpr):
    if INTERPRETED:  # it stores bfloat16 as integers, and would multiply those
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="tf32" if TF32 else "ieee")


@triton.jit
def _in_image(y, x, height, width):
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _filter(
    weight, region, k, n, ky, kx, mask, CIN: tl.constexpr, CHANNELS_LAST: tl.constexpr, TF32: tl.constexpr
):  # fmt: skip
    """Elements [n, k, ky, kx] of a (., CIN, 3, 3) weight, contiguous or channels_last; 0 outside ``mask``.

    They have the dtype of ``region``, whose numbers they are multiplied with.
    """
    if CHANNELS_LAST:
        offset = (n * 9 + ky * 3 + kx) * CIN + k
    else:
        offset = (n * CIN + k) * 9 + ky * 3 + kx
    value = tl.load(weight + offset, mask=mask, other=0.0)
    return _round(value.to(tl.float32), region.dtype.element_ty, TF32)


@triton.jit
def _bias(bias, PITCH: tl.constexpr):
    n = tl.arange(0, CHANNELS)
    return tl.broadcast_to(tl.load(bias + n).to(tl.float32)[None, :], (PITCH, CHANNELS))


@triton.jit
def _paired(a, b, n):
    """Elements n of two concatenated tensors of three numbers, then zeros, as float32."""
    first = tl.load(a + n, mask=n < 3, other=0.0)
    second = tl.load(b + n - 3, mask=(n >= 3) & (n < 6), other=0.0)
    return first.to(tl.float32) + second.to(tl.float32)


@triton.jit
def _store_layer(
    region, sums, row, y, x, height, width, PITCH: tl.constexpr, TF32: tl.constexpr
):  # fmt: skip
    """Apply ReLU and store a row of a layer to its region; ``y``, ``x`` are the pixels' image coordinates."""
    m = tl.arange(0, PITCH)
    n = tl.arange(0, CHANNELS)
    inside = _in_image(y, x, height, width)
    value = tl.where(inside[:, None], tl.maximum(sums, 0.0, propagate_nan=tl.PropagateNan.ALL), 0.0)
    value = _round(value, region.dtype.element_ty, TF32)
    tl.store(region + (row * PITCH + m)[:, None] * CHANNELS + n[None, :], value)


@triton.jit
def _convolve_rows(
    blocks, filters, sums, FIRST: tl.constexpr, TAPS: tl.constexpr, TF32: tl.constexpr
):  # fmt: skip
    """``sums`` plus the products of one row of a 3x3 layer: TAPS blocks for each of its three input rows."""
    for tap in tl.static_range(3 * TAPS):
        sums = _dot(blocks[FIRST * TAPS + tap], filters[tap], sums, TF32)
    return sums


@triton.jit
def _trunk_blocks(region, row, PITCH: tl.constexpr, GROUP: tl.constexpr):
    """The inputs of GROUP rows of a layer, from frame row ``row`` - 1 on: a block for each filter column."""
    m = tl.arange(0, PITCH)
    n = tl.arange(0, CHANNELS)
    blocks = ()
    for i in tl.static_range(GROUP + 2):
        for kx in tl.static_range(3):
            pixel = (row + i - 1) * PITCH + m + (kx - 1)
            blocks = blocks + (tl.load(region + pixel[:, None] * CHANNELS + n[None, :]),)
    return blocks


@triton.jit
def _trunk_filters(weight, region, CHANNELS_LAST: tl.constexpr, TF32: tl.constexpr):
    k = tl.arange(0, CHANNELS)[:, None]
    n = tl.arange(0, CHANNELS)[None, :]
    filters = ()
    for tap in tl.static_range(9):
        filters = filters + (
            _filter(weight, region, k, n, tap // 3, tap % 3, (k < 16) & (n < 16), 16, CHANNELS_LAST, TF32),
        )
    return filters


@triton.jit
def _trunk_layer(
    source, weight, bias, y0, x0, height, width, FIRST: tl.constexpr, ROWS: tl.constexpr, PITCH: tl.constexpr,
    GROUP: tl.constexpr, CHANNELS_LAST: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """A 3x3 layer 16 -> 16 with ReLU: ROWS frame rows from FIRST on, written one row above their input.

    A group of rows overwrites rows that no later group reads; the barrier is for warps that still read them.
    """
    target = source - PITCH * CHANNELS
    filters = _trunk_filters(weight, source, CHANNELS_LAST, TF32)
    start = _bias(bias, PITCH)
    x = x0 + tl.arange(0, PITCH)
    for row in range(FIRST, FIRST + ROWS, GROUP):
        blocks = _trunk_blocks(source, row, PITCH, GROUP)
        tl.debug_barrier()
        for i in tl.static_range(GROUP):
            sums = _convolve_rows(blocks, filters, start, i, 3, TF32)
            _store_layer(target, sums, row + i, y0 + row + i, x, height, width, PITCH, TF32)


# ------------------------------------------------------------------------------------------------- encoder


@triton.jit
def _stage_image(
    image, scale, shift, region, n, y0, x0, height, width, stride_n, stride_c, stride_y, stride_x,
    ROWS: tl.constexpr, PITCH: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """Store the frame of the image, scaled and shifted, to a region of 4 channels a pixel: 3 and a zero."""
    m = tl.arange(0, STAGED_ROWS * PITCH)
    c = tl.arange(0, 4)
    origin = image + n.to(tl.int64) * stride_n
    factor = tl.full((4,), 1.0, tl.float32)
    offset = tl.full((4,), 0.0, tl.float32)
    if scale is not None:
        factor = tl.load(scale + c, mask=c < 3, other=0.0).to(tl.float32)
    if shift is not None:
        offset = tl.load(shift + c, mask=c < 3, other=0.0).to(tl.float32)
    for row in range(0, ROWS, STAGED_ROWS):
        y = y0 + row + m // PITCH
        x = x0 + m % PITCH
        mask = _in_image(y, x, height, width)[:, None] & (c < 3)[None, :]
        pixel = y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
        value = tl.load(origin + pixel[:, None] + (c.to(tl.int64) * stride_c)[None, :], mask=mask, other=0)
        value = value.to(tl.float32)
        if scale is not None or shift is not None:
            value = tl.where(mask, value * factor[None, :] + offset[None, :], 0.0)
        value = _round(value, region.dtype.element_ty, TF32)
        tl.store(region + (row * PITCH + m)[:, None] * 4 + c[None, :], value)


@triton.jit
def _first_layer(
    source, target, weight, bias, y0, x0, height, width, ROWS: tl.constexpr, PITCH: tl.constexpr,
    GROUP: tl.constexpr, CHANNELS_LAST: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """conv1, 3 -> 16 with ReLU, from frame row 1 on. A block is three pixels of 4 channels, and 4 zeros."""
    m = tl.arange(0, PITCH)
    k = tl.arange(0, 16)
    n = tl.arange(0, CHANNELS)[None, :]
    filters = ()
    for ky in tl.static_range(3):
        column, channel = (k // 4)[:, None], (k % 4)[:, None]
        used = (channel < 3) & (column < 3) & (n < CHANNELS)
        filters = filters + (_filter(weight, source, channel, n, ky, column, used, 3, CHANNELS_LAST, TF32),)
    start = _bias(bias, PITCH)
    for row in range(1, 1 + ROWS, GROUP):
        blocks = ()
        for i in tl.static_range(GROUP + 2):
            pixel = (row + i - 1) * PITCH + m - 1
            blocks = blocks + (
                tl.load(source + pixel[:, None] * 4 + k[None, :], mask=(k < 12)[None, :], other=0.0),
            )
        for i in tl.static_range(GROUP):
            sums = _convolve_rows(blocks, filters, start, i, 1, TF32)
            _store_layer(target, sums, row + i, y0 + row + i, x0 + m, height, width, PITCH, TF32)


@triton.jit
def _branches(
    source, low_weight, low_bias, high_weight, high_bias, low, high, n, i0, j0, half_height, half_width,
    stride_n, stride_c, stride_y, stride_x, HALF_ROWS: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """low and high, 16 -> 3 with stride 2, as channels 0..2 and 3..5 of one layer. Two rows at a time."""
    m = tl.arange(0, PITCH)
    k = tl.arange(0, CHANNELS)
    c = tl.arange(0, CHANNELS)[None, :]
    filters = ()
    for tap in tl.static_range(9):
        of_low = (c < 3) & (k[:, None] < CHANNELS)
        of_high = (c >= 3) & (c < 6) & (k[:, None] < CHANNELS)
        tap_low = _filter(
            low_weight, source, k[:, None], c, tap // 3, tap % 3, of_low, 16, CHANNELS_LAST, TF32
        )
        tap_high = _filter(
            high_weight, source, k[:, None], c - 3, tap // 3, tap % 3, of_high, 16, CHANNELS_LAST, TF32
        )
        filters = filters + (tap_low + tap_high,)
    start = tl.broadcast_to(_paired(low_bias, high_bias, c), (PITCH, CHANNELS))
    HALF_PITCH: tl.constexpr = PITCH // 2
    j = m % HALF_PITCH
    base = n.to(tl.int64) * stride_n
    for row in tl.range(0, HALF_ROWS, 2, num_stages=1):  # a software pipeline would spill registers
        i = row + m // HALF_PITCH
        blocks = ()
        for tap in tl.static_range(9):
            pixel = (2 * i + 3 + tap // 3) * PITCH + 2 * j + 3 + tap % 3
            blocks = blocks + (tl.load(source + pixel[:, None] * CHANNELS + k[None, :]),)
        sums = _convolve_rows(blocks, filters, start, 0, 3, TF32)
        wanted = (i < HALF_ROWS) & (j < HALF_PITCH - 4) & (i0 + i < half_height) & (j0 + j < half_width)
        pixel = base + (i0 + i).to(tl.int64) * stride_y + (j0 + j).to(tl.int64) * stride_x
        value = _round(sums, low.dtype.element_ty, False)
        to_low = low + pixel[:, None] + c.to(tl.int64) * stride_c
        tl.store(to_low, value, mask=wanted[:, None] & (c < 3))
        to_high = high + pixel[:, None] + (c - 3).to(tl.int64) * stride_c
        tl.store(to_high, value, mask=wanted[:, None] & (c >= 3) & (c < 6))


@triton.jit(
    do_not_specialize=["height", "width", "tiles", "tiles_down", "tiles_across"],
    do_not_specialize_on_alignment=[
        "image", "conv1_weight", "conv1_bias", "conv2_weight", "conv2_bias", "conv3_weight", "conv3_bias",
        "low_weight", "low_bias", "high_weight", "high_bias", "image_scale", "image_shift", "low", "high",
        "image_n", "image_c", "image_y", "image_x", "out_n", "out_c", "out_y", "out_x",
    ],
)  # fmt: skip
def encode_kernel(
    image, conv1_weight, conv1_bias, conv2_weight, conv2_bias, conv3_weight, conv3_bias,
    low_weight, low_bias, high_weight, high_bias, image_scale, image_shift, low, high, slab,
    height, width, tiles, tiles_down, tiles_across,
    image_n, image_c, image_y, image_x, out_n, out_c, out_y, out_x,
    HALF_ROWS: tl.constexpr, PITCH: tl.constexpr, GROUP: tl.constexpr, SLAB: tl.constexpr,
    TRUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """wae::encode: program p computes the tiles p, p + num_programs, p + 2 * num_programs, ...

    ``*_n/_c/_y/_x`` are strides. ``slab`` has SLAB numbers for each program; the first TRUNK are the trunk's.
    """
    ROW: tl.constexpr = PITCH * CHANNELS
    region = slab + tl.program_id(0).to(tl.int64) * SLAB
    staged = region + TRUNK + GUARD * 4
    trunk = region + GUARD * CHANNELS + 2 * ROW
    half_height = half_of(height)
    half_width = half_of(width)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        i0 = tile // tiles_across % tiles_down * HALF_ROWS
        j0 = tile % tiles_across * (PITCH // 2 - 4)
        n = tile // tiles_across // tiles_down
        y0 = 2 * i0 - 4
        x0 = 2 * j0 - 4
        _stage_image(
            image, image_scale, image_shift, staged, n, y0, x0, height, width,
            image_n, image_c, image_y, image_x, 2 * HALF_ROWS + 8, PITCH, TF32,
        )  # fmt: skip
        tl.debug_barrier()
        _first_layer(
            staged, trunk, conv1_weight, conv1_bias, y0, x0, height, width,
            2 * HALF_ROWS + 5, PITCH, GROUP, CHANNELS_LAST, TF32,
        )  # fmt: skip
        tl.debug_barrier()
        _trunk_layer(
            trunk, conv2_weight, conv2_bias, y0, x0, height, width,
            2, 2 * HALF_ROWS + 3, PITCH, GROUP, CHANNELS_LAST, TF32,
        )  # fmt: skip
        tl.debug_barrier()
        _trunk_layer(
            trunk - ROW, conv3_weight, conv3_bias, y0, x0, height, width,
            3, 2 * HALF_ROWS + 1, PITCH, GROUP, CHANNELS_LAST, TF32,
        )  # fmt: skip
        tl.debug_barrier()
        _branches(
            trunk - 2 * ROW, low_weight, low_bias, high_weight, high_bias, low, high,
            n, i0, j0, half_height, half_width, out_n, out_c, out_y, out_x,
            HALF_ROWS, PITCH, CHANNELS_LAST, TF32,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- decoder


@triton.jit
def _stage_halves(
    low, high, region, n, i0, j0, half_height, half_width,
    low_n, low_c, low_y, low_x, high_n, high_c, high_y, high_x,
    ROWS: tl.constexpr, PITCH: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """Store low and high to a region of PITCH / 2 pixels a row and 8 channels a pixel: 3, 3 and two zeros."""
    HALF_PITCH: tl.constexpr = PITCH // 2
    m = tl.arange(0, STAGED_ROWS * HALF_PITCH)
    c = tl.arange(0, 8)[None, :]
    for row in range(0, ROWS, STAGED_ROWS):
        i = i0 + row + m // HALF_PITCH
        j = j0 + m % HALF_PITCH
        inside = _in_image(i, j, half_height, half_width)[:, None]
        i, j = i.to(tl.int64)[:, None], j.to(tl.int64)[:, None]
        at_low = n.to(tl.int64) * low_n + i * low_y + j * low_x + c.to(tl.int64) * low_c
        at_high = n.to(tl.int64) * high_n + i * high_y + j * high_x + (c - 3).to(tl.int64) * high_c
        of_low = tl.load(low + at_low, mask=inside & (c < 3), other=0.0)
        of_high = tl.load(high + at_high, mask=inside & (c >= 3) & (c < 6), other=0.0)
        value = _round(tl.where(c < 3, of_low, of_high).to(tl.float32), region.dtype.element_ty, TF32)
        tl.store(region + (row * HALF_PITCH + m)[:, None] * 8 + c, value)


@triton.jit
def _up_filter(
    low_weight, high_weight, region, ky: tl.constexpr, right: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TF32: tl.constexpr,
):  # fmt: skip
    """A (16, 16) filter of the transposed layer, for blocks of two half-resolution pixels of 8 channels.

    ``ky`` is the row of the 3x3 filter. ``right`` is 1 for odd output columns, which read both pixels, and 0
    for even ones, which read only the first.
    """
    k = tl.arange(0, 16)[:, None]
    n = tl.arange(0, CHANNELS)[None, :]
    second, c = k // 8, k % 8
    kx = tl.where(second == 1, 0, 1 + right)
    used = (second <= right) & (n < CHANNELS)
    # The weight of a transposed convolution is (3, 16, 3, 3): its first two dimensions are exchanged.
    of_low = _filter(low_weight, region, n, c, ky, kx, used & (c < 3), CHANNELS, CHANNELS_LAST, TF32)
    of_high = _filter(
        high_weight, region, n, c - 3, ky, kx, used & (c >= 3) & (c < 6), CHANNELS, CHANNELS_LAST, TF32
    )
    return of_low + of_high


@triton.jit
def _up_layer(
    source, target, low_weight, low_bias, high_weight, high_bias, y0, x0, height, width,
    ROWS: tl.constexpr, PITCH: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TF32: tl.constexpr,
):  # fmt: skip
    """The summed transposed convolutions, with ReLU: ROWS half-resolution rows to 2 * ROWS, two at a time.

    Because y = 2 i - 1 + ky, an even row reads one half-resolution row and an odd row two; columns likewise.
    """
    HALF_PITCH: tl.constexpr = PITCH // 2
    m = tl.arange(0, PITCH)
    k = tl.arange(0, 16)
    n = tl.arange(0, CHANNELS)
    start = _bias(low_bias, PITCH) + _bias(high_bias, PITCH)
    for right in tl.static_range(2):
        here = _up_filter(low_weight, high_weight, source, 1, right, CHANNELS_LAST, TF32)
        above = _up_filter(low_weight, high_weight, source, 2, right, CHANNELS_LAST, TF32)
        below = _up_filter(low_weight, high_weight, source, 0, right, CHANNELS_LAST, TF32)
        x = 2 * (m % HALF_PITCH) + right
        for row in range(0, ROWS, 2):
            used = (k < 8 + 8 * right)[None, :]
            block = source + (row * HALF_PITCH + m)[:, None] * 8 + k[None, :]
            this = tl.load(block, mask=used, other=0.0)
            following = tl.load(block + HALF_PITCH * 8, mask=used, other=0.0)
            even = _dot(this, here, start, TF32)
            odd = _dot(this, above, start, TF32)
            odd = _dot(following, below, odd, TF32)
            y = 2 * (row + m // HALF_PITCH)
            for down in tl.static_range(2):
                sums = odd if down else even
                inside = _in_image(y0 + y + down, x0 + x, height, width)[:, None]
                value = tl.where(inside, tl.maximum(sums, 0.0, propagate_nan=tl.PropagateNan.ALL), 0.0)
                value = _round(value, target.dtype.element_ty, TF32)
                pixel = (y + down) * PITCH + x
                tl.store(target + pixel[:, None] * CHANNELS + n[None, :], value)


@triton.jit
def _last_layer(
    source, weight, bias, image, n, y0, x0, height, width, stride_n, stride_c, stride_y, stride_x,
    ROWS: tl.constexpr, PITCH: tl.constexpr, GROUP: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    TF32: tl.constexpr,
):  # fmt: skip
    """conv3, 16 -> 3 (of 16 channels): frame rows 4 to 3 + ROWS, columns 4 to PITCH - 5, to the image."""
    m = tl.arange(0, PITCH)
    k = tl.arange(0, CHANNELS)[:, None]
    c = tl.arange(0, CHANNELS)[None, :]
    filters = ()
    for tap in tl.static_range(9):
        used = (c < 3) & (k < CHANNELS)
        filters = filters + (_filter(weight, source, k, c, tap // 3, tap % 3, used, 16, CHANNELS_LAST, TF32),)
    start = tl.broadcast_to(tl.load(bias + c, mask=c < 3, other=0.0).to(tl.float32), (PITCH, CHANNELS))
    x = x0 + m
    in_columns = (m >= 4) & (m < PITCH - 4) & (x < width)
    origin = image + n.to(tl.int64) * stride_n
    columns = (x.to(tl.int64) * stride_x)[:, None] + c.to(tl.int64) * stride_c
    for row in range(4, 4 + ROWS, GROUP):
        blocks = _trunk_blocks(source, row, PITCH, GROUP)
        for i in tl.static_range(GROUP):
            sums = _convolve_rows(blocks, filters, start, i, 3, TF32)
            y = y0 + row + i
            wanted = in_columns & (row + i < 4 + ROWS) & (y < height)
            place = origin + tl.cast(y, tl.int64) * stride_y + columns
            tl.store(place, _round(sums, image.dtype.element_ty, False), mask=wanted[:, None] & (c < 3))


@triton.jit(
    do_not_specialize=["height", "width", "tiles", "tiles_down", "tiles_across"],
    do_not_specialize_on_alignment=[
        "low", "high", "low_weight", "low_bias", "high_weight", "high_bias", "conv1_weight", "conv1_bias",
        "conv2_weight", "conv2_bias", "conv3_weight", "conv3_bias", "image",
        "low_n", "low_c", "low_y", "low_x", "high_n", "high_c", "high_y", "high_x",
        "out_n", "out_c", "out_y", "out_x",
    ],
)  # fmt: skip
def decode_kernel(
    low, high, low_weight, low_bias, high_weight, high_bias,
    conv1_weight, conv1_bias, conv2_weight, conv2_bias, conv3_weight, conv3_bias, image, slab,
    height, width, tiles, tiles_down, tiles_across,
    low_n, low_c, low_y, low_x, high_n, high_c, high_y, high_x, out_n, out_c, out_y, out_x,
    HALF_ROWS: tl.constexpr, PITCH: tl.constexpr, GROUP: tl.constexpr, SLAB: tl.constexpr,
    TRUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """wae::decode: program p computes the tiles p, p + num_programs, p + 2 * num_programs, ...

    ``*_n/_c/_y/_x`` are strides. ``slab`` has SLAB numbers for each program; the first TRUNK are the trunk's.
    """
    ROW: tl.constexpr = PITCH * CHANNELS
    region = slab + tl.program_id(0).to(tl.int64) * SLAB
    staged = region + TRUNK + GUARD * 4
    trunk = region + GUARD * CHANNELS + 2 * ROW
    half_height = half_of(height)
    half_width = half_of(width)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        i0 = tile // tiles_across % tiles_down * HALF_ROWS
        j0 = tile % tiles_across * (PITCH // 2 - 4)
        n = tile // tiles_across // tiles_down
        y0 = 2 * i0 - 4
        x0 = 2 * j0 - 4
        _stage_halves(
            low, high, staged, n, i0 - 2, j0 - 2, half_height, half_width,
            low_n, low_c, low_y, low_x, high_n, high_c, high_y, high_x, HALF_ROWS + 4, PITCH, TF32,
        )  # fmt: skip
        tl.debug_barrier()
        _up_layer(
            staged, trunk, low_weight, low_bias, high_weight, high_bias, y0, x0, height, width,
            HALF_ROWS + 4, PITCH, CHANNELS_LAST, TF32,
        )  # fmt: skip
        tl.debug_barrier()
        _trunk_layer(
            trunk, conv1_weight, conv1_bias, y0, x0, height, width,
            2, 2 * HALF_ROWS + 4, PITCH, GROUP, CHANNELS_LAST, TF32,
        )  # fmt: skip
        tl.debug_barrier()
        _trunk_layer(
            trunk - ROW, conv2_weight, conv2_bias, y0, x0, height, width,
            3, 2 * HALF_ROWS + 2, PITCH, GROUP, CHANNELS_LAST, TF32,
        )  # fmt: skip
        tl.debug_barrier()
        _last_layer(
            trunk - 2 * ROW, conv3_weight, conv3_bias, image, n, y0, x0, height, width,
            out_n, out_c, out_y, out_x,
            2 * HALF_ROWS, PITCH, GROUP, CHANNELS_LAST, TF32,
        )  # fmt: skip
