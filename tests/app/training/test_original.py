"""Opening a trained classifier with its weights and preprocessing, and building WAE around it."""

import http.client
from dataclasses import replace

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from tiny_original import build
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from wae.data.input import Input, whole
from wae.models.accelerated import Form, accelerated, show_small_image
from wae.models.baselines import FullResolution
from wae.models.last_layer import split_last_linear
from wae.models.registry import NetworkError
from wae.models.registry import build as named
from wae.storage import weights_file
from wae.storage.checkpoint import load_classifier, save_classifier
from wae.storage.weights_file import CheckpointError
from wae.training.linear_start import best_linear, linear_reconstruction, start_as_small_image
from wae.training.original import open_original
from wae.training.pretrained import load_autoencoder

TINY = "shufflenet_v2_x0_5"


def equal(one, other):
    return all(torch.equal(a, other[name]) for name, a in one.items())


def test_torchvision_weights_come_from_its_cache(tmp_path, monkeypatch):
    """The cache is filled with random weights, so nothing is downloaded."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    weights = torchvision.models.get_model_weights(TINY).DEFAULT
    (tmp_path / "checkpoints").mkdir()
    random = torchvision.models.get_model(TINY).state_dict()
    torch.save(random, tmp_path / "checkpoints" / weights.url.rpartition("/")[2])
    original = open_original(TINY, "torchvision", 10)
    assert equal(random, original.network.state_dict())
    assert (original.name, original.classes) == (TINY, 1000)
    assert original.input == Input(224, 256)
    assert original.mean == (0.485, 0.456, 0.406)
    preset, pixels = weights.transforms(), torch.randint(256, (3, 224, 224), dtype=torch.uint8)
    expected = torchvision.transforms.functional.normalize(pixels / 255, preset.mean, preset.std)
    with torch.no_grad():
        scores = original.classifier()(pixels[None])
        assert (scores - original.network(expected[None])).norm() <= 1e-5 * scores.norm()


@pytest.mark.parametrize("source", ["torchvision", "file"])
def test_googlenet_computes_what_torchvisions_does_and_so_does_its_copy_by_name(
    tmp_path, monkeypatch, source
):
    """With its weights torchvision's network rescales images, which the weights do not say.

    The file of these weights also has the auxiliary classifiers, which are left out.
    """
    name = "googlenet"
    weights = torchvision.models.get_model_weights(name).DEFAULT
    random = torchvision.models.get_model(name, init_weights=False).state_dict()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: random)
    torch.save(random, tmp_path / "w.pth")
    assert any(key.startswith("aux1.") for key in random)
    original = open_original(name, source if source == "torchvision" else str(tmp_path / "w.pth"), 10)
    pixels, preset = torch.randint(256, (1, 3, 96, 96), dtype=torch.uint8), weights.transforms()
    stock = torchvision.models.get_model(name, weights=weights).eval()
    named_network = named(name, 1000).network.eval()
    named_network.load_state_dict(original.network.state_dict())
    with torch.no_grad():
        expected = stock(torchvision.transforms.functional.normalize(pixels / 255, preset.mean, preset.std))
        scores = original.classifier()(pixels)
        again = replace(original, network=named_network).classifier()(pixels)
    assert (scores - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(again, scores)


def test_preprocessing_is_that_of_torchvisions_weights(tmp_path, monkeypatch):
    swins = torchvision.models.get_weight("Swin_T_Weights.IMAGENET1K_V1")
    monkeypatch.setattr("wae.training.original.torchvision_weights", lambda name: swins)
    torch.save(torchvision.models.get_model(TINY, num_classes=5).state_dict(), tmp_path / "w.pth")
    assert open_original(TINY, str(tmp_path / "w.pth"), 5).input == Input(224, 232, interpolation="bicubic")


def test_preprocessing_is_that_of_a_networks_timm_configuration():
    pytest.importorskip("timm")
    network, mean, std = build(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    network.pretrained_cfg = {
        "input_size": (3, 96, 96), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic",
        "mean": mean, "std": std,
    }  # fmt: skip
    original = open_original(network, None, 5)
    assert original.input == Input(96, 106, interpolation="bicubic", squash=True)
    assert (original.mean, original.std) == (mean, std)


def test_timm_weights_come_from_its_cache(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    name, commit = "test_resnet", "0" * 40
    network = timm.create_model(name)
    configuration = network.pretrained_cfg
    repository = f"{configuration['hf_hub_id']}".replace("/", "--")
    cache = tmp_path / f"models--{repository}"
    for folder in (cache / "refs", cache / "snapshots" / commit):
        folder.mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    save_file(network.state_dict(), cache / "snapshots" / commit / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    original = open_original(name, "timm", 10)
    assert equal(network.state_dict(), original.network.state_dict())
    size = configuration["input_size"][1]
    assert original.input == Input(
        size, int(size / configuration["crop_pct"]), interpolation=configuration["interpolation"]
    )
    assert original.mean == tuple(configuration["mean"])
    assert original.classes == configuration["num_classes"]


@pytest.mark.parametrize("classes", [7, 1000])
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "weights"])
def test_the_number_of_classes_comes_from_the_file(tmp_path, classes, suffix):
    """Whose name need not say that it is safetensors."""
    network = torchvision.models.get_model(TINY, num_classes=classes)
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{n}": t for n, t in network.state_dict().items()}}, path)
    else:
        save_file(network.state_dict(), path)
    original = open_original(TINY, str(path), 7)
    assert original.classes == classes
    assert equal(network.state_dict(), original.network.state_dict())
    assert not original.network.training
    assert list(original.sources) == ["--weights"]


def test_a_file_for_imagenet_fits_even_if_the_data_has_as_many_classes_as_a_layer_has_channels(tmp_path):
    network = torchvision.models.get_model(TINY)
    widths = {module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    torch.save(network.state_dict(), tmp_path / "w.pth")
    assert open_original(TINY, str(tmp_path / "w.pth"), max(widths)).classes == 1000


class Wrapped(nn.Module):
    """A user's network whose only part has a name by which scripts wrap other networks."""

    def __init__(self):
        super().__init__()
        self.model = build()

    def forward(self, image):
        return self.model(image)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_only_a_wrappers_prefix_is_removed_from_names_that_begin_alike(tmp_path, monkeypatch, prefix, suffix):
    source, path = Wrapped(), tmp_path / f"w.{suffix}"
    nn.init.normal_(source.model[-1].weight)
    tensors = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save(tensors, path) if suffix == "pth" else save_file(tensors, path)
    monkeypatch.setattr("wae.training.original.own_network", lambda name: Wrapped())
    original = open_original("mine:build", str(path), 5)
    assert equal(source.state_dict(), original.network.state_dict())


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.half, torch.compile])
def test_a_users_network_is_copied_unwrapped_and_in_float32(change):
    wanted, given = build().state_dict(), change(build())
    network = open_original(given, None, 5).network
    assert network.state_dict().keys() == wanted.keys()
    assert {number.dtype for number in network.parameters()} == {torch.float32}
    assert all(
        torch.allclose(tensor, wanted[name], atol=1e-3) for name, tensor in network.state_dict().items()
    )
    unchanged = change(build())
    assert next(given.parameters()).dtype == next(unchanged.parameters()).dtype


