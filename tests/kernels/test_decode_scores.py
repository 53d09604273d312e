"""wae::decode_scores against the float64 reference: every backend, dtype, layout, and number of channels."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from cases import (
    CLASSES,
    DTYPES,
    FEATURES,
    LAYOUTS,
    SIZES,
    Cell,
    far_apart,
    image_of,
    is_laid_out_like,
    recorded,
    scattered,
    score_decoder,
    size_name,
    widened,
)
from compare import assert_close, tolerance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wae_kernels import backends, flops, reference  # noqa: F401  (flops: importing it has the ops counted)
from wae_kernels.nn import ScoreDecoder
from wae_kernels.parameters import KERNEL_CHANNELS

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CHANNELS = [(1, 1), (3, 16), (15, 2), (16, 16), (17, 3), (21, 16), (32, 32)]
BEYOND = [(33, 16), (2, 33)]
"""What no kernel takes: the reference runs."""


def halves(
    batch: int,
    size: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels: tuple[int, int] = (CLASSES, FEATURES),
) -> list[Tensor]:
    """Scores and features for an image of this size."""
    half = (size[0] + 1) // 2, (size[1] + 1) // 2
    return [image_of(batch, *half, dtype, device, n) for n in channels]


def check(cell: Cell, low: Tensor, high: Tensor, parameters: Sequence[Tensor], size: Sequence[int]) -> None:
    """The op's scores are right, laid out like ``low``, and nothing else was touched."""
    arguments = [low, high, *parameters]
    before = [a.clone() for a in arguments]
    out = torch.ops.wae.decode_scores(*arguments, size)
    backend = backends.backend_for(cell.device, low.dtype, parameters[1].shape[0])
    assert out.dtype == low.dtype
    assert out.device == low.device
    assert is_laid_out_like(out, low), f"strides {out.stride()}, low {low.stride()}"
    expected = reference.decode_scores(*widened(arguments), size)
    assert_close(out, expected, tolerance(low.dtype, backend, cell.device))
    assert all(map(torch.equal, arguments, before))
    memory = {t.untyped_storage().data_ptr() for t in arguments if t.numel()}
    assert not out.numel() or out.untyped_storage().data_ptr() not in memory


@pytest.mark.parametrize("size", [(12, 17), (11, 18)], ids=size_name)
def test_the_reference_is_its_layers(size: tuple[int, int]) -> None:
    """The oracle itself, against torch.nn layers put together by hand."""
    layers = ScoreDecoder(CLASSES, FEATURES).double()
    trunk = nn.Sequential(nn.ReLU(), layers.conv1, nn.ReLU(), layers.conv2)
    low, high = halves(2, size, torch.float64)
    out = reference.decode_scores(low, high, *layers.parameters(), size)
    assert_close(out, trunk(layers.low(low, size) + layers.high(high, size)), 1e-14)


@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sizes(cell: Cell, layout: str, size: tuple[int, int]) -> None:
    low, high = map(LAYOUTS[layout], halves(2, size, device=cell.device))
    check(cell, low, high, score_decoder(device=cell.device), size)


@pytest.mark.parametrize("channels", CHANNELS + BEYOND, ids=str)
def test_channels(cell: Cell, channels: tuple[int, int]) -> None:
    parameters = score_decoder(device=cell.device, classes=channels[0], features=channels[1])
    for size in ((13, 18), (35, 262)):
        low, high = halves(1, size, device=cell.device, channels=channels)
        check(cell, low, high, parameters, size)
        check(cell, *map(LAYOUTS["channels_last"], (low, high)), parameters, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(225, 223), (3, 4096), (4097, 7)], ids=size_name)
def test_large_sizes(cell: Cell, size: tuple[int, int]) -> None:
    torch.set_num_threads(2)
    parameters = score_decoder(device=cell.device, classes=21, features=16)
    check(cell, *halves(1, size, device=cell.device, channels=(21, 16)), parameters, size)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(cell: Cell, dtype: torch.dtype, layout: str) -> None:
    low, high = halves(3, (25, 36), dtype, cell.device)
    parameters = score_decoder(dtype, cell.device)
    check(cell, LAYOUTS[layout](low), LAYOUTS[layout](high), parameters, (25, 36))
    check(cell, low, LAYOUTS[layout](high), parameters, (26, 35))  # the two need not lie alike
    check(cell, LAYOUTS[layout](low), high, parameters, (26, 35))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_classes_lie_like_images(cell: Cell, layout: str) -> None:
    """Three channels in channels_last have a path of their own."""
    low, high = map(LAYOUTS[layout], halves(2, (7, 259), device=cell.device, channels=(3, 3)))
    check(cell, low, high, score_decoder(device=cell.device, classes=3, features=3), (7, 259))


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_batches(cell: Cell, layout: str, batch: int) -> None:
    low, high = map(LAYOUTS[layout], halves(batch, (10, 37), device=cell.device))
    check(cell, low, high, score_decoder(device=cell.device), (10, 37))


