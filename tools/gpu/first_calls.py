"""Calls every mode of the CUDA kernels once, forward and backward, a CUDA graph and torch.compile.

Checks the errors, and that a second call is bit-identical.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from wae.difference import largest_difference
from wae_kernels import backends, nn, reference

# mode: dtype, whether float32 may be rounded to tf32, the tolerance in docs/network.md
MODES = {
    "float16": (torch.float16, True, 2e-3),
    "bfloat16": (torch.bfloat16, True, 1.5e-2),
    "tf32": (torch.float32, True, 1e-3),
    "float32": (torch.float32, False, 1e-6),
}
SHAPES = [(2, 61, 125, False), (3, 224, 224, True), (1, 1, 1, False), (1, 5, 4099, False)]


def wide(values: Iterable[Tensor]) -> list[Tensor]:
    return [t.double() for t in values]


def says(good: bool, text: str) -> int:
    print("RESULT", "right" if good else "WRONG", text, flush=True)
    return not good


@torch.no_grad()
def mode(name: str, batch: int, height: int, width: int, channels_last: bool) -> int:
    dtype, torch.backends.cudnn.allow_tf32, limit = MODES[name]
    torch.manual_seed(0)
    e, d = nn.Encoder().cuda().to(dtype), nn.Decoder().cuda().to(dtype)
    image = torch.randn(batch, 3, height, width, device="cuda").to(dtype)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    halves, again = e(image), e(image)
    back = d(*halves, (height, width))
    errors = (
        largest_difference(halves, reference.encode(image.double(), *wide(e.parameters()))),
        largest_difference(back, reference.decode(*wide(halves), *wide(d.parameters()), (height, width))),
    )
    good = max(errors) <= limit and all(map(torch.equal, halves, again))
    layout = "channels_last" if channels_last else "nchw"
    shape = f"{batch}x3x{height}x{width} {layout}"
    return says(good, f"{name} {shape} encode {errors[0]:.2e} decode {errors[1]:.2e} (limit {limit:g})")


def gradients(name: str, batch: int, height: int, width: int) -> int:
    """Backward against float64, with wider limits: less precise arithmetic switches some ReLUs elsewhere."""
    dtype, torch.backends.cudnn.allow_tf32, limit = MODES[name]
    torch.manual_seed(0)
    e, d = nn.Encoder().cuda().to(dtype), nn.Decoder().cuda().to(dtype)
    image = torch.randn(batch, 3, height, width, device="cuda").to(dtype).requires_grad_()

    def derived(double: bool) -> list[Tensor]:
        networks = (copy.deepcopy(e).double(), copy.deepcopy(d).double()) if double else (e, d)
        x = image.double() if double else image
        leaves = [x.detach().requires_grad_(), *(p for network in networks for p in network.parameters())]
        back = networks[1](*networks[0](leaves[0]), (height, width))
        return list(torch.autograd.grad((back.double() * back.detach().double()).sum(), leaves))

    found, again, wanted = derived(False), derived(False), derived(True)
    worst = largest_difference(found, wanted)
    good = worst <= (3 * limit) ** 0.5 and all(map(torch.equal, found, again))
    return says(
        good, f"{name} {batch}x3x{height}x{width} gradients {worst:.2e} (limit {(3 * limit) ** 0.5:.2g})"
    )


@torch.no_grad()
def graphs() -> int:
    e, image = nn.Encoder().cuda().half(), torch.randn(4, 3, 224, 224, device="cuda").half()
    expected = [t.clone() for t in e(image)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = e(image)
    for t in captured:
        t.zero_()
    graph.replay()
    torch.cuda.synchronize()
    wrong = says(all(map(torch.equal, captured, expected)), "CUDA graph")
    compiled = torch.compile(lambda x: [t.float() * 2 for t in e(x)], fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        got = [t.clone() for t in compiled(image)]
    same = all(torch.equal(a, b.float() * 2) for a, b in zip(got, expected, strict=True))
    return wrong + says(same, "torch.compile fullgraph reduce-overhead")


def main() -> int:
    for backend in backends.available():
        print("RESULT backend", backend.name, backend.available, backend.reason)
    if backends.backend_for("cuda", torch.float16) != "cuda":
        print("RESULT the CUDA library is not in use")
        return 1
    wrong = sum(mode(name, *shape) for name in MODES for shape in SHAPES)
    wrong += sum(gradients(name, 2, 61, 125) for name in MODES)
    return int(wrong + graphs() > 0)


if __name__ == "__main__":
    sys.exit(main())
