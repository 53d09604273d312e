"""``torch.hub.load`` of this repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wae.models.classifier import WAEClassifier
from wae.models.meta import on_meta
from wae.storage.shipped import Shipped

ROOT = Path(__file__).resolve().parents[3]


def load(name: str, *arguments: object) -> torch.nn.Module:
    return torch.hub.load(str(ROOT), name, *arguments, source="local")


def test_trained_networks_load() -> None:
    image = torch.randint(256, (1, 3, 28, 28), dtype=torch.uint8)
    for name, weights in (("fashion_mnist", Shipped.FASHION_MNIST), ("autoencoder", Shipped.AUTOENCODER)):
        found, wanted = load(name).state_dict(), weights.get_state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert load("classifier", str(Shipped.FASHION_MNIST.path))(image).shape == (1, 10)


def test_untrained_networks_load() -> None:
    for name, arguments in (("wae_resnet50", (3,)), ("network", ("wae_resnet18", 3))):
        model = load(name, *arguments)
        assert isinstance(model, WAEClassifier)
        assert model.low_classifier.out_features == 3
    small = on_meta(lambda: load("network", "wae_vit_b_32", 3, (64, 64)))
    assert small(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 3)
    random, trained = (load("fashion_mnist", pretrained).encoder.conv1.weight for pretrained in (False, True))
    assert not torch.equal(random, trained)


UNINSTALLED = """
import sys, torch
from importlib import metadata

def missing(name):
    raise metadata.PackageNotFoundError(name)

metadata.distribution = missing
before = list(sys.path)
model = torch.hub.load(sys.argv[1], "fashion_mnist", source="local")
assert sys.path == before
import wae
assert wae.__file__.startswith(sys.argv[1])
print(model(torch.zeros(1, 3, 28, 28)).shape)
"""


@pytest.mark.slow
def test_loading_from_a_clone_that_is_not_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNINSTALLED, str(ROOT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "[1, 10]" in done.stdout
