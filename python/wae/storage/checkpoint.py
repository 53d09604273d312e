"""Checkpoints of classifiers and segmentation networks: a file describes its network and the network's input.

A checkpoint is a safetensors file whose metadata holds JSON under ``recipe``::

    {"architecture": {"network": "wae_vgg16", "classes": 3},       # and "form" for an accelerated network
     "labels": ["cat", "dog", "owl"],                              # optional
     "input": {"size": 224, "resize": 256, "grayscale": false,     # optional, as is each entry: the default
               "interpolation": "bilinear", "squash": false}}      # is ImageNet's

and any record of how the weights were made. All of it is checked before memory is allocated for the network,
and nothing in such a file is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wae.data.input import IMAGENET, Transforms
from wae.data.input import Input as Input
from wae.models.accelerated import Form, accelerated
from wae.models.finite import not_finite
from wae.models.meta import empty_copy, without_memory
from wae.models.network import WAENetwork
from wae.models.own import own_copy
from wae.models.registry import NETWORKS as _NETWORKS
from wae.models.registry import NetworkError, build, builder
from wae.models.segmentation import networks as segmentation
from wae.wording import counted, is_unicode, shown
from wae_kernels.nn import Decoder

from . import weights_file
from .weights_file import CheckpointError

_MAX_CLASSES = 2**31 - 1
_MAX_LABEL = 1000  # characters; a folder's name has at most 255
_DTYPES = {"F16", "BF16", "F32", "F64", "I64"}  # I64 for BatchNorm's num_batches_tracked
_OWN_DTYPES = _DTYPES | {"BOOL", "U8", "I8", "I16", "I32"}  # for buffers of a user's network, such as masks


@dataclass(frozen=True)
class Description:
    """A checkpoint's description of its network. Raises ValueError if an entry is not valid."""

    network: str
    """One of the names that :func:`save_classifier` takes."""
    classes: int
    """The number of scores."""
    labels: tuple[str, ...] | None = None
    """The names of the classes, or None; any text, control characters included."""
    input: Input = IMAGENET
    """How an image becomes the network's input."""
    form: Form | None = None
    """The form of a network that ``wae accelerate`` made; None for others."""

    def transforms(self, invert: bool = False) -> Transforms:
        """The transforms from an image to the network's input: see :class:`wae.data.input.Transforms`."""
        return Transforms(self.input, invert)

    @property
    def is_own(self) -> bool:
        """Whether the network is built around the network of a user's function, which no file can rebuild."""
        return self.form is not None and ":" in self.network

    @property
    def of_pixels(self) -> bool:
        """Whether it is a segmentation network, which scores each pixel."""
        return self.network not in _NETWORKS and segmentation.builder(self.network) is not None

    def __post_init__(self) -> None:
        if type(self.network) is not str or not (self.is_own or builder(self.network)):
            known = ", ".join(_NETWORKS)
            raise ValueError(
                f"network must be one of {known}, or NAME, NAME_half, NAME_at_SIDE, wae_NAME or "
                "wavelet_NAME of a NAME in torchvision or timm, or a segmentation network, "
                f"got {shown(self.network)}"
            )
        if type(self.classes) is not int or not 1 <= self.classes <= _MAX_CLASSES:
            raise ValueError(f"number of classes must be 1 or more, got {shown(self.classes)}")
        if self.labels is None:
            return
        if len(self.labels) != self.classes:
            raise ValueError(f"labels must be {self.classes}, one for each class, got {len(self.labels)}")
        for label in self.labels:
            if type(label) is not str or not 1 <= len(label) <= _MAX_LABEL or not is_unicode(label):
                raise ValueError(f"labels must be texts of 1 to {_MAX_LABEL} characters, got {shown(label)}")


def save_classifier(
    path: Path | str,
    model: nn.Module,
    network: str,
    labels: Sequence[str] | None = None,
    input: Input = IMAGENET,
    made: Mapping[str, Any] | None = None,
    force: bool = False,
    form: Form | None = None,
) -> None:
    """Write ``model`` to ``path``, completely or not at all, for :func:`load_classifier`.

    Args:
        path: the safetensors file to write.
        model: a network of the form that ``network`` names, with or without a decoder.
        network: ``wae_vgg16``, ``resnet50``, ...: see :mod:`wae.models.registry`.
        labels: the names of the classes, in the order of the scores; None if they have no names.
        input: how a photo becomes the network's input.
        made: how the weights were made, for the record; anything that JSON can hold.
        force: replace a file that is there.
        form: the form of an accelerated network. ``network`` is then ``wae_NAME``, or ``module:function`` for
            a network of the user's own.

    Raises:
        ValueError: ``model`` is not a ``network`` or has numbers that are not finite, or the labels are not
            one text for each class.
        NetworkError: ``network`` cannot be built here.
        FileExistsError: there is a file at ``path`` and ``force`` is false.
        OSError: the file cannot be written.
    """
    classes = number_of_scores(model)
    described = Description(network, classes, None if labels is None else tuple(labels), input, form)
    decoder = getattr(model, "decoder", None) is not None
    if not described.is_own and _shapes(model) != _shapes(_without_memory(described, decoder)):
        raise ValueError(f"model must be a {network} with {counted(classes, 'class')}, got other parameters")
    if name := not_finite(model):  # such a file could not be loaded
        raise ValueError(f"model must have finite numbers only, but {name} has some that are not finite")
    recipe = {
        **(made or {}),
        "architecture": {"network": network, "classes": classes, **({"form": asdict(form)} if form else {})},
        "input": {name: value for name, value in asdict(input).items() if value is not None},
    }
    if described.labels is not None:
        recipe["labels"] = list(described.labels)
    weights_file.save(path, model, recipe, force=force)


