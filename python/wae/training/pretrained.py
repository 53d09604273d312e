"""Where weights come from before a training begins: other files, or torchvision."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from wae.models.autoencoder import AutoEncoder
from wae.models.baselines import FullResolution
from wae.models.network import WAENetwork
from wae.models.small_vgg import SmallVGG
from wae.storage import weights_file
from wae.storage.checkpoint import describe, load_classifier
from wae.storage.files import no_file
from wae.storage.weights_file import CheckpointError
from wae.wording import counted, first_line
from wae_kernels.nn import Encoder

TORCHVISION = "torchvision"
"""The source of weights that is torchvision, its best for that network; they may be downloaded."""

_PREFIXES = (
    *("", "features.", "network.", "network.0.", "network.features.", "body.", "low_body."),
    *("backbone.", "model.", "model.backbone."),
)
"""Prefixes of a body's names in a file: those of torchvision, of this package's networks, and of
networks that hold others beside."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
"""Prefixes of every name of a network that was saved inside another module."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of colours 0..1, as torchvision's weights want them
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@torch.no_grad()
def scale_for_photos(model: nn.Module) -> None:
    """Where ``model`` takes an image as it is, 0..255, make it take colours of about unit variance.

    They are ImageNet's mean and deviation: what pretrained bodies were trained with, and what the transform
    loss is measured in.
    """
    scale, shift = model.get_buffer("image_scale"), model.get_buffer("image_shift")
    if bool((scale == 1).all()) and bool((shift == 0).all()):
        mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_DEVIATION)
        scale.copy_(1 / (255 * deviation))
        shift.copy_(-mean / deviation)


def load_weights(model: nn.Module, name: str, classes: int, path: Path) -> None:
    """Put the weights of a checkpoint of the same network into ``model``, the one called ``name``.

    Where the checkpoint has no decoder, the model's stays as it is.

    Raises CheckpointError where the file is missing or damaged, or holds another network or other classes.
    """
    described = describe(path)
    if (described.network, described.classes) != (name, classes):
        raise CheckpointError(
            f"{path}: holds {described.network} for {counted(described.classes, 'class')}, "
            f"needed is {name} for {classes}"
        )
    model.load_state_dict(load_classifier(path).state_dict(), strict=False)


@torch.no_grad()
def load_autoencoder(model: nn.Module, path: Path) -> None:
    """Put a trained auto-encoder into ``model``, and the scale and shift of images that it was trained with.

    Raises:
        CheckpointError: the file is missing, damaged, or no auto-encoder of the published width.
        ValueError: ``model`` has no encoder and decoder that could take it.
    """
    if not (isinstance(model, WAENetwork) and isinstance(model.encoder, Encoder) and model.decoder):
        raise ValueError("an auto-encoder can only start a WAE network with a learned encoder and a decoder")
    trained = AutoEncoder()
    weights_file.load(path, trained)
    model.encoder.load_state_dict(trained.encoder.state_dict())
    model.decoder.load_state_dict(trained.decoder.state_dict())
    model.image_scale.copy_(trained.image_scale)
    model.image_shift.copy_(trained.image_shift)


def load_body(model: nn.Module, name: str, source: str) -> None:
    """Put pretrained weights into the standard body of ``model``; its classifier stays as it is.

    Args:
        model: the network called ``name``; of a WAE network the low body is meant.
        source: a file, safetensors or torch.save's (nothing in it is ever run), of a network or of its body;
            or :data:`TORCHVISION`.

    Raises:
        CheckpointError: the file is missing or damaged, holds more than tensors, or they are not the body's.
        ValueError: torchvision has no weights for that network.
    """
    body = _body(model)
    tensors = _from_torchvision(name) if source == TORCHVISION else read_tensors(Path(source))
    wanted = {key: tensor for key, tensor in body.state_dict().items() if not _is_classifiers(key)}
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}  # old files have none
    needed = wanted.keys() - counters
    prefix = max(
        _PREFIXES, key=lambda p: len(needed & {k.removeprefix(p) for k in tensors if k.startswith(p)})
    )
    found = {key: tensors[prefix + key] for key in wanted if prefix + key in tensors}
    if missing := sorted(needed - found.keys()):
        raise CheckpointError(
            f"{source}: these are not the weights of {name}'s body: {missing[0]} is missing"
        )
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{source}: these are not the weights of {name}'s body: {key} is {tuple(tensor.shape)}, "
                f"not {tuple(wanted[key].shape)}"
            )
    weights_file.put(body, found, strict=False)


def _body(model: nn.Module) -> nn.Module:
    if isinstance(model, WAENetwork):
        low: nn.Module = getattr(model, model.bodies[0])
        return low
    if isinstance(model, SmallVGG):
        return model.body
    assert isinstance(model, FullResolution)  # there are no others
    network = model.network
    return network[0] if isinstance(network, nn.Sequential) else network


def _is_classifiers(name: str) -> bool:
    """Whether a tensor is one of what torchvision's networks call their classifiers."""
    return name.startswith(("fc.", "classifier.", "head.", "heads."))


def _from_torchvision(name: str) -> Mapping[str, Tensor]:
    stem = name.removeprefix("wae_").removeprefix("wavelet_").removesuffix("_half")
    torchvision_weights(stem)
    make = partial(models.get_model, stem, weights="DEFAULT")
    return downloaded(TORCHVISION, stem, make).state_dict()


def torchvision_weights(name: str) -> Any:
    """The best that torchvision has for its network ``name``. Raises ValueError where it has none."""
    try:
        return models.get_model_weights(name)["DEFAULT"]
    except (ValueError, KeyError):
        raise ValueError(f"torchvision has no weights for {name}") from None


def downloaded(library: str, name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """What ``make`` makes, with weights that it may download. Raises ValueError where that fails."""
    try:
        return make()
    except Exception as error:  # no network, or a file that is not what its name says; of any kind
        why = first_line(error)
        raise ValueError(f"{library}'s weights for {name} could not be downloaded: {why}") from None


def read_tensors(path: Path, known: Set[str] = frozenset()) -> Mapping[str, Tensor]:
    """The tensors, by name, in a file of safetensors or torch.save's, as a network was saved.

    What is around it is taken off: a dictionary, and prefixes that all names have, unless names are ``known``
    with them.

    Raises CheckpointError.
    """
    if why := no_file(path):
        raise CheckpointError(f"{path}: {why}")
    try:
        if path.suffix == ".safetensors":
            return _unwrapped(load_file(path), known)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged; nothing in it was run. Save the network's "
            "state_dict() alone, as safetensors or with torch.save"
        ) from None
    except Exception as error:  # torch's reader raises nearly anything on a file that is none
        raise CheckpointError(f"{path}: this is no file of weights ({first_line(error)})") from None
    for wrapper in ("state_dict", "model"):  # as training scripts save it
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path}: must hold a state_dict, tensors by name")
    return _unwrapped(content, known)


def _unwrapped(tensors: Mapping[str, Tensor], known: Set[str]) -> Mapping[str, Tensor]:
    """``tensors`` without what DataParallel, torch.compile and training scripts put before every name."""
    while tensors and not tensors.keys() & known:
        prefix = next((p for p in _WRAPPERS if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
