"""Checkpoints of whole classifiers: files that say which network they hold, and what it wants to see.

A safetensors file, whose metadata holds JSON under ``recipe``::

    {"architecture": {"network": "wae_vgg16", "classes": 3},       # and "form" of an accelerated network
     "labels": ["cat", "dog", "owl"],                              # may be missing
     "input": {"size": 224, "resize": 256, "grayscale": false,     # may be missing, as any entry: ImageNet's
               "interpolation": "bilinear", "squash": false}}

and whatever else made the weights. All of it is checked before memory is taken for the network, and nothing
in such a file is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from wae.data.input import IMAGENET as IMAGENET
from wae.data.input import MAX_SIZE as MAX_SIZE
from wae.data.input import Input as Input
from wae.data.input import Transforms
from wae.models.accelerated import Form, accelerated
from wae.models.bodies import without_numbers
from wae.models.network import WAENetwork
from wae.models.pairs import own_copy
from wae.models.registry import NETWORKS as _NETWORKS
from wae.models.registry import build, builder, without_memory
from wae.models.segmentation import networks as segmentation
from wae.wording import counted, shown
from wae_kernels.nn import Decoder

from . import weights_file
from .weights_file import CheckpointError

_MAX_CLASSES = 2**31 - 1
_MAX_LABEL = 1000  # characters; a folder's name has at most 255
_DTYPES = {"F16", "BF16", "F32", "F64", "I64"}  # the last for BatchNorm's count of batches
_OWN_DTYPES = _DTYPES | {"BOOL", "U8", "I8", "I16", "I32"}  # buffers of a user's network: a mask, say


@dataclass(frozen=True)
class Description:
    """A checkpoint's description of its classifier. Raises ValueError where that makes no sense."""

    network: str
    """One of the names that :func:`save_classifier` takes."""
    classes: int
    labels: tuple[str, ...] | None = None
    """The names of the classes, if they have some: any text, control characters included."""
    input: Input = IMAGENET
    form: Form | None = None
    """Of a network that ``wae accelerate`` made."""

    def transforms(self, invert: bool = False) -> Transforms:
        """Makes the network's input of an image: see :class:`wae.data.input.Transforms`."""
        return Transforms(self.input, invert)

    @property
    def is_own(self) -> bool:
        """Whether the network is around one that a user's function made, which a file cannot make."""
        return self.form is not None and ":" in self.network

    @property
    def of_pixels(self) -> bool:
        """Whether the network scores each pixel, and not an image as a whole."""
        return self.network not in _NETWORKS and segmentation.builder(self.network) is not None

    def __post_init__(self) -> None:
        if type(self.network) is not str or not (self.is_own or builder(self.network)):
            known = ", ".join(_NETWORKS)
            raise ValueError(
                f"network must be one of {known}, or NAME, NAME_half, wae_NAME or wavelet_NAME of a NAME in "
                f"torchvision or timm, or one that scores pixels, got {shown(self.network)}"
            )
        if type(self.classes) is not int or not 1 <= self.classes <= _MAX_CLASSES:
            raise ValueError(f"number of classes must be 1 or more, got {shown(self.classes)}")
        if self.labels is None:
            return
        if len(self.labels) != self.classes:
            raise ValueError(f"labels must be {self.classes}, one for each class, got {len(self.labels)}")
        for label in self.labels:
            if type(label) is not str or not 1 <= len(label) <= _MAX_LABEL or not _is_unicode(label):
                raise ValueError(f"labels must be texts of 1 to {_MAX_LABEL} characters, got {shown(label)}")


