"""The CUDA kernels, executed on the CPU from nvcc's PTX, against the float64 reference."""

from __future__ import annotations

import cases
import cuda_gate
import pytest
import torch
from compare import assert_close
from cuda_bindings import runner
from cuda_bindings.runner import DTYPE, LIMIT, Chip
from ptx_machine import Counts
from torch import Tensor

from wae_kernels import reference

runner.require_nvcc()

pytestmark = pytest.mark.slow  # minutes, on two cores

MINIMUM = 263.7e6
"""Multiply-adds of a 224 x 224 image, in either direction (docs/network.md)."""
CELLS = [(mode, 80) for mode in ("float16", "bfloat16", "tf32", "float32")]
OTHER_CELLS = [(mode, 75) for mode in ("float16", "float32", "bfloat16_plain")]
OTHER_CELLS += [(mode, 90) for mode, _ in CELLS]
# One pixel; odd sizes; exactly one tile; more by a pixel in each direction; three partial tiles side by side.
SIZES = [(1, 1), (3, 5), (56, 56), (58, 57), (13, 140)]


def _names(cells: list[tuple[str, int]]) -> list[str]:
    return [f"{mode}-sm_{capability}" for mode, capability in cells]


def check_encode(
    mode: str,
    image: Tensor,
    parameters: list[Tensor],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    **launch: object,
) -> Counts:
    low, high, counts = runner.encode(mode, image, parameters, scale, shift, **launch)
    wide = image if image.dtype == torch.uint8 else image.double()
    ref_low, ref_high = reference.encode(wide, *cases.widened([*parameters, scale, shift]))
    assert_close(low, ref_low, LIMIT[mode], "low")
    assert_close(high, ref_high, LIMIT[mode], "high")
    return counts


def check_decode(
    mode: str, low: Tensor, high: Tensor, parameters: list[Tensor], size: tuple[int, int], **launch: object
) -> Counts:
    image, counts = runner.decode(mode, low, high, parameters, size, **launch)
    ref = reference.decode(low.double(), high.double(), *cases.widened(parameters), size)
    assert_close(image, ref, LIMIT[mode], "image")
    return counts


def halves(batch: int, size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """A ``low`` and a ``high`` for images of this size."""
    return [cases.image_of(batch, *cases.halved(size), dtype=dtype) for _ in range(2)]


# ------------------------------------------------------------------------------------------- shapes and modes


@pytest.mark.parametrize("size", SIZES, ids=cases.size_name)
@pytest.mark.parametrize(("mode", "capability"), CELLS, ids=_names(CELLS))
def test_encode_sizes(mode: str, capability: int, size: tuple[int, int]) -> None:
    image = cases.image_of(2, *size, dtype=DTYPE[mode])
    check_encode(mode, image, cases.encoder(DTYPE[mode]), chip=Chip(capability, 3))


@pytest.mark.parametrize("size", SIZES, ids=cases.size_name)
@pytest.mark.parametrize(("mode", "capability"), CELLS, ids=_names(CELLS))
def test_decode_sizes(mode: str, capability: int, size: tuple[int, int]) -> None:
    low, high = halves(2, size, DTYPE[mode])
    check_decode(mode, low, high, cases.decoder(DTYPE[mode]), size, chip=Chip(capability, 3))


@pytest.mark.parametrize(("mode", "capability"), OTHER_CELLS, ids=_names(OTHER_CELLS))
def test_other_architectures(mode: str, capability: int) -> None:
    """Several tiles for each block, odd sizes."""
    dtype, size = DTYPE[mode], (31, 61)
    check_encode(mode, cases.image_of(2, *size, dtype=dtype), cases.encoder(dtype), chip=Chip(capability, 2))
    low, high = halves(2, size, dtype)
    check_decode(mode, low, high, cases.decoder(dtype), size, chip=Chip(capability, 2))


CELLS_16_BIT = [("float16", 75), ("bfloat16_plain", 75)]
CELLS_16_BIT += [(mode, capability) for capability in (80, 90) for mode in ("float16", "bfloat16")]
all_16_bit_cells = pytest.mark.parametrize(("mode", "capability"), CELLS_16_BIT, ids=_names(CELLS_16_BIT))


@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8], ids=str)
@all_16_bit_cells
def test_float32_parameters_and_16_bit_results(mode: str, capability: int, pixels: torch.dtype) -> None:
    """As inside autocast; also with parameters that are not dense, whose numbers are copied singly."""
    image, normalized = cases.image_of(2, 13, 61, dtype=pixels), cases.affine(of_bytes=pixels == torch.uint8)
    dense = cases.encoder()
    for parameters in (dense, [cases.scattered(p) for p in dense]):
        chip = Chip(capability, 2)
        check_encode(mode, image, parameters, *normalized, dtype=DTYPE[mode], chip=chip)


