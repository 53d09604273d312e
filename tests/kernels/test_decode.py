"""wae::decode and wae::decode_scores against the float64 reference: backends, dtypes, layouts, sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from cases import (
    CLASSES,
    DTYPES,
    FEATURES,
    LARGE_SIZES,
    LAYOUTS,
    SIZES,
    Cell,
    decoder,
    encoder,
    far_apart,
    halved,
    image_of,
    is_laid_out_like,
    recorded,
    scattered,
    score_decoder,
    seed_of,
    size_name,
    widened,
)
from compare import assert_close, tolerance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wae_kernels import backends, flops, reference  # noqa: F401  (importing flops registers the formulas)
from wae_kernels.checks import IN_16_BITS
from wae_kernels.nn import ScoreDecoder
from wae_kernels.parameters import KERNEL_CHANNELS

pytestmark = pytest.mark.usefixtures("poisoned_memory")

both_ops = pytest.mark.parametrize("op", ["decode", "decode_scores"])
USUAL = {"decode": (3, 3), "decode_scores": (CLASSES, FEATURES)}
"""The channels of ``low`` and ``high``, unless a test names others."""
CHANNELS = [(1, 1), (3, 3), (3, 16), (15, 2), (16, 16), (17, 3), (21, 16), (32, 32)]
BEYOND = [(33, 16), (2, 33)]
"""More channels than any kernel supports: the reference runs."""


def halves(
    op: str,
    batch: int,
    size: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels: tuple[int, int] | None = None,
) -> list[Tensor]:
    """A ``low`` and a ``high`` for an image of this size."""
    return [image_of(batch, *halved(size), dtype, device, n) for n in channels or USUAL[op]]


def parameters_of(
    op: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    width: int = 16,
    channels: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Random parameters in the op's order."""
    if op == "decode":
        return decoder(dtype, device, width)
    return score_decoder(dtype, device, width, *(channels or USUAL[op]))


