"""Memory that the ops use beyond inputs and outputs, as the system reports it for a new process."""

from __future__ import annotations

import functools
import json
import os

import pytest
from cases import CELLS, needs_kernels
from programs import run_program

THREADS = 2
LIMIT = 2_000_000 * THREADS
NOISE = 500_000
"""Allowance for the interpreter and the allocator: page tables, arenas, a few Python objects."""

CASES = {
    "encode": ("encode", "nchw", "float32"),
    "encode_photo": ("encode", "channels_last", "uint8"),
    "decode": ("decode", "nchw", "float32"),
    "decode_photo": ("decode", "channels_last", "float32"),
    "decode_scores": ("decode_scores", "nchw", "float32"),
    "encode_backward": ("encode_backward", "nchw", "float32"),
    "decode_backward": ("decode_backward", "channels_last", "float32"),
    "decode_scores_backward": ("decode_scores_backward", "nchw", "float32"),
}

PROGRAM = """
import json, sys, torch
from cases import arguments_of, as_tuple

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def extra(op, layout, dtype, size):
    arguments = arguments_of(op, layout, size=size)
    if dtype == "uint8":
        arguments[0] = (arguments[0] * 50 + 128).clamp(0, 255).to(torch.uint8)
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    before = status("VmRSS")
    outputs = as_tuple(getattr(torch.ops.wae, op)(*arguments))
    return status("VmHWM") - before - sum(out.nbytes for out in outputs)

threads, size, cases = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.rand(1000, 1000).exp()  # starts the threads
for case in cases.values():
    extra(*case, (8, 8))  # loads the code; too small to keep a workspace that would matter later
print(json.dumps({name: extra(*case, size) for name, case in cases.items()}))
"""


def can_reset_the_peak() -> bool:
    return os.access("/proc/self/clear_refs", os.W_OK)


@functools.cache
def measured(backend: str, height: int = 1024, width: int = 2048) -> dict[str, int]:
    """Bytes beyond inputs and outputs, by case, for two images of this size."""
    # Freed memory returns to the system at once, so that no output reuses memory counted before.
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    arguments = json.dumps([THREADS, [height, width], CASES])
    result = run_program(PROGRAM, arguments, WAE_BACKEND=backend, **thresholds)
    numbers: dict[str, int] = json.loads(result.stdout)
    return numbers


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_reset_the_peak(), reason="only Linux reports and resets the peak memory"),
]

WITH_LITTLE_MEMORY = """
import resource, sys, torch, wae_kernels
from cases import arguments_of

def limit(most):
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

torch.set_num_threads(int(sys.argv[1]))
torch.rand(1000, 1000).exp()  # starts the threads
image, *others = arguments_of("encode", size=(64, 64))
torch.ops.wae.encode(image[:0], *others)  # allocates what a call needs, except for the threads' workspaces
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
limit(1024 * size + 500_000)
try:
    torch.ops.wae.encode(image, *others)
except RuntimeError:
    print("refused")
limit(resource.RLIM_INFINITY)
print(bool(torch.ops.wae.encode(image, *others)[0].isfinite().all()))
"""


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_thread_retries_a_failed_allocation(threads: int) -> None:
    result = run_program(WITH_LITTLE_MEMORY, str(threads))
    assert result.stdout.splitlines() == ["refused", "True"]


@pytest.mark.parametrize("backend", [c.name for c in CELLS if c.name.startswith("cpu:")])
@pytest.mark.parametrize("case", CASES)
def test_extra_memory(case: str, backend: str) -> None:
    why_not = next(c.why_not for c in CELLS if c.name == backend)
    if why_not:
        pytest.skip(f"{backend}: {why_not}")
    extra = measured(backend)[case]
    assert extra <= LIMIT + NOISE, f"{extra / 1e6:.2f} MB beyond inputs and outputs on {THREADS} threads"


def test_measurement_detects_extra_memory() -> None:
    """The reference stores complete layers of 16 channels, which take 4.2 MB each here."""
    assert all(extra > 4.2e6 for extra in measured("reference", 128, 256).values())
