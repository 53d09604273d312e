"""Opens a trained classifier as users have it: a name in torchvision or timm, a checkpoint, or a function."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from wae.data.input import INTERPOLATIONS, Input
from wae.errors import UsageError
from wae.models.baselines import FullResolution
from wae.models.bodies import AUXILIARY, is_timm, is_torchvision, torchvision_network
from wae.models.own import own_copy, own_network
from wae.models.registry import NetworkError
from wae.storage import weights_file
from wae.storage.checkpoint import describe_classifier, load_classifier, number_of_scores
from wae.storage.files import sha256
from wae.storage.weights_file import CheckpointError

from .pretrained import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    TORCHVISION,
    downloaded,
    expected_colours,
    read_tensors,
    torchvision_weights,
)

TIMM = "timm"
"""Stands for timm's weights of the network as a source; they may be downloaded."""

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Original:
    """A trained classifier, and how an image becomes its input."""

    name: str
    """The network's name in torchvision or timm, or ``module:function``."""
    network: nn.Module
    """Maps ``image * scale + shift``, (N, 3, H, W), to scores, (N, classes); in evaluation mode."""
    classes: int
    input: Input
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """The mean of red, green and blue, 0..1."""
    std: tuple[float, float, float] = IMAGENET_DEVIATION
    """Their standard deviation."""
    labels: tuple[str, ...] | None = None
    """The names of the classes; None if they are unknown, in which case classes match by number."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Digests of the files it was loaded from."""

    def classifier(self) -> FullResolution:
        """The network with its scale and shift, which takes images with values 0..255."""
        mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (self.mean, self.std))
        scale, shift = 1 / (255 * std), -mean / std
        return FullResolution(self.network, scale.tolist(), shift.tolist()).eval()


def open_original(model: str | nn.Module, weights: str | None, classes: int) -> Original:
    """Open the trained classifier that a user named.

    Args:
        model: a name in torchvision or timm; a checkpoint of this package, ``FILE.safetensors``;
            ``module:function``, which is imported and called; or the network itself, which is copied. The
            preprocessing of a custom network is that of its timm configuration (``pretrained_cfg``) if it has
            one, otherwise ImageNet's.
        weights: a file with the network's ``state_dict``; ``torchvision`` or ``timm`` for the library's
            weights, which may be downloaded; None for those that the network already has.
        classes: the number of classes of the data. A file of weights may be for these or for ImageNet's 1000.

    Raises:
        CheckpointError: a file is missing or damaged, or holds something else.
        UsageError: there is no such network, it has no weights, or its library has none.
        ValueError: its weights could not be downloaded, or its preprocessing is not supported.
    """
    check_named(model, weights)
    if isinstance(model, nn.Module):
        name = type(model).__name__.lower() + ":given"
        return _given(name, own_copy(name, model), weights)
    if model.endswith(".safetensors"):
        return _checkpoint(Path(model))
    if ":" in model:
        return _given(model, own_network(model), weights)
    assert weights is not None  # checked
    if weights == TIMM or not is_torchvision(model):
        return _of_timm(model, weights, classes)
    return _of_torchvision(model, weights, classes)


def check_named(model: str | nn.Module, weights: str | None) -> None:
    """Raise UsageError if ``model`` and ``weights`` name nothing that :func:`open_original` can open.

    This needs neither the data nor any file, so it can come before the files of a large data set are listed.
    """
    if isinstance(model, nn.Module):
        return
    if model.endswith(".safetensors"):
        if weights is not None:
            raise UsageError(f"weights: {model} holds its own; omit --weights")
        return
    if ":" in model:
        return
    libraries = _libraries(model)
    if not libraries:
        raise NetworkError(
            f"there is no network {model}; need a NAME in torchvision or timm, FILE.safetensors, or your own "
            "MODULE:FUNCTION"
        )
    if weights is None:
        raise UsageError(f"weights: {model} needs trained ones, {_sources(libraries)}; got none")
    _check_library(model, weights, libraries)


def _checkpoint(path: Path) -> Original:
    described, model = describe_classifier(path), load_classifier(path)
    if type(model) is not FullResolution:  # its subclasses work at other sizes
        raise CheckpointError(f"{path}: holds {described.network}; need a stock network, a plain NAME")
    _check_square(str(path), *described.input.shape)
    scale, shift = model.image_scale.double(), model.image_shift.double()
    mean, std = -shift / scale / 255, 1 / (255 * scale)
    return Original(
        described.network,
        model.network,
        described.classes,
        described.input,
        _three(mean.tolist()),
        _three(std.tolist()),
        described.labels,
        {"--model": sha256(path)},
    )


def _given(name: str, network: nn.Module, weights: str | None) -> Original:
    if weights is not None:
        _check_library(name, weights, [])
        _put(weights, network)
    sources = {"weights": _digest(network)}
    made = Original(name, network.eval(), number_of_scores(network), Input(), sources=sources)
    return _as_timm_says(made) if getattr(network, "pretrained_cfg", None) else made


