"""Loads weights before a training: from other files, or from torchvision."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from wae.errors import UsageError
from wae.models.autoencoder import AutoEncoder
from wae.models.baselines import FullResolution
from wae.models.bodies import AUXILIARY, CLASSIFIERS
from wae.models.classifier import WAEClassifier
from wae.models.network import WAENetwork
from wae.models.small_vgg import SmallVGG
from wae.storage import weights_file
from wae.storage.checkpoint import describe, load_classifier
from wae.storage.files import no_file
from wae.storage.weights_file import CheckpointError
from wae.wording import counted, first_line
from wae_kernels.nn import Encoder

TORCHVISION = "torchvision"
"""Stands for torchvision's best weights of the network as a source; they may be downloaded."""

_PREFIXES = (
    *("", "features.", "network.", "network.0.", "network.features.", "body.", "low_body."),
    *("backbone.", "model.", "model.backbone."),
)
"""Prefixes that the tensors of a body may have in a file: in torchvision's networks, in this package's, and
in networks with further parts."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
"""Prefixes that all tensors have if the network was saved inside another module."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of colours 0..1, as torchvision's weights expect them
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5)
"""Mean and deviation for torchvision's weights of GoogLeNet and Inception v3: see
:func:`wae.models.bodies.torchvision_network`."""


def scale_for_photos(model: nn.Module) -> None:
    """If ``model`` does not scale its images (0..255), make it scale their colours to about unit variance.

    It uses ImageNet's mean and standard deviation, with which pretrained bodies were trained. The transform
    loss is measured in these units.
    """
    scale, shift = model.get_buffer("image_scale"), model.get_buffer("image_shift")
    if bool((scale == 1).all()) and bool((shift == 0).all()):
        _scale(model, IMAGENET_MEAN, IMAGENET_DEVIATION)


