"""wae::encode against the float64 reference: backends, dtypes, layouts, sizes."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import pytest
import torch
from cases import (
    DTYPES,
    LARGE_SIZES,
    LAYOUTS,
    SIZES,
    Cell,
    affine,
    encoder,
    far_apart,
    image_of,
    is_laid_out_like,
    scattered,
    seed_of,
    size_name,
    widened,
)
from compare import PLAIN, assert_close, relative_error, tolerance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import wae_kernels
from wae_kernels import backends, reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def check(
    cell: Cell,
    image: Tensor,
    parameters: Sequence[Tensor],
    *scale_shift: Tensor | None,
    expected: tuple[Tensor, Tensor] | None = None,
) -> None:
    """The op's outputs are right and have the layout of the image, and no argument was changed."""
    arguments = [image, *parameters, *scale_shift]
    before = [None if a is None else a.clone() for a in arguments]
    outputs = torch.ops.wae.encode(*arguments)
    expected = expected or reference.encode(*widened(arguments))
    dtype = parameters[0].dtype
    backend = backends.backend_for(cell.device, dtype, parameters[0].shape[0])
    for name, out, ref in zip(("low", "high"), outputs, expected, strict=True):
        assert out.dtype == dtype
        assert out.device == image.device
        assert is_laid_out_like(out, image), f"{name} has strides {out.stride()}, image {image.stride()}"
        assert_close(out, ref, tolerance(dtype, backend, cell.device), name)
    for argument, copy in zip(arguments, before, strict=True):
        assert copy is None or torch.equal(argument, copy)
    memory = {t.untyped_storage().data_ptr() for t in arguments if t is not None and t.numel()}
    assert all(out.untyped_storage().data_ptr() not in memory for out in outputs if out.numel())


def test_reference_equals_the_layers_of_torch() -> None:
    """The oracle itself, compared with layers of torch.nn."""
    parameters = encoder(torch.float64)
    trunk = nn.Sequential(
        *(m for channels in (3, 16, 16) for m in (nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()))
    )
    low, high = (nn.Conv2d(16, 3, 3, stride=2, padding=1) for _ in range(2))
    for own, given_ in zip([p for m in (trunk, low, high) for p in m.parameters()], parameters, strict=True):
        own.data = given_
    image = image_of(2, 13, 10, torch.float64)
    for out, branch in zip(reference.encode(image, *parameters), (low, high), strict=True):
        assert out.shape == (2, 3, 7, 5)
        assert_close(out, branch(trunk(image)), 1e-14)


@functools.cache
def case(
    size: tuple[int, int], dtype: torch.dtype, device: str, *, batch: int = 2, normalized: bool = True
) -> tuple[Tensor, list[Tensor], tuple[Tensor, Tensor]]:
    """An image, the other arguments and the expected result, cached because the float64 oracle is slow."""
    torch.manual_seed(seed_of(f"{size} {dtype} {normalized}"))  # the same case, whichever test runs first
    image, of_bytes = image_of(batch, *size, dtype, device), dtype == torch.uint8
    others = encoder(torch.float32 if of_bytes else dtype, device)
    if normalized:
        others += affine(device=device, of_bytes=of_bytes)
    return image, others, reference.encode(*widened([image, *others]))


