"""What runs in front of an engine: the encoder, its threads and its arguments."""

import subprocess
import sys
import time

import pytest
import torch
from small_networks import SIZE, photos
from torch.utils._python_dispatch import TorchDispatchMode

from wae.inference import front as front_module
from wae.inference.folding import fold
from wae.inference.front import Front
from wae_kernels.nn import Encoder

FORKED = """
import os, torch
from wae.inference.front import Front
from wae_kernels.nn import Encoder
affine = torch.ones(3), torch.zeros(3)
front = Front({encoder}, torch.ones(1), *affine, torch.float32, torch.contiguous_format, before_threads=True)
image = torch.zeros(1, 3, 4, 4)
with torch.no_grad():
    front(image)
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    try:
        front(image)
    except RuntimeError as error:
        os._exit(7 * ("before the process was forked" in str(error)))
"""


@pytest.mark.parametrize("encoder", ["None", "Encoder()", "Encoder(8)"])  # no kernel has a width of 8
def test_a_call_in_a_forked_process_fails_instead_of_hanging(encoder):
    code = FORKED.format(encoder=encoder)
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 7


@pytest.mark.parametrize("network", ["wae", "other"])
def test_our_threads_do_not_spin_beside_an_engine(network, model, stock):
    """The cast of a network without an encoder wakes PyTorch's threads as well as the encoder does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        folded = fold(*((model, photos(1)) if network == "wae" else (stock, photos(1).float())))
        like, form = next(folded.parameters()), torch.contiguous_format
        front, _ = front_module.in_front(folded, like, SIZE, torch.float32, form, True)
        images, cpu_seconds = photos(8, (224, 224)), []
        for _ in range(10):
            front(images)
            before = time.process_time()
            time.sleep(0.005)
            cpu_seconds.append(time.process_time() - before)
        assert min(cpu_seconds) < 0.002
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("width", "threads"), [(16, 1), (8, 3)])
def test_an_encoder_without_a_kernel_keeps_pytorchs_threads(width, threads, monkeypatch):
    """Its convolutions are PyTorch's, and would have one thread if our helper threads took the others."""
    seen, forward = [], Encoder.forward
    monkeypatch.setattr(
        Encoder, "forward", lambda self, *args: seen.append(torch.get_num_threads()) or forward(self, *args)
    )
    affine = torch.ones(3), torch.zeros(3)
    front = Front(Encoder(width), torch.ones(1), *affine, torch.float32, torch.contiguous_format, True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        front(torch.rand(1, 3, *SIZE))
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_engine_gets_the_strides_it_was_compiled_for(memory_format):
    """Also where a size is 1, and the caller's stride may be any: compiled code compares them."""
    like = torch.ones(1)
    front = Front(None, like, None, None, torch.float32, memory_format)
    for images in (
        torch.rand(6, 8, 3).permute(2, 0, 1)[None],  # one photo, H x W x C
        torch.rand(4, 3, 6, 8)[::2][:1],
        torch.rand(2, 3, 1, 16)[..., ::2],
    ):
        (given,) = front(images)
        assert torch.equal(given, images)
        assert given.stride() == torch.empty(images.shape, memory_format=memory_format).stride()


def test_the_encoder_returns_the_engines_dtype_and_memory_format():
    """Nothing is cast or copied between the two."""
    affine, images = (torch.ones(3), torch.zeros(3)), photos(2)
    front = Front(Encoder(), torch.ones(1), *affine, torch.bfloat16, torch.channels_last)
    with torch.no_grad(), Operators() as seen:
        parts = front(images)
    assert seen.names == ["wae::encode"]
    for part in parts:
        assert part.dtype == torch.bfloat16
        assert part.is_contiguous(memory_format=torch.channels_last)


def own_forward(encoder):
    encoder.forward = lambda image, scale, shift: Encoder.forward(encoder, image, scale, shift)[::-1]


def hooked(encoder):
    def doubled(_, arguments):
        image, scale, shift = arguments
        return image, 2 * scale, shift

    encoder.register_forward_pre_hook(doubled)


@pytest.mark.parametrize("change", [own_forward, hooked])
def test_a_changed_encoder_gets_the_models_arguments(change):
    encoder, affine, images = Encoder(), (torch.ones(3), torch.zeros(3)), photos(2)
    change(encoder)
    front = Front(encoder, torch.ones(1), *affine, torch.bfloat16, torch.channels_last)
    with torch.no_grad():
        for part, expected in zip(front(images), encoder(images, *affine), strict=True):
            assert part.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(part, expected.to(torch.bfloat16))


class Operators(TorchDispatchMode):
    """Records the names of the operators that run in its block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))