@contextmanager
def _in_float32() -> Iterator[None]:
    """Build networks in float32, whatever torch's default dtype is."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@_in_float32()
def load_classifier(path: Path | str, original: nn.Module | None = None) -> nn.Module:
    """Load the network in ``path``, in float32, in evaluation mode, on the CPU.

    A WAE network has a decoder if the file holds one.

    Args:
        path: the file.
        original: the network that was accelerated, if it was the user's own, which no file can rebuild.

    Raises:
        CheckpointError: the file is missing, damaged, or no such checkpoint; or its numbers are not finite;
            or its network cannot be built here; or ``original`` is needed and was not given.
        NetworkError: ``original`` cannot be copied.
    """
    described, shapes = _read(path)
    if described.is_own:
        return _around_own(path, described, original)
    decoder = any(name.startswith("decoder.") for name in shapes)
    try:
        model = _without_memory(described, decoder)
    except NetworkError as error:  # it is known, or the description would be refused
        raise CheckpointError(f"{path}: {error}") from error
    if shapes != _shapes(model):
        raise CheckpointError(
            f"{path}: its tensors are not those of {described.network} "
            f"with {counted(described.classes, 'class')}"
        )
    if {name for name, _ in model.named_buffers()} <= shapes.keys():
        model = empty_copy(model, "cpu")  # like model.to_empty, which imports part of PyTorch's compiler
    else:  # buffers that are not in the file get their values from the constructor
        model = _built(described, decoder)
    weights_file.load(path, model)
    return model.eval()


def _around_own(path: Path | str, described: Description, original: nn.Module | None) -> nn.Module:
    if original is None:
        raise CheckpointError(
            f"{path}: is built around what {described.network} makes, which no file may run: pass that "
            "network to load_classifier(path, original), or the function to wae predict, eval, export or "
            "app (--model MODULE:FUNCTION); the deployed form and the ONNX file need neither"
        )
    assert described.form is not None
    model = accelerated(own_copy(described.network, original), described.form)
    weights_file.load(path, model)
    return model.eval()


def describe(path: Path | str) -> Description:
    """Read the description in the checkpoint at ``path``, without loading the weights.

    Raises:
        CheckpointError: the file is missing, damaged, or no such checkpoint. The tensors are not compared
            with the network.
    """
    return _read(path)[0]


def describe_classifier(path: Path | str) -> Description:
    """Like :func:`describe`, but also raises CheckpointError if the network is a segmentation network."""
    described = describe(path)
    if described.of_pixels:
        raise CheckpointError(f"{path}: {described.network} scores pixels; a classifier is needed")
    return described


_Shapes = dict[str, tuple[int, ...]]


def _shapes(model: nn.Module) -> _Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _without_memory(described: Description, decoder: bool) -> nn.Module:
    """The network on "meta": no memory is allocated before the file turns out to hold that many numbers."""
    with without_memory():
        return _built(described, decoder)


def _built(described: Description, decoder: bool) -> nn.Module:
    model = build(described.network, described.classes, described.form, described.input.shape)
    if isinstance(model, WAENetwork):
        model.decoder = Decoder() if decoder else None
    return model


def number_of_scores(model: nn.Module) -> int:
    """The number of outputs of the layer that is defined last, a linear layer or a convolution.

    In a WAE network it is the last one of the fusion. Raises ValueError if there is no such layer.
    """
    model = getattr(model, "fusion_classifier", getattr(model, "fusion", model))
    kinds = nn.Linear, nn.Conv2d, nn.ConvTranspose2d
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    if not layers:
        raise ValueError("model must end in a Linear or a convolution, got none")
    last = layers[-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


# ----------------------------------------------------------------------------------------- a file's metadata


def _read(path: Path | str) -> tuple[Description, _Shapes]:
    """The file's metadata, and the shapes of its tensors."""
    header = weights_file.read_header(path)
    try:
        described = _parsed(header.recipe)
    except KeyError as error:
        why = f"its recipe has no {error}"
        if header.of_training:
            why = "it is what a training resumes from, and not the trained network"
        raise CheckpointError(f"{path}: this is no checkpoint of a network: {why}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: its {error}") from None
    allowed = _OWN_DTYPES if described.is_own else _DTYPES
    if header.dtypes - allowed:
        raise CheckpointError(
            f"{path}: its tensors must be of {_listed(allowed)}, got {_listed(header.dtypes)}"
        )
    return described, header.shapes


def _parsed(recipe: dict[str, Any]) -> Description:
    """The Description in a recipe. Raises KeyError if an entry is missing, ValueError if one is not valid."""
    architecture = _object("architecture", recipe["architecture"])
    labels, given = recipe.get("labels"), _object("input", recipe.get("input", {}))
    form = _object("form", architecture["form"]) if "form" in architecture else None
    if labels is not None and not isinstance(labels, list):
        raise ValueError(f"labels must be a list, got {shown(labels)}")
    if unknown := sorted(set(given) - {field.name for field in fields(Input)}):
        raise ValueError(f"input has an entry that is not known: {shown(unknown[0])}")
    if form is not None and set(form) != {field.name for field in fields(Form)}:
        raise ValueError(
            f"form must have {', '.join(field.name for field in fields(Form))}, got {shown(form)}"
        )
    return Description(
        architecture["network"],
        architecture["classes"],
        None if labels is None else tuple(labels),
        Input(**given),
        None if form is None else Form(**form),
    )


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {shown(value)}")
    return value


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