class WithState(Wrapped):
    def get_extra_state(self):
        return {"epoch": 3}


def pruned():
    network = build()
    l1_unstructured(network[0], "weight", 0.5)
    return network


def weight_normed():
    network = build()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(network[0])
    return network


def spectral_normed():
    network = build()
    nn.utils.spectral_norm(network[0])
    network(torch.zeros(2, 3, 48, 48))
    return network


def raising():
    raise KeyError("best.pt")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (WithState, "must have only tensors in its state, got _extra_state: dict"),
        (
            pruned,
            "cannot be copied: Only Tensors created explicitly by the user.*prune.remove ",
        ),
        (weight_normed, "cannot be copied: .*remove_weight_norm makes .*parametrizations.weight_norm are"),
        (spectral_normed, "cannot be copied: .*remove_spectral_norm makes .*parametrizations.spectral_norm"),
        (lambda: nn.Sequential(torch.jit.ScriptModule(), nn.Linear(3, 5)), "must .* TorchScript module"),
        (lambda: build().to("meta"), "cannot be copied: Cannot copy out of meta tensor"),
        (raising, "cannot be called: KeyError: 'best.pt'"),
    ],
)
def test_an_unusable_users_network_is_refused(monkeypatch, make, why):
    monkeypatch.setattr("tiny_original.build", make)
    with pytest.raises(NetworkError, match=f"^tiny_original:build {why}"):
        open_original("tiny_original:build", None, 5)


