"""The host code of the CUDA library, csrc/cuda/ops.cpp, with a stand-in for CUDA's runtime and two GPUs."""

from __future__ import annotations

import os

import cuda_runtime
import pytest
import torch
from cuda_bindings import runner
from programs import run_program

from wae_kernels import _load

runner.require_nvcc()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch has no CUDA"),
    pytest.mark.skipif(_load.CUDA.library is not None, reason="the CUDA library is built, with the same ops"),
]

START = """
import ctypes, sys
from pathlib import Path
import cases, cuda_runtime, torch
from cuda_runtime import Built, launches, set_image
built = Built(*map(Path, sys.argv[1:]))
cuda_runtime.start(built)
ops = torch.ops.wae
def there(arguments, device="cuda:0"):
    return [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
def refuses(call, message):
    try:
        call()
    except RuntimeError as error:
        assert str(error).startswith(message), error
    else:
        raise AssertionError("nothing is refused")
"""

CHECK = """
import problems
from compare import assert_close
from cuda_bindings.runner import DTYPE, LIMIT
torch.default_generator.manual_seed(0)
def check(mode):
    for op, needs in (("encode", [True] * 3), ("decode", [True] * 2)):
        problem = problems.make(op, cases.Cell("reference"), dtype=DTYPE[mode], layout="channels_last")
        inputs = list(problem.inputs.values())
        launches.clear()
        results = cases.as_tuple(getattr(ops, op)(*there([*inputs, *problem.rest])))
        gradients = getattr(ops, f"{op}_backward")(*there([*problem.incoming, *inputs, *needs]))
        assert [launch.op for launch in launches] == [op, f"{op}_backward", "reduce"]
        assert {launch.mode for launch in launches[:2]} == {mode}
        expected = [*problem.widened().outputs(problems.REFERENCES[op]), *problem.expected().values()]
        for result, wanted in zip([*results, *gradients], expected, strict=True):
            assert result.device == torch.device("cuda:0")
            assert_close(result.cpu(), wanted, LIMIT[mode])
"""

RESULTS = f"{CHECK}check('float16')"

# The modes and the plans are those of the target, but the GPU has the shared memory of a newer one.
PTX_OF_AN_OLDER_TARGET = f"""{CHECK}
cuda_runtime.set_target(75)
allowed = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
ctypes.CDLL(str(built.ops)).wae_cuda_ask_tf32(allowed)
for mode in ("float16", "bfloat16_plain", "float32"):
    check(mode)
"""

LAUNCHES = """
def encode(own=torch.float16, device="cuda:0", **options):
    launches.clear()
    return ops.encode(*there(cases.arguments_of("encode", dtype=own), device), **options)

low, high = encode(device="cuda:1")
assert (low.device.index, launches[0].device, torch.cuda.current_device()) == (1, 1, 0)
stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    encode()
assert launches[0].stream == stream.cuda_stream
encode()
assert launches[0].stream is None
assert encode(torch.float32, dtype=torch.float16)[0].dtype == torch.float16
assert launches[0].mode == "float16"

encode(torch.float32)
assert launches[0].mode == "float32"
allowed = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
ctypes.CDLL(str(built.ops)).wae_cuda_ask_tf32(allowed)
encode(torch.float32)
assert launches[0].mode == "tf32"

launches.clear()
image, *parameters = there(cases.arguments_of("encode", dtype=torch.float16))
low, high = ops.encode(image[:0], *parameters)
assert low.shape == (0, 3, 7, 9)
*halves, size = there(cases.arguments_of("decode", dtype=torch.float16))
assert ops.decode(halves[0][:0], halves[1][:0], *halves[2:], size).shape == (0, 3, *size)
assert not launches
"""

ERRORS = """
image, *parameters = cases.arguments_of("encode", dtype=torch.float16)
wrong = "wae::encode: conv1_weight must be on image's device"
refuses(lambda: ops.encode(image.cuda(), *parameters), f"{wrong} cuda:0, got cpu")
refuses(lambda: ops.encode(image.to("cuda:1"), *there(parameters)), f"{wrong} cuda:1, got cuda:0")

encode = lambda: ops.encode(*there([image, *parameters]))
set_image(False)
refuses(encode, "wae::encode: preparing the kernel failed: error 209; build wae-kernels with this GPU's")
set_image(True)
ctypes.CDLL(None).fake_set_launch(None)
refuses(encode, "wae::encode: launching the kernel failed: error 719")
cuda_runtime.start(built)
encode()  # the error is cleared
"""


PROGRAMS = {
    "results": RESULTS,
    "PTX of an older target": PTX_OF_AN_OLDER_TARGET,
    "launches": LAUNCHES,
    "errors": ERRORS,
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_host_code(program: str) -> None:
    built = cuda_runtime.libraries()
    preloaded = ":".join(filter(None, (str(built.runtime), os.environ.get("LD_PRELOAD", ""))))
    run_program(START + program, *map(str, built), timeout=900, LD_PRELOAD=preloaded)  # it compiles kernels
