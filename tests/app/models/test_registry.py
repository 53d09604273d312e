"""wae.models.registry: networks by name, their published costs, and the tables and code of docs/models.md."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from wae import cli
from wae.models import registry
from wae.models.bodies import light_body, standard_body
from wae.models.counting import count
from wae.models.meta import on_meta, without_memory
from wae.models.registry import (
    NETWORKS,
    PARTS,
    PUBLISHED,
    NetworkError,
    around,
    build,
    builder,
    compared,
    encoder_multiply_adds,
    image_side,
    table,
)  # fmt: skip
from wae_kernels import backends

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
TORCHVISION = models.list_models(module=models)
FAMILIES = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 shufflenet_v2_x0_5 "
    "squeezenet1_1 swin_t swin_v2_t vgg11_bn vit_b_32"
).split()
"""A small network of each of torchvision's families."""


def named(name):
    return on_meta(partial(build, name))


def cost(name):
    network = named(name)
    return count(network).multiply_adds - encoder_multiply_adds(network)


# ----------------------------------------------------------------------------------------------- by name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wavelet_small_vgg", "wavelet_vgg16", *NETWORKS, *PARTS, *FAMILIES])
def test_info_knows_every_network(name, capsys):
    assert cli.main(["info", name]) == 0
    side = image_side(name)
    assert f"{name}, one {side} x {side} image" in capsys.readouterr().out


def test_the_families_cover_torchvision():
    families = {module.__module__ for module in map(models.get_model_builder, FAMILIES)}
    assert families == {module.__module__ for module in map(models.get_model_builder, TORCHVISION)}


@pytest.mark.slow  # half a minute together
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_network_of_torchvision_is_built_without_memory(name):
    with without_memory():
        network = build(name, 7)
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize("name", ["wae_small_vgg", "wae_resnet18", "small_photo_vgg"])
def test_without_memory_image_scale_has_its_value(name):
    """Training sets it if it is 1."""
    with without_memory():
        assert build(name).image_scale.unique().numel() == 1


@pytest.mark.parametrize(
    "name", ["", "vgg99", "wae_", "_half", "wae_wae_resnet18", "wavelet_x", "wavelet_enet", "x" * 9]
)
def test_unknown_names_are_refused(name):
    assert builder(name) is None
    with pytest.raises(NetworkError, match=f"there is no network {name}; known are wae_vgg16, "):
        build(name)


@pytest.mark.parametrize("classes", [0, -1, True, 2.0])
def test_invalid_numbers_of_classes_are_refused(classes):
    with pytest.raises(NetworkError, match=f"classes must be an integer of at least 1, got {classes}"):
        build("small_vgg", classes)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("wae_vit_b_32", 64),
        ("wavelet_vit_b_32", 64),
        pytest.param("wae_maxvit_t", 448, marks=pytest.mark.slow),
    ],
)
def test_wae_is_made_for_other_images_than_those_of_224_pixels_if_need_be(name, side):
    network = on_meta(partial(build, name, 3, size=(side, side)))
    assert network(torch.empty(2, 3, side, side, device="meta")).shape == (2, 3)


def test_wae_is_the_same_for_images_of_all_sizes_that_it_takes_anyway():
    """A light CNN for images of 32 x 32 would be wider."""
    name = "wae_shufflenet_v2_x1_0"
    shapes = [
        {key: tensor.shape for key, tensor in on_meta(make).state_dict().items()}
        for make in (partial(build, name), partial(build, name, size=(32, 32)))
    ]
    assert shapes[0] == shapes[1]


def test_the_side_in_a_name_is_that_of_the_images_that_the_network_sees():
    assert on_meta(partial(build, "shufflenet_v2_x0_5_at_96", 3)).side == 96


def test_the_size_of_the_images_is_in_the_error_if_wae_cannot_be_made_for_it():
    message = r"^wae_maxvit_t cannot be built: .* \(its bodies get 112 x 112 of images of 224 x 224\)$"
    with pytest.raises(NetworkError, match=message):
        named("wae_maxvit_t")


def test_info_of_a_network_that_takes_no_224_pixel_images_is_an_error(capsys):
    assert cli.main(["info", "vit_b_16_half"]) == 2
    assert "vit_b_16_half takes no image of 224 x 224: Wrong image height" in capsys.readouterr().err


