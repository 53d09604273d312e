"""Files that version 0.1 wrote (commit f0d20bd) give the results that it gave."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_classifier import tiny
from trained import image_set

from wae.models import registry
from wae.models.autoencoder import AutoEncoder
from wae.storage import checkpoint, decomposed, weights_file
from wae.storage.weights_file import CheckpointError
from wae.training.plan import Plan, Stage
from wae.training.trainer import train

FILES = Path(__file__).parent / "files"


def test_a_classifier_gives_its_scores(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "tiny", tiny)
    path = FILES / "classifier-0.1"
    described = checkpoint.describe(path)
    assert (described.network, described.labels) == ("tiny", ("cat", "dog", "T-shirt/top é"))
    assert described.input == checkpoint.Input(28, 32, True)
    image = torch.arange(3 * 9 * 8).remainder(251).to(torch.uint8).view(1, 3, 9, 8)
    with torch.no_grad():
        scores = checkpoint.load_classifier(path)(image)
    expected = torch.tensor([[0.3013652265071869, 0.23177607357501984, 0.28676149249076843]])
    assert (scores - expected).norm() <= 1e-5 * expected.norm()


def test_a_decomposed_image_is_reconstructed():
    model = AutoEncoder().eval()
    weights_file.load(weights_file.WEIGHTS / "autoencoder.safetensors", model)
    read = decomposed.load(FILES / "decomposed-0.1")
    assert read.size == (17, 22)
    assert read.weights == decomposed.fingerprint(model)
    with torch.no_grad():
        image = model.reconstruct(read.low[None], read.high[None], read.size)
    assert image.sum().item() == pytest.approx(138169.90625, rel=1e-5)


def test_a_training_is_resumed(tmp_path):
    """The state was written when training stopped in the second epoch."""
    state = Path(shutil.copy(FILES / "training-0.1", tmp_path))
    plan = Plan("tiny", (Stage("classifier", epochs=2, learning_rate=0.05, weight_decay=5e-4),), batch=8)
    model, data, test = tiny(), image_set(), image_set(augment=False)
    history = train(model, plan, data, test, state=state, resume=True)
    losses = [epoch.losses["loss"] for epoch in history]
    assert losses == pytest.approx([1.1525797843933105, 1.10183584690094], rel=1e-4)
    total = sum(parameter.double().sum().item() for parameter in model.parameters())
    assert total == pytest.approx(-2.448001136606763, rel=1e-4)
    with pytest.raises(CheckpointError, match="different plan: batch"):
        train(model, replace(plan, batch=16), data, test, state=state, resume=True)