def test_any_download_error_is_reported(monkeypatch):
    def make(*arguments, **options):
        raise http.client.IncompleteRead(b"")  # neither an OSError nor a RuntimeError

    monkeypatch.setattr(torchvision.models, "get_model", make)
    with pytest.raises(ValueError, match=f"torchvision's weights for {TINY} could not be downloaded: Incom"):
        open_original(TINY, "torchvision", 10)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("tiny_original:build", "torchvision", "torchvision has none for tiny_original:build; need a FILE$"),
        ("tiny_original:build", "timm", "timm has none for tiny_original:build; need a FILE$"),
        ("vit_tiny_patch16_224", "torchvision", "torchvision has none for vit_.*; need a FILE or timm$"),
        ("vit_tiny_patch16_224", None, "vit_.* needs trained ones, a FILE or timm; got none$"),
        ("googlenet", "timm", "timm has none for googlenet; need a FILE or torchvision$"),
        ("resnet18", None, "resnet18 needs trained ones, a FILE, torchvision or timm; got none$"),
    ],
)
def test_weights_of_a_library_that_lacks_the_network_are_refused(model, weights, message):
    """The word is not taken for the name of a file; no library that lacks the network is offered."""
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=f"^weights: {message}"):
        open_original(model, weights, 5)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(build().state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"these are not the network's weights: conv1.0.weight is missing"
    ):
        open_original(TINY, str(path), 5)


def test_weights_without_the_counters_of_batchnorms_are_taken(tmp_path):
    """Old versions of PyTorch had none. Nothing else may be missing."""
    path, network = tmp_path / "w.pth", torchvision.models.get_model(TINY, num_classes=5)
    state = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, path)
    opened = open_original(TINY, str(path), 5).network
    assert all(torch.equal(tensor, state[name]) for name, tensor in opened.named_parameters())
    del state["conv1.1.running_mean"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"conv1\.1\.running_mean is missing$"):
        open_original(TINY, str(path), 5)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path, network = tmp_path / "w.pth", torchvision.models.get_model(TINY, num_classes=5)
    next(network.parameters()).data[0] = torch.nan
    torch.save(network.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"w\.pth: conv1\.0\.weight has numbers that are not finite"):
        open_original(TINY, str(path), 5)


def test_preprocessing_comes_from_the_checkpoint(tmp_path):
    model = FullResolution(torchvision.models.get_model(TINY, num_classes=3), (1 / 64,) * 3, (-2.0,) * 3)
    path = tmp_path / "model.safetensors"
    save_classifier(path, model, TINY, ["a", "b", "c"], Input(96, 100, interpolation="bicubic"))
    original = open_original(str(path), None, 3)
    assert (original.labels, original.input) == (("a", "b", "c"), Input(96, 100, interpolation="bicubic"))
    assert torch.allclose(original.classifier().image_scale, model.image_scale)
    assert torch.allclose(original.classifier().image_shift, model.image_shift)
    for name in (f"{TINY}_half", f"{TINY}_at_64"):  # WAE cannot be built around these
        save_classifier(tmp_path / "other.safetensors", named(name, 3), name, ["a", "b", "c"], force=True)
        with pytest.raises(CheckpointError, match=f"holds {name}; need a stock network"):
            open_original(str(tmp_path / "other.safetensors"), None, 3)


def test_a_network_for_images_that_are_not_square_is_refused(tmp_path):
    path = tmp_path / "original.safetensors"
    message = "needs a network for square images, got one for 20 x 30"
    save_classifier(path, named("small_photo_vgg", 3), "small_photo_vgg", ("a", "b", "c"), whole(20, 30))
    with pytest.raises(ValueError, match=message):
        open_original(str(path), None, 3)
    network = build()
    network.pretrained_cfg = {"input_size": (3, 20, 30)}
    with pytest.raises(ValueError, match=message):
        open_original(network, None, 3)


def test_an_accelerated_network_of_ours_is_saved_by_name(tmp_path):
    """Otherwise an acceleration of small_photo_vgg trains to its end and then cannot be saved."""
    path, form = tmp_path / "model.safetensors", Form(64)
    original = named("small_photo_vgg", 3)
    save_classifier(path, original, "small_photo_vgg", ["a", "b", "c"], Input(64))
    network = accelerated(open_original(str(path), None, 3).network, form)
    save_classifier(path, network, "wae_small_photo_vgg", ["a", "b", "c"], Input(64), force=True, form=form)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(load_classifier(path)(images), network.eval()(images))
    with pytest.raises(NetworkError, match="can be accelerated by name, got small_vgg"):
        named("wae_small_vgg", 3, form)


# ---------------------------------------------------------------------------------------- around the original


