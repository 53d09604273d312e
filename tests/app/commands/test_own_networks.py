"""`wae predict`, `eval`, `export` and `app` with a checkpoint around a custom network (`--model`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import run
from PIL import Image

from wae.data.input import Input
from wae.experiments import answers
from wae.models.accelerated import Form, accelerated
from wae.models.own import own_network
from wae.models.registry import build
from wae.storage.checkpoint import load_classifier, save_classifier

OWN = "custom_network:small"
SOURCE = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
"""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint as ``wae accelerate`` writes it, the module that it needs, and a few images."""
    (tmp_path / f"{OWN.partition(':')[0]}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    for number, name in enumerate(("dark", "light")):
        folder = tmp_path / "data" / "val" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16), (40 + 150 * number,) * 3).save(folder / "one.png")
    path, form = tmp_path / "model.safetensors", Form(16)
    model = accelerated(own_network(OWN), form)
    save_classifier(path, model, OWN, ["dark", "light"], Input(16), form=form)
    monkeypatch.delitem(sys.modules, OWN.partition(":")[0])
    return path


def test_predict_with_the_function_named(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = weights.parent / "data" / "val" / "dark" / "one.png"
    assert run("predict", image, "--weights", weights, "--model", OWN, "--format", "jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        pixels = torch.full((1, 3, 16, 16), 40, dtype=torch.uint8)
        wanted = load_classifier(weights, own_network(OWN))(pixels).softmax(1).max()
    assert found["classes"][0]["probability"] == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.slow
def test_eval_and_export_with_the_function_named(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = weights.parent / "data", weights.parent / "model.onnx"
    assert (
        run("eval", weights, "--model", OWN, "--data", data, "--seconds", 0, "--device", "cpu", "--json") == 0
    )
    (found,) = json.loads(capsys.readouterr().out)["networks"]
    assert (found["network"], found["images"]) == (OWN, 2)
    assert run("export", weights, "--model", OWN, "-o", out) == 0
    assert out.stat().st_size > 1000


def test_the_page_shows_it_beside_the_network_alone(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = pytest.importorskip("wae.integrations.server")
    served: list[answers.Candidate] = []
    monkeypatch.setattr(server, "serve", lambda model, asked, *_: served.extend(asked))
    assert run("app", "--weights", weights, "--model", OWN) == 0
    image = torch.full((3, 16, 16), 40, dtype=torch.uint8)
    with torch.no_grad():
        wanted = load_classifier(weights, own_network(OWN))(image[None]).softmax(1).max()
    around, alone = answers.answers(served, image)
    assert (around.network, alone.network) == (f"WAE around {OWN}", OWN)
    assert max(around.shares.values()) == pytest.approx(wanted.item(), abs=1e-5)
    assert alone.shares == {}  # nothing says which images its weights are for


@pytest.mark.parametrize("command", ["predict", "eval", "export", "app"])
def test_a_checkpoint_alone_runs_no_code(
    weights: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "predict": ("predict", weights.parent / "data", "--weights", weights),
        "eval": ("eval", weights, "--data", weights.parent / "data", "--device", "cpu"),
        "export": ("export", weights, "-o", weights.parent / "out.onnx"),
        "app": ("app", "--weights", weights),
    }[command]
    assert run(*arguments) == 1
    assert f"is built around what {OWN} makes, which no file may run" in capsys.readouterr().err
    assert OWN.partition(":")[0] not in sys.modules

    assert run(*arguments, "--model", "custom_network:large") == 2
    assert "custom_network:large cannot be called: " in capsys.readouterr().err

    named = weights.with_name("named.safetensors")
    save_classifier(named, build("small_vgg", 3), "small_vgg")
    assert run(*(named if a == weights else a for a in arguments), "--model", OWN) == 2
    assert f"--model: is only for custom networks, {named} is of small_vgg" in capsys.readouterr().err
