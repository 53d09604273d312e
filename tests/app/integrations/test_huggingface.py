"""Classifiers on the Hugging Face Hub, tested offline: a folder, the cache, and intercepted uploads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from PIL import Image
from programs import run_program

import wae
from wae.cli import main
from wae.data.input import Input, whole
from wae.inference.export import export
from wae.integrations.huggingface import HubClassifier
from wae.models.registry import build
from wae.storage.checkpoint import save_classifier
from wae.storage.shipped import Shipped
from wae.storage.weights_file import CheckpointError

FACTS = {"data": "Fashion-MNIST", "licence": "apache-2.0", "speed": "0.1 ms"}
IMAGE = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("hub") / "clothes"
    HubClassifier.from_checkpoint(Shipped.FASHION_MNIST.path).save_pretrained(target, model_card_kwargs=FACTS)
    return target


def test_saving_and_loading_preserves_the_classifier(folder: Path) -> None:
    original = HubClassifier.from_checkpoint(Shipped.FASHION_MNIST.path)
    again = HubClassifier.from_pretrained(folder)
    assert torch.equal(again(IMAGE), original(IMAGE))
    assert again.described == original.described
    assert again.made == original.made
    assert not again.training


def test_the_classifier_is_deployed_without_its_wrapper(tmp_path: Path) -> None:
    """Inside the wrapper the encoder would not be found, and ONNX does not know its op."""
    hub = HubClassifier.from_checkpoint(Shipped.FASHION_MNIST.path)
    deployed = wae.deploy(hub, (28, 28), batch=2, engine="onnxruntime")
    assert torch.allclose(deployed(IMAGE), hub(IMAGE), atol=1e-4)
    export(hub, tmp_path / "clothes.onnx", "onnx", (28, 28))


def test_segmentation_networks_are_refused(tmp_path: Path) -> None:
    """The card would say that they classify images."""
    path = tmp_path / "enet.safetensors"
    save_classifier(path, build("enet", 3), "enet")
    with pytest.raises(CheckpointError, match="enet scores pixels; a classifier is needed"):
        HubClassifier.from_checkpoint(path)


def test_the_saved_weights_are_a_checkpoint(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (28, 28), 30).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path), "--weights", str(folder / "model.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out)["classes"]


def test_the_config_agrees_with_the_checkpoint(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["network"] == "wae_small_vgg"
    assert config["labels"] == list(HubClassifier.from_pretrained(folder).described.labels or ())
    assert config["input"]["size"] == 28


def test_the_card_states_facts_accuracy_classes_and_plan(folder: Path) -> None:
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-classification"
    for text in ("Fashion-MNIST", "92.93 %", "0.1 ms", "Ankle boot", '"learning_rate": 0.05'):
        assert text in card.content


def test_the_card_marks_missing_facts_as_not_stated(tmp_path: Path) -> None:
    model = HubClassifier.from_checkpoint(Shipped.FASHION_MNIST.path)
    card = HubClassifier(model.model, model.described).generate_model_card()
    for name in ("data", "accuracy", "speed", "licence of the weights"):
        assert f"| {name} | not stated" in card.content
    assert card.data.license is None


@pytest.mark.parametrize("recorded", ["91 %", [], {"top-1": 0.9}, [None]])
def test_the_card_ignores_an_accuracy_of_another_form(recorded: object) -> None:
    """The recipe of a checkpoint may hold any JSON."""
    model = HubClassifier.from_checkpoint(Shipped.FASHION_MNIST.path)
    card = HubClassifier(model.model, model.described, {"accuracy": recorded}).generate_model_card()
    assert "| accuracy | not stated" in card.content


def test_push_uploads_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, bytes] = {}

    def upload(self: object, *, folder_path: str, **_: object) -> str:
        uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return "commit"

    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    model = HubClassifier.from_checkpoint(Shipped.FASHION_MNIST.path)
    assert model.push_to_hub("somebody/clothes", model_card_kwargs=FACTS) == "commit"
    assert set(uploaded) == {"model.safetensors", "config.json", "README.md"}


def test_a_damaged_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        HubClassifier.from_pretrained(tmp_path)


OFFLINE = """
import sys
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from wae.integrations.huggingface import HubClassifier
assert HubClassifier.from_pretrained("somebody/clothes").described.classes == 10
try:
    HubClassifier.from_pretrained("somebody/other")
except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
    print("refused", error)
"""


@pytest.mark.slow
def test_only_the_cache_is_used_offline(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--somebody--clothes"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).write_bytes((folder / name).read_bytes())
    done = run_program(OFFLINE, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.stdout.startswith("refused")


@pytest.mark.parametrize("accuracy", [0.5, [0.5, 0.9, 1.0, 10]], ids=["reproduce", "train"])
def test_the_card_states_the_accuracy_as_each_command_records_it(accuracy: object) -> None:
    model = HubClassifier.from_checkpoint(Shipped.FASHION_MNIST.path)
    card = HubClassifier(model.model, model.described, {"accuracy": accuracy}).generate_model_card()
    assert "| accuracy | 50.00 % of" in card.content


@pytest.mark.parametrize(
    ("input", "said"),
    [
        (Input(20, 24), "20 x 20 out of the middle, the shorter side scaled to 24 (bilinear)"),
        (Input(20, 24, squash=True), "20 x 20 out of the middle, both sides scaled to 24 (bilinear)"),
        (replace(whole(36, 48), grayscale=True), "the full image, scaled to 36 x 48 (bilinear), in grey"),
    ],
    ids=["crop", "squash", "not square"],
)
def test_the_card_says_how_images_are_prepared(input: Input, said: str) -> None:
    """An input need not be square."""
    model = HubClassifier.from_checkpoint(Shipped.FASHION_MNIST.path)
    card = HubClassifier(model.model, replace(model.described, input=input)).generate_model_card()
    assert f"| images | {said} |" in card.content
