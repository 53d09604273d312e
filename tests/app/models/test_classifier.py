"""The features of a WAE classifier."""

import torch
from torch import nn

from wae.models.classifier import FlatClassifier, WAEClassifier
from wae_kernels.nn import Encoder


def small():
    bodies = [nn.Sequential(nn.Conv2d(3, c, 3), nn.AdaptiveAvgPool2d(1)) for c in (8, 2)]
    classifiers = FlatClassifier(8, 6, 5), FlatClassifier(10, 6, 5)
    return WAEClassifier(Encoder(), *bodies, *classifiers).eval()


def test_features_are_the_bodies():
    model = small()
    model.low_norm.running_mean.fill_(3)
    photo = torch.randint(0, 256, (2, 3, 21, 30), dtype=torch.uint8)
    low, high = model.decompose(photo)
    low_features, high_features = model.features(photo)
    assert torch.equal(low_features, model.low_body(model.low_norm(low)))
    assert torch.equal(high_features, model.high_body(model.high_norm(high)))