@pytest.mark.parametrize("error", [IndexError("out of range\nhere"), ZeroDivisionError("out of range")])
def test_info_reports_any_error_of_a_network_in_one_line(monkeypatch, capsys, error):
    class Raises(nn.Linear):
        def forward(self, image):
            raise error

    monkeypatch.setattr("wae.experiments.info.build", lambda name: Raises(1, 1))
    assert cli.main(["info", "resnet18"]) == 2
    assert capsys.readouterr().err == "wae: resnet18 takes no image of 224 x 224: out of range\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_left_out(name):
    """In training mode too, the network returns one tensor of scores, and WAE can be built around it."""
    network = on_meta(partial(build, name, 7)).train()
    assert network(torch.empty(2, 3, 299, 299, device="meta")).shape == (2, 7)
    wae = on_meta(partial(build, f"wae_{name}", 7)).train()
    assert wae(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 7)
    assert not [key for key in wae.state_dict() if "aux" in key.lower()]


def test_a_regnet_without_memory_has_the_shapes_of_the_network():
    shapes = {name: tensor.shape for name, tensor in build("regnet_x_400mf").state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in named("regnet_x_400mf").state_dict().items()}
    assert light_body(standard_body("regnet_x_400mf")).training


# -------------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_the_published_ones(name):
    assert cost(name) == pytest.approx(PUBLISHED[name] * 1e9, rel=0.03)


def test_multiply_adds_of_resnet50():
    assert cost("resnet50") == pytest.approx(4.1e9, rel=0.01)  # the usual figure
    wae = named("wae_resnet50")
    half, quarter = count(wae.low_body, (112, 112)), count(wae.high_body, (112, 112))
    assert 14 < half.multiply_adds / quarter.multiply_adds < 16  # 16, but for the first layer's 3 channels
    assert cost("wae_resnet50") == half.multiply_adds + quarter.multiply_adds + 1000 * (2048 + 2560)


def test_counting_does_not_change_the_network():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4))
    network[2].eval()  # frozen
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count(network, (8, 8))
    assert [module.training for module in network] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_network_of_any_dtype_is_counted(dtype):
    network = torch.nn.Conv2d(3, 4, 3)
    assert count(network.to(dtype), (8, 8)) == count(torch.nn.Conv2d(3, 4, 3), (8, 8))


def test_a_network_without_parameters_is_counted():
    assert count(torch.nn.ReLU(), (8, 8)) == (0, 0)


def test_encoder_multiply_adds_counts_only_encoders():
    assert encoder_multiply_adds(named("vgg16")) == 0
    assert encoder_multiply_adds(named("wavelet_vgg16")) == 0
    assert encoder_multiply_adds(named("wae_resnet50")) == 263_725_056
    assert encoder_multiply_adds(named("wae_small_vgg"), 28) == 263_725_056 // 64


# ---------------------------------------------------------------------------------------- docs/models.md


@pytest.mark.parametrize(
    ("names", "shown"),
    re.findall(r"<!-- registry: *(.*?) *-->\n(.*?)\n?<!-- end -->", PAGE.read_text(), re.S),
)
@pytest.mark.slow
def test_tables_are_what_the_command_prints(names, shown):
    pytest.importorskip("timm", reason="timm is not installed")
    expected = table(around(names.split()) if names else compared())
    assert shown == expected, f"docs/models.md must hold what `python -m wae.models.registry {names}` prints"


def test_a_table_of_an_unknown_network_is_one_line(capsys):
    pytest.importorskip("timm", reason="timm is not installed")
    assert registry.main(["nosuch"]) == 1
    assert capsys.readouterr().err == "name must be a network of torchvision or timm, got 'nosuch'\n"


def test_the_examples_of_the_page_run():
    with_our_ops, around_a_body = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names = {}
    if backends.backend_for("cpu").startswith("cpu"):
        exec(with_our_ops, names)
        assert names["scores"].shape == (1, 1000)
    exec(around_a_body, names)
    assert names["loss"].isfinite()
    assert names["body"].features[0][0].weight.grad.isfinite().all()
