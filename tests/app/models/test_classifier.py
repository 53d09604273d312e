"""The parts of a WAE classifier one by one: decomposition, features, reconstruction."""

import pytest
import torch
from torch import nn

from wae.models.autoencoder import AutoEncoder
from wae.models.classifier import FlatClassifier, WAEClassifier, fold_normalization


def small(autoencoder, decoder=None):
    bodies = [nn.Sequential(nn.Conv2d(3, c, 3), nn.AdaptiveAvgPool2d(1)) for c in (8, 2)]
    scale, shift = autoencoder.image_scale.tolist(), autoencoder.image_shift.tolist()
    classifiers = FlatClassifier(8, 6, 5), FlatClassifier(10, 6, 5)
    return WAEClassifier(autoencoder.encoder, *bodies, *classifiers, scale, shift, decoder).eval()


def image():
    return torch.randint(0, 256, (2, 3, 21, 30), dtype=torch.uint8)


def test_decompose_and_reconstruct_are_the_auto_encoder_s():
    autoencoder, photo = AutoEncoder(), image()
    model = small(autoencoder, autoencoder.decoder)
    model.low_norm.running_mean.fill_(3)  # a normalisation comes after
    whole = autoencoder(photo)
    low, high = model.decompose(photo)
    assert torch.equal(low, whole.low)
    assert torch.equal(high, whole.high)
    assert torch.equal(model.reconstruct(low, high, (21, 30)), whole.image)


def test_features_are_the_bodies():
    model = small(AutoEncoder())
    model.low_norm.running_mean.fill_(3)
    photo = image()
    low, high = model.decompose(photo)
    low_features, high_features = model.features(photo)
    assert torch.equal(low_features, model.low_body(model.low_norm(low)))
    assert torch.equal(high_features, model.high_body(model.high_norm(high)))


def test_without_a_decoder():
    model = small(AutoEncoder())
    low, high = model.decompose(image())
    with pytest.raises(RuntimeError, match="no decoder"):
        model.reconstruct(low, high, (21, 30))
    assert not any(name.startswith("decoder") for name in model.state_dict())
    model.decoder = AutoEncoder().decoder
    assert model.reconstruct(low, high, (21, 30)).shape == (2, 3, 21, 30)
    assert any(name.startswith("decoder") for name in model.state_dict())


def test_folding_drops_the_decoder():
    autoencoder = AutoEncoder()
    model = small(autoencoder, autoencoder.decoder)
    folded = fold_normalization(model)
    assert folded.decoder is None
    assert not any(module.training for module in folded.modules())
    assert model.decoder is autoencoder.decoder
