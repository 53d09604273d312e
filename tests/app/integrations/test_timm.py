"""WAE networks in timm, called as by its train, validate and benchmark scripts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from PIL import Image

import wae.integrations.timm as registered
from wae.data.input import IMAGENET, Transforms
from wae.models.meta import on_meta
from wae.models.registry import NetworkError, build
from wae.storage.checkpoint import save_classifier
from wae_kernels.nn import Decoder


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def photo() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (30, 40, 3), dtype=torch.uint8, generator=generator).numpy()
    return Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)


def test_every_timm_network_has_a_wae_name() -> None:
    theirs = timm.list_models(exclude_filters="wae_*")
    assert timm.list_models("wae_*", include_tags=False) == [f"wae_{name}" for name in theirs]
    assert callable(registered.wae_resnet50)
    assert "wae_resnet50" in registered.__all__


def test_every_name_is_registered_at_the_size_of_the_original() -> None:
    names = timm.list_models(exclude_filters="wae_*")
    theirs, ours = (
        [timm.get_pretrained_cfg(form.format(n)).input_size for n in names] for form in ("{}", "wae_{}")
    )
    assert ours == theirs
    assert len(set(ours)) > 20
    assert timm.get_pretrained_cfg("wae_vit_base_patch16_sapiens2").input_size == (3, 1024, 768)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("wae_vit_tiny_patch16_384", (384, 384)),
        ("wae_vit_base_patch16_sapiens2", (1024, 768)),
        ("wae_vit_small_patch14_dinov2", (518, 518)),
        ("wae_swinv2_tiny_window8_256", (256, 256)),
        ("wae_efficientnet_b1", (240, 240)),
        ("wae_hieradet_small", (256, 256)),
    ],
)
def test_a_network_takes_the_images_that_it_is_registered_for(name: str, size: tuple[int, int]) -> None:
    model = on_meta(partial(timm.create_model, name, num_classes=3))
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, *size)
    assert model(torch.rand(1, 3, *size, device="meta")).shape == (1, 3)


@pytest.mark.slow
def test_positions_are_made_for_the_size_of_the_images() -> None:
    name = "wae_vit_tiny_patch16_384"
    sizes: list[int | tuple[int, int]] = [320, (320, 192), (224, 224)]
    for size in sizes:
        model = timm.create_model(name, num_classes=3, img_size=size).eval()
        height, width = (size, size) if isinstance(size, int) else size
        with torch.no_grad():
            assert model(torch.rand(1, 3, height, width)).shape == (1, 3)
    assert shapes(model) == shapes(build(name, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["wae_resnet50", "wae_vgg16", "wae_mobilenetv3_small_050", "wae_deit_tiny_patch16_224"]
)
def test_a_name_means_the_same_network_everywhere(name: str) -> None:
    model, ours = timm.create_model(name, num_classes=3).eval(), build(name, 3)
    assert shapes(model) == shapes(ours)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 224, 224)).shape == (1, 3)
    assert model.num_classes == 3


@pytest.mark.parametrize("side", [160, 224, 320])
def test_positions_are_those_of_wae_train(side: int) -> None:
    """Fitted to the images once more, they would not fit the checkpoints."""
    model = timm.create_model("wae_test_vit", num_classes=3, img_size=side)
    assert shapes(model) == shapes(build("wae_test_vit", 3, size=(side, side)))


def test_timms_transform_agrees_with_ours() -> None:
    model = timm.create_model("wae_resnet18", num_classes=2)
    settings = timm.data.resolve_model_data_config(model)
    assert settings["interpolation"] == "bilinear"
    theirs = timm.data.create_transform(**settings)(photo())
    ours = Transforms(IMAGENET)(photo())
    assert theirs.shape == ours.shape
    # Pillow rounds between the passes over rows and columns, and cuts at another half pixel
    assert (theirs - ours).abs().mean() < 1.5


def test_the_network_normalises_as_the_original() -> None:
    original = timm.get_pretrained_cfg("mobilenetv3_small_050")
    model = timm.create_model("wae_mobilenetv3_small_050", num_classes=2)
    image = torch.rand(3, 5, 6)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (original.mean, original.std))
    scale, shift = (x.view(3, 1, 1) for x in (model.image_scale, model.image_shift))
    torch.testing.assert_close(255 * image * scale + shift, (image - mean) / std)


def test_a_wae_checkpoint_is_loaded(tmp_path: Path) -> None:
    trained = build("wae_resnet18", 3).eval()
    trained.decoder = Decoder()
    file = tmp_path / "model.safetensors"
    save_classifier(file, trained, "wae_resnet18")
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    by_overlay = timm.create_model("wae_resnet18", num_classes=3, **options).eval()
    by_script = timm.create_model("wae_resnet18", num_classes=3).eval()
    timm.models.load_checkpoint(by_script, str(file))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for model in (by_overlay, by_script):
            assert torch.equal(model(image), trained(image))


def test_reset_classifier_changes_the_number_of_classes() -> None:
    for name in ("wae_resnet18", "wae_vgg16"):
        model = timm.create_model(name, num_classes=3).eval()
        model.reset_classifier(5)
        with torch.no_grad():
            features = model.forward_features(torch.rand(1, 3, 224, 224))
            assert model.forward_head(features).shape == (1, 5)
        assert model.num_classes == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features_only": True}, "wae_resnet18 has no features_only"),
        ({"in_chans": 1}, "images of 3 channels, got in_chans 1"),
        ({"drop_rate": 0.1}, "has no drop_rate"),
        ({"num_classes": 0}, "must be 1 or more, got 0"),
        ({"img_size": (0, 4)}, r"img_size of wae_resnet18 must be .*, got \(0, 4\)"),
        ({"img_size": 22.4}, r"img_size of wae_resnet18 must be .*, got 22.4"),
    ],
)
def test_unsupported_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        timm.create_model("wae_resnet18", **options)


def test_there_are_no_pretrained_weights() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for wae_resnet18"):
        timm.create_model("wae_resnet18", pretrained=True)


def test_wae_names_in_timm_are_not_networks_to_build_wae_around() -> None:
    assert type(build("wae_mobilenetv3_small_050", 2)) is not type(build("mobilenetv3_small_050", 2))
    with pytest.raises(NetworkError, match="there is no network wae_wae_resnet10t"):
        build("wae_wae_resnet10t")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
def test_timms_training_and_validation_steps(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        photo().save(tmp_path / label / "1.png")
    model = timm.create_model("wae_resnet18", num_classes=2, drop_rate=0.0)
    settings = timm.data.resolve_model_data_config(model)
    data = timm.data.create_dataset("", root=str(tmp_path))
    loader = timm.data.create_loader(
        data, batch_size=2, use_prefetcher=False, num_workers=0, persistent_workers=False, **settings
    )
    optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=1e-3)
    ((images, labels),) = loader
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    model.eval()
    with torch.no_grad():
        scores = model(images)
    top1, top2 = timm.utils.accuracy(scores, labels, topk=(1, 2))
    assert float(top1) == 100 * (scores.argmax(1) == labels).double().mean()
    assert float(top2) == 100
