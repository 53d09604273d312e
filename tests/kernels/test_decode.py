"""wae::decode against the float64 reference: every backend, dtype, layout and kind of size."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from cases import (
    DTYPES,
    LARGE_SIZES,
    LAYOUTS,
    SIZES,
    Cell,
    decoder,
    encoder,
    far_apart,
    image_of,
    is_laid_out_like,
    scattered,
    size_name,
    widened,
)
from compare import assert_close, tolerance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wae_kernels import backends, reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def halves(
    batch: int, size: Sequence[int], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """A ``low`` and a ``high`` for an image of this size."""
    return [image_of(batch, (size[0] + 1) // 2, (size[1] + 1) // 2, dtype, device) for _ in range(2)]


def check(
    cell: Cell,
    low: Tensor,
    high: Tensor,
    parameters: Sequence[Tensor],
    size: Sequence[int],
    expected: Tensor | None = None,
) -> None:
    """The op's image is right, laid out like ``low``, and nothing else was touched."""
    arguments = [low, high, *parameters]
    before = [a.clone() for a in arguments]
    out = torch.ops.wae.decode(*arguments, size)
    backend = backends.backend_for(cell.device, low.dtype, parameters[1].shape[0])
    assert out.dtype == low.dtype
    assert out.device == low.device
    assert is_laid_out_like(out, low), f"strides {out.stride()}, low {low.stride()}"
    if expected is None:
        expected = reference.decode(*widened(arguments), size)
    assert_close(out, expected, tolerance(low.dtype, backend, cell.device))
    assert all(map(torch.equal, arguments, before))
    memory = {t.untyped_storage().data_ptr() for t in arguments if t.numel()}
    assert not out.numel() or out.untyped_storage().data_ptr() not in memory


