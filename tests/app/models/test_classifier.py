"""wae.models.classifier: WAE around any body, its scores, features and folding."""

import pytest
import torch
from torch import nn

from wae.models.classifier import FlatClassifier, WAEClassifier, fold_normalization
from wae_kernels.nn import Encoder


def close(one, other, tolerance=1e-5):
    return (one - other).norm() <= tolerance * other.norm()


class Body(nn.Sequential):
    """A small body: two pooled features per channel, where a ResNet has one."""

    def __init__(self, channels):
        super().__init__(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 2)))


@pytest.fixture
def small():
    model = WAEClassifier(
        Encoder(), Body(8), Body(2), FlatClassifier(16, 12, 5), FlatClassifier(20, 12, 5), (1 / 64,) * 3
    )
    with torch.no_grad():
        for norm in (model.low_norm, model.high_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.1, 3)
    return model.eval()


def test_scores_are_the_sum_of_two_classifiers(small):
    image = torch.randint(0, 256, (4, 3, 20, 30), dtype=torch.uint8)
    low, high = small.encoder(image.float() / 64)
    low, high = (
        (x - norm.running_mean.view(3, 1, 1)) / (norm.running_var.view(3, 1, 1) + 1e-5).sqrt()
        for x, norm in ((low, small.low_norm), (high, small.high_norm))
    )
    features = small.low_body(low), small.high_body(high)
    expected = small.low_classifier(features[0]) + small.fusion_classifier(torch.cat(features, 1))
    assert close(small(image), expected)


def test_gradients_reach_every_parameter(small):
    small.train()(torch.randn(4, 3, 20, 30)).square().sum().backward()
    without = [name for name, p in small.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert small.encoder.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_folding_changes_scores_by_rounding_only(small, dtype):
    small = small.to(dtype)
    folded = fold_normalization(small)
    image = 100 * torch.randn(3, 3, 21, 30, dtype=dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert close(folded(image), small(image), 10 * tolerance)
    assert isinstance(small.low_norm, nn.BatchNorm2d)  # the original is not changed
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for name in ("low", "high"):
        original, new = getattr(small.encoder, name), getattr(folded.encoder, name)
        assert not torch.equal(original.weight, new.weight)


def test_folding_uses_running_statistics_and_may_be_repeated(small):
    image = torch.randn(3, 3, 20, 30)
    expected = small(image)
    folded = fold_normalization(small.train())
    assert not folded.training
    assert close(folded(image), expected)
    assert torch.equal(fold_normalization(folded)(image), folded(image))


def test_features_are_those_of_the_bodies(small):
    photo = torch.randint(0, 256, (2, 3, 21, 30), dtype=torch.uint8)
    low, high = small.decompose(photo)
    low_features, high_features = small.features(photo)
    assert torch.equal(low_features, small.low_body(small.low_norm(low)))
    assert torch.equal(high_features, small.high_body(small.high_norm(high)))
