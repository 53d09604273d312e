"""wae.models.resnet50 and wae.models.around: WAE-ResNet50, and WAE around any body."""

import pytest
import torch
import torchvision
from test_bodies import on_meta, shapes
from torch import nn

from wae.models.around import PooledClassifier, wae_around
from wae.models.bodies import light_body
from wae.models.classifier import fold_normalization
from wae.models.resnet50 import wae_resnet50
from wae_kernels.nn import Encoder


@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_shapes_of_parameters(classes):
    model = on_meta(wae_resnet50, classes)
    stock = {n: s for n, s in shapes(on_meta(torchvision.models.resnet50)).items() if not n.startswith("fc.")}
    assert shapes(model.low_body) == stock
    quarter = {n: tuple(s if s <= 3 or s == 7 else s // 4 for s in shape) for n, shape in stock.items()}
    assert shapes(model.high_body) == quarter
    assert shapes(model.low_classifier) == {"weight": (classes, 2048), "bias": (classes,)}
    assert shapes(model.fusion_classifier) == {"weight": (classes, 2560), "bias": (classes,)}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (64, 97), (1, 1)], ids=str)
def test_images_of_any_size_are_accepted(size):
    model = on_meta(wae_resnet50, 7)
    image = torch.empty(2, 3, *size, device="meta", dtype=torch.uint8)
    assert model(image).shape == (2, 7)
    low, high = model.decompose(image)
    assert low.shape == high.shape == (2, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    assert [f.shape for f in model.features(image)] == [(2, 2048), (2, 512)]


def test_scores_of_float_images_and_of_the_folded_network_are_the_same():
    encoder = Encoder()
    model = wae_resnet50(5, encoder, image_scale=(1 / 64,) * 3, image_shift=(-2.0,) * 3).eval()
    assert model.encoder is encoder
    assert model.image_scale.tolist() == [1 / 64] * 3
    assert model.image_shift.tolist() == [-2.0] * 3
    with torch.no_grad():
        for norm in (model.low_norm, model.high_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        scores = model(image)
        assert scores.shape == (2, 5)
        assert (scores - scores.mean(0)).norm() > 0
        for other in (model(image.float()), fold_normalization(model)(image)):
            assert (other - scores).norm() <= 1e-5 * scores.norm()
        low, both = model.features(image)[0], torch.cat(model.features(image), 1)
        expected = (
            low @ model.low_classifier.weight.T
            + model.low_classifier.bias
            + both @ model.fusion_classifier.weight.T
            + model.fusion_classifier.bias
        )
        assert (expected - scores).norm() <= 1e-5 * scores.norm()


# -------------------------------------------------------------------------------------------- any body


def test_features_that_are_not_pooled_are_averaged():
    classifier = PooledClassifier(6, 4)
    features = torch.randn(2, 6, 3, 5)
    pooled = features.mean((2, 3))
    assert torch.allclose(classifier(features), pooled @ classifier.weight.T + classifier.bias, atol=1e-6)
    assert torch.equal(classifier(pooled), nn.functional.linear(pooled, classifier.weight, classifier.bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_wae_around_a_body_has_its_dtype(dtype):
    model = wae_around(nn.Conv2d(3, 8, 3).to(dtype), classes=2)
    assert model(torch.zeros(1, 3, 20, 30, dtype=torch.uint8)).dtype == dtype


def test_given_bodies_are_used_as_they_are():
    low, high = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 5, 3)
    model = wae_around(low, high, classes=2)
    assert (model.low_body, model.high_body) == (low, high)
    assert model.fusion_classifier.in_features == 13
    assert wae_around(low, classes=2).high_body.out_channels == light_body(low).out_channels == 2
    assert model(torch.randn(3, 3, 20, 30)).shape == (3, 2)