@pytest.mark.parametrize("size", [(12, 17), (11, 18)], ids=size_name)
def test_the_reference_is_the_encoder_reversed(size: tuple[int, int]) -> None:
    """The oracle itself, against torch.nn layers put together by hand."""
    parameters = decoder(torch.float64)
    low, high = (nn.ConvTranspose2d(3, 16, 3, stride=2, padding=1) for _ in range(2))
    convolutions = [nn.Conv2d(16, channels, 3, padding=1) for channels in (16, 16, 3)]
    layers = (low, high, *convolutions)
    for own, given_ in zip([p for m in layers for p in m.parameters()], parameters, strict=True):
        own.data = given_
    trunk = nn.Sequential(nn.ReLU(), convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
    x_low, x_high = halves(2, size, torch.float64)
    out = reference.decode(x_low, x_high, *parameters, size)
    assert_close(out, trunk(low(x_low, size) + high(x_high, size)), 1e-14)


@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sizes(cell: Cell, layout: str, size: tuple[int, int]) -> None:
    low, high = map(LAYOUTS[layout], halves(2, size, device=cell.device))
    check(cell, low, high, decoder(device=cell.device), size)


@functools.cache
def large_case(size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """low and high, parameters and what is expected: made once, as the float64 oracle takes its time."""
    torch.manual_seed(sum(size))  # the same, whichever test comes first
    inputs, parameters = halves(1, size), decoder()
    return inputs, parameters, reference.decode(*widened([*inputs, *parameters]), size)


@pytest.mark.slow
@pytest.mark.parametrize("size", LARGE_SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_large_sizes(cell: Cell, layout: str, size: tuple[int, int]) -> None:
    torch.set_num_threads(2)
    inputs, parameters, expected = large_case(size)
    low, high = (LAYOUTS[layout](t.to(cell.device)) for t in inputs)
    check(cell, low, high, [p.to(cell.device) for p in parameters], size, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(cell: Cell, dtype: torch.dtype, layout: str) -> None:
    low, high = halves(3, (25, 36), dtype, cell.device)
    parameters = decoder(dtype, cell.device)
    check(cell, LAYOUTS[layout](low), LAYOUTS[layout](high), parameters, (25, 36))
    check(cell, low, LAYOUTS[layout](high), parameters, (26, 35))  # the two need not lie alike
    check(cell, LAYOUTS[layout](low), high, parameters, (26, 35))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_wide_images(cell: Cell, layout: str) -> None:
    """Wide enough for every vector path, and its remainder."""
    low, high = map(LAYOUTS[layout], halves(2, (7, 259), device=cell.device))
    check(cell, low, high, decoder(device=cell.device), (7, 259))


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_batches(cell: Cell, layout: str, batch: int) -> None:
    low, high = map(LAYOUTS[layout], halves(batch, (10, 37), device=cell.device))
    check(cell, low, high, decoder(device=cell.device), (10, 37))


@pytest.mark.parametrize("width", [1, 8, 24])
def test_other_widths(cell: Cell, width: int) -> None:
    parameters = decoder(device=cell.device, width=width)
    check(cell, *halves(2, (9, 14), device=cell.device), parameters, (9, 14))


def test_parameters_of_any_strides(cell: Cell) -> None:
    parameters = [scattered(p) for p in decoder(device=cell.device)]
    check(cell, *halves(2, (9, 14), device=cell.device), parameters, (9, 14))


def test_strides_beyond_32_bits(cell: Cell) -> None:
    if cell.device != "cpu":
        pytest.skip("only the processor's memory is lent without being there")
    low, high = halves(2, (4, 40))
    check(cell, far_apart(low), high, decoder(), (4, 40))


# -------------------------------------------------------------------------------------------- same bits


def bits(low: Tensor, high: Tensor, parameters: Sequence[Tensor], size: Sequence[int] = (45, 50)) -> Tensor:
    out: Tensor = torch.ops.wae.decode(low, high, *parameters, size)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_the_same_bits_on_any_number_of_threads(cell: Cell, layout: str, dtype: torch.dtype) -> None:
    low, high = map(LAYOUTS[layout], halves(3, (45, 50), dtype, cell.device))
    parameters = decoder(dtype, cell.device)
    torch.set_num_threads(1)
    once = bits(low, high, parameters)
    assert torch.equal(bits(low, high, parameters), once)
    if cell.name == "reference":
        return  # PyTorch's own convolutions do not promise more
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for n in (3, 1):
            assert torch.equal(bits(low[:n], high[:n], parameters), once[:n]), f"{threads} threads"


@pytest.mark.parametrize("size", [(13, 18), (33, 40), (3, 300)], ids=size_name)
def test_a_batch_is_its_images(cell: Cell, size: tuple[int, int]) -> None:
    (low, high), parameters = halves(5, size, device=cell.device), decoder(device=cell.device)
    together = bits(low, high, parameters, size)
    one_by_one = torch.cat([bits(low[i : i + 1], high[i : i + 1], parameters, size) for i in range(5)])
    if cell.compiled:
        assert torch.equal(together, one_by_one)
    else:
        assert_close(together, one_by_one, tolerance(torch.float32, device=cell.device))


def test_layouts_give_the_same_bits(cell: Cell) -> None:
    """A layout changes how an image is read, not what is computed."""
    if not cell.compiled:
        pytest.skip("PyTorch's own convolutions do not promise it")
    (low, high), parameters = halves(2, (45, 50)), decoder()
    once = bits(low, high, parameters)
    for name, layout in LAYOUTS.items():
        if not name.startswith("expanded"):
            assert torch.equal(bits(layout(low), layout(high), parameters), once), name


# ------------------------------------------------------------------------------------------- many images


@given(
    batch=st.integers(0, 3),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_cases(
    cell: Cell, batch: int, size: tuple[int, int], layout: str, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    low, high = map(LAYOUTS[layout if batch else "nchw"], halves(batch, size, dtype, cell.device))
    check(cell, low, high, decoder(dtype, cell.device), size)


@given(batch=st.integers(0, 2), size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_an_encoded_image_comes_back_in_its_size(cell: Cell, batch: int, size: tuple[int, int]) -> None:
    image = image_of(batch, *size, device=cell.device)
    low, high = torch.ops.wae.encode(image, *encoder(device=cell.device))
    assert low.shape == high.shape == (batch, 3, -(-size[0] // 2), -(-size[1] // 2))
    assert torch.ops.wae.decode(low, high, *decoder(device=cell.device), size).shape == image.shape