def test_the_kernel_takes_as_many_channels_as_python_says(cell: Cell) -> None:
    """Deploying decides by this number; the kernel has its own."""
    if not cell.compiled or cell.device != "cpu":
        pytest.skip("only processors have a compiled kernel")
    most = KERNEL_CHANNELS
    for channels, is_fused in (((most, most), True), ((most + 1, 1), False), ((1, most + 1), False)):
        parameters = score_decoder(classes=channels[0], features=channels[1])
        with recorded() as profile:
            bits(*halves(1, (4, 4), channels=channels), parameters, (4, 4))
        called = [event.name for event in profile.events()]
        assert ("aten::conv_transpose2d" not in called) == is_fused, channels


@pytest.mark.parametrize("width", [1, 8, 24])
def test_other_widths(cell: Cell, width: int) -> None:
    parameters = score_decoder(device=cell.device, width=width)
    check(cell, *halves(2, (9, 14), device=cell.device), parameters, (9, 14))


def test_parameters_of_any_strides(cell: Cell) -> None:
    parameters = [scattered(p) for p in score_decoder(device=cell.device)]
    check(cell, *halves(2, (9, 14), device=cell.device), parameters, (9, 14))


def test_parts_of_one_tensor(cell: Cell) -> None:
    """Scores and features as an engine hands them over, one after the other."""
    joined = torch.cat(halves(2, (25, 36), device=cell.device), 1)
    low, high = joined.split((CLASSES, FEATURES), 1)
    check(cell, low, high, score_decoder(device=cell.device), (25, 36))


def test_strides_beyond_32_bits(cell: Cell) -> None:
    if cell.device != "cpu":
        pytest.skip("only the processor's memory is lent without being there")
    low, high = halves(2, (4, 40), channels=(3, 3))
    check(cell, far_apart(low), high, score_decoder(classes=3, features=3), (4, 40))


# -------------------------------------------------------------------------------------------- same bits


def bits(low: Tensor, high: Tensor, parameters: Sequence[Tensor], size: Sequence[int] = (45, 50)) -> Tensor:
    out: Tensor = torch.ops.wae.decode_scores(low, high, *parameters, size)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(45, 50), (34, 300)], ids=size_name)
def test_the_same_bits_on_any_number_of_threads(
    cell: Cell, size: tuple[int, int], dtype: torch.dtype
) -> None:
    low, high = halves(3, size, dtype, cell.device, (21, 16))
    parameters = score_decoder(dtype, cell.device, classes=21, features=16)
    torch.set_num_threads(1)
    once = bits(low, high, parameters, size)
    assert torch.equal(bits(low, high, parameters, size), once)
    if cell.name == "reference":
        return  # PyTorch's own convolutions do not promise more
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for n in (3, 1):
            assert torch.equal(bits(low[:n], high[:n], parameters, size), once[:n]), f"{threads} threads"


def test_layouts_give_the_same_bits(cell: Cell) -> None:
    """A layout changes how scores are read, not what is computed."""
    if not cell.compiled:
        pytest.skip("PyTorch's own convolutions do not promise it")
    (low, high), parameters = halves(2, (45, 50)), score_decoder()
    once = bits(low, high, parameters)
    for name, layout in LAYOUTS.items():
        if not name.startswith("expanded"):
            assert torch.equal(bits(layout(low), layout(high), parameters), once), name


def test_networks_in_turns_keep_their_own_weights(cell: Cell) -> None:
    """More networks than packed weights are kept, and two that differ in their channels alone."""
    low, high = halves(1, (9, 14), device=cell.device)
    networks = [score_decoder(device=cell.device) for _ in range(6)]
    wider = [p.clone() for p in networks[0]]
    wider[2] = torch.cat([wider[2], torch.zeros_like(wider[2][:1])])
    once = [bits(low, high, p, (9, 14)) for p in networks]
    for _ in range(2):
        for parameters, expected in zip(networks, once, strict=True):
            assert_close(bits(low, high, parameters, (9, 14)), expected.double(), 1e-6)
    more = torch.cat([high, torch.randn_like(high[:, :1])], 1)
    check(cell, low, more, wider, (9, 14))


# --------------------------------------------------------------------------------------------- the count


def test_floating_point_operations_are_counted() -> None:
    """Two for each multiply-add of the layers."""
    (low, high), parameters = halves(2, (13, 18)), score_decoder()
    with FlopCounterMode(display=False) as fused:
        torch.ops.wae.decode_scores(low, high, *parameters, (13, 18))
    with FlopCounterMode(display=False) as layers:
        reference.decode_scores(low, high, *parameters, (13, 18))
    assert fused.get_total_flops() == layers.get_total_flops()


# ------------------------------------------------------------------------------------------ many scores


@given(
    batch=st.integers(0, 3),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.tuples(st.integers(1, 34), st.integers(1, 34)),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_cases(
    cell: Cell,
    batch: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    lay = LAYOUTS[layout if batch else "nchw"]
    low, high = map(lay, halves(batch, size, dtype, cell.device, channels))
    check(cell, low, high, score_decoder(dtype, cell.device, 16, *channels), size)
