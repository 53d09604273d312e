"""wae.models.baselines: the baselines of the paper, half resolution and the Haar wavelet."""

from functools import partial

import numpy as np
import pytest
import torch
from test_bodies import on_meta
from torch import nn
from torchvision.transforms.v2.functional import resize

from wae.models.baselines import (
    AtSize,
    FullResolution,
    HalfResolution,
    resnet50_half,
    vgg16_half,
    wavelet_cnn,
)
from wae.models.classifier import FlatClassifier, WAEClassifier, fold_normalization
from wae.models.counting import count
from wae.models.haar import Haar
from wae.models.resnet50 import wae_resnet50
from wae.models.small_vgg import small_photo_vgg
from wae.models.stock import StockEncoder
from wae.models.vgg16 import wae_vgg16
from wae_kernels.nn import Decoder, Encoder


def takes_any_size(kind, *arguments):
    return kind(nn.Conv2d(3, 2, 3), *arguments, image_scale=(1 / 255,) * 3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        Haar,
        StockEncoder,
        small_photo_vgg,
        partial(takes_any_size, FullResolution),
        partial(takes_any_size, HalfResolution),
        partial(takes_any_size, AtSize, 16),
    ],
    ids=["Haar", "StockEncoder", "small_photo_vgg", "FullResolution", "HalfResolution", "AtSize"],
)
def test_complex_images_are_refused_as_by_wae(make, compiled):
    """A cast to the dtype of the network would drop the imaginary part."""
    network = make()
    if compiled:
        network = torch.compile(network, backend="eager")
    with pytest.raises(RuntimeError, match=r"image must have real numbers, got torch\.complex64"):
        network(torch.ones(1, 3, 64, 64, dtype=torch.complex64))


# ------------------------------------------------------------------------------------------------- Haar


def test_haar_of_one_block():
    """Of [[8, 4], [2, 6]]: half the sum, and half the differences of rows, of columns and of diagonals."""
    block = torch.tensor([[8.0, 4.0], [2.0, 6.0]])
    low, high = Haar()(torch.stack([block, 2 * block, 0 * block])[None])
    assert low.flatten().tolist() == [10, 20, 0]
    assert high.flatten().tolist() == [2, 0, 4, 4, 0, 8, 0, 0, 0]


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (8, 5), (9, 11), (1, 1), (1, 4)], ids=str)
def test_haar_matches_pywavelets(size):
    pywt = pytest.importorskip("pywt", reason="PyWavelets is not installed")
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    approximation, details = pywt.dwt2(image.numpy(), "haar", mode="symmetric", axes=(2, 3))
    low, high = Haar().double()(image)
    assert np.abs(low.numpy() - approximation).max() < 1e-12
    assert np.abs(high.unflatten(1, (3, 3)).numpy() - np.stack(details, axis=2)).max() < 1e-12


def test_haar_preserves_the_energy():
    image = torch.randn(3, 3, 10, 14, dtype=torch.float64)
    low, high = Haar().double()(image)
    assert (low.square().sum() + high.square().sum()).item() == pytest.approx(image.square().sum().item())


def test_haar_scales_and_shifts_uint8_before_it_pads():
    image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    scale, shift = torch.rand(3), torch.rand(3)
    expected = Haar()(image * scale.view(3, 1, 1) + shift.view(3, 1, 1))
    for one, other in zip(Haar()(image, scale, shift), expected, strict=True):
        assert torch.allclose(one, other)


# ------------------------------------------------------------------------------------------ Wavelet+CNN


def small():
    bodies = [nn.Sequential(nn.Conv2d(3, c, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)) for c in (8, 2)]
    return WAEClassifier(Encoder(), *bodies, FlatClassifier(8, 6, 5), FlatClassifier(10, 6, 5))


def test_wavelet_cnn_takes_the_approximation_and_nine_details():
    original = small()
    low_body = original.low_body
    model = wavelet_cnn(original)
    assert model.low_body is low_body
    assert model.high_body[0].weight.shape == (2, 9, 3, 3)
    image = torch.randn(4, 3, 21, 30)
    model.train()(image).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad is None for p in model.encoder.parameters())  # the wavelet is not trained
    with torch.no_grad():
        scores = model.eval()(image)
        low, high = Haar()(image)
        low, high = (
            (x - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
            for x, norm in ((low, model.low_norm), (high, model.high_norm))
        )
        features = model.low_body(low), model.high_body(high)
        expected = model.low_classifier(features[0]) + model.fusion_classifier(torch.cat(features, 1))
        assert (scores - expected).norm() <= 1e-5 * expected.norm()
        assert (fold_normalization(model)(image) - scores).norm() <= 1e-5 * scores.norm()


@pytest.mark.parametrize("training", [False, True])
def test_wavelet_cnn_keeps_the_mode_of_the_model(training):
    assert {module.training for module in wavelet_cnn(small().train(training)).modules()} == {training}


def test_wavelet_cnn_has_the_dtype_of_the_model_and_no_decoder_or_affine_normalisation():
    model = small().double()
    model.decoder = Decoder().double()
    wavelet_cnn(model)
    assert model.decoder is None
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float64}
    assert not any("norm" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("build", [wae_vgg16, wae_resnet50])
def test_wavelet_cnn_of_the_published_networks(build):
    model = on_meta(lambda: wavelet_cnn(build(7)))
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 7)


# --------------------------------------------------------------------------------------- half resolution


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)], ids=str)
def test_half_resolution_averages_blocks_of_2_x_2(size):
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    seen = HalfResolution(nn.Identity(), (0.5,) * 3, (1.0,) * 3)(image)
    scaled = image.double() * 0.5 + 1
    assert seen.shape == (2, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    for y in range(seen.shape[2]):
        for x in range(seen.shape[3]):
            block = scaled[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            assert torch.allclose(seen[:, :, y, x].double(), block.mean((2, 3)))


def test_at_size_resizes_like_torchvision():
    image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    seen = AtSize(nn.Identity(), 8, (0.5,) * 3, (1.0,) * 3)(image)
    assert torch.allclose(seen, resize(image.float(), [8, 8]) * 0.5 + 1, atol=1e-4)


@pytest.mark.parametrize("form", [FullResolution, HalfResolution, partial(AtSize, side=8)])
@pytest.mark.parametrize("scale", [(0.5,) * 3, (1, 2, 3)], ids=str)
def test_images_are_converted_to_the_dtype_of_the_network(scale, form):
    model = form(nn.Conv2d(3, 4, 3).double(), image_scale=scale)
    assert model(torch.zeros(1, 3, 9, 12, dtype=torch.uint8)).dtype == torch.float64


@pytest.mark.parametrize("build", [vgg16_half, resnet50_half])
def test_the_published_networks_run_at_half_resolution(build):
    assert on_meta(build, 7)(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 7)


def test_vgg16_at_half_resolution_has_the_published_number_of_multiply_adds():
    """The number is in docs/network.md."""
    assert round(count(on_meta(vgg16_half)).multiply_adds / 1e9, 2) == 3.89