def _is_unicode(text: str) -> bool:
    """False where Python holds bytes that are no UTF-8, of a file's name for example, as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


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
    """Write ``model`` to ``path``, whole or not at all, for :func:`load_classifier`.

    Args:
        model: of the form that ``network`` makes, with or without a decoder.
        network: ``wae_vgg16``, ``resnet50``, ...: see :mod:`wae.models.registry`.
        labels: the names of the classes, in the order of the scores; None where they have none.
        input: how a photo becomes the network's input.
        made: what made these weights, for the record; anything that JSON can hold.
        force: replace the file that is there.
        form: of an accelerated network; ``network`` is then ``wae_NAME``, or ``module:function`` for one of a
            user's own.

    Raises:
        ValueError: ``model`` is not a ``network``, or the labels are not one text for each class.
        FileExistsError: there is a file at ``path`` and ``force`` is false.
    """
    classes = number_of_scores(model)
    described = Description(network, classes, None if labels is None else tuple(labels), input, form)
    decoder = getattr(model, "decoder", None) is not None
    if not described.is_own and _shapes(model) != _shapes(_without_memory(described, decoder)):
        raise ValueError(f"model must be a {network} with {counted(classes, 'class')}, got other parameters")
    recipe = {
        **(made or {}),
        "architecture": {"network": network, "classes": classes, **({"form": asdict(form)} if form else {})},
        "input": {name: value for name, value in asdict(input).items() if value is not None},
    }
    if described.labels is not None:
        recipe["labels"] = list(described.labels)
    weights_file.save(path, model, recipe, force=force)


def load_classifier(path: Path | str, original: nn.Module | None = None) -> nn.Module:
    """The classifier in ``path``, float32, in evaluation mode, on the processor.

    A :class:`WAEClassifier` has a decoder if the file holds one.

    Args:
        path: of the file.
        original: the network that was accelerated, where it was one of a user's own, which no file can make.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint of a classifier.
    """
    described, shapes = _read(path)
    if described.is_own:
        return _around_own(path, described, original)
    decoder = any(name.startswith("decoder.") for name in shapes)
    model = _without_memory(described, decoder)
    if shapes != _shapes(model):
        raise CheckpointError(
            f"{path}: its tensors are not those of {described.network} "
            f"with {counted(described.classes, 'class')}"
        )
    if {name for name, _ in model.named_buffers()} <= shapes.keys():
        model = without_numbers(model, "cpu")  # as model.to_empty, which imports a part of PyTorch's compiler
    else:  # buffers that no file holds have their numbers from the constructor
        model = _built(described, decoder)
    weights_file.load(path, model)
    return model.eval()


def _around_own(path: Path | str, described: Description, original: nn.Module | None) -> nn.Module:
    if original is None:
        raise CheckpointError(
            f"{path}: is around what {described.network} makes, which no file may run: hand the network to "
            "load_classifier(path, original), or its function to wae predict, eval or export (--model "
            "MODULE:FUNCTION); the deployed form and the ONNX file need neither"
        )
    assert described.form is not None
    model = accelerated(own_copy(described.network, original), described.form)
    weights_file.load(path, model)
    return model.eval()


def describe(path: Path | str) -> Description:
    """The description in the checkpoint at ``path``, without its weights.

    Raises:
        CheckpointError: as :func:`load_classifier`, but that the tensors are not looked at.
    """
    return _read(path)[0]


def describe_classifier(path: Path | str) -> Description:
    """As :func:`describe`; raises CheckpointError also where the network scores pixels."""
    described = describe(path)
    if described.of_pixels:
        raise CheckpointError(f"{path}: {described.network} scores pixels; a classifier is needed")
    return described


_Shapes = dict[str, tuple[int, ...]]


def _shapes(model: nn.Module) -> _Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _without_memory(described: Description, decoder: bool) -> nn.Module:
    """The network, on "meta": there are no numbers before the file has shown to hold so many."""
    with without_memory():
        return _built(described, decoder)


def _built(described: Description, decoder: bool) -> nn.Module:
    model = build(described.network, described.classes, described.form)
    if isinstance(model, WAENetwork):
        model.decoder = Decoder() if decoder else None
    return model


def number_of_scores(model: nn.Module) -> int:
    """What the last layer makes, in the order in which they are defined. Raises ValueError without one."""
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
        raise CheckpointError(f"{path}: this is no checkpoint of a classifier (without {error})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: its {error}") from None
    allowed = _OWN_DTYPES if described.is_own else _DTYPES
    if header.dtypes - allowed:
        raise CheckpointError(
            f"{path}: its tensors must be of {_listed(allowed)}, got {_listed(header.dtypes)}"
        )
    return described, header.shapes


def _parsed(recipe: dict[str, Any]) -> Description:
    """The Description in a recipe. Raises ValueError or KeyError if there is none."""
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
