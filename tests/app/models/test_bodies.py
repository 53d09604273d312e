"""wae.models.bodies: light copies of standard networks, their channels, and what is refused."""

import sys

import pytest
import torch
import torchvision
from torch import nn

from wae.models.around import wae_around
from wae.models.bodies import IndivisibleError, feature_channels, light_body, standard_body, widen_input
from wae.models.vgg16 import vgg16_body
from wae_kernels.nn import Decoder, Encoder

TORCHVISION = (
    "resnet18 resnext50_32x4d mobilenet_v2 mobilenet_v3_large densenet121 efficientnet_b0 regnet_y_400mf "
    "convnext_tiny squeezenet1_1 mnasnet1_0 shufflenet_v2_x0_5"
).split()
TIMM = "seresnet50 legacy_xception resnetv2_50".split()


def named(name, **options):
    if name in TIMM:
        pytest.importorskip("timm", reason="timm is not installed")
    return standard_body(name, **options)


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs).eval()


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def convolutions(body):
    return [m for m in body.modules() if isinstance(m, nn.Conv2d)]


# ---------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("name", TORCHVISION + TIMM)
@pytest.mark.slow
def test_a_light_body_has_a_quarter_of_the_features(name):
    body = named(name) if name.startswith("regnet") else on_meta(named, name)  # a RegNet needs its values
    light = light_body(body)
    assert feature_channels(light) * 4 == feature_channels(body)
    for one, other in zip(convolutions(light), convolutions(body), strict=True):
        assert one.out_channels == -(-other.out_channels // 4)
        assert (one.kernel_size, one.stride, one.padding) == (other.kernel_size, other.stride, other.padding)
        assert one.in_channels == 3 or one.in_channels == -(-other.in_channels // 4)
        if other.groups == other.in_channels > 1:
            assert one.groups == one.in_channels  # depthwise


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_large", "seresnet50", "legacy_xception"], ids=str
)
def test_wae_around_a_body_runs_and_trains(name):
    body = named(name)
    model = wae_around(light_body(body), classes=5)  # a light body as the body is quick to train
    image = torch.randn(4, 3, 96, 90)
    scores = model.train()(image)
    assert scores.shape == (4, 5)
    scores.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert model.encoder.conv1.weight.grad.abs().sum() > 0
    assert model.low_classifier.in_features == feature_channels(model.low_body)
    assert model.fusion_classifier.in_features == sum(
        feature_channels(b) for b in (model.low_body, model.high_body)
    )
    with torch.no_grad():
        scores = model.eval()(image)
    assert (scores - scores.mean(0)).abs().sum() > 0  # they depend on the image


def test_squeeze_and_excitation_is_divided_too():
    pytest.importorskip("timm")
    light = light_body(on_meta(standard_body, "seresnet50"))
    assert shapes(light)["layer1.0.se.fc1.weight"] == (4, 64, 1, 1)
    assert shapes(light)["layer1.0.se.fc2.weight"] == (64, 4, 1, 1)


def test_the_light_vgg16_is_the_published_high_body():
    assert shapes(light_body(on_meta(vgg16_body))) == shapes(on_meta(vgg16_body, 4))


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_features_are_divided_by_the_factor(factor):
    body = on_meta(standard_body, "resnet18")
    assert feature_channels(light_body(body, factor)) == -(-512 // factor)


# ------------------------------------------------------------------------------------------- what is changed


@pytest.fixture
def body():
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, groups=16),
        nn.GroupNorm(8, 32),
        nn.PReLU(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.LayerNorm(24),
    )
    body[5].requires_grad_(False)
    return body.train()


def test_every_kind_of_layer_is_divided(body):
    light = light_body(body)
    conv, norm, _, depthwise, group_norm, prelu, _, _, linear, layer_norm = light
    assert conv.weight.shape == (4, 3, 3, 3)
    assert conv.bias is None
    assert norm.num_features == norm.running_var.numel() == 4
    assert (depthwise.weight.shape, depthwise.groups) == ((8, 1, 3, 3), 4)
    assert (group_norm.num_channels, group_norm.num_groups) == (8, 8)
    assert prelu.weight.shape == (8,)
    assert linear.weight.shape == (6, 8)
    assert layer_norm.normalized_shape == (6,)


def test_the_body_is_not_changed(body):
    body[0].eval()
    before = {n: t.clone() for n, t in body.state_dict().items()}
    light = light_body(body)
    assert feature_channels(body) == 24
    assert all(torch.equal(t, before[n]) for n, t in body.state_dict().items())
    assert [m.training for m in light.modules()] == [m.training for m in body.modules()]
    assert not body[0].training
    assert body.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*body.modules(), *light.modules()))
    shared = {p.data_ptr() for p in body.parameters()} & {p.data_ptr() for p in light.parameters()}
    assert shared == set()
    assert not light[5].weight.requires_grad
    assert light[0].weight.requires_grad


