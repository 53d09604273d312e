"""The classifier that comes with the package: `wae predict` works without a checkpoint of one's own."""

import json
import re

import pytest
from PIL import Image

from wae.cli import main
from wae.data.idx import FASHION_MNIST_FOLDER, fashion_mnist
from wae.storage.checkpoint import describe, load_classifier
from wae.storage.weights_file import WEIGHTS
from wae.training.trainer import evaluate

SHIPPED = WEIGHTS / "fashion-mnist.safetensors"
needs_fashion_mnist = pytest.mark.skipif(
    not (FASHION_MNIST_FOLDER / "t10k-images-idx3-ubyte.gz").is_file(),
    reason="dataset-fashion-mnist is not installed",
)


def test_it_says_what_it_is():
    described = describe(SHIPPED)
    assert (described.network, described.classes) == ("wae_small_vgg", 10)
    assert described.labels is not None
    assert described.labels[9] == "Ankle boot"
    assert described.input.grayscale
    assert SHIPPED.stat().st_size < 3e6


@needs_fashion_mnist
@pytest.mark.slow
def test_it_is_as_good_as_its_card_says():
    accuracy = evaluate(load_classifier(SHIPPED), fashion_mnist(None, False, False, 0)).top1
    card = (WEIGHTS / "fashion-mnist.md").read_text(encoding="utf-8")
    said = float(re.search(r"([\d.]+) % of the 10,000 test images", card)[1]) / 100
    assert accuracy == pytest.approx(said, abs=5e-4)  # another processor rounds differently


@needs_fashion_mnist
def test_predict_names_clothes(tmp_path, capsys):
    images, labels = fashion_mnist(None, False, False, 0).batch([0, 1, 2, 3], 0)  # boot, pullover, trousers
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    assert main(["predict", str(tmp_path), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["classes"][0]["class"] for line in lines] == labels.tolist()
