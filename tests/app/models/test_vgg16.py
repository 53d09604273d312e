"""wae.models.vgg16: the layers of WAE-VGG16, and how multiply-adds are counted."""

import pytest
import torch
import torchvision
from test_bodies import on_meta

from wae.models.counting import count
from wae.models.stock import StockDecoder, StockEncoder
from wae.models.vgg16 import vgg16_body, wae_vgg16
from wae_kernels.nn import Decoder, Encoder

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


def test_the_low_body_has_torchvision_s_parameters():
    stock = on_meta(torchvision.models.vgg16).features.state_dict()
    ours = on_meta(vgg16_body).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in stock.items()}


@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_names_and_shapes_of_parameters(classes):
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
def test_uint8_and_float_images_give_the_same_scores():
    model = wae_vgg16(classes=7, image_scale=(1 / 64,) * 3, image_shift=(-2.0,) * 3).eval()
    assert (model.image_scale.tolist(), model.image_shift.tolist()) == ([1 / 64] * 3, [-2.0] * 3)
    image = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        scores = model(image)
        assert scores.shape == (2, 7)
        assert scores.std() > 0
        from_float = model(image.float())
        assert (scores - from_float).norm() <= 1e-5 * from_float.norm()


# ---------------------------------------------------------------------------------------------- counting


class _TakesImage:
    """Makes a decoder take an image, like an encoder."""

    def forward(self, image):
        half = image[..., ::2, ::2]
        return super().forward(half, half, image.shape[2:])


class Decode(_TakesImage, Decoder):
    pass


class StockDecode(_TakesImage, StockDecoder):
    pass


@pytest.mark.parametrize("size", [(224, 224), (7, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("kinds", [(Encoder, StockEncoder), (Decode, StockDecode)], ids=["encode", "decode"])
def test_the_ops_are_counted_like_the_convolutions_they_replace(kinds, size):
    fused, stock = (count(on_meta(kind), size) for kind in kinds)
    assert fused == stock


def test_counts_are_the_published_ones():
    encoder = count(on_meta(Encoder)).multiply_adds
    assert encoder == 263_725_056
    vgg16 = count(on_meta(torchvision.models.vgg16))
    assert vgg16.multiply_adds == pytest.approx(15.36e9, rel=0.03)
    wae = count(on_meta(wae_vgg16))
    assert wae.multiply_adds - encoder == pytest.approx(4.11e9, rel=0.03)  # published without the encoder
    assert wae.parameters == sum(p.numel() for p in on_meta(wae_vgg16).parameters()) == 53_324_582