@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=["float32", "uint8"])
def test_sizes(cell: Cell, dtype: torch.dtype, layout: str, size: tuple[int, int]) -> None:
    image, others, expected = case(size, dtype, cell.device)
    check(cell, LAYOUTS[layout](image), others, expected=expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", LARGE_SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_large_sizes(cell: Cell, layout: str, size: tuple[int, int]) -> None:
    torch.set_num_threads(2)
    image, others, expected = case(size, torch.float32, cell.device, batch=1, normalized=False)
    check(cell, LAYOUTS[layout](image), others, expected=expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
def test_layouts(cell: Cell, dtype: torch.dtype, layout: str) -> None:
    for normalized in (False, True):
        image, others, expected = case((13, 18), dtype, cell.device, batch=3, normalized=normalized)
        same = LAYOUTS[layout](image)
        check(cell, same, others, expected=None if layout.startswith("expanded") else expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_wide_images(cell: Cell, layout: str) -> None:
    """Wide enough for all vector paths and their remainders."""
    check(cell, LAYOUTS[layout](image_of(2, 7, 259, device=cell.device)), encoder(device=cell.device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_uint8_image_with_parameters_of_any_dtype(cell: Cell, dtype: torch.dtype) -> None:
    image = image_of(2, 9, 11, torch.uint8, cell.device)
    check(cell, image, encoder(dtype, cell.device), *affine(dtype, cell.device, of_bytes=True))


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_batches(cell: Cell, layout: str, batch: int) -> None:
    check(cell, LAYOUTS[layout](image_of(batch, 10, 37, device=cell.device)), encoder(device=cell.device))


@pytest.mark.parametrize("width", [1, 8, 24])
def test_other_widths(cell: Cell, width: int) -> None:
    check(cell, image_of(2, 9, 14, device=cell.device), encoder(device=cell.device, width=width))


def test_parameters_of_any_strides(cell: Cell) -> None:
    parameters = encoder(device=cell.device)
    parameters[2] = parameters[2][:, :1].expand(16, 16, 3, 3)
    parameters[3] = parameters[3][:1].expand(16)
    scattered_parameters = [p if 0 in p.stride() else scattered(p) for p in parameters]
    image = image_of(2, 9, 14, device=cell.device)
    check(cell, image, scattered_parameters, *(scattered(t) for t in affine(device=cell.device)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_strides_beyond_32_bits(cell: Cell, dtype: torch.dtype) -> None:
    """Rows and images are gigabytes apart. Only their pages are ever touched."""
    if cell.device != "cpu":
        pytest.skip("only a CPU reserves memory without allocating it")
    check(cell, far_apart(image_of(2, 2, 40, dtype)), encoder(), *affine(of_bytes=dtype == torch.uint8))


def test_columns_that_are_far_apart_take_no_more_time(cell: Cell) -> None:
    """Reading the memory between them takes 600 times as long here, 6 times for a transposed photo."""
    far = torch.zeros(64 * 2**16, device=cell.device).as_strided((1, 3, 64, 64), (0, 0, 1, 2**16))
    parameters = encoder(device=cell.device)

    def seconds(image: Tensor) -> float:
        start = time.perf_counter()
        torch.ops.wae.encode(image, *parameters)[0].sum().item()
        return time.perf_counter() - start

    assert min(seconds(far) for _ in range(4)) < 50 * min(seconds(far.contiguous()) for _ in range(4))


# -------------------------------------------------------------------------- dtype and format of the results


@pytest.mark.parametrize("memory_format", [None, torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("wanted", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
def test_results_of_another_dtype_and_memory_format(
    cell: Cell, dtype: torch.dtype, wanted: torch.dtype | None, memory_format: torch.memory_format | None
) -> None:
    image, others, expected = case((13, 18), dtype, cell.device, batch=3)
    own = others[0].dtype
    backend = backends.backend_for(cell.device, own)
    limit = max(tolerance(one, backend, cell.device) for one in (own, wanted or own))
    for layout in ("nchw", "second_pixels_channels_last"):
        same = LAYOUTS[layout](image)
        outputs = torch.ops.wae.encode(same, *others, wanted, memory_format)
        like = same if memory_format is None else image.contiguous(memory_format=memory_format)
        for name, out, ref in zip(("low", "high"), outputs, expected, strict=True):
            assert out.dtype == (wanted or own)
            assert is_laid_out_like(out, like), f"{name} has strides {out.stride()}"
            assert_close(out, ref, limit, name)


def test_an_empty_batch_of_another_dtype_and_memory_format(cell: Cell) -> None:
    image, parameters = image_of(0, 5, 4, device=cell.device), encoder(device=cell.device)
    for out in wae_kernels.encode(
        image, *parameters, dtype=torch.bfloat16, memory_format=torch.channels_last
    ):
        assert (out.dtype, out.shape) == (torch.bfloat16, (0, 3, 3, 2))


# --------------------------------------------------------------------------------------- scale and shift


@pytest.mark.parametrize("given_", ["scale", "shift"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_scale_or_shift_alone(cell: Cell, dtype: torch.dtype, given_: str) -> None:
    image = image_of(2, 7, 12, dtype, cell.device)
    scale, shift = affine(device=cell.device, of_bytes=dtype == torch.uint8)
    parameters = encoder(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32, cell.device)
    check(cell, image, parameters, *((scale, None) if given_ == "scale" else (None, shift)))


@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_scale_and_shift_of_any_dtype(cell: Cell, scale_dtype: torch.dtype) -> None:
    image = image_of(2, 7, 12, device=cell.device)
    check(cell, image, encoder(device=cell.device), *affine(scale_dtype, cell.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_padding_stays_zero_with_a_shift(cell: Cell, dtype: torch.dtype) -> None:
    """Compared with the encoder without scale and shift on the normalised image, in float64."""
    image = image_of(2, 6, 9, dtype, cell.device)
    scale, shift = affine(device=cell.device, of_bytes=dtype == torch.uint8)
    shift = shift + 3  # if the padding were shifted, too, results would be far off
    parameters = encoder(device=cell.device)
    normalized = image.double() * scale.double().view(3, 1, 1) + shift.double().view(3, 1, 1)
    limit = tolerance(torch.float32, backends.backend_for(cell.device), cell.device)
    outputs = torch.ops.wae.encode(image, *parameters, scale, shift)
    for out, ref in zip(outputs, reference.encode(normalized, *widened(parameters)), strict=True):
        assert_close(out, ref, limit)


def test_uint8_image_without_scale_is_read_as_0_to_255(cell: Cell) -> None:
    image = image_of(2, 9, 12, torch.uint8, cell.device)
    parameters = encoder(device=cell.device)
    for out, same in zip(
        torch.ops.wae.encode(image, *parameters),
        torch.ops.wae.encode(image.float(), *parameters),
        strict=True,
    ):
        assert relative_error(out, same.double()) <= PLAIN


# ------------------------------------------------------------------------------------------- determinism


def encoded(image: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat(torch.ops.wae.encode(image, *parameters), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_bit_identical_on_any_number_of_threads(cell: Cell, layout: str, dtype: torch.dtype) -> None:
    image = LAYOUTS[layout](image_of(3, 45, 50, dtype, cell.device))
    parameters = encoder(torch.float32 if dtype == torch.uint8 else dtype, cell.device)
    torch.set_num_threads(1)
    once = encoded(image, parameters)
    assert torch.equal(encoded(image, parameters), once)
    if cell.name == "reference":
        return  # PyTorch's own convolutions do not guarantee more
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for batch in (image, image[:1]):
            assert torch.equal(encoded(batch, parameters), once[: len(batch)]), f"{threads} threads"


@pytest.mark.parametrize("size", [(13, 18), (33, 40), (3, 300)], ids=size_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_batch_equals_single_images(cell: Cell, dtype: torch.dtype, size: tuple[int, int]) -> None:
    image, parameters = image_of(5, *size, dtype, cell.device), encoder(device=cell.device)
    together = encoded(image, parameters)
    one_by_one = torch.cat([encoded(one[None], parameters) for one in image])
    if cell.compiled:
        assert torch.equal(together, one_by_one)
    else:
        assert_close(together, one_by_one, tolerance(torch.float32, device=cell.device))


def test_layouts_are_bit_identical(cell: Cell) -> None:
    """A layout changes how an image is read, not what is computed."""
    if not cell.compiled:
        pytest.skip("PyTorch's own convolutions do not guarantee it")
    image, parameters = image_of(2, 21, 50, device=cell.device), encoder(device=cell.device)
    once = encoded(image, parameters)
    for name, layout in LAYOUTS.items():
        if not name.startswith("expanded"):
            assert torch.equal(encoded(layout(image), parameters), once), name


# ------------------------------------------------------------------------------------------- random cases


@given(
    batch=st.integers(0, 3),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.uint8, torch.float16, torch.bfloat16]),
    normalized=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_cases(
    cell: Cell,
    batch: int,
    size: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
    normalized: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    image = image_of(batch, *size, dtype, cell.device)
    image = LAYOUTS[layout if batch else "channels_last"](image)
    parameters = encoder(torch.float32 if dtype == torch.uint8 else dtype, cell.device)
    scale_shift = affine(device=cell.device, of_bytes=dtype == torch.uint8) if normalized else []
    check(cell, image, parameters, *scale_shift)