def test_weights_have_he_initialisation(body):
    body[1].weight.data.fill_(7)
    one, other = light_body(body, 1), light_body(body, 1)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert not torch.equal(one[0].weight, body[0].weight)
    assert torch.equal(one[1].weight, torch.ones(16))
    wide = light_body(nn.Sequential(nn.Conv2d(3, 4096, 3)))
    assert wide[0].weight.std().item() == pytest.approx((2 / (1024 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_dtype_is_kept(body, dtype):
    assert {p.dtype for p in light_body(body.to(dtype)).parameters()} == {dtype}


def test_shared_tensors_stay_shared(body):
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    body[2].weight = body[1].weight
    light = light_body(body)
    assert light[2].weight is light[1].weight
    assert light[2].weight.shape == (2, 2, 3, 3)


# ---------------------------------------------------------------------------------------- what is refused


class Scaled(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(self.out_channels))


class SplitsInto8(nn.Module):
    def forward(self, x):
        return torch.cat(x.split([8, 8], dim=1), dim=1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.Sequential(SplitsInto8())), r"1\.0 \(SplitsInto8\): split"),
        (nn.Sequential(Scaled(3, 16, 3)), r"0 \(Scaled\): .*'gain'"),
        (nn.Sequential(nn.Conv2d(3, 10, 3), nn.Conv2d(10, 20, 3, groups=10)), r"1 \(Conv2d\): .*3 groups"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 16, 3)), "parametrizations.*'original1'"),
        (nn.Sequential(nn.Conv2d(4, 16, 3)), "the body takes no image of 112 x 112: 0"),
        (nn.Sequential(nn.Conv2d(3, 16, 200)), "the body takes no image of 112 x 112: 0"),
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveMaxPool2d(1, return_indices=True)), "one tensor"),
    ],
    ids=["split", "gain", "groups", "weight norm", "channels", "size", "tuple"],
)
def test_modules_that_cannot_be_divided_are_named(network, message):
    with pytest.raises(ValueError, match=message):
        light_body(network)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("vit_b_32", "pos_embedding"),
        ("swin_t", "relative_position_bias_table"),
        ("shufflenet_v2_x1_0", r"stage3\.0\.branch1\.0 \(Conv2d\)"),
    ],
)
def test_families_without_a_light_form_are_named(name, module):
    with pytest.raises(ValueError, match=f"light_body cannot divide .*{module}"):
        light_body(on_meta(standard_body, name))


@pytest.mark.parametrize("factor", [0, -4, 2.5, "4", None], ids=repr)
def test_invalid_factors_are_refused(factor):
    with pytest.raises(ValueError, match="factor must be an integer of at least 1, got"):
        light_body(nn.Conv2d(3, 8, 3), factor)


def test_modes_and_hooks_are_restored_after_a_failure(body):
    with pytest.raises(ValueError, match=r"0 \(Conv2d\)"):
        feature_channels(body, (1, 1))
    assert all(m.training for m in body.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in body.modules())


# -------------------------------------------------------------------------------------------- opening by name


def test_a_standard_body_is_the_library_s_without_the_classifier():
    stock = on_meta(torchvision.models.resnet50)
    names = set(shapes(stock)) - {"fc.weight", "fc.bias"}
    assert shapes(on_meta(standard_body, "resnet50")) == {n: shapes(stock)[n] for n in names}


def test_unknown_names_and_missing_timm_are_errors(monkeypatch):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="network of torchvision or timm, got 'resnet5'"):
        standard_body("resnet5")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"wae-kernels\[timm\]"):
        standard_body("seresnet50")


# -------------------------------------------------------------------------------------------- first layer


def test_widen_input_changes_the_first_convolution():
    body = widen_input(
        nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 3, 1)), 9
    )
    assert body[1].weight.shape == (8, 9, 3, 3)
    assert body[3].in_channels == 3
    assert body(torch.ones(1, 9, 5, 5)).shape == (1, 3, 3, 3)
    with pytest.raises(ValueError, match=r"Conv2d.* must have a convolution that takes 3 channels"):
        widen_input(nn.Conv2d(4, 8, 3), 9)


@pytest.mark.parametrize("name", ["high_body", "encoder", "decoder"])
def test_parts_of_another_dtype_are_refused(name):
    given = {"high_body": nn.Conv2d(3, 4, 3, stride=8), "encoder": Encoder(), "decoder": Decoder()}[name]
    body = nn.Conv2d(3, 64, 3, stride=8).double()
    wanted = f"{name} is torch.float32 on cpu, but the network is torch.float64 on cpu"
    with pytest.raises(ValueError, match=wanted):
        wae_around(body, size=(32, 32), **{name: given})
    model = wae_around(body, size=(32, 32), **{name: given.double()})
    assert getattr(model, name) is given


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"classes": 0}, "classes must be an integer of at least 1, got 0"),
        ({"classes": 2.5}, r"classes must be an integer of at least 1, got 2\.5"),
        ({"image_scale": 1.0}, r"image_scale must be three numbers, got 1\.0"),
        ({"image_shift": (0.0, 1.0)}, r"image_shift must be three numbers, got \(0\.0, 1\.0\)"),
        ({"high_body": nn.Conv2d(3, 4, 3)}, r"sizes \[12, 14\] of low_body's, got \[10, 12\]"),
    ],
    ids=["no class", "part of a class", "scale", "shift", "high body"],
)
def test_arguments_that_fail_at_the_first_image_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wae_around(nn.Conv2d(3, 8, 3, padding=1), size=(12, 14), **wrong)


class Viewed(nn.Conv2d):
    """Has its number of channels in its code."""

    def forward(self, image):
        return super().forward(image).view(len(image), 16, -1)


def test_a_number_of_channels_in_the_code_is_not_divided():
    with pytest.raises(IndivisibleError, match=r"\(1, 16, 168\) into \(1, 16, 42\)"):
        light_body(nn.Sequential(Viewed(3, 16, 3, padding=1)), size=(12, 14))