@pytest.mark.parametrize("size", [(1, 1), (13, 61), (58, 57)], ids=cases.size_name)
@all_16_bit_cells
def test_float32_parameters_with_16_bit_images(mode: str, capability: int, size: tuple[int, int]) -> None:
    """As inside autocast. Bit-identical to 16-bit parameters, if these hold the same numbers."""
    low, high = halves(2, size, DTYPE[mode])
    high, chip = cases.LAYOUTS["second_pixels_channels_last"](high), Chip(capability, 2)
    dense = cases.decoder()
    for parameters in (dense, [cases.scattered(p) for p in dense]):
        check_decode(mode, low, high, parameters, size, chip=chip)
    rounded = [p.to(DTYPE[mode]) for p in dense]
    cast, _ = runner.decode(mode, low, high, rounded, size, chip=chip)
    read, _ = runner.decode(mode, low, high, [p.float() for p in rounded], size, chip=chip)
    assert torch.equal(read, cast)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("mode", ["float16", "tf32", "float32"])
def test_order_of_threads_does_not_matter(mode: str, seed: int) -> None:
    """Results are bit-identical for any order of threads between two barriers."""
    dtype, size = DTYPE[mode], (12, 60)
    torch.manual_seed(0)
    image, encoder = cases.image_of(1, *size, dtype=dtype), cases.encoder(dtype)
    for got, expected in zip(
        runner.encode(mode, image, encoder, seed=seed)[:2],
        runner.encode(mode, image, encoder)[:2],
        strict=True,
    ):
        assert torch.equal(got, expected)
    low, high = halves(1, size, dtype)
    decoder = cases.decoder(dtype)
    got, _ = runner.decode(mode, low, high, decoder, size, seed=seed)
    assert torch.equal(got, runner.decode(mode, low, high, decoder, size)[0])


@pytest.mark.parametrize("mode", ["float16", "float32"])
def test_bit_identical_on_any_chip(mode: str) -> None:
    """The division of a batch into tiles does not change the results."""
    dtype, size = DTYPE[mode], (20, 62)
    image, encoder = cases.image_of(2, *size, dtype=dtype), cases.encoder(dtype)
    few, many = (runner.encode(mode, image, encoder, chip=Chip(80, n))[:2] for n in (1, 40))
    assert all(torch.equal(a, b) for a, b in zip(few, many, strict=True))
    low, high = halves(2, size, dtype)
    decoder = cases.decoder(dtype)
    a, b = (runner.decode(mode, low, high, decoder, size, chip=Chip(80, n))[0] for n in (1, 40))
    assert torch.equal(a, b)


# ---------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts(layout: str) -> None:
    """Sliced images are surrounded by NaN, and reading outside of a buffer is an error."""
    size, lay = (9, 61), cases.LAYOUTS[layout]
    image = lay(cases.image_of(2, *size, dtype=torch.float16))
    check_encode("float16", image, cases.encoder(torch.float16))
    low, high = map(lay, halves(2, size, torch.float16))
    check_decode("float16", low, high, cases.decoder(torch.float16), size)


def test_low_and_high_in_different_layouts() -> None:
    size = (9, 61)
    low, high = halves(2, size, torch.float16)
    high = cases.LAYOUTS["second_pixels_channels_last"](high)
    check_decode("float16", low, high, cases.decoder(torch.float16), size)


@pytest.mark.parametrize("mode", ["float16", "bfloat16", "tf32", "float32"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "second_pixels"])
def test_bytes(mode: str, layout: str) -> None:
    image = cases.LAYOUTS[layout](cases.image_of(2, 9, 61, dtype=torch.uint8))
    check_encode(mode, image, cases.encoder(DTYPE[mode]), *cases.affine(of_bytes=True))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=lambda d: str(d)[6:]
)
def test_scale_and_shift(dtype: torch.dtype) -> None:
    """With any floating dtype and stride, together and alone. The padding stays zero."""
    image, encoder = cases.image_of(1, 7, 9), cases.encoder()
    scale, shift = cases.affine(dtype)
    check_encode("float32", image, encoder, cases.scattered(scale), shift)
    check_encode("float32", image, encoder, scale)
    check_encode("float32", image, encoder, None, cases.scattered(shift))


@pytest.mark.parametrize(
    ("mode", "own"), [("float16", torch.float16), ("float16", torch.float32), ("float32", torch.float32)]
)
@pytest.mark.parametrize("laid", ["channels_last", "scattered", "misaligned"])
def test_parameters_of_any_strides(laid: str, mode: str, own: torch.dtype) -> None:
    def lay(p: Tensor) -> Tensor:
        if laid == "scattered":
            return cases.scattered(p)
        if laid == "misaligned":
            return torch.cat([p.new_full((1,), torch.nan), p.flatten()])[1:].view(p.shape)
        return p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p

    dtype, size = DTYPE[mode], (5, 7)
    encoder, decoder = ([lay(p) for p in ps] for ps in (cases.encoder(own), cases.decoder(own)))
    check_encode(mode, cases.image_of(1, *size, dtype=own), encoder, dtype=dtype)
    low, high = halves(1, size, dtype)
    check_decode(mode, low, high, decoder, size)


