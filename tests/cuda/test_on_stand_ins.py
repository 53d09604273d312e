"""Tests marked `gpu` on two GPUs that do not exist: torch's operators run on the CPU (operators.py).

They find what GPUs refuse: tensors and generators of another device, and waiting while a graph is captured.
The ops run the reference, or the kernels of the CUDA library in the PTX machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_runtime
import pytest
import torch
from cuda_bindings import runner

from wae_kernels import _load

runner.require_nvcc()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch has no CUDA"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="these tests run on the GPU itself"),
]
ROOT = Path(__file__).parents[2]


def run(plugin: str, tests: str, which: str, **environment: str) -> None:
    preloaded = ":".join(filter(None, (str(cuda_runtime.runtime()), os.environ.get("LD_PRELOAD", ""))))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", f"cuda_runtime.{plugin}"),
            *("-m", "gpu", "-k", which, str(ROOT / "tests" / tests)),
        ],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": preloaded, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 0, done.stdout


@pytest.mark.parametrize(
    ("tests", "which"),
    [
        ("app/training/test_on_a_gpu.py", "losses_are"),  # the other needs NCCL
        ("app/inference/test_deployed.py", "not compile"),
        ("app/experiments/acceleration/test_networks.py", ""),
    ],
)
def test_on_stand_ins(tests: str, which: str) -> None:
    run("operators", tests, which, WAE_BACKEND="reference")


OURS = "cuda and not triton and not reference and not scores"


@pytest.mark.skipif(_load.CUDA.library is not None, reason="the CUDA library is built, with the same ops")
@pytest.mark.parametrize(
    ("tests", "which"),
    [
        ("cuda/test_cuda.py", "(1x1 and nchw) or selects_tf32 or different_widths"),
        ("kernels/test_not_finite.py", f"{OURS} and in_an_input and (low_weight-nan or conv1_bias--inf)"),
        ("kernels/test_backward.py", f"{OURS} and (scale or any_strides or bfloat16-torch)"),
    ],
)
def test_kernels_on_stand_ins(tests: str, which: str) -> None:
    """Tests of the ops, with this library's kernels: what they assume of a GPU, too."""
    run("ops", tests, which)
