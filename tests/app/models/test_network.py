"""wae.models.network: what all WAE networks share, decomposition, reconstruction, folding."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import prune

from wae.models.autoencoder import AutoEncoder
from wae.models.classifier import FlatClassifier, WAEClassifier
from wae.models.network import WAENetwork, fold_normalization, on_two_streams
from wae.models.segmentation.segmenter import Fusion, LightBody, WAESegmenter
from wae_kernels.nn import Decoder, Encoder

Make = Callable[[AutoEncoder, Decoder | None], WAENetwork]


def classifier(autoencoder: AutoEncoder, decoder: Decoder | None) -> WAENetwork:
    bodies = [nn.Sequential(nn.Conv2d(3, c, 3), nn.AdaptiveAvgPool2d(1)) for c in (8, 2)]
    scale, shift = autoencoder.image_scale.tolist(), autoencoder.image_shift.tolist()
    classifiers = FlatClassifier(8, 6, 5), FlatClassifier(10, 6, 5)
    return WAEClassifier(autoencoder.encoder, *bodies, *classifiers, scale, shift, decoder).eval()


def segmenter(autoencoder: AutoEncoder, decoder: Decoder | None) -> WAENetwork:
    low_network, fusion = nn.Conv2d(3, 5, 3, padding=1), Fusion(5, 16)
    scale, shift = autoencoder.image_scale.tolist(), autoencoder.image_shift.tolist()
    return WAESegmenter(autoencoder.encoder, low_network, LightBody(), fusion, scale, shift, decoder).eval()


kinds = pytest.mark.parametrize("make", [classifier, segmenter])


def image() -> Tensor:
    return torch.randint(0, 256, (2, 3, 21, 30), dtype=torch.uint8)


def set_statistics(model: WAENetwork) -> None:
    for norm in (model.low_norm, model.high_norm):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.fill_(0.5)
        norm.running_var.fill_(4)


@kinds
def test_decompose_and_reconstruct_match_the_auto_encoder(make: Make) -> None:
    autoencoder, photo = AutoEncoder(), image()
    model = make(autoencoder, autoencoder.decoder)
    set_statistics(model)  # must not matter: normalisation comes later
    expected = autoencoder(photo)
    low, high = model.decompose(photo)
    assert torch.equal(low, expected.low)
    assert torch.equal(high, expected.high)
    assert torch.equal(model.reconstruct(low, high, (21, 30)), expected.image)


@kinds
def test_reconstruct_needs_a_decoder(make: Make) -> None:
    model = make(AutoEncoder(), None)
    low, high = model.decompose(image())
    with pytest.raises(RuntimeError, match=f"no decoder: give {type(model).__name__} one"):
        model.reconstruct(low, high, (21, 30))
    assert not any(name.startswith("decoder") for name in model.state_dict())
    model.decoder = AutoEncoder().decoder
    assert model.reconstruct(low, high, (21, 30)).shape == (2, 3, 21, 30)
    assert any(name.startswith("decoder") for name in model.state_dict())


@kinds
def test_folding_keeps_the_scores_and_drops_the_decoder(make: Make) -> None:
    autoencoder, photo = AutoEncoder(), image()
    model = make(autoencoder, autoencoder.decoder)
    set_statistics(model)
    folded = fold_normalization(model)
    assert type(folded) is type(model)
    assert folded.decoder is None
    assert isinstance(folded.low_norm, nn.Identity)
    assert not any(module.training for module in folded.modules())
    assert model.decoder is autoencoder.decoder
    with torch.no_grad():
        torch.testing.assert_close(folded(photo), model(photo), rtol=1e-4, atol=1e-4)


def doubled(_: nn.Module, __: object, result: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return 2 * result if isinstance(result, Tensor) else tuple(2 * part for part in result)


@kinds
@pytest.mark.parametrize(
    ("change", "both"),
    [
        (lambda model: model.encoder.register_forward_hook(doubled), True),
        (lambda model: model.encoder.low.register_forward_hook(doubled), False),
        (lambda model: model.low_norm.register_forward_hook(doubled), False),
        (lambda model: prune.l1_unstructured(model.encoder.low, "weight", 0.5), False),
    ],
    ids=["encoder", "branch", "norm", "pruned branch"],
)
def test_modules_with_hooks_or_pruning_are_not_folded(
    make: Make, change: Callable[[WAENetwork], object], both: bool
) -> None:
    model, photo = make(AutoEncoder(), None), image()
    set_statistics(model)
    change(model)
    with torch.no_grad():
        expected = model(photo)
        folded = fold_normalization(model)
        torch.testing.assert_close(folded(photo), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(folded.low_norm, nn.BatchNorm2d)
    assert isinstance(folded.high_norm, nn.BatchNorm2d) == both


def folded_like(make: Make, change: Callable[[WAENetwork], object]) -> WAENetwork:
    """A changed network with folded normalisations, after a check that it has the same scores."""
    model, photo = make(AutoEncoder(), None), image()
    set_statistics(model)
    change(model)
    with torch.no_grad():
        expected, folded = model.eval()(photo), fold_normalization(model)
        torch.testing.assert_close(folded(photo), expected, rtol=1e-4, atol=1e-4)
    return folded


class Doubling(Encoder):
    """An encoder with its own forward."""

    def forward(self, *args: Any) -> tuple[Tensor, Tensor]:
        low, high = super().forward(*args)
        return 2 * low, 2 * high


def with_own_forward(model: WAENetwork) -> None:
    encoder = Doubling()
    encoder.load_state_dict(model.encoder.state_dict())
    model.encoder = encoder


@kinds
@pytest.mark.parametrize(
    "change",
    [
        with_own_forward,
        lambda model: setattr(model, "encoder", checkpoint_wrapper(model.encoder)),
        lambda model: setattr(model, "encoder", nn.DataParallel(model.encoder)),
    ],
    ids=["own forward", "checkpointed", "parallel"],
)
def test_encoders_that_are_wrapped_or_have_their_own_forward_are_not_folded(
    make: Make, change: Callable[[WAENetwork], object]
) -> None:
    """A wrapper that checkpoints has the attributes of its module."""
    assert isinstance(folded_like(make, change).low_norm, nn.BatchNorm2d)


def with_scale(model: WAENetwork) -> None:
    norm = nn.BatchNorm2d(3)
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, 1.0)
    model.low_norm = norm


def with_one_weight(model: WAENetwork) -> None:
    model.encoder.high.weight = model.encoder.low.weight


@kinds
@pytest.mark.parametrize(
    "change",
    [
        with_scale,
        with_one_weight,
        lambda model: setattr(model.encoder, "high", model.encoder.low),
        lambda model: setattr(model, "low_norm", nn.BatchNorm2d(3, track_running_stats=False)),
        lambda model: setattr(model.encoder, "low", nn.Conv2d(16, 3, 3, 2, 1, bias=False)),
    ],
    ids=["scale", "one weight", "one branch", "statistics of the batch", "no bias"],
)
def test_folding_keeps_the_scores_of_changed_layers(
    make: Make, change: Callable[[WAENetwork], object]
) -> None:
    folded_like(make, change)


@kinds
def test_behind_encoder_has_the_same_modules_and_scores(make: Make) -> None:
    model, photo = make(AutoEncoder(), None), image()
    behind = model.behind_encoder(photo.shape[2:])
    with torch.no_grad():
        assert torch.equal(behind(*model.decompose(photo)), model(photo))
    names = {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
    assert {name for name, _ in behind.named_parameters()} == names
    assert set(model.bodies) <= {name for name, _ in behind.named_children()}


def limit_streams_to(monkeypatch: pytest.MonkeyPatch, *streams: str) -> None:
    """Let torch.cuda.Stream return these, then fail."""
    remaining = list(streams)

    def make() -> str:
        if not remaining:
            raise RuntimeError("no stream left")
        return remaining.pop(0)

    monkeypatch.setattr(torch.cuda, "Stream", make)


def test_if_a_stream_cannot_be_created_no_network_keeps_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the first network would keep using two streams outside of a graph capture."""
    networks = [classifier(AutoEncoder(), None), segmenter(AutoEncoder(), None)]
    limit_streams_to(monkeypatch, "first")
    with pytest.raises(RuntimeError, match="no stream left"), on_two_streams(nn.ModuleList(networks)):
        pytest.fail("there is only one stream")
    assert [network.side_stream for network in networks] == [None, None]


def test_nested_on_two_streams_restores_the_outer_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    network = segmenter(AutoEncoder(), None)
    limit_streams_to(monkeypatch, "outer", "inner")
    with on_two_streams(network):
        with on_two_streams(network):
            assert network.side_stream == "inner"
        assert network.side_stream == "outer"
    assert network.side_stream is None


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_classifier_is_traced_for_torchscript() -> None:
    model, photo, file = classifier(AutoEncoder(), None), image(), io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, photo[:1]), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(photo), model(photo))


@kinds
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_cannot_compile_a_network(make: Make) -> None:
    with pytest.raises(TypeError, match=r"torch\.jit\.script cannot compile .* chooses in Python"):
        torch.jit.script(nn.Sequential(make(AutoEncoder(), None)))