def test_offsets_beyond_32_bits() -> None:
    size = (5, 7)
    image = cases.far_apart(cases.image_of(2, *size, dtype=torch.float16))
    check_encode("float16", image, cases.encoder(torch.float16))
    low, high = map(cases.far_apart, halves(2, size, torch.float16))
    check_decode("float16", low, high, cases.decoder(torch.float16), size)


def test_nan_reaches_only_what_reads_it_in_encode() -> None:
    """ReLU keeps NaN, as in torch."""
    image, encoder = cases.image_of(1, 40, 40, dtype=torch.float16), cases.encoder(torch.float16)
    image[0, 1, 10, 30] = torch.nan
    got = runner.encode("float16", image, encoder)[:2]
    for out, ref in zip(got, reference.encode(*cases.widened([image, *encoder])), strict=True):
        assert torch.equal(out.isnan(), ref.isnan())


@pytest.mark.parametrize(
    ("mode", "own"),
    [("float16", torch.float16), *((mode, torch.float32) for mode in ("float16", "tf32", "float32"))],
)
@pytest.mark.parametrize("place", ["high", "conv1_weight", "conv3_bias"])
def test_nan_reaches_only_what_reads_it_in_decode(place: str, mode: str, own: torch.dtype) -> None:
    dtype, size = DTYPE[mode], (31, 33)
    low, high = halves(1, size, dtype)
    decoder = cases.decoder(own)
    element = {"high": high[0, 2, 6], "conv1_weight": decoder[4][3, 5, 0], "conv3_bias": decoder[9]}[place]
    element[1] = torch.nan
    got, _ = runner.decode(mode, low, high, decoder, size)
    ref = reference.decode(*cases.widened([low, high, *decoder]), size)
    assert torch.equal(got.isnan(), ref.isnan())


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("op", ["encode", "decode"])
def test_no_nan_becomes_infinity_in_tf32(op: str, capability: int) -> None:
    """Tensor cores do not read the low 13 bits of a number, which may be all that tells it from infinity."""
    size, chip = (31, 33), Chip(capability)
    for in_a_weight in (False, True):
        if op == "encode":
            images, parameters = [cases.image_of(1, *size)], cases.encoder()
        else:
            images, parameters = halves(1, size, torch.float32), cases.decoder()
        if in_a_weight:
            cases.set_to_nan_beside_infinity(parameters[6 if op == "encode" else 8][1, 5, 0, 1])
        else:
            cases.set_to_nan_beside_infinity(images[-1][0, 1, 2, 6])
            parameters[0 if op == "encode" else 2].abs_()
        if op == "encode":
            found = runner.encode("tf32", *images, parameters, chip=chip)[:2]
            wanted = reference.encode(*cases.widened([*images, *parameters]))
        else:
            found = runner.decode("tf32", *images, parameters, size, chip=chip)[:1]
            wanted = (reference.decode(*cases.widened([*images, *parameters]), size),)
        assert wanted[0].isnan().any()
        for out, ref in zip(found, wanted, strict=True):
            assert torch.equal(out.isnan(), ref.isnan())


@pytest.mark.parametrize("row", [12, 13])
@pytest.mark.parametrize(("mode", "large"), [("float16", 6e4), ("bfloat16", 1e38), ("float32", 1e38)])
def test_overflow_reaches_only_the_rows_that_read_it(mode: str, large: float, row: int) -> None:
    """conv3 computes two rows in one product; infinity must not be multiplied by a zero of the other row."""
    dtype, size = DTYPE[mode], (31, 33)
    low, high = (torch.zeros(1, 3, *cases.halved(size), dtype=dtype) for _ in range(2))
    low[0, 0, 6, 8] = 1000
    decoder = [torch.zeros_like(p) for p in cases.decoder(dtype)]
    transposed, conv1, conv2, conv3 = decoder[0], decoder[4], decoder[6], decoder[8]
    transposed[0, 0, row - 11, 1] = conv1[0, 0, 1, 1] = 1  # low's pixel in that row alone
    conv2[0, 0, 1, 1] = large  # infinity there
    conv3.fill_(1)
    got, _ = runner.decode(mode, low, high, decoder, size)
    found = (~got.isfinite()).any(3).any(1).nonzero()[:, 1].tolist()
    assert found == [row - 1, row, row + 1]


# ----------------------------------------------------------------------------------------------------- counts


