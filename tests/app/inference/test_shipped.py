"""The classifier that comes with the package, with which `wae predict` works without a checkpoint."""

import json
import re

import pytest
from PIL import Image

from wae.cli import main
from wae.data.idx import FASHION_MNIST_FOLDER, fashion_mnist
from wae.storage.checkpoint import describe, load_classifier
from wae.storage.weights_file import WEIGHTS
from wae.training.accuracy import evaluate

SHIPPED = WEIGHTS / "fashion-mnist.safetensors"
needs_fashion_mnist = pytest.mark.skipif(
    not (FASHION_MNIST_FOLDER / "t10k-images-idx3-ubyte.gz").is_file(),
    reason="dataset-fashion-mnist is not installed",
)


def test_the_shipped_checkpoint_describes_itself():
    described = describe(SHIPPED)
    assert (described.network, described.classes) == ("wae_small_vgg", 10)
    assert described.labels is not None
    assert described.labels[9] == "Ankle boot"
    assert described.input.grayscale
    assert SHIPPED.stat().st_size < 3e6


@needs_fashion_mnist
@pytest.mark.slow
def test_the_accuracy_is_that_of_the_card():
    accuracy = evaluate(load_classifier(SHIPPED), fashion_mnist(None, False, False, 0)).top1
    card = (WEIGHTS / "fashion-mnist.md").read_text(encoding="utf-8")
    stated = float(re.search(r"([\d.]+) % of the 10,000 test images", card)[1]) / 100
    assert accuracy == pytest.approx(stated, abs=5e-4)  # another CPU rounds differently


@needs_fashion_mnist
def test_predict_uses_the_shipped_classifier_by_default(tmp_path, capsys):
    images, labels = fashion_mnist(None, False, False, 0).batch([0, 1, 2, 3], 0)  # boot, pullover, trousers
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    assert main(["predict", str(tmp_path), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["classes"][0]["class"] for line in lines] == labels.tolist()
