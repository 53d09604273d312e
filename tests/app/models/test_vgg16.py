"""WAE-VGG16, the classifier around any body, folding, and counting."""

import pytest
import torch
import torchvision
from test_bodies import on_meta
from torch import nn

from wae.models.classifier import FlatClassifier, WAEClassifier, fold_normalization
from wae.models.counting import count
from wae.models.stock import StockDecoder, StockEncoder
from wae.models.vgg16 import vgg16_body, wae_vgg16
from wae_kernels.nn import Decoder, Encoder


def close(one, other, tolerance=1e-5):
    return (one - other).norm() <= tolerance * other.norm()


class Body(nn.Sequential):
    """A small body: two pooled features per channel, as a ResNet would give one."""

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


# ------------------------------------------------------------------------------------------------- WAE-VGG16


def test_bodies_have_the_published_features_at_224():
    half = torch.empty(1, 3, 112, 112, device="meta")
    assert on_meta(vgg16_body)(half).shape == (1, 512, 4, 4)  # 8192 features
    assert on_meta(vgg16_body, 4)(half).shape == (1, 128, 4, 4)  # 2048 features


@pytest.mark.parametrize("size", [1, 31, 33, 97])
def test_pools_round_up(size):
    side = -(-size // 32)
    body = on_meta(vgg16_body, 16)
    assert body(torch.empty(1, 3, size, 40, device="meta")).shape == (1, 32, side, 2)


def test_low_body_takes_torchvision_s_weights():
    stock = on_meta(torchvision.models.vgg16).features.state_dict()
    ours = on_meta(vgg16_body).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in stock.items()}


@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_layers_and_names(classes):
    shapes = {name: tuple(tensor.shape) for name, tensor in on_meta(wae_vgg16, classes).state_dict().items()}
    expected = {
        "encoder.conv1.weight": (16, 3, 3, 3),
        "encoder.high.weight": (3, 16, 3, 3),
        "low_norm.running_mean": (3,),
        "high_norm.running_var": (3,),
        "low_body.0.weight": (64, 3, 3, 3),
        "low_body.28.weight": (512, 512, 3, 3),
        "high_body.0.weight": (16, 3, 3, 3),
        "high_body.28.weight": (128, 128, 3, 3),
        "low_classifier.0.weight": (1024, 8192),
        "low_classifier.3.weight": (1024, 1024),
        "low_classifier.6.weight": (classes, 1024),
        "fusion_classifier.0.weight": (2048, 10240),
        "fusion_classifier.3.weight": (2048, 2048),
        "fusion_classifier.6.weight": (classes, 2048),
        "image_scale": (3,),
        "image_shift": (3,),
    }
    assert expected.items() <= shapes.items()
    assert not any("norm" in name and name.endswith((".weight", ".bias")) for name in shapes)  # affine=False
    convolutions = [n for n in shapes if n.startswith("low_body") and n.endswith("weight")]
    assert len(convolutions) == 13


@pytest.mark.parametrize("size", [192, 257])
def test_an_image_of_unsuitable_size_is_refused(size):
    with pytest.raises(ValueError, match="the image's size does not fit"):
        on_meta(wae_vgg16)(torch.empty(1, 3, size, size, device="meta"))


@pytest.mark.slow
def test_wae_vgg16_runs_and_a_uint8_image_is_its_float_twin():
    model = wae_vgg16(classes=7, image_scale=(1 / 64,) * 3, image_shift=(-2.0,) * 3).eval()
    image = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        scores = model(image)
        assert scores.shape == (2, 7)
        assert scores.std() > 0
        assert close(scores, model(image.float()))


# ------------------------------------------------------------------------------------------ any classifier


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
    assert isinstance(small.low_norm, nn.BatchNorm2d)  # the original stays as it is
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


# ---------------------------------------------------------------------------------------------- counting


class Decode(Decoder):
    def forward(self, image):
        half = image[..., ::2, ::2]
        return super().forward(half, half, image.shape[2:])


@pytest.mark.parametrize("size", [(224, 224), (7, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("kinds", [(Encoder, StockEncoder), (Decode, None)], ids=["encode", "decode"])
def test_the_ops_are_counted_like_the_convolutions_they_replace(kinds, size):
    fused, stock = kinds
    if stock is None:

        class stock(StockDecoder):
            forward_decoder = StockDecoder.forward

            def forward(self, image):
                half = image[..., ::2, ::2]
                return self.forward_decoder(half, half, image.shape[2:])

    assert count(on_meta(fused), size) == count(on_meta(stock), size)


def test_counts_are_the_published_ones():
    encoder = count(on_meta(Encoder)).multiply_adds
    assert encoder == 263_725_056
    vgg16 = count(on_meta(torchvision.models.vgg16))
    assert vgg16.multiply_adds == pytest.approx(15.36e9, rel=0.03)
    wae = count(on_meta(wae_vgg16))
    assert wae.multiply_adds - encoder == pytest.approx(4.11e9, rel=0.03)  # published without the encoder
    assert wae.parameters == sum(p.numel() for p in on_meta(wae_vgg16).parameters()) == 53_324_582
