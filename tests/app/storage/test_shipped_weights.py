"""wae.storage.shipped: the included weights as a WeightsEnum of torchvision."""

import copy

import numpy as np
import pytest
import torch
from default_dtype import with_default_dtype
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import WeightsEnum

from wae.data.input import Input, Transforms, prepare
from wae.storage.checkpoint import describe
from wae.storage.shipped import Shipped
from wae.storage.weights_file import read_recipe


@pytest.mark.parametrize("weights", Shipped)
def test_a_member_can_be_used_like_torchvision_s(weights: Shipped) -> None:
    assert isinstance(weights, WeightsEnum)
    assert copy.deepcopy(weights) is weights
    assert Shipped.verify(weights.name) is weights
    assert weights.url == weights.path.as_uri()
    assert weights.meta["recipe"] == read_recipe(weights.path)
    image = weights.transforms()(Image.new("RGB", (60, 40)))
    assert image.dtype == torch.uint8
    with torch.no_grad():
        weights.model()(image[None])
    assert not any(module.training for module in weights.model().modules())
    with with_default_dtype(torch.bfloat16):
        state = weights.get_state_dict(progress=True)
    assert state.keys() == weights.model().state_dict().keys()
    for name, tensor in load_file(weights.path).items():
        assert torch.equal(state[name], tensor), name


def test_classes_and_accuracy_are_those_of_the_file() -> None:
    meta = Shipped.FASHION_MNIST.meta
    assert meta["categories"][9] == "Ankle boot"
    assert meta["_metrics"]["Fashion-MNIST"]["acc@1"] == pytest.approx(92.93)


@pytest.mark.parametrize("invert", [False, True])
def test_transforms_prepare_an_image_like_predict(invert: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = prepare(tensor, Input(28, 28, grayscale=True), invert)
    transforms = Shipped.FASHION_MNIST.transforms(invert=invert)
    assert torch.equal(transforms(tensor), expected)
    assert torch.equal(transforms(Image.fromarray(pixels)), expected)
    assert torch.equal(describe(Shipped.FASHION_MNIST.path).transforms(invert)(tensor), expected)


def test_transforms_show_their_size_and_take_grey_images_with_alpha() -> None:
    assert "size=28" in repr(Shipped.FASHION_MNIST.transforms())
    assert Transforms(Input())(Image.new("LA", (300, 300))).shape == (3, 224, 224)
