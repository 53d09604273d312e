"""wae.models.segmentation: segmentation networks, and WAE around them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from wae.errors import WaeError
from wae.models.counting import count
from wae.models.meta import on_meta
from wae.models.segmentation import costs, segmenter
from wae.models.segmentation.enet import Doubling, ENet, Halving
from wae.models.segmentation.icnet import ICNet
from wae.models.segmentation.libraries import AnySize, pspnet
from wae.models.segmentation.mobilenet_deconv import MobileNetDeconv, Pointwise
from wae.models.segmentation.segmenter import (
    Fusion,
    HalfResolutionSegmenter,
    SegmenterError,
    WAESegmenter,
    pixel_scores,
    wae_segmenter,
)
from wae_kernels import nn as fused
from wae_kernels.nn import Decoder, Encoder

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "enet": lambda: ENet(5),
    "mobilenet_deconv": lambda: MobileNetDeconv(5),
    "mobilenet_deconv, compensated": lambda: MobileNetDeconv(5, compensated=True),
    "icnet": lambda: ICNet(5),
    "pspnet": lambda: pspnet(5),
}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "segmentation.md"
networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


@networks
@pytest.mark.parametrize(
    "size", [(1, 1), (33, 47), (64, 62), pytest.param((70, 128), marks=pytest.mark.slow)], ids=str
)
def test_every_pixel_gets_scores(make: Callable[[], nn.Module], size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    network = make().eval()
    for model in (network, wae_segmenter(network).eval(), HalfResolutionSegmenter(network).eval()):
        scores = model(image)
        assert scores.shape == (2, 5, *size)
        assert scores.isfinite().all()


@networks
def test_every_weight_gets_a_gradient(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = wae_segmenter(make()).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 96)), torch.randint(5, (2, 64, 96))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in without if ".guidance" not in name and ".auxiliary_" not in name]


SUMMARIES = {
    "enet": 0.17261492783606183,
    "mobilenet_deconv": 0.004989512734644869,
    "mobilenet_deconv, compensated": -0.0027760665607713545,
    "icnet": 0.010348006425063627,
    "pspnet": 0.001682876627927459,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_earlier_versions(name: str) -> None:
    """The weights follow a formula. One number sums up all scores, so a change of any layer changes it."""
    network = NETWORKS[name]().double().eval()
    for number, tensor in enumerate(network.state_dict().values()):
        if tensor.is_floating_point():
            waves = torch.arange(tensor.numel(), dtype=torch.float64).add(number).sin().view(tensor.shape)
            tensor.copy_(1 + waves / 2 if tensor.dim() == 1 else 3 * waves / tensor[0].numel() ** 0.5)
    image = torch.arange(3 * 75 * 91, dtype=torch.float64).mul(0.7).cos().view(1, 3, 75, 91)
    scores = network(image).flatten()
    found = scores @ torch.arange(len(scores), dtype=torch.float64).sin() / scores.norm()
    assert found.item() == pytest.approx(SUMMARIES[name], rel=1e-6)


def test_half_resolution_averages_pixels_and_upsamples_bilinearly() -> None:
    image = torch.tensor([1.0, 3.0, 7.0, 9.0]).expand(1, 3, 1, 4)
    expected = torch.tensor([2.0, 3.5, 6.5, 8.0]).expand(1, 3, 1, 4)
    torch.testing.assert_close(HalfResolutionSegmenter(nn.Identity())(image), expected)


def test_half_resolution_is_not_stretched_at_an_odd_edge() -> None:
    """All of the scores scaled to the image's size would move those at the far edge by a pixel."""
    ramp = torch.arange(9.0).expand(1, 3, 1, 9)
    scores = HalfResolutionSegmenter(nn.Identity())(ramp)
    torch.testing.assert_close(scores[..., 1:-2], ramp[..., 1:-2])


def test_enet_has_less_dropout_in_its_first_stage() -> None:
    """Paszke et al. 2016: 0.01 before bottleneck 2.0, and 0.1 from there on."""
    found = [module.p for module in ENet(5).modules() if isinstance(module, nn.Dropout2d)]
    assert found == [0.01] * 5 + [0.1] * 22


@pytest.mark.parametrize("training", [False, True])
def test_wae_around_a_network_has_its_mode(training: bool) -> None:
    network = ENet(5).train(training)
    frozen = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    others = [module for module in wae_segmenter(network).modules() if module is not frozen]
    assert {module.training for module in others} == {training}
    assert not frozen.training