def _of_torchvision(name: str, weights: str, classes: int) -> Original:
    best = torchvision_weights(name)
    preset = best.transforms()
    make = partial(torchvision_network, name)
    if weights == TORCHVISION:
        network = downloaded(TORCHVISION, name, partial(make, weights=best))
        sources = {"--weights": f"{TORCHVISION} {best}"}
    else:
        unused = tuple(f"{part}." for part in AUXILIARY.get(name, ()))
        network, sources = _from_file(weights, make, classes, unused)
    (size,), (resize,) = preset.crop_size, preset.resize_size
    mean, std = map(_three, expected_colours(name))
    return Original(
        name,
        network.eval(),
        number_of_scores(network),
        Input(size, resize, interpolation=preset.interpolation.value),
        mean,
        std,
        sources=sources,
    )


def _of_timm(name: str, weights: str, classes: int) -> Original:
    import timm

    make = partial(timm.create_model, name)
    if weights == TIMM:
        network = downloaded(TIMM, name, partial(make, pretrained=True))
        sources = {"--weights": f"{TIMM} {_configuration(network)['tag']}"}
    else:
        network, sources = _from_file(weights, make, classes)
    if is_torchvision(name):  # the tag marks the network as timm's
        name = f"{name}.{_configuration(network)['tag']}"
    made = Original(name, network.eval(), number_of_scores(network), Input())
    return _as_timm_says(replace(made, sources=sources))


def _configuration(network: nn.Module) -> Mapping[str, Any]:
    """The configuration of a network from timm."""
    known: Any = network.pretrained_cfg
    return cast(Mapping[str, Any], known)


def _as_timm_says(made: Original) -> Original:
    """``made`` with the preprocessing in its network's timm configuration."""
    from timm.data.config import resolve_model_data_config

    says = resolve_model_data_config(made.network)
    _, size, width = says["input_size"]
    _check_square(made.name, size, width)
    if says["crop_mode"] not in ("center", "squash") or says["interpolation"] not in INTERPOLATIONS:
        raise ValueError(
            f"{made.name}: its preprocessing is not supported: crop_mode {says['crop_mode']}, interpolation "
            f"{says['interpolation']}"
        )
    input = Input(
        size,
        int(size / says["crop_pct"]),
        interpolation=says["interpolation"],
        squash=says["crop_mode"] == "squash",
    )
    return replace(made, input=input, mean=_three(says["mean"]), std=_three(says["std"]))


def _check_square(name: str, height: int, width: int) -> None:
    """Raise ValueError unless the network's images are square: those of its accelerated forms are."""
    if height != width:
        raise ValueError(f"{name}: needs a network for square images, got one for {height} x {width}")


def _from_file(
    path: str, make: Callable[..., nn.Module], classes: int, unused: tuple[str, ...] = ()
) -> tuple[nn.Module, dict[str, str]]:
    """The network that fits the file's tensors best: with the classes of the data, or with ImageNet's.

    Tensors whose names begin as one of ``unused`` are left out.
    """
    found = _shapes(read_tensors(Path(path)))
    made = [make(num_classes=number) for number in dict.fromkeys((classes, _IMAGENET_CLASSES))]
    network = max(made, key=lambda one: (found & _shapes(one.state_dict())).total())
    _put(path, network, unused)
    return network, {"--weights": sha256(Path(path))}


def _shapes(tensors: Mapping[str, Tensor]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tensor.shape) for tensor in tensors.values())


def _digest(network: nn.Module) -> str:
    """A SHA-256 digest of the network's weights."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _libraries(name: str) -> list[str]:
    """The libraries that have a network of this name."""
    return [library for library, has in ((TORCHVISION, is_torchvision), (TIMM, is_timm)) if has(name)]


def _check_library(name: str, weights: str, libraries: Sequence[str]) -> None:
    """Raise UsageError if ``weights`` is the word for a library other than these, which have the network."""
    if weights in (TORCHVISION, TIMM) and weights not in libraries:
        raise UsageError(f"weights: {weights} has none for {name}; need {_sources(libraries)}")


def _sources(libraries: Sequence[str]) -> str:
    """What the weights of a network in these libraries may be, for a sentence."""
    *others, last = "a FILE", *libraries
    return f"{', '.join(others)} or {last}" if others else last


def _put(path: str, network: nn.Module, unused: tuple[str, ...] = ()) -> None:
    """Load the file's tensors, except those whose names begin as one of ``unused``, into ``network``.

    Raises CheckpointError unless they match one to one.
    """
    wanted = network.state_dict()
    read = read_tensors(Path(path), wanted.keys())
    tensors = {name: tensor for name, tensor in read.items() if not name.startswith(unused)}
    if wrong := weights_file.mismatches(tensors, wanted, without_counters=True):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{path}: these are not the network's weights: {wrong[0]}{more}")
    weights_file.put(path, network, tensors, strict=False)


def _three(numbers: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = numbers
    return float(red), float(green), float(blue)
