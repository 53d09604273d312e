"""encode, decode and their backward passes against everything else that could run them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peers
import pytest
import torch
from networks import OURS, branches, decoders, encoders, images

from wae_kernels import backends

Compare = Callable[..., None]
BATCHES = pytest.mark.parametrize("batch", [1, 8])


@BATCHES
@torch.no_grad()
def bench_encode(compare: Compare, device: torch.device, batch: int) -> None:
    ours, stock = encoders(device)
    inputs = (images(batch, 224, device),)
    sides = {OURS: partial(ours, *inputs), **_peers(stock, inputs)}
    compare(OURS, sides, device=device, table="encode", images=batch)


@BATCHES
@torch.no_grad()
def bench_decode(compare: Compare, device: torch.device, batch: int) -> None:
    ours, stock = decoders(device, (224, 224))
    inputs = branches(batch, 224, device)
    sides = {OURS: partial(ours, *inputs), **_peers(stock, inputs)}
    compare(OURS, sides, device=device, table="decode", images=batch)


def _peers(stock: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> peers.Sides:
    sides = {**peers.eager(stock, inputs), **peers.compiled(stock, inputs)}
    return sides if inputs[0].is_cuda else {**sides, **peers.engines(stock, inputs)}


@BATCHES
@pytest.mark.parametrize("op", ["encode", "decode"])
def bench_forward_and_backward(compare: Compare, device: torch.device, batch: int, op: str) -> None:
    """Forward, and the gradients of all weights and of the input."""
    pair = encoders(device) if op == "encode" else decoders(device, (224, 224))
    inputs = (images(batch, 224, device),) if op == "encode" else branches(batch, 224, device)
    wanted = branches(batch, 224, device) if op == "encode" else (images(batch, 224, device),)

    def step(module: torch.nn.Module, memory_format: torch.memory_format) -> list[torch.Tensor]:
        leaves = [x.detach().contiguous(memory_format=memory_format).requires_grad_() for x in inputs]
        outputs = module(*leaves)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        return list(torch.autograd.grad(outputs, [*leaves, *module.parameters()], wanted))

    ours, stock = pair
    sides = {
        OURS: partial(step, ours, torch.contiguous_format),
        "PyTorch eager": partial(step, stock, torch.contiguous_format),
        "PyTorch eager, channels_last": partial(step, stock, torch.channels_last),
    }
    # A sum within rounding of zero is on one side of its ReLU here and on the other there, and its gradient
    # with it: tests/kernels/test_backward.py compares them, on inputs where that cannot happen.
    compare(OURS, sides, device=device, table=f"{op} + backward", images=batch, agree=[])


@torch.no_grad()
def bench_uint8(compare: Compare, device: torch.device) -> None:
    """A decoded photo, normalised by the op, against the float image that it becomes."""
    ours, _ = encoders(device)
    photo = (images(8, 224, device) * 64 + 128).clamp(0, 255).byte()
    scale, shift = torch.full((3,), 1 / 127.5, device=device), torch.full((3,), -1.0, device=device)
    image = photo * scale.view(3, 1, 1) + shift.view(3, 1, 1)
    last = photo.contiguous(memory_format=torch.channels_last)
    sides = {
        "float32": lambda: ours(image),
        "uint8": lambda: ours(photo, scale, shift),
        "uint8, channels_last": lambda: ours(last, scale, shift),
    }
    compare("uint8", sides, device=device, table="input types, encode", images=8)


@torch.no_grad()
def bench_resolution(compare: Compare, device: torch.device) -> None:
    """The same number of pixels as many small pictures and as few large ones."""
    ours, _ = encoders(device)
    sizes = {224: 84, 512: 16, 1024: 4, 2048: 1}  # 2048 * 2048 pixels, or 0.5 % more
    sides = {f"{n} of {size} x {size}": partial(ours, images(n, size, device)) for size, n in sizes.items()}
    megapixels = {f"{n} of {size} x {size}": n * size * size / 1e6 for size, n in sizes.items()}
    compare(
        "84 of 224 x 224",
        sides,
        device=device,
        agree=[],
        table="resolution, encode",
        megapixels=megapixels,
    )


@torch.no_grad()
def bench_instructions(compare: Compare) -> None:
    """What each set of instructions that this processor has makes of the same kernel."""
    ours, _ = encoders(torch.device("cpu"))
    image = images(8, 224, torch.device("cpu"))

    def run(name: str) -> list[torch.Tensor]:
        with backends.use(name):
            return list(ours(image))

    names = [b.name for b in backends.available() if b.available and b.name.startswith("cpu:")]
    if not names:
        pytest.skip("the compiled library is missing")
    compare(names[0], {n: partial(run, n) for n in names}, table="instruction sets, encode", images=8)


ENCODER_MULTIPLY_ADDS = 263.7e6  # per 224 x 224 image, by the definition (docs/network.md)


@torch.no_grad()
def bench_floor(compare: Compare) -> None:
    """encode against a matrix product of as many multiply-adds: the floor of plain arithmetic."""
    ours, _ = encoders(torch.device("cpu"))
    image = images(8, 224, torch.device("cpu"))
    side = round((8 * ENCODER_MULTIPLY_ADDS) ** (1 / 3))
    a, b = torch.randn(side, side), torch.randn(side, side)
    sides = {OURS: partial(ours, image), "a matrix product of as many multiply-adds": partial(torch.mm, a, b)}
    compare(OURS, sides, agree=[], table="plain arithmetic, encode", images=8)