def test_the_fusion_starts_as_bilinear_upsampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter, "_RANDOM_SHARE", 0.0)
    coarse = torch.randn(1, 5, 9, 12).clamp(-3, 3)
    scores = Fusion(5, 16)(coarse, torch.zeros(1, 16, 9, 12), (17, 24))
    expected = F.interpolate(coarse, (18, 24), mode="bilinear", align_corners=False)[:, :, :17]
    inside = (..., slice(1, -2), slice(1, -1))  # at the edges the blur includes zeros
    torch.testing.assert_close(
        (scores - scores.mean(1, keepdim=True))[inside], (expected - expected.mean(1, keepdim=True))[inside]
    )


def test_a_tenth_of_the_random_initialisation_of_the_fusion_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """With less, some channels hardly learn; with more, the start is not bilinear upsampling."""

    def weights() -> list[torch.Tensor]:
        torch.manual_seed(0)
        fusion = Fusion(5, 16)
        return [layer.get_parameter("weight").detach() for layer in (fusion.low, fusion.conv1, fusion.conv2)]

    kept = weights()
    monkeypatch.setattr(segmenter, "_RANDOM_SHARE", 1.0)
    full = weights()
    monkeypatch.setattr(segmenter, "_RANDOM_SHARE", 0.0)
    for tenth, whole, none in zip(kept, full, weights(), strict=True):
        torch.testing.assert_close(tenth - none, 0.1 * (whole - none))


