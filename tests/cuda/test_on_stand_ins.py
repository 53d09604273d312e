"""Tests marked `gpu` on two GPUs that do not exist: torch's operators run on the CPU (operators.py).

They find what GPUs refuse: tensors and generators of another device, and waiting while a graph is captured.
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

runner.require_nvcc()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch has no CUDA"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="these tests run on the GPU itself"),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("tests", "which"),
    [
        ("app/training/test_on_a_gpu.py", "losses_are"),  # the other needs NCCL
        ("app/inference/test_deployed.py", "not compile"),
        ("app/experiments/acceleration/test_networks.py", ""),
    ],
)
def test_on_stand_ins(tests: str, which: str) -> None:
    runtime = cuda_runtime.runtime()
    preloaded = ":".join(filter(None, (str(runtime), os.environ.get("LD_PRELOAD", ""))))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "cuda_runtime.operators"),
            *("-m", "gpu", "-k", which, str(ROOT / "tests" / tests)),
        ],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": preloaded, "WAE_BACKEND": "reference"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 0, done.stdout
