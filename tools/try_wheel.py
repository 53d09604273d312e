"""Run by tools/try_wheel.sh: checks that the installed package has its data and runs its compiled kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

import wae_kernels
from wae.storage.weights_file import WEIGHTS

PLANS = WEIGHTS.parent / "training" / "plans"


def command(*arguments: str) -> str:
    """Run ``wae`` with these arguments and return its output."""
    program = Path(sys.executable).with_name("wae")
    return subprocess.run([str(program), *arguments], check=True, capture_output=True, text=True).stdout


assert not [name for name in ("c++", "g++", "gcc", "clang++", "nvcc") if shutil.which(name)]
assert Path(wae_kernels.__file__).is_relative_to(sysconfig.get_path("purelib"))
assert wae_kernels.backends.backend_for("cpu").startswith("cpu:"), wae_kernels.backends.available()

encoder = wae_kernels.nn.Encoder()
image = torch.rand(2, 3, 65, 63)
with torch.no_grad():
    found = torch.ops.wae.encode(image, *encoder.parameters())
    with wae_kernels.backends.use("reference"):
        wanted = encoder(image)
torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

assert {"autoencoder.safetensors", "fashion-mnist.safetensors"} <= {path.name for path in WEIGHTS.iterdir()}
assert {"autoencoder.toml", "wae_resnet50.toml"} <= {path.name for path in PLANS.iterdir()}
command("demo", "--no-timing", "-o", "out")
assert list(Path("out").rglob("*.png"))
print(f"wae {wae_kernels.__version__} beside torch {torch.__version__} on Python {sys.version.split()[0]}")
