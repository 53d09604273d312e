"""The CUDA library on a GPU: torch's and the driver's part of a launch, which the PTX machine cannot test.

The op tests (test_encode.py and others) also run on the GPU, in their cell cuda@cuda.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import cases
import pytest
import torch
from compare import assert_close
from programs import run_program
from torch import Tensor

from wae_kernels import backends, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
encode, decode = torch.ops.wae.encode, torch.ops.wae.decode

# The dtype, whether tf32 is allowed, and the limit in docs/network.md.
MODES = {
    "float16": (torch.float16, True, 2e-3),
    "bfloat16": (torch.bfloat16, True, 1.5e-2),
    "tf32": (torch.float32, True, 1e-3),
    "float32": (torch.float32, False, 1e-6),
}


@pytest.fixture(autouse=True)
def cuda_library() -> Iterator[None]:
    """Skip these tests if the library does not run, and restore torch's setting."""
    if backends.backend_for("cuda") != "cuda":
        pytest.skip("the CUDA library is not built; `make cuda` builds it")
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


def network(
    dtype: torch.dtype, batch: int = 2, size: tuple[int, int] = (61, 125)
) -> tuple[Tensor, list[Tensor]]:
    return cases.image_of(batch, *size, dtype=dtype, device="cuda"), cases.encoder(dtype, "cuda")


@pytest.mark.parametrize("size", [(1, 1), (57, 58), (224, 224), (5, 4099)], ids=cases.size_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "second_pixels"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode: str, layout: str, size: tuple[int, int]) -> None:
    dtype, tf32, limit = MODES[mode]
    torch.backends.cudnn.allow_tf32 = tf32
    image, encoder = network(dtype, 2, size)
    image = cases.LAYOUTS[layout](image)
    low, high = encode(image, *encoder)
    for got, expected in zip((low, high), reference.encode(*cases.widened([image, *encoder])), strict=True):
        assert_close(got, expected, limit)
        assert cases.is_laid_out_like(got, image)
    decoder = cases.decoder(dtype, "cuda")
    back = decode(low, high, *decoder, size)
    assert_close(back, reference.decode(*cases.widened([low, high, *decoder]), size), limit)


def test_setting_of_torch_selects_tf32() -> None:
    """Rounding to tf32, if allowed, changes the results."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no tf32")
    image, encoder = network(torch.float32)
    results = {}
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        results[allowed] = encode(image, *encoder)[0]
    assert not torch.equal(results[True], results[False])


def test_each_op_is_one_launch() -> None:
    image, encoder = network(torch.float16)
    encode(image, *encoder)
    with cases.recorded(torch.profiler.ProfilerActivity.CUDA) as profile:
        low, high = encode(image, *encoder)
        decode(low, high, *cases.decoder(torch.float16, "cuda"), image.shape[2:])
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if "wae" in e.name and "kernel" in e.name]
    assert len([k for k in kernels if "encode_kernel" in k]) == 1
    assert len([k for k in kernels if "decode_kernel" in k]) == 1


def test_current_stream() -> None:
    """The kernel runs on the current stream, after the earlier work of this stream."""
    image, encoder = network(torch.float16, 8, (224, 224))
    expected = encode(image, *encoder)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(image)
        torch.cuda._sleep(100_000_000)
        late.copy_(image)
        got = encode(late, *encoder)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_graph() -> None:
    """A captured launch reads the current inputs and weights at each replay."""
    image, encoder = network(torch.float16)
    encode(image, *encoder)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = encode(image, *encoder)
    image.copy_(cases.image_of(*image.shape[:1], *image.shape[2:], dtype=torch.float16))
    encoder[0].mul_(0.5)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, encode(image, *encoder), strict=True))


FIRST_CALL_IN_A_GRAPH = """
import torch
from wae_kernels import nn
encoder, image = nn.Encoder().cuda(), torch.randn(2, 3, 61, 125, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.no_grad(), torch.cuda.graph(graph):
    captured = encoder(image)
graph.replay()
with torch.no_grad():
    assert all(map(torch.equal, captured, encoder(image)))
"""


def test_first_call_in_a_graph() -> None:
    """A capture allows the driver calls that the first call of a kernel makes. In a new process."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    if version.value < 12030:
        pytest.skip("drivers before CUDA 12.3 load no kernel during a capture")
    run_program(FIRST_CALL_IN_A_GRAPH)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_second_gpu() -> None:
    image, encoder = network(torch.float16)
    expected = encode(image, *encoder)
    there = encode(image.to("cuda:1"), *(p.to("cuda:1") for p in encoder))
    assert torch.cuda.current_device() == 0
    assert all(
        a.device.index == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(there, expected, strict=True)
    )


def test_bit_identical_in_batches_of_any_size() -> None:
    image, encoder = network(torch.float16, 300, (60, 60))
    batch = encode(image, *encoder)
    for i in (0, 1, 150, 299):
        one = encode(image[i : i + 1], *encoder)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(one, batch, strict=True))
    assert encode(image[:0], *encoder)[0].shape == (0, 3, 30, 30)


def test_backward_for_different_widths_in_turn() -> None:
    """Wide images need more shared memory, in any order of calls. Results are bit-identical each time."""
    image, encoder = network(torch.float16, 2, (9, 224))
    first: dict[int, tuple[Tensor, ...]] = {}
    for width in (8, 224, 60, 8, 224):
        leaves = [t.detach().requires_grad_() for t in (image[..., :width], *encoder)]
        outputs = encode(*leaves)
        gradients = torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])
        for got, expected in zip(gradients, first.setdefault(width, gradients), strict=True):
            assert torch.equal(got, expected)


def test_reference_can_be_selected() -> None:
    image, encoder = network(torch.float16)
    with backends.use("reference"):
        got = encode(image, *encoder)
    assert all(torch.equal(a, b) for a, b in zip(got, reference.encode(image, *encoder), strict=True))