def test_a_fusion_may_have_more_classes_than_channels() -> None:
    scores = Fusion(21, 16)(torch.randn(1, 21, 9, 12), torch.zeros(1, 16, 9, 12), (17, 24))
    assert scores.shape == (1, 21, 17, 24)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (lambda: ICNet(5), {"out": (70, 95), "sub24": (70, 95), "sub4": (70, 95)}),
        (lambda: pspnet(5), {"out": (70, 95), "aux": (70, 95)}),
    ],
    ids=["icnet", "pspnet"],
)
def test_in_training_mode_there_are_auxiliary_scores(
    make: Callable[[], nn.Module], sizes: dict[str, tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    network = make().train()
    image = torch.randn(2, 3, 70, 95)
    found = network(image)
    assert {name: tuple(scores.shape) for name, scores in found.items()} == {
        name: (2, 5, *size) for name, size in sizes.items()
    }
    kind = getattr(network, "network", network)
    assert kind.auxiliary == dict.fromkeys(set(sizes) - {"out"}, 0.4)  # as published
    sum(kind.auxiliary.get(name, 1.0) * scores.square().mean() for name, scores in found.items()).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert network.eval()(image).shape == (2, 5, 70, 95)


def test_icnets_auxiliary_scores_are_those_of_its_coarser_branches() -> None:
    """They are scaled to the image as the main scores are, with aligned corners."""
    torch.manual_seed(0)
    network, image, results = ICNet(5).train(), torch.randn(2, 3, 70, 95), {}
    for name in ("low", "fusion24"):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _, given, result, name=name: results.update({name: result}))
    found = network(image)
    for name, branch, classifier, size in (
        ("sub4", "low", network.guidance4, (5, 6)),
        ("sub24", "fusion24", network.guidance24, (9, 12)),
    ):
        features = F.interpolate(results[branch], size, mode="bilinear", align_corners=True)
        wanted = F.interpolate(classifier(features), (70, 95), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found[name], wanted)


def test_icnet_has_the_size_of_the_authors_network() -> None:
    """6,699,987 parameters and 29.812 G multiply-adds are those of the layers that the authors publish for
    1025 x 2049 images of 19 classes (hszhao/ICNet, icnet_cityscapes_bnnomerge.prototxt). The two
    auxiliary classifiers are for training only."""
    parameters, multiply_adds = count(on_meta(lambda: ICNet(19)), (1025, 2049))
    assert parameters - 257 * 19 - 129 * 19 == 6_699_987
    assert multiply_adds == 29_811_584_064


def test_enet_has_the_size_of_the_paper() -> None:
    """Paszke et al. 2016, table 3: 0.37 M parameters; at 640 x 360, 3.83 GFLOPs, two a multiply-add."""
    parameters, multiply_adds = count(on_meta(lambda: ENet(19)), (360, 640))
    assert parameters == pytest.approx(0.37e6, rel=0.03)
    assert 2 * multiply_adds == pytest.approx(3.83e9, rel=0.06)  # the paper counts more than multiply-adds


def test_the_fusion_runs_the_op_unless_a_layer_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters have the names that checkpoints contain. A hook on a layer takes effect."""
    model = wae_segmenter(nn.Conv2d(3, 5, 3, padding=1)).eval()
    names = [f"{layer}.{kind}" for layer in ("low", "high", "conv1", "conv2") for kind in ("weight", "bias")]
    assert list(model.fusion.state_dict()) == names
    calls, run = [], fused.run_decode_scores
    monkeypatch.setattr(fused, "run_decode_scores", lambda *args: calls.append(args) or run(*args))
    image = torch.randn(1, 3, 13, 18)
    expected = model(image)
    assert len(calls) == 1
    model.fusion.low.register_forward_hook(lambda layer, args, output: 2 * output)
    assert not torch.allclose(model(image), expected, rtol=1e-2)
    assert len(calls) == 1


def test_unpooling_restores_the_position_of_each_pixel() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 16, 7, 9)
    pooled = Halving(16, 64, 0.0).eval()(x)
    doubling = Doubling(64, 16, 0.0).eval()
    kept = doubling.unpool(F.max_pool2d(x, 2, ceil_mode=True), pooled.indices, output_size=[7, 9])
    assert torch.equal(kept[kept != 0], x[kept != 0])
    assert (kept != 0).sum() == 16 * 4 * 5
    assert doubling(pooled.features, pooled).shape == x.shape


def test_the_body_has_the_size_of_mobilenet() -> None:
    """Howard et al. 2017, table 8: 4.23 M parameters and 569 M multiply-adds, the classifier with 1.024 M."""
    body = on_meta(lambda: nn.Sequential(*MobileNetDeconv(5).stages))
    parameters, multiply_adds = count(body, (224, 224))
    assert parameters == pytest.approx(4.23e6 - 1.025e6, rel=0.005)
    assert multiply_adds == pytest.approx(569e6 - 1.024e6, rel=0.005)


def test_compensation_halves_the_pointwise_multiply_adds() -> None:
    plain, compensated = (on_meta(lambda c=c: Pointwise(3, 64, c)) for c in (False, True))
    assert 2 * count(compensated, (32, 32)).multiply_adds == count(plain, (32, 32)).multiply_adds


def test_compensation_appends_the_negatives() -> None:
    torch.manual_seed(0)
    layer = Pointwise(3, 8, compensated=True).eval()
    x = torch.randn(2, 3, 5, 5)
    positive, negative = layer(x).chunk(2, 1)
    torch.testing.assert_close(positive - negative, layer.norm(layer.convolution(x)))
    assert (positive * negative == 0).all()


def library() -> Any:
    """Import it when a test runs, not at collection, because it takes seconds."""
    return importlib.import_module("segmentation_models_pytorch")


LIBRARY_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: partial(get_model, name, weights=None, weights_backbone=None, num_classes=4)
        for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large")
    },
    "pspnet_resnet18": lambda: pspnet(4),
    "unet": lambda: AnySize(library().Unet("mobilenet_v2", encoder_weights=None, classes=4), 32),
    "deeplabv3": lambda: AnySize(library().DeepLabV3("resnet18", encoder_weights=None, classes=4), 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(33, 47), (66, 91), (512, 512)], ids=str)
@pytest.mark.parametrize("make", LIBRARY_NETWORKS.values(), ids=LIBRARY_NETWORKS)
def test_a_library_s_network_computes_the_same_inside_wae(
    make: Callable[[], nn.Module], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    network = make().eval()
    model = wae_segmenter(network).eval()
    seen: list[tuple[Tensor, Any]] = []
    network.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    with torch.no_grad():
        assert model(torch.rand(1, 3, *size) * 255).shape == (1, 4, *size)
        given, inside = seen[0]
        assert given.shape == (1, 3, *((side + 1) // 2 for side in size))
        outside = network(given)
    if isinstance(inside, dict):
        inside, outside = inside["out"], outside["out"]
    assert torch.equal(outside, inside)


def test_any_size_changes_nothing_if_the_network_itself_can_run() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 96)
    network = library().Unet("resnet18", encoder_weights=None, classes=4).eval()
    ours = pspnet(4).eval()
    with torch.no_grad():
        assert torch.equal(AnySize(network, 32)(image), network(image))
        assert torch.equal(ours(image), ours.network.network(image))
        padded = F.pad(image, (0, 3, 0, 5), mode="replicate")
        assert torch.equal(ours(padded[:, :, :65, :97]), ours(padded)[:, :, :65, :97])


def test_scores_are_the_fusion_of_both_bodies() -> None:
    torch.manual_seed(0)
    model = wae_segmenter(ENet(3)).eval()
    image = torch.rand(1, 3, 34, 31)
    low, high = model.decompose(image)
    coarse, features = model.low_network(model.low_norm(low)), model.high_body(model.high_norm(high))
    fusion = model.fusion
    x = fusion.low(coarse, output_size=[34, 31]) + fusion.high(features, output_size=[34, 31])
    expected = fusion.conv2(fusion.conv1(x.relu()).relu())
    torch.testing.assert_close(model(image), expected)


def test_uint8_and_float_images_give_the_same_scores() -> None:
    model = wae_segmenter(ENet(3), image_scale=[1 / 64] * 3, image_shift=[-2.0] * 3).eval()
    assert (model.image_scale.tolist(), model.image_shift.tolist()) == ([1 / 64] * 3, [-2.0] * 3)
    image = torch.randint(256, (1, 3, 32, 48), dtype=torch.uint8)
    torch.testing.assert_close(model(image), model(image.float()))


def test_reconstruct_needs_a_decoder() -> None:
    without = wae_segmenter(ENet(3))
    low, high = without.decompose(torch.rand(1, 3, 33, 48))
    with pytest.raises(RuntimeError, match="no decoder"):
        without.reconstruct(low, high, (33, 48))
    model = wae_segmenter(ENet(3), Encoder(), decoder=Decoder())
    assert model.reconstruct(low, high, (33, 48)).shape == (1, 3, 33, 48)


@pytest.mark.parametrize(
    ("network", "got"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), r"got \(1, 4, 32, 32\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)), r"got \(1, 4\)"),
    ],
    ids=["half as large", "one score an image"],
)
def test_networks_that_do_not_score_each_pixel_are_refused(network: nn.Module, got: str) -> None:
    with pytest.raises(SegmenterError, match=rf"must score each pixel of 64 x 64 images: .*{got}") as error:
        wae_segmenter(network)
    assert isinstance(error.value, WaeError)


def test_the_network_is_not_changed() -> None:
    network = ENet(3).train()
    network.stage1.eval()  # frozen
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = wae_segmenter(network)
    assert isinstance(model, WAESegmenter)
    assert network.training
    assert not network.stage1.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_network_keeps_its_dtypes_and_new_parts_have_the_first() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), ToFloat(), nn.Conv2d(8, 4, 1)).bfloat16()
    network[2].float()
    model = wae_segmenter(network)
    assert [p.dtype for p in network.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert model.low_network is network
    made = (model.encoder, model.high_body, model.fusion)
    assert {p.dtype for part in made for p in part.parameters()} == {torch.bfloat16}


class ToFloat(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.float()


@pytest.mark.parametrize(("name", "make"), [("encoder", Encoder), ("decoder", Decoder)])
def test_parts_of_another_dtype_are_refused_and_not_changed(name: str, make: Callable[[], nn.Module]) -> None:
    given: Any = {name: make()}
    message = (
        rf"{name} is torch.float32 on cpu, but the network is torch.float64 on cpu: use {name}.to\('cpu', "
    )
    with pytest.raises(ValueError, match=message):
        wae_segmenter(ENet(3).double(), **given)
    assert next(given[name].parameters()).dtype == torch.float32
    given[name].double()
    model = wae_segmenter(ENet(3).double(), **given).eval()
    assert getattr(model, name) is given[name]


class Returning(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, image: Tensor) -> Any:
        return self.make(image)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda image: [image], "list"),
        (lambda image: {"scores": image}, "dict"),
        (lambda image: {"out": None}, "NoneType"),
    ],
)
def test_results_that_are_not_scores_are_refused(make: Callable[[Tensor], Any], got: str) -> None:
    with pytest.raises(SegmenterError, match=f"got {got}$"):
        pixel_scores(Returning(make), torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_the_page_has_the_table_of_costs() -> None:
    assert costs.table() in PAGE.read_text(), "put in what `python -m wae.models.segmentation.costs` prints"
