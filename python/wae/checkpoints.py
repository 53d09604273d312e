"""Checkpoints of whole classifiers: files that say which network they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .models.classifier import WAEClassifier
from .models.vgg16 import wae_vgg16
from .training import checkpoint

_NETWORKS = {"wae_vgg16": wae_vgg16}


def architecture(network: str, classes: int) -> dict[str, Any]:
    """What :func:`load_classifier` needs in a checkpoint's recipe, as its ``architecture``."""
    return {"network": network, "classes": classes}


def load_classifier(path: Path) -> WAEClassifier:
    """The classifier in ``path``, in evaluation mode on the processor.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint of a classifier.
    """
    network, classes, shapes = _described(path)
    with torch.device("meta"):  # no random weights for the file to replace
        model = _NETWORKS[network](classes)
    if shapes != {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}:
        raise checkpoint.CheckpointError(
            f"{path}: its tensors are not those of {network} with {classes} classes"
        )
    model.to_empty(device="cpu")
    checkpoint.load(path, model)
    return model.eval()


def _described(path: Path) -> tuple[str, int, dict[str, tuple[int, ...]]]:
    """The network's name and number of classes, and the shapes of the tensors in the file."""
    if not path.is_file():
        raise checkpoint.CheckpointError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            recipe = json.loads((file.metadata() or {}).get("recipe", "{}"))
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        network, classes = recipe["architecture"]["network"], recipe["architecture"]["classes"]
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise checkpoint.CheckpointError(f"{path}: this is no checkpoint of a classifier ({error})") from None
    if network not in list(_NETWORKS):
        known = ", ".join(_NETWORKS)
        raise checkpoint.CheckpointError(f"{path}: its network must be one of {known}, got {network!r}")
    if type(classes) is not int or not 1 <= classes < 2**31:
        raise checkpoint.CheckpointError(f"{path}: its number of classes must be 1 or more, got {classes!r}")
    return network, classes, shapes