def expect(counts: Counts, mode: str, inputs: int, outputs: int) -> None:
    """Check the limits of docs/cuda.md. Multiply-adds include those of idle columns."""
    assert counts.multiply_adds <= 1.27 * MINIMUM
    assert counts.read_bytes <= 1.45 * inputs
    assert counts.written_bytes == outputs
    assert counts.shared_wavefronts <= 1.05 * counts.shared_ideal_wavefronts
    assert bool(counts.tensor) == (mode != "float32")


@pytest.mark.parametrize("mode", ["float16", "tf32", "float32"])
def test_counts_of_encode_for_an_image(mode: str) -> None:
    """With four blocks for a 224 x 224 image, as in a large batch."""
    image = cases.image_of(1, 224, 224, dtype=DTYPE[mode])
    counts = check_encode(mode, image, cases.encoder(DTYPE[mode]), chip=Chip(80, 4))
    size = image.element_size()
    expect(counts, mode, 3 * 224 * 224 * size, 6 * 112 * 112 * size)


@pytest.mark.parametrize("mode", ["float16", "tf32", "float32"])
def test_counts_of_decode_for_an_image(mode: str) -> None:
    dtype = DTYPE[mode]
    low, high = (cases.image_of(1, 112, 112, dtype=dtype) for _ in range(2))
    counts = check_decode(mode, low, high, cases.decoder(dtype), (224, 224), chip=Chip(80, 4))
    size = low.element_size()
    expect(counts, mode, 6 * 112 * 112 * size, 3 * 224 * 224 * size)


def test_page_has_these_counts() -> None:
    """The counts of docs/cuda.md for nvcc's PTX. Another compiler gives other counts."""
    if f"nvcc {cuda_gate.nvcc_version()}." not in cuda_gate.written("steps"):
        pytest.skip(f"the page was written with another nvcc than {cuda_gate.nvcc_version()}")
    dtype, chip = torch.float16, Chip(80, 4)
    image, half = (cases.image_of(1, n, n, dtype=dtype) for n in (224, 112))
    *_, encode = runner.encode("float16", image, cases.encoder(dtype), chip=chip)
    _, decode = runner.decode("float16", half, half, cases.decoder(dtype), (224, 224), chip=chip)
    both, inputs = (encode, decode), (image.nbytes, 2 * half.nbytes)
    rows = {
        "multiply-adds, idle lanes included | 263.7 M": [f"{c.multiply_adds / MINIMUM:.3f} x" for c in both],
        "shared-memory wavefronts |": [f"{c.shared_wavefronts:,}".replace(",", " ") for c in both],
        "of these bank conflicts |": [
            f"{100 - 100 * c.shared_ideal_wavefronts / c.shared_wavefronts:.1f} %" for c in both
        ],
        "bytes read, of the input's |": [
            f"{c.read_bytes / size:.2f} x" for c, size in zip(both, inputs, strict=True)
        ],
    }
    page = cuda_gate.PAGE.read_text(encoding="utf-8")
    for name, numbers in rows.items():
        assert f"| {' | '.join([name, *numbers])} |" in page


def test_weights_are_read_once_by_a_block() -> None:
    """A block with several tiles loads its weights once."""
    image, encoder = cases.image_of(3, 60, 56, dtype=torch.float16), cases.encoder(torch.float16)
    counts = check_encode("float16", image, encoder, chip=Chip(80, 1))
    assert counts.by_buffer["parameter 2"] == (16 * 16 * 9 * 2, 0)


@pytest.mark.parametrize(
    ("mode", "own"),
    [
        *((mode, DTYPE[mode]) for mode in ("float16", "bfloat16", "tf32")),
        *((mode, torch.float32) for mode in ("float16", "bfloat16")),
    ],
)
def test_instructions_besides_the_steps_are_few(mode: str, own: torch.dtype) -> None:
    """They matter for a batch of one: docs/cuda.md."""
    dtype, blocks = DTYPE[mode], Chip(90, 1)
    encoder, decoder = cases.encoder(own), cases.decoder(own)

    def instructions(rows: int) -> tuple[int, int]:
        """Instructions of a thread for one tile of ``rows`` half-resolution rows: rows + 12 steps."""
        image, half = cases.image_of(1, 2 * rows, 8, dtype=own), cases.image_of(1, rows, 4, dtype=dtype)
        *_, encode = runner.encode(mode, image, encoder, dtype=dtype, chip=blocks)
        _, decode = runner.decode(mode, half, half, decoder, (2 * rows, 8), chip=blocks)
        return encode.instructions // 384, decode.instructions // 384

    for op, few, many in zip(("encode", "decode"), instructions(16), instructions(32), strict=True):
        besides = few - (many - few) / 16 * 20  # eight of the 28 steps only fill and drain the pipeline
        assert besides < 700, op