def run(op: str, low: Tensor, high: Tensor, parameters: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    out: Tensor = getattr(torch.ops.wae, op)(low, high, *parameters, size)
    return out


def expected_of(
    op: str, low: Tensor, high: Tensor, parameters: Sequence[Tensor], size: Sequence[int]
) -> Tensor:
    out: Tensor = getattr(reference, op)(*widened([low, high, *parameters]), size)
    return out


def check(
    op: str,
    cell: Cell,
    low: Tensor,
    high: Tensor,
    parameters: Sequence[Tensor],
    size: Sequence[int],
    expected: Tensor | None = None,
) -> None:
    """The op's result is right and has the layout of ``low``, and no argument was changed."""
    arguments = [low, high, *parameters]
    before = [a.clone() for a in arguments]
    out = run(op, low, high, parameters, size)
    backend = backends.backend_for(cell.device, low.dtype, parameters[1].shape[0])
    assert out.dtype == low.dtype
    assert out.device == low.device
    assert is_laid_out_like(out, low), f"strides {out.stride()}, low {low.stride()}"
    if expected is None:
        expected = expected_of(op, low, high, parameters, size)
    assert_close(out, expected, tolerance(low.dtype, backend, cell.device))
    assert all(map(torch.equal, arguments, before))
    memory = {t.untyped_storage().data_ptr() for t in arguments if t.numel()}
    assert not out.numel() or out.untyped_storage().data_ptr() not in memory


@pytest.mark.parametrize("size", [(12, 17), (11, 18)], ids=size_name)
def test_reference_equals_the_layers_of_torch(size: tuple[int, int]) -> None:
    """The oracle itself, compared with layers of torch.nn."""
    parameters = decoder(torch.float64)
    low, high = (nn.ConvTranspose2d(3, 16, 3, stride=2, padding=1) for _ in range(2))
    convolutions = [nn.Conv2d(16, channels, 3, padding=1) for channels in (16, 16, 3)]
    layers = (low, high, *convolutions)
    for own, given_ in zip([p for m in layers for p in m.parameters()], parameters, strict=True):
        own.data = given_
    trunk = nn.Sequential(nn.ReLU(), convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
    x_low, x_high = halves("decode", 2, size, torch.float64)
    out = reference.decode(x_low, x_high, *parameters, size)
    assert_close(out, trunk(low(x_low, size) + high(x_high, size)), 1e-14)


@pytest.mark.parametrize("size", [(12, 17), (11, 18)], ids=size_name)
def test_reference_of_scores_equals_the_layers_of_torch(size: tuple[int, int]) -> None:
    layers = ScoreDecoder(CLASSES, FEATURES).double()
    trunk = nn.Sequential(nn.ReLU(), layers.conv1, nn.ReLU(), layers.conv2)
    low, high = halves("decode_scores", 2, size, torch.float64)
    out = reference.decode_scores(low, high, *layers.parameters(), size)
    assert_close(out, trunk(layers.low(low, size) + layers.high(high, size)), 1e-14)


@functools.cache
def case(
    op: str,
    size: tuple[int, int],
    device: str,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    channels: tuple[int, int] | None = None,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """low and high, parameters and the expected result, cached because the float64 oracle is slow."""
    torch.manual_seed(seed_of(f"{op} {size} {dtype}"))  # the same case, whichever test runs first
    inputs = halves(op, batch, size, dtype, device, channels)
    parameters = parameters_of(op, dtype, device, channels=channels)
    return inputs, parameters, expected_of(op, *inputs, parameters, size)


@both_ops
@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sizes(cell: Cell, layout: str, size: tuple[int, int], op: str) -> None:
    inputs, parameters, expected = case(op, size, cell.device)
    check(op, cell, *map(LAYOUTS[layout], inputs), parameters, size, expected)


@pytest.mark.parametrize("channels", CHANNELS + BEYOND, ids=str)
def test_channels(cell: Cell, channels: tuple[int, int]) -> None:
    op = "decode_scores"
    for size in ((13, 18), (35, 262)):
        inputs, parameters, expected = case(op, size, cell.device, batch=1, channels=channels)
        for layout in ("nchw", "channels_last"):
            check(op, cell, *map(LAYOUTS[layout], inputs), parameters, size, expected)


@pytest.mark.slow
@both_ops
@pytest.mark.parametrize("size", LARGE_SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_large_sizes(cell: Cell, layout: str, size: tuple[int, int], op: str) -> None:
    torch.set_num_threads(2)
    channels = None if op == "decode" else (21, 16)
    inputs, parameters, expected = case(op, size, cell.device, batch=1, channels=channels)
    check(op, cell, *map(LAYOUTS[layout], inputs), parameters, size, expected)


@both_ops
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(cell: Cell, dtype: torch.dtype, layout: str, op: str) -> None:
    """low and high may have different layouts."""
    lay = LAYOUTS[layout]
    (low, high), parameters, expected = case(op, (10, 35), cell.device, dtype)
    known = None if layout.startswith("expanded") else expected
    for pair in ((lay(low), lay(high)), (low, lay(high)), (lay(low), high)):
        check(op, cell, *pair, parameters, (10, 35), known)


@both_ops
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_wide_images(cell: Cell, layout: str, op: str) -> None:
    """Wide enough for all vector paths and their remainders, including that of 3-channel channels_last."""
    low, high = map(LAYOUTS[layout], halves(op, 2, (7, 259), device=cell.device, channels=(3, 3)))
    check(op, cell, low, high, parameters_of(op, device=cell.device, channels=(3, 3)), (7, 259))


@both_ops
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_batches(cell: Cell, layout: str, batch: int, op: str) -> None:
    low, high = map(LAYOUTS[layout], halves(op, batch, (10, 37), device=cell.device))
    check(op, cell, low, high, parameters_of(op, device=cell.device), (10, 37))


def test_kernel_supports_the_channels_that_python_assumes(cell: Cell) -> None:
    """Deployment relies on this number; the kernel has a constant of its own."""
    if not cell.compiled or cell.device != "cpu":
        pytest.skip("only CPUs have a compiled kernel")
    op, most = "decode_scores", KERNEL_CHANNELS
    for channels, is_fused in (((most, most), True), ((most + 1, 1), False), ((1, most + 1), False)):
        parameters = parameters_of(op, channels=channels)
        with recorded() as profile:
            run(op, *halves(op, 1, (4, 4), channels=channels), parameters, (4, 4))
        called = [event.name for event in profile.events()]
        assert ("aten::conv_transpose2d" not in called) == is_fused, channels


@both_ops
@pytest.mark.parametrize("width", [1, 8, 24])
def test_other_widths(cell: Cell, width: int, op: str) -> None:
    parameters = parameters_of(op, device=cell.device, width=width)
    check(op, cell, *halves(op, 2, (9, 14), device=cell.device), parameters, (9, 14))


@both_ops
@pytest.mark.parametrize("dtype", IN_16_BITS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_parameters_with_16_bit_images(cell: Cell, layout: str, dtype: torch.dtype, op: str) -> None:
    lay, size = LAYOUTS[layout], (10, 35)
    low, high = halves(op, 2, size, dtype, cell.device)
    parameters = parameters_of(op, device=cell.device)
    for pair in ((lay(low), lay(high)), (low, lay(high))):
        check(op, cell, *pair, parameters, size)
        check(op, cell, *pair, [scattered(p) for p in parameters], size)


@both_ops
@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 5), (16, 17), (65, 63)], ids=size_name)
def test_sizes_of_16_bit_images_with_float32_parameters(
    cell: Cell, size: tuple[int, int], batch: int, width: int, op: str
) -> None:
    inputs = halves(op, batch, size, torch.bfloat16, cell.device)
    check(op, cell, *inputs, parameters_of(op, device=cell.device, width=width), size)


@both_ops
def test_cpu_kernel_computes_in_float32_with_float32_parameters(cell: Cell, op: str) -> None:
    """Only the results are rounded."""
    if not (cell.compiled and cell.device == "cpu"):
        pytest.skip("other kernels may round parameters")
    inputs, parameters = halves(op, 2, (13, 18), torch.bfloat16), parameters_of(op)
    wide = run(op, *(x.float() for x in inputs), parameters, (13, 18))
    assert torch.equal(run(op, *inputs, parameters, (13, 18)), wide.bfloat16())


@both_ops
def test_parameters_of_any_strides(cell: Cell, op: str) -> None:
    parameters = [scattered(p) for p in parameters_of(op, device=cell.device)]
    check(op, cell, *halves(op, 2, (9, 14), device=cell.device), parameters, (9, 14))


@both_ops
def test_slices_of_one_tensor(cell: Cell, op: str) -> None:
    """low and high as slices of one tensor, as an inference engine returns them."""
    joined = torch.cat(halves(op, 2, (25, 36), device=cell.device), 1)
    low, high = joined.split(USUAL[op], 1)
    check(op, cell, low, high, parameters_of(op, device=cell.device), (25, 36))


@both_ops
def test_strides_beyond_32_bits(cell: Cell, op: str) -> None:
    if cell.device != "cpu":
        pytest.skip("only a CPU reserves memory without allocating it")
    low, high = halves(op, 2, (4, 40), channels=(3, 3))
    check(op, cell, far_apart(low), high, parameters_of(op, channels=(3, 3)), (4, 40))


# ------------------------------------------------------------------------------------------- determinism


@both_ops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(45, 50), pytest.param((34, 300), marks=pytest.mark.slow)], ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_bit_identical_on_any_number_of_threads(
    cell: Cell, layout: str, size: tuple[int, int], dtype: torch.dtype, op: str
) -> None:
    channels = None if op == "decode" else (21, 16)
    low, high = map(LAYOUTS[layout], halves(op, 3, size, dtype, cell.device, channels))
    parameters = parameters_of(op, dtype, cell.device, channels=channels)
    torch.set_num_threads(1)
    once = run(op, low, high, parameters, size)
    assert torch.equal(run(op, low, high, parameters, size), once)
    if not cell.has_kernel(op):
        return  # PyTorch's own convolutions do not guarantee more
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for n in (3, 1):
            found = run(op, low[:n], high[:n], parameters, size)
            assert torch.equal(found, once[:n]), f"{threads} threads"


@both_ops
@pytest.mark.parametrize("size", [(13, 18), (33, 40), (3, 300)], ids=size_name)
def test_batch_equals_single_images(cell: Cell, size: tuple[int, int], op: str) -> None:
    (low, high), parameters = halves(op, 5, size, device=cell.device), parameters_of(op, device=cell.device)
    together = run(op, low, high, parameters, size)
    one_by_one = torch.cat([run(op, low[i : i + 1], high[i : i + 1], parameters, size) for i in range(5)])
    if cell.has_kernel(op):
        assert torch.equal(together, one_by_one)
    else:
        assert_close(together, one_by_one, tolerance(torch.float32, device=cell.device))


@both_ops
def test_layouts_are_bit_identical(cell: Cell, op: str) -> None:
    """A layout changes how an image is read, not what is computed."""
    if not cell.has_kernel(op):
        pytest.skip("PyTorch's own convolutions do not guarantee it")
    low, high = halves(op, 2, (45, 50), device=cell.device)
    parameters = parameters_of(op, device=cell.device)
    once = run(op, low, high, parameters, (45, 50))
    for name, layout in LAYOUTS.items():
        if not name.startswith("expanded"):
            assert torch.equal(run(op, layout(low), layout(high), parameters, (45, 50)), once), name


def test_interleaved_networks_keep_their_own_weights(cell: Cell) -> None:
    """More networks than the cache of packed weights holds, and two that differ only in their channels."""
    op, size = "decode_scores", (9, 14)
    low, high = halves(op, 1, size, device=cell.device)
    networks = [parameters_of(op, device=cell.device) for _ in range(6)]
    wider = [p.clone() for p in networks[0]]
    wider[2] = torch.cat([wider[2], torch.zeros_like(wider[2][:1])])
    once = [run(op, low, high, p, size) for p in networks]
    for _ in range(2):
        for parameters, expected in zip(networks, once, strict=True):
            assert_close(run(op, low, high, parameters, size), expected.double(), 1e-6)
    more = torch.cat([high, torch.randn_like(high[:, :1])], 1)
    check(op, cell, low, more, wider, size)


# ------------------------------------------------------------------------------------------------- flops


def test_flops_of_scores_are_counted() -> None:
    """Two for each multiply-add of the layers."""
    (low, high), parameters = halves("decode_scores", 2, (13, 18)), score_decoder()
    with FlopCounterMode(display=False) as fused:
        torch.ops.wae.decode_scores(low, high, *parameters, (13, 18))
    with FlopCounterMode(display=False) as layers:
        reference.decode_scores(low, high, *parameters, (13, 18))
    assert fused.get_total_flops() == layers.get_total_flops()


# ------------------------------------------------------------------------------------------- random cases


@both_ops
@given(
    batch=st.integers(0, 3),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.tuples(st.integers(1, 34), st.integers(1, 34)),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
    float32_parameters=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_cases(
    cell: Cell,
    op: str,
    batch: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
    float32_parameters: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    own = torch.float32 if float32_parameters else dtype
    wanted = None if op == "decode" else channels
    lay = LAYOUTS[layout if batch else "nchw"]
    low, high = map(lay, halves(op, batch, size, dtype, cell.device, wanted))
    check(op, cell, low, high, parameters_of(op, own, cell.device, channels=wanted), size)


@given(batch=st.integers(0, 2), size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_decoded_image_has_the_size_of_the_encoded_one(cell: Cell, batch: int, size: tuple[int, int]) -> None:
    image = image_of(batch, *size, device=cell.device)
    low, high = torch.ops.wae.encode(image, *encoder(device=cell.device))
    assert low.shape == high.shape == (batch, 3, -(-size[0] // 2), -(-size[1] // 2))
    assert torch.ops.wae.decode(low, high, *decoder(device=cell.device), size).shape == image.shape
