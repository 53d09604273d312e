"""`wae eval` and `wae export` on checkpoints of segmentation networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scenes import CLASSES, write_scenes

from wae import cli
from wae.data.input import whole
from wae.experiments import evaluation
from wae.inference.export import FORMATS
from wae.models.counting import count
from wae.models.registry import build
from wae.storage.checkpoint import load_classifier, save_classifier


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    paths = []
    for name in ("enet", "wae_enet"):
        path = tmp_path / f"{name}.safetensors"
        save_classifier(path, build(name, 3), name, CLASSES[:3], whole(36, 48))
        paths.append(str(path))
    return paths


@pytest.mark.slow
def test_eval_prints_mean_iou_and_pixel_accuracy(
    checkpoints: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = str(write_scenes(tmp_path / "scenes", size=(40, 48)))  # not the size of the checkpoints
    options = ["--data", data, "--seconds", "0", "--batch", "2", "--device", "cpu"]
    deployed = ["--deployed", "float32", "--engine", "eager"]
    assert cli.main(["eval", *checkpoints, *options, *deployed, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for entry, path in zip(found["networks"], checkpoints, strict=True):
        assert entry["images"] == 4
        assert 0 <= entry["mean_iou"] <= entry["pixels"] <= 1
        assert entry["multiply_adds"] == count(load_classifier(Path(path)), (36, 48)).multiply_adds
        assert entry["seconds_per_image"] > 0
    for entry, same in zip(found["deployed"], found["networks"], strict=True):
        assert entry["mean_iou"] == pytest.approx(same["mean_iou"], abs=1e-3)
    monkeypatch.setattr(evaluation, "footprint_of", lambda deployed: None)  # a process for each, as above
    assert cli.main(["eval", checkpoints[1], *options, *deployed]) == 0
    printed = capsys.readouterr().out
    assert printed.count("mean IoU") == 2
    assert "pixel accuracy" in printed
    assert "top-1" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size", "shape"),
    [(1, [], (36, 48)), (0, ["--size", "18"], (18, 24)), (1, ["--size", "20x33"], (20, 33))],
)
def test_export_takes_the_size_of_the_checkpoint_or_of_the_option(
    network: int,
    size: list[str],
    shape: tuple[int, int],
    checkpoints: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, path = checkpoints[network], tmp_path / "net.pt2"
    arguments = ["-o", str(path), "--format", "torch", "--batch", "1", *size]
    assert cli.main(["export", checkpoint, *arguments]) == 0
    assert "relative difference of its scores from the model's" in capsys.readouterr().out
    image = torch.randint(256, (1, 3, *shape), dtype=torch.uint8)
    with torch.no_grad():
        wanted = load_classifier(Path(checkpoint))(image)
        found = FORMATS["torch"].load(path.read_bytes())(image)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    files: dict[str, str] = {"metadata.json": ""}
    torch.export.load(path, extra_files=files)
    input = json.loads(json.loads(files["metadata.json"])["input"])
    assert input["crop"] == list(shape)
    assert input["resize"] == list(shape)
