"""encode, decode and their backward passes compared with everything else that can run them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wae.inference.encoder_int8 import largest_activations, quantize
from wae_kernels import backends, reference

from . import peers
from .comparison import Side, tensors
from .devices import EXACT, PRECISIONS, Inputs, Setting, settings
from .modules import OURS, gradients, images, inputs, pair, results, wide_gradients

Compare = Callable[..., None]
EACH = pytest.mark.parametrize(
    "setting",
    settings(cpu=(1, 8), cuda=(1, 8, 64, 256)),
    indirect=True,
)
PROCESSOR = Setting("cpu", EXACT, 8)
ENCODER_MULTIPLY_ADDS = 263.7e6  # per 224 x 224 image, as defined in docs/network.md


@EACH
@pytest.mark.parametrize("op", ["encode", "decode"])
@torch.no_grad()
def bench_forward(compare: Compare, setting: Setting, op: str) -> None:
    ours, stock = pair(op, setting)
    given = inputs(op, setting)
    sets = setting.device.sets(given)
    sides = {**_ours(ours, sets), **peers.all_peers(stock, sets, setting)}
    compare(OURS, sides, results(stock, given), setting, setting.precision.op, capture=True, table=op)


def _ours(module: nn.Module, sets: Sequence[Inputs]) -> dict[str, Side]:
    """Our kernels; on a GPU in both memory formats, and the Triton kernels if they run."""
    sides: dict[str, Side] = {OURS: lambda: peers.over(module, sets)}
    if not sets[0][0].is_cuda:
        return sides
    sides[f"{OURS}, channels_last"] = lambda: peers.over(module, peers.channels_last(sets))
    if any(b.name == "triton" and b.available for b in backends.available()):
        triton = partial(_through, "triton", module)
        sides[f"{OURS}, Triton"] = lambda: peers.over(triton, sets)
        sides[f"{OURS}, Triton, channels_last"] = lambda: peers.over(triton, peers.channels_last(sets))
    return sides


def _through(backend: str, module: nn.Module, *given: Tensor) -> Any:
    with backends.use(backend):
        return module(*given)


@EACH
@pytest.mark.parametrize("op", ["encode", "decode"])
def bench_forward_and_backward(compare: Compare, setting: Setting, op: str) -> None:
    """The forward pass, and the gradients of all weights and of the input."""
    ours, stock = pair(op, setting)
    given = inputs(op, setting)
    with torch.no_grad():
        upstream = [torch.randn_like(x) for x in tensors(stock(*given))]
    sets = setting.device.sets(given)

    def side(module: nn.Module, sets: Sequence[Inputs], autocast: torch.dtype | None = None) -> Side:
        return lambda: peers.over(lambda *x: gradients(module, x, upstream, autocast), sets)

    sides = {
        OURS: side(ours, sets),
        "PyTorch eager": side(stock, sets),
        "PyTorch eager, channels_last": side(stock, peers.channels_last(sets)),
    }
    dtype = setting.precision.dtype
    if dtype != torch.float32:
        for name, module in ((f"{OURS}, autocast", ours), ("PyTorch eager, autocast", stock)):
            sides[name] = side(copy.deepcopy(module).float(), sets, dtype)
    wanted = wide_gradients(stock, given, upstream)
    compare(OURS, sides, wanted, setting, setting.precision.gradient, capture=True, table=f"{op} + backward")


@pytest.mark.parametrize("setting", settings(cpu=(8,), cuda=(64,), precisions=("float16",)), indirect=True)
@torch.no_grad()
def bench_uint8(compare: Compare, setting: Setting) -> None:
    """A decoded image that the op normalises, compared with the normalised floating-point image."""
    ours, stock = pair("encode", setting)
    (drawn,) = inputs("encode", setting)
    raw = (drawn * 64 + 128).clamp(0, 255).byte()
    scale, shift = (torch.full((3,), x).to(drawn) for x in (1 / 128, -1.0))  # exact in every dtype
    image = raw.to(drawn) * scale.view(3, 1, 1) + shift.view(3, 1, 1)
    sets = [(x, scale, shift) for (x,) in setting.device.sets((raw,))]
    last = [(x.contiguous(memory_format=torch.channels_last), *affine) for x, *affine in sets]
    sides: dict[str, Side] = {
        "floating point": lambda: peers.over(ours, setting.device.sets((image,))),
        "uint8": lambda: peers.over(ours, sets),
        "uint8, channels_last": lambda: peers.over(ours, last),
    }
    compare(
        "uint8",
        sides,
        results(stock, (image,)),
        setting,
        setting.precision.op,
        capture=True,
        table="input types, encode",
    )


@pytest.mark.parametrize("setting", settings(cpu=(1, 8)), indirect=True)
@torch.no_grad()
def bench_int8(compare: Compare, setting: Setting) -> None:
    """The encoder in int8 compared with float32, on a decoded image; int8 must be bit-identical."""
    if not backends.int8_runs():
        pytest.skip("this CPU has no VNNI")
    ours, stock = pair("encode", setting)
    (drawn,) = inputs("encode", setting)
    raw = (drawn * 64 + 128).clamp(0, 255).byte()
    scale, shift = (torch.full((3,), x) for x in (1 / 128, -1.0))
    quantized = quantize(ours, scale, shift, largest_activations(ours, scale, shift, [raw]))
    given, last = ((x, scale, shift) for x in (raw, raw.contiguous(memory_format=torch.channels_last)))
    sides: dict[str, Side] = {
        "float32": lambda: peers.over(ours, [given]),
        "float32, channels_last": lambda: peers.over(ours, [last]),
        "int8": lambda: peers.over(quantized, [given]),
        "int8, channels_last": lambda: peers.over(quantized, [last]),
    }
    exact = results(stock, (raw * scale.view(3, 1, 1) + shift.view(3, 1, 1),))
    wanted = dict.fromkeys(sides, exact) | {
        name: reference.encode_int8(raw, *quantized.buffers()) for name in sides if name.startswith("int8")
    }
    limits = {name: 0.0 if name.startswith("int8") else setting.precision.op for name in sides}
    compare("int8", sides, wanted, setting, limits, table="int8, encode")


@pytest.mark.parametrize("setting", settings(cpu=(84,), cuda=(84,), precisions=("float16",)), indirect=True)
@torch.no_grad()
def bench_resolution(compare: Compare, setting: Setting) -> None:
    """The same number of pixels, as many small images and as a few large ones."""
    ours, stock = pair("encode", setting)
    sides: dict[str, Side] = {}
    wanted, megapixels = {}, {}
    for size, number in {224: 84, 512: 16, 1024: 4, 2048: 1}.items():  # 2048 * 2048 pixels, or 0.5 % more
        name = f"{number} of {size} x {size}"
        image = images(number, size).to(setting.device.torch, setting.precision.dtype)
        sides[name] = lambda image=image: peers.over(ours, setting.device.sets((image,), most=2))
        wanted[name] = results(stock, (image,))
        megapixels[name] = number * size * size / 1e6
    compare(
        "84 of 224 x 224",
        sides,
        wanted,
        setting,
        setting.precision.op,
        capture=True,
        table="resolution, encode",
        megapixels=megapixels,
        images=None,
    )


@pytest.mark.parametrize("setting", settings(cpu=(1,), cuda=(1,), precisions=("float16",)), indirect=True)
@torch.no_grad()
def bench_calls(compare: Compare, setting: Setting) -> None:
    """The overhead of a call: an 8 x 8 image, not in a graph, compared with an op that does nothing.

    Each side enters its mode in every call, except the two whose names say otherwise. torch.no_grad is on
    around all of them.
    """
    module, stock = pair("encode", setting)
    image = images(1, 8).to(setting.device.torch, setting.precision.dtype)
    weights = list(module.parameters())
    sets = [(image,)]
    wide = copy.deepcopy(module).float()
    half = torch.bfloat16 if image.device.type == "cpu" else torch.float16
    right = [x.to(image) for x in results(stock, (image,))]
    with _op_that_returns(right) as empty:

        def side(function: Callable[..., Any], *modes: Any) -> Side:
            def call(x: Tensor) -> Any:
                with contextlib.ExitStack() as stack:
                    for mode in modes:
                        stack.enter_context(mode())
                    return function(x)

            return lambda: peers.over(call, sets)

        autocast = partial(torch.autocast, image.device.type, half)
        sides: dict[str, Side] = {
            "module": side(module, torch.no_grad),
            "module, no mode entered": lambda: peers.over(module, sets),
            "module, inference_mode": side(module, torch.inference_mode),
            "module, with gradients": side(module, torch.enable_grad),
            "module, autocast": side(lambda x: wide(x.float()), torch.no_grad, autocast),
            "op": side(lambda x: torch.ops.wae.encode(x, *weights), torch.no_grad),
            "an empty op of the same schema": side(lambda x: empty(x, *weights), torch.no_grad),
            "an empty op, no mode entered": lambda: peers.over(lambda x: empty(x, *weights), sets),
            "an empty op, autocast": side(lambda x: empty(x, *weights), torch.no_grad, autocast),
            "PyTorch eager": side(stock, torch.no_grad),
        }
        limit = PRECISIONS["bfloat16"].op  # of autocast, the least exact side
        compare("module", sides, right, setting, limit, burst=100, table="a call, encode")


@contextlib.contextmanager
def _op_that_returns(results: Sequence[Tensor]) -> Iterator[Callable[..., Any]]:
    """An op with the schema of ``wae::encode`` that does nothing: the cost of any op with ten parameters."""
    library = torch.library.Library("wae_bench", "DEF")
    library.define(str(torch.ops.wae.encode.default._schema).replace("wae::encode", "empty"))
    library.impl("empty", lambda *_: tuple(results), "CompositeExplicitAutograd")
    yield torch.ops.wae_bench.empty.default
    library._destroy()


@torch.no_grad()
def bench_instructions(compare: Compare) -> None:
    """The same kernel with every instruction set that this CPU has."""
    ours, stock = pair("encode", PROCESSOR)
    given = inputs("encode", PROCESSOR)
    names = [b.name for b in backends.available() if b.available and b.name.startswith("cpu:")]
    if not names:
        pytest.skip("the compiled library is missing")
    sides: dict[str, Side] = {
        name: lambda name=name: peers.over(partial(_through, name, ours), [given]) for name in names
    }
    compare(
        names[0],
        sides,
        results(stock, given),
        PROCESSOR,
        PROCESSOR.precision.op,
        table="instruction sets, encode",
    )


@torch.no_grad()
def bench_floor(compare: Compare) -> None:
    """encode compared with a matrix product of the same number of multiply-adds."""
    ours, stock = pair("encode", PROCESSOR)
    given = inputs("encode", PROCESSOR)
    edge = round((PROCESSOR.batch * ENCODER_MULTIPLY_ADDS) ** (1 / 3))
    matrices = (torch.randn(edge, edge), torch.randn(edge, edge))
    product = "a matrix product of as many multiply-adds"
    sides: dict[str, Side] = {
        OURS: lambda: peers.over(ours, [given]),
        product: lambda: peers.over(torch.mm, [matrices]),
    }
    wanted = {OURS: results(stock, given), product: [torch.mm(*(m.double() for m in matrices))]}
    compare(OURS, sides, wanted, PROCESSOR, PROCESSOR.precision.op, table="plain arithmetic, encode")