@torch.no_grad()
def _scale(model: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
    """Make ``model`` normalise its images (0..255) by the mean and deviation of colours 0..1."""
    m, d = torch.tensor(mean), torch.tensor(deviation)
    model.get_buffer("image_scale").copy_(1 / (255 * d))
    model.get_buffer("image_shift").copy_(-m / d)


def load_weights(model: nn.Module, name: str, classes: int, path: Path) -> None:
    """Load the weights of a checkpoint of the same network into ``model``, which is called ``name``.

    If the checkpoint has no decoder, that of the model does not change.

    Raises CheckpointError if the file is missing or damaged, or holds another network or number of classes,
    or the network for images of another size or as ``wae accelerate`` builds it, if its tensors differ.
    """
    described = describe(path)
    if (described.network, described.classes) != (name, classes):
        raise CheckpointError(
            f"{path}: needs {name} for {counted(classes, 'class')}, "
            f"got {described.network} for {described.classes}"
        )
    found, wanted = load_classifier(path).state_dict(), model.state_dict()
    if not any(key.startswith("decoder.") for key in found):
        wanted = {key: tensor for key, tensor in wanted.items() if not key.startswith("decoder.")}
    if wrong := weights_file.mismatches(found, wanted):
        raise CheckpointError(f"{path}: these are not the weights of {name} as it is built here: {wrong[0]}")
    model.load_state_dict(found, strict=False)


@torch.no_grad()
def load_autoencoder(model: nn.Module, path: Path) -> None:
    """Load a trained auto-encoder into ``model``, with the scale and shift of its images.

    Raises:
        CheckpointError: the file is missing or damaged, or not an auto-encoder of the published width.
        UsageError: ``model`` has no encoder and decoder that could take it.
    """
    if not (isinstance(model, WAENetwork) and isinstance(model.encoder, Encoder) and model.decoder):
        raise UsageError("an auto-encoder needs a WAE network with a learned encoder and a decoder")
    trained = AutoEncoder()
    weights_file.load(path, trained)
    model.encoder.load_state_dict(trained.encoder.state_dict())
    model.decoder.load_state_dict(trained.decoder.state_dict())
    model.image_scale.copy_(trained.image_scale)
    model.image_shift.copy_(trained.image_shift)


def load_body(model: nn.Module, name: str, source: str) -> None:
    """Load pretrained weights into the standard body of ``model``; its classifier does not change.

    torchvision's weights also come with the scale and shift that they expect, unless they are for a WAE
    network, which normalises what its body sees.

    Args:
        model: the network called ``name``. In a WAE network the low body is loaded.
        source: a file of a network or its body, written by safetensors or torch.save (no code in it is ever
            run); or :data:`TORCHVISION`.

    Raises:
        CheckpointError: the file is missing or damaged, holds more than tensors, or they are not the body's;
            those of a deeper network are not either, although they begin with the same layers.
        UsageError: torchvision has no weights for that network.
    """
    body = _body(model)
    tensors = _from_torchvision(name) if source == TORCHVISION else read_tensors(Path(source))
    wanted = body.state_dict()
    if not isinstance(model, WAEClassifier):  # it has bodies alone, of which timm's may have a ``head.norm``
        wanted = {key: tensor for key, tensor in wanted.items() if _top(key) not in CLASSIFIERS}
    prefix = max(
        _PREFIXES, key=lambda p: len(wanted.keys() & {k.removeprefix(p) for k in tensors if k.startswith(p)})
    )
    found = {key: tensors[prefix + key] for key in wanted if prefix + key in tensors}
    if wrong := weights_file.mismatches(found, wanted, without_counters=True):
        raise CheckpointError(f"{source}: these are not the weights of {name}'s body: {wrong[0]}")
    below = [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
    if more := _of_missing_layer(below, body):
        raise CheckpointError(f"{source}: these are not the weights of {name}'s body: {more} is unexpected")
    weights_file.put(source, body, found, strict=False)
    if source == TORCHVISION and isinstance(model, FullResolution):
        _scale(model, *expected_colours(_stem(name)))


def _of_missing_layer(names: Sequence[str], body: nn.Module) -> str:
    """The first of the tensors called ``names`` that is of a layer that ``body`` lacks; "" if there is none.

    Only the parts that ``body`` has are searched: a file may hold more, such as classifiers.
    """
    layers = dict(body.named_modules(remove_duplicate=False))  # a layer may be used twice
    parts = {_top(key) for key in body.state_dict()} - set(CLASSIFIERS)
    return next((n for n in names if _top(n) in parts and n.rpartition(".")[0] not in layers), "")


def _top(name: str) -> str:
    """The child of a network that has the tensor called ``name``."""
    return name.partition(".")[0]


def _body(model: nn.Module) -> nn.Module:
    if isinstance(model, WAENetwork):
        low: nn.Module = getattr(model, model.bodies[0])
        return low
    if isinstance(model, SmallVGG):
        return model.body
    assert isinstance(model, FullResolution)  # the only other kind
    network = model.network
    return network[0] if isinstance(network, nn.Sequential) else network


def _from_torchvision(name: str) -> Mapping[str, Tensor]:
    stem = _stem(name)
    torchvision_weights(stem)
    make = partial(models.get_model, stem, weights="DEFAULT")
    return downloaded(TORCHVISION, stem, make).state_dict()


def _stem(name: str) -> str:
    """The name of the network around which the one called ``name`` is built."""
    return re.sub(r"^(wae|wavelet)_|(_half|_at_\d+)$", "", name)


def torchvision_weights(name: str) -> Any:
    """torchvision's best weights for its network ``name``. Raises UsageError if it has none."""
    try:
        return models.get_model_weights(name)["DEFAULT"]
    except (ValueError, KeyError):
        raise UsageError(f"torchvision has no weights for {name}") from None


def expected_colours(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation, of colours 0..1, of the images that torchvision's best weights of ``name`` expect.

    GoogLeNet and Inception v3 do not rescale what torchvision's preset normalises: see
    :func:`wae.models.bodies.torchvision_network`. Raises UsageError if there are no such weights.
    """
    preset = torchvision_weights(name).transforms()
    return (HALVES, HALVES) if name in AUXILIARY else (preset.mean, preset.std)


def downloaded(library: str, name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """The network that ``make`` returns; it may download weights. Raises ValueError if that fails."""
    try:
        return make()
    except Exception as error:  # no connection, a damaged file, or anything else
        why = first_line(error)
        raise ValueError(f"{library}'s weights for {name} could not be downloaded: {why}") from None


def read_tensors(path: Path, known: Set[str] = frozenset()) -> Mapping[str, Tensor]:
    """The tensors of a network, by name, in a file written by safetensors or torch.save.

    An enclosing dictionary is removed, and so are the prefixes that wrappers put before all names, until one
    of the names is ``known``.

    Raises CheckpointError if the file is missing or damaged, or holds something else.
    """
    if why := no_file(path):
        raise CheckpointError(f"{path}: {why}")
    try:
        if path.suffix == ".safetensors" or _is_safetensors(path):
            return _unwrapped(load_file(path), known)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged; nothing in it was run. Save the network's "
            "state_dict() alone, as safetensors or with torch.save"
        ) from None
    except Exception as error:  # torch's reader raises almost anything on other files
        raise CheckpointError(f"{path}: this is not a file of weights ({first_line(error)})") from None
    for wrapper in ("state_dict", "model"):  # keys that training scripts use
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path}: must hold a state_dict, tensors by name")
    return _unwrapped(content, known)


def _is_safetensors(path: Path) -> bool:
    """Whether the content, whatever the file is called, begins as in safetensors: a length, then JSON."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _unwrapped(tensors: Mapping[str, Tensor], known: Set[str]) -> Mapping[str, Tensor]:
    """``tensors`` without the prefixes that DataParallel, torch.compile and training scripts add."""
    while tensors and not tensors.keys() & known:
        prefix = next((p for p in _WRAPPERS if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
