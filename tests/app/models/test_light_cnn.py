"""wae.models.light_cnn: the high body of networks of every kind; all of them run, train and deploy."""

from unittest import TestCase

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import wae
from wae.models.around import wae_around
from wae.models.bodies import IndivisibleError, feature_channels, light_body, standard_body
from wae.models.counting import count
from wae.models.light_cnn import LightCNN, light_cnn
from wae.models.meta import on_meta
from wae.models.positions import fit_to
from wae.storage.checkpoint import load_classifier, save_classifier

DIVIDED = "convnext_tiny efficientnet_b0 regnet_y_800mf densenet121".split()
TIMM = "mixnet_s nfnet_l0 vit_small_patch16_224 eva02_tiny_patch14_224".split()
LIGHT = ["vit_b_16", "swin_t", "shufflenet_v2_x1_0", *TIMM]
SIDE = {"eva02_tiny_patch14_224": 56}  # patches of 14


def around(name, **options):
    if name in TIMM:
        pytest.importorskip("timm", reason="timm is not installed")
    side = SIDE.get(name, 64)
    return wae_around(name, classes=3, size=(side // 2, side // 2), **options), side


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVIDED + LIGHT)
def test_wae_around_each_network_runs_and_trains(name):
    model, side = around(name, image_scale=(1 / 64,) * 3, image_shift=(-2.0,) * 3)
    assert isinstance(model.high_body, LightCNN) == (name in LIGHT)
    images = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
    nn.functional.cross_entropy(model.train()(images), torch.tensor([0, 2])).backward()
    for part in (
        model.encoder,
        model.low_body,
        model.high_body,
        model.low_classifier,
        model.fusion_classifier,
    ):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
        assert model(images).isfinite().all()  # not eval(): the running statistics saw only one batch


@pytest.mark.slow
def test_a_shufflenet_can_be_deployed():
    pytest.importorskip("openvino")
    model, side = around("shufflenet_v2_x1_0", image_scale=(1 / 64,) * 3, image_shift=(-2.0,) * 3)
    deployed = wae.deploy(model.eval(), (side, side), batch=1, engine="openvino")
    assert deployed.difference <= 1e-4


@pytest.mark.slow
def test_a_vision_transformer_can_be_deployed_saved_and_loaded(tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    model, name = wae_around("test_vit", classes=3), "wae_test_vit"
    deployed = wae.deploy(model.eval(), engine="eager")
    assert deployed.difference <= 1e-4
    images = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    save_classifier(tmp_path / "file", model, name)
    with torch.no_grad():
        assert torch.equal(load_classifier(tmp_path / "file")(images), model(images))


@pytest.mark.slow
def test_loading_restores_non_persistent_buffers(tmp_path):
    """EVA-02's rotary positions are non-persistent: a file does not hold them."""
    pytest.importorskip("timm", reason="timm is not installed")
    model = wae_around("eva02_tiny_patch14_224", classes=3).eval()
    assert any("rope" in name for name in dict(model.named_buffers()).keys() - model.state_dict().keys())
    save_classifier(tmp_path / "file", model, "wae_eva02_tiny_patch14_224")
    loaded = load_classifier(tmp_path / "file")
    for (name, one), (_, other) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(one, other), name


# ------------------------------------------------------------------------------------------- the light CNN


def transformer():
    """A vision transformer of two layers, on "meta"."""
    network = on_meta(lambda: VisionTransformer(112, 16, 2, 4, 384, 1536))
    network.heads = nn.Identity()
    return network


@pytest.mark.slow
def test_the_light_cnn_is_as_wide_as_allowed():
    body = transformer()
    light = light_cnn(body, (112, 112))
    assert feature_channels(light) == 384 // 4  # limited by the features; the multiply-adds allow more
    assert 16 * count(light, (112, 112)).multiply_adds <= count(body, (112, 112)).multiply_adds
    shuffle = on_meta(lambda: standard_body("shufflenet_v2_x1_0"))
    channels = light_cnn(shuffle, (112, 112))[0][0].out_channels
    allowed = count(shuffle, (112, 112)).multiply_adds / 16
    costs = [count(LightCNN(c).to("meta"), (112, 112)).multiply_adds for c in (channels, channels + 1)]
    assert costs[0] <= allowed < costs[1]


def test_the_light_cnn_is_logged_in_one_line():
    with TestCase().assertLogs("wae.models.light_cnn", "INFO") as log:
        model = on_meta(lambda: wae_around("swin_t", classes=3))
    (record,) = log.records
    reason = model.high_body.reason
    assert record.getMessage() == reason
    assert reason.startswith("the high body is a light CNN of 4 convolutions and 192 features (26.42 M ")
    assert reason.endswith(
        "it is not known which sizes of its tensor 'relative_position_bias_table', (169, 6), are channels"
    )
    assert "\n" not in reason


def test_features_have_the_height_and_width_of_the_low_body_s():
    body = nn.Sequential(nn.Conv2d(3, 64, 3, stride=4, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    light = light_cnn(body, (20, 12))
    assert light(torch.zeros(2, 3, 20, 12)).shape[2:] == body(torch.zeros(2, 3, 20, 12)).shape[2:] == (5, 3)


def test_the_light_cnn_has_the_dtype_of_the_low_body():
    body = nn.Sequential(nn.Conv2d(3, 64, 3, stride=4, padding=1), nn.Conv2d(64, 64, 3, padding=1)).double()
    assert {parameter.dtype for parameter in light_cnn(body, (20, 12)).parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (nn.Conv2d(3, 8, 1), "too small for a lighter one: 8 features"),
        (nn.Sequential(nn.Conv2d(3, 64, 1), nn.Flatten(2)), r", got \(N, 64, 144\)"),
        (nn.Conv2d(4, 64, 1), "the body \\(Conv2d\\)"),
    ],
)
def test_bodies_without_a_light_cnn_are_refused(body, message):
    with pytest.raises(ValueError, match=message):
        light_cnn(body, (12, 12))


def test_an_invalid_body_gets_no_light_cnn():
    with pytest.raises(ValueError, match="the body takes no image of 112 x 112"):
        wae_around(nn.Sequential(nn.Conv2d(4, 64, 3)))
    with pytest.raises(IndivisibleError, match="light_body cannot divide"):
        light_body(transformer())


# --------------------------------------------------------------------------------------- position embeddings


def test_torchvision_s_positions_are_interpolated_like_its_function_does():
    from torchvision.models.vision_transformer import interpolate_embeddings

    network = VisionTransformer(224, 16, 1, 2, 64, 64)
    before = network.encoder.pos_embedding.detach().clone()
    expected = interpolate_embeddings(112, 16, {"encoder.pos_embedding": before})["encoder.pos_embedding"]
    assert fit_to(network, (112, 112)) is network
    assert torch.equal(network.encoder.pos_embedding, expected)
    assert expected.shape == (1, 50, 64)
    assert network.encoder.pos_embedding.requires_grad
    assert fit_to(network, (112, 112)).encoder.pos_embedding.shape == (1, 50, 64)
    assert network(torch.zeros(1, 3, 112, 112)).shape == (1, 1000)


@pytest.mark.parametrize("size", [(112, 96), (100, 100)])
def test_sizes_that_do_not_fit_the_patches_are_refused(size):
    with pytest.raises(ValueError, match="must be square, with sides divisible by the patch size 16"):
        fit_to(transformer(), size)


def test_timm_s_positions_are_interpolated_like_its_function_does():
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_vit", num_classes=0)
    before = network.pos_embed.detach().clone()
    fit_to(network, (96, 96))
    patches = 96 // network.patch_embed.patch_size[0]
    assert network.pos_embed.shape[1] == 1 + patches**2 < before.shape[1]
    assert torch.equal(network.pos_embed, timm.layers.resample_abs_pos_embed(before, [patches, patches]))
    assert network(torch.zeros(1, 3, 96, 96)).shape == (1, network.num_features)
    with pytest.raises(ValueError, match="its positions do not fit images of 10 x 10"):
        fit_to(network, (10, 10))


def test_convolutions_take_any_size():
    body = nn.Conv2d(3, 4, 3)
    assert fit_to(body, (5, 7)) is body
