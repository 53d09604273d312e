"""docs/serving.md: its server configuration fits an exported file, and its program gives our scores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from wae import cli
from wae.models.registry import build
from wae.storage.checkpoint import Input, save_classifier

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint with 1,000 classes for images of 224 x 224, as on the page."""
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_classifier(path, build("wae_squeezenet1_1", 1000), "wae_squeezenet1_1", None, Input())
    return path


@pytest.mark.slow  # exports a file
def test_the_server_configuration_fits_an_exported_file(weights: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "models" / "wae" / "1" / "model.onnx"
    assert cli.main(["export", str(weights), "-o", str(file)]) == 0
    session = onnxruntime.InferenceSession(file)
    (configuration,) = (block for block in blocks("text") if "backend" in block)
    configured = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([\d, ]+) \]', configuration)
    types = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
    found = [*session.get_inputs(), *session.get_outputs()]
    assert configured == [(end.name, types[end.type], ", ".join(map(str, end.shape[1:]))) for end in found]
    assert all(isinstance(end.shape[0], str) for end in found)  # any number of images
    assert 'backend: "onnxruntime"' in configuration


@pytest.mark.slow  # compiles a network, and a program
def test_the_program_gives_our_scores(weights: Path, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    import wae_kernels
    from wae.storage.checkpoint import load_classifier

    if not list(Path(wae_kernels.__path__[0]).glob("_C.abi3.so")):
        pytest.skip("the library is not built")
    assert cli.main(["export", str(weights), "-o", str(tmp_path / "model.pt2"), "--format", "aoti"]) == 0
    images = torch.randint(256, (3, 3, 224, 224), dtype=torch.uint8)
    (tmp_path / "images").write_bytes(images.numpy().tobytes())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (lines,) = blocks("sh")
    command = ["sh", "-ec", lines]
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the page's `python` is ours
    run = partial(
        subprocess.run,
        command,
        cwd=tmp_path,
        env={**os.environ, "PATH": search},
        capture_output=True,
        text=True,
    )
    done = run(check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        best, number = load_classifier(weights).eval()(images).max(1)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [int(row[0]) for row in rows] == number.tolist()
    assert [float(row[1]) for row in rows] == pytest.approx(best.tolist(), rel=1e-3)

    (tmp_path / "images").write_bytes(b"too few")
    done = run(check=False)
    assert done.returncode == 1
    assert done.stderr == "classify: needs images of 150528 bytes, got 7 bytes\n"
