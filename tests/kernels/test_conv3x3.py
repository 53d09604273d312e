"""wae::conv3x3 against a convolution in float64: backends, sizes, layouts and invalid arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, OPCHECK_LAYOUTS, Cell, errors_of, far_apart, scattered, size_name
from compare import WINOGRAD, assert_close
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from wae_kernels import reference
from wae_kernels.parameters import KERNEL_WIDTH

pytestmark = pytest.mark.usefixtures("poisoned_memory")

conv3x3, conv3x3_pack = torch.ops.wae.conv3x3, torch.ops.wae.conv3x3_pack

SIZES = [(1, 1), (2, 3), (5, 7), (7, 7), (13, 17)]
CHANNELS = [1, 3, 5, 16, 17, 64, 100, 512]


@functools.cache
def layer(channels: int, out_channels: int) -> tuple[Tensor, Tensor]:
    """A weight with the variance of He initialisation, and a bias that is not zero."""
    generator = torch.Generator().manual_seed(1000 * channels + out_channels)
    weight = torch.randn(out_channels, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
    return weight, torch.randn(out_channels, generator=generator)


def maps(batch: int, channels: int, height: int, width: int, device: str = "cpu") -> Tensor:
    return torch.randn(batch, channels, height, width).to(device, memory_format=torch.channels_last)


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    out = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    return out.relu() if relu else out


def check(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
    before, weight = x.clone(), weight.to(x.device)
    bias = None if bias is None else bias.to(x.device)
    out = conv3x3(x, conv3x3_pack(weight), bias, len(weight), relu)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, expected(x, weight, bias, relu), WINOGRAD)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_sizes(cell: Cell, batch: int, size: tuple[int, int]) -> None:
    weight, bias = layer(17, 33)
    check(maps(batch, 17, *size, cell.device), weight, bias, relu=True)


@pytest.mark.parametrize("out_channels", [8, KERNEL_WIDTH, 33])  # also an encoder's width: its rules differ
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_inside_autocast(cell: Cell, dtype: torch.dtype, out_channels: int) -> None:
    x, (weight, bias) = maps(2, 5, 6, 7, cell.device), (t.to(cell.device) for t in layer(5, out_channels))
    outside = conv3x3(x, conv3x3_pack(weight), bias, out_channels)
    cast = [t.to(dtype) for t in (x, weight, bias)]
    with torch.autocast(cell.device, dtype):
        inside = conv3x3(x, conv3x3_pack(weight), bias, out_channels)
        out = conv3x3(cast[0], conv3x3_pack(cast[1]), cast[2], out_channels)
    assert torch.equal(inside, outside)
    assert out.dtype == torch.float32
    assert_close(out, expected(*cast, relu=False), WINOGRAD)


@pytest.mark.parametrize("channels", CHANNELS)
def test_channels_in(cell: Cell, channels: int) -> None:
    weight, bias = layer(channels, 5)
    check(maps(2, channels, 5, 7, cell.device), weight, bias, relu=False)


@pytest.mark.parametrize("out_channels", CHANNELS)
def test_channels_out(cell: Cell, out_channels: int) -> None:
    weight, bias = layer(5, out_channels)
    check(maps(2, 5, 5, 7, cell.device), weight, bias, relu=True)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (9, 300)], ids=size_name)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_channels_in(cell: Cell, channels: int, size: tuple[int, int]) -> None:
    """A direct convolution, in runs of up to 224 columns. 40 output channels do not fill their panels."""
    weight, bias = layer(channels, 40)
    check(maps(2, channels, *size, cell.device), weight, bias, relu=True)


def test_weights_in_channels_last(cell: Cell) -> None:
    """With one input channel, the strides are those of both memory formats."""
    for channels, out_channels in [(1, 64), (3, 1), (1, 1), (5, 7)]:
        weight, bias = layer(channels, out_channels)
        weight = weight.contiguous(memory_format=torch.channels_last)
        check(maps(2, channels, 6, 9, cell.device), weight, bias, relu=False)


@pytest.mark.parametrize(("channels", "size", "batch"), [(512, 7, 1), (512, 7, 2), (64, 28, 1), (3, 112, 1)])
def test_layers_of_vgg16(cell: Cell, channels: int, size: int, batch: int) -> None:
    weight, bias = layer(channels, max(channels, 64))
    check(maps(batch, channels, size, size, cell.device), weight, bias, relu=True)


@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(cell: Cell, layout: str, channels: int) -> None:
    weight, bias = layer(channels, 20)
    x = LAYOUTS[layout](maps(3, channels, 9, 14, cell.device))
    check(x, scattered(weight.to(cell.device)), scattered(bias.to(cell.device)), relu=False)


@pytest.mark.parametrize("channels", [3, 20])
def test_strides_beyond_32_bits(cell: Cell, channels: int) -> None:
    if cell.device != "cpu":
        pytest.skip("only a CPU reserves memory without allocating it")
    weight, bias = layer(channels, 33)
    check(far_apart(maps(2, channels, 2, 9)), weight, bias, relu=False)


def test_default_dtype_of_torch_changes_nothing(cell: Cell) -> None:
    x, (weight, bias) = maps(2, 5, 6, 7, cell.device), (t.to(cell.device) for t in layer(5, 8))
    wanted = conv3x3(x, conv3x3_pack(weight), bias, 8), reference.conv3x3_pack(weight)
    torch.set_default_dtype(torch.float64)
    try:
        found = conv3x3(x, conv3x3_pack(weight), bias, 8), reference.conv3x3_pack(weight)
    finally:
        torch.set_default_dtype(torch.float32)
    for out, ref in zip(found, wanted, strict=True):
        assert out.dtype == torch.float32
        assert torch.equal(out, ref)


@pytest.mark.parametrize("relu", [False, True])
def test_without_a_bias(cell: Cell, relu: bool) -> None:
    check(maps(2, 16, 6, 9, cell.device), layer(16, 32)[0], None, relu)


def test_packed_weights_equal_the_references(cell: Cell) -> None:
    for channels, out_channels in [(1, 1), (5, 16), (3, 37), (77, 40)]:
        made = layer(channels, out_channels)[0].to(cell.device)
        for weight in (made, made.mT):
            assert torch.equal(conv3x3_pack(weight), reference.conv3x3_pack(weight))


@pytest.mark.parametrize("channels", [3, 20])
def test_nan_stays_in_its_image_and_reaches_all_its_outputs(cell: Cell, channels: int) -> None:
    """A NaN reaches every output that reads it, with and without ReLU, and no other image."""
    weight, bias = (t.to(cell.device) for t in layer(channels, 24))
    x = maps(3, channels, 6, 6, cell.device)  # 4 tiles an image: several images share a block of tiles
    clean = conv3x3(x, conv3x3_pack(weight), bias, 24, True)
    x[1, 2, 2, 3] = torch.nan
    out = conv3x3(x, conv3x3_pack(weight), bias, 24, True)
    assert out[1, :, 1:4, 2:5].isnan().all()
    assert torch.equal(out[0::2], clean[0::2])


@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("size", [(7, 7), (30, 31)], ids=size_name)
def test_bit_identical_on_any_number_of_threads_and_in_any_batch(
    cell: Cell, size: tuple[int, int], channels: int
) -> None:
    if not cell.has_kernel("conv3x3"):
        pytest.skip("PyTorch's own convolutions do not guarantee it")
    weight, bias = layer(channels, 100)
    x, packed = maps(3, channels, *size), conv3x3_pack(weight)
    once = conv3x3(x, packed, bias, 100)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(conv3x3(x, packed, bias, 100), once)
    assert torch.equal(torch.cat([conv3x3(one[None], packed, bias, 100) for one in x]), once)


# ------------------------------------------------------------------------------- registration with torch


@pytest.mark.parametrize("layout", OPCHECK_LAYOUTS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_opcheck(layout: str, with_bias: bool) -> None:
    weight, bias = layer(5, 20)
    x = LAYOUTS[layout](maps(2, 5, 6, 7))
    torch.library.opcheck(conv3x3_pack.default, (LAYOUTS[layout](weight),))
    torch.library.opcheck(
        conv3x3.default, (x, conv3x3_pack(weight), bias if with_bias else None, 20), {"relu": with_bias}
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)], ids=size_name)
@pytest.mark.parametrize("channels", [1, 4])
def test_fake_outputs_have_the_strides_of_real_ones(cell: Cell, channels: int, size: tuple[int, int]) -> None:
    """With sizes of 1, strides are ambiguous and opcheck does not compare them."""
    weight, bias = (t.to(cell.device) for t in layer(channels, channels))
    arguments = (torch.randn(1, channels, *size, device=cell.device), conv3x3_pack(weight), bias)
    real = conv3x3(*arguments, channels)
    with FakeTensorMode() as mode:
        fake = conv3x3(*map(mode.from_tensor, arguments), channels)
    assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


def test_compile_fullgraph() -> None:
    weight, bias = layer(16, 20)
    packed = conv3x3_pack(weight)

    def model(x: Tensor) -> Tensor:
        return F.max_pool2d(conv3x3(x, packed, bias, 20, True), 2)

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for size in [(2, 16, 8, 9), (3, 16, 6, 7)]:
            x = torch.randn(size)
            assert torch.equal(compiled(x), model(x))


def test_gradients_are_refused() -> None:
    weight, bias = layer(4, 6)
    x = maps(1, 4, 5, 5).requires_grad_()
    packed = conv3x3_pack(weight)
    with pytest.raises(RuntimeError, match=r"wae::conv3x3 has no derivative: .*torch\.no_grad"):
        conv3x3(x, packed, bias, 6).sum().backward()
    with pytest.raises(RuntimeError, match=r"wae::conv3x3_pack has no derivative"):
        conv3x3_pack(weight.clone().requires_grad_()).sum().backward()


def test_packed_weights_survive_a_change_of_memory_format() -> None:
    module = torch.nn.Module()
    module.register_buffer("packed", conv3x3_pack(layer(5, 20)[0]))
    assert module.to(memory_format=torch.channels_last).packed.is_contiguous()


# ---------------------------------------------------------------------------------------------- bad input


INPUT = "input must have shape (batch, channels >= 1, height >= 1, width >= 1), got"
PACKED = "packed must have shape (2, 5, 144), got"
BAD = {
    "input": [
        (lambda t: t[0], f"{INPUT} (5, 6, 7)"),
        (lambda t: t[:, :0], f"{INPUT} (2, 0, 6, 7)"),
        (lambda t: t[:, :, :0], f"{INPUT} (2, 5, 0, 7)"),
        (lambda t: t.double(), "input must be float32, got float64"),
        (lambda t: t.half(), "input must be float32, got float16"),
        (lambda t: t[:, :4], "packed must have shape (2, 4, 144), got (2, 5, 144)"),
        (lambda t: t.to_sparse(), "input must be a dense tensor, got torch.sparse_coo"),
    ],
    "packed": [
        (lambda t: t[:1], f"{PACKED} (1, 5, 144)"),
        (lambda t: t[..., :9], f"{PACKED} (2, 5, 9)"),
        (lambda t: t[0], f"{PACKED} (5, 144)"),
        (lambda t: t.bfloat16(), "packed must be float32, got bfloat16"),
        (
            lambda t: t.mT.contiguous().mT,
            "packed must be contiguous, as conv3x3_pack returns it, got other strides",
        ),
    ],
    "bias": [
        (lambda t: t[:19], "bias must have shape (20), got (19)"),
        (lambda t: t[None], "bias must have shape (20), got (1, 20)"),
        (lambda t: t.double(), "bias must be float32, got float64"),
    ],
    "out_channels": [
        (lambda _: 0, "out_channels must be (out_channels >= 1), got (0)"),
        (lambda _: -3, "out_channels must be (out_channels >= 1), got (-3)"),
        (lambda _: 33, "packed must have shape (3, 5, 144), got (2, 5, 144)"),
        (lambda _: 2**62, f"packed must have shape ({2**58}, 5, 144), got (2, 5, 144)"),
        (lambda _: 2**63 - 1, f"packed must have shape ({2**59}, 5, 144), got (2, 5, 144)"),
    ],
}


@pytest.mark.parametrize(
    ("name", "change", "message"), [(n, c, m) for n, cases in BAD.items() for c, m in cases]
)
def test_invalid_argument_is_named(name: str, change: Callable[[Any], Any], message: str) -> None:
    weight, bias = layer(5, 20)
    arguments = {"input": maps(2, 5, 6, 7), "packed": conv3x3_pack(weight), "bias": bias, "out_channels": 20}
    arguments[name] = change(arguments[name])
    assert errors_of(conv3x3, list(arguments.values())) == [f"wae::conv3x3: {message}"] * 3


WEIGHT = "weight must have shape (out_channels >= 1, channels >= 1, 3, 3), got"


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4, 3, 3), f"{WEIGHT} (4, 3, 3)"),
        (torch.zeros(4, 3, 3, 5), f"{WEIGHT} (4, 3, 3, 5)"),
        (torch.zeros(0, 3, 3, 3), f"{WEIGHT} (0, 3, 3, 3)"),
        (torch.zeros(4, 3, 3, 3).double(), "weight must be float32, got float64"),
    ],
    ids=str,
)
def test_invalid_weight_is_named(weight: Tensor, message: str) -> None:
    assert errors_of(conv3x3_pack, [weight]) == [f"wae::conv3x3_pack: {message}"] * 3