def test_the_initial_network_is_the_original_at_half_the_resolution():
    network = build().eval()
    model = accelerated(network, Form(48)).eval()
    images = torch.randint(256, (4, 3, 48, 48), dtype=torch.uint8)
    low, high = model.decompose(images)
    with torch.no_grad():
        expected = network(model.low_norm(low))
        assert (model.scores(low, high) - expected).norm() <= 1e-5 * expected.norm()
    body, linear = split_last_linear(build(), (24, 24))
    assert isinstance(linear, torch.nn.Linear)
    assert body(torch.zeros(1, 3, 24, 24)).shape == (1, linear.in_features)


@pytest.mark.parametrize("training", [False, True])
def test_an_accelerated_network_has_the_originals_training_mode(training):
    network = build().train(training)
    assert {module.training for module in accelerated(network, Form(48)).modules()} == {training}


def test_the_low_body_sees_a_small_image_in_its_units():
    from wae.data import photos

    model = accelerated(build(), Form(64))
    load_autoencoder(model, weights_file.WEIGHTS / "autoencoder.safetensors")
    sample = torch.stack([photos.photo(name)[:, 40:168, 40:168] for name in ("chelsea", "coffee", "rocket")])
    scale, shift = torch.tensor([1 / 60, 1 / 55, 1 / 50]), torch.tensor([-2.1, -2.0, -1.8])
    show_small_image(model, sample, scale, shift)
    wanted = torch.nn.functional.avg_pool2d(sample * scale.view(1, 3, 1, 1) + shift.view(1, 3, 1, 1), 2)
    low, high = model.decompose(sample)
    with torch.no_grad():
        assert (model.eval().low_norm(low) - wanted).norm() <= 0.1 * wanted.norm()
        assert model.high_norm(high).std((0, 2, 3)).allclose(torch.ones(3), atol=1e-2)


def test_a_linear_start_is_fitted_to_the_images_in_the_units_of_the_low_body():
    from wae.data import photos

    model = accelerated(build(), Form(64))
    sample = torch.stack([photos.photo(name)[:, 40:168, 40:168] for name in ("chelsea", "coffee", "rocket")])
    scale, shift = torch.tensor([1 / 60, 1 / 30, 1 / 90]), torch.tensor([-2.1, -0.5, 1.8])
    start_as_small_image(model, sample, scale, shift)
    assert torch.equal(model.image_scale, scale)
    assert torch.equal(model.image_shift, shift)
    units = sample * scale.view(1, 3, 1, 1) + shift.view(1, 3, 1, 1)
    low, high = model.decompose(sample)
    with torch.no_grad():
        small = torch.nn.functional.avg_pool2d(units, 2)
        assert (model.eval().low_norm(low) - small).norm() <= 0.1 * small.norm()
        assert model.high_norm(high).std((0, 2, 3)).allclose(torch.ones(3), atol=1e-2)
        assert model.high_norm(high).mean((0, 2, 3)).allclose(torch.zeros(3), atol=1e-5)
        decoded = model.decoder(low, high, (128, 128))
    transform = best_linear(units)
    wanted = torch.stack([linear_reconstruction(image, transform) for image in units])
    assert (decoded - wanted).norm() <= 1e-5 * wanted.norm()


def test_an_auto_encoder_whose_low_is_not_a_small_image_is_refused():
    model = accelerated(build(), Form(64))
    load_autoencoder(model, weights_file.WEIGHTS / "autoencoder.safetensors")
    with torch.no_grad():
        model.encoder.low.weight.neg_()
    image = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    with pytest.raises(ValueError, match="low is not a small image"):
        show_small_image(model, image, torch.ones(3), torch.zeros(3))


@pytest.mark.parametrize(("entry", "value"), [("size", 1), ("size", 2.0), ("factor", 0), ("factor", True)])
def test_wrong_forms_are_refused(entry, value):
    with pytest.raises(ValueError, match=f"{entry} must be an integer"):
        Form(**{"size": 64, entry: value})


@pytest.mark.slow
def test_an_accelerated_network_of_a_library_is_saved_and_loaded(tmp_path):
    network = torchvision.models.get_model(TINY, num_classes=3)
    model, form = accelerated(network, Form(64, 2)).eval(), Form(64, 2)
    path, name = tmp_path / "c", f"wae_{TINY}"
    save_classifier(path, model, name, input=Input(64, 64), form=form)
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(load_classifier(path)(images), model(images))
    with pytest.raises(ValueError, match="got other parameters"):
        save_classifier(tmp_path / "d", model, name, form=Form(64, 8))
