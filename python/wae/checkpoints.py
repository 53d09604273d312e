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
_SCORES = "low_classifier.6.bias"


def architecture(network: str, classes: int) -> dict[str, Any]:
    """What :func:`load_classifier` needs in a checkpoint's recipe, as its ``architecture``."""
    return {"network": network, "classes": classes}


def load_classifier(path: Path) -> WAEClassifier:
    """The classifier in ``path``, in evaluation mode on the processor.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint of a classifier.
    """
    network, classes = _architecture(path)
    with torch.device("meta"):  # no random weights for the file to replace
        model = _NETWORKS[network](classes)
    model.to_empty(device="cpu")
    checkpoint.load(path, model)
    return model.eval()


def _architecture(path: Path) -> tuple[str, int]:
    """The network's name, and the number of classes: of the tensors in the file, not what it says."""
    if not path.is_file():
        raise checkpoint.CheckpointError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            recipe = json.loads((file.metadata() or {}).get("recipe", "{}"))
            network = recipe["architecture"]["network"]
            (classes,) = file.get_slice(_SCORES).get_shape()
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise checkpoint.CheckpointError(f"{path}: this is no checkpoint of a classifier ({error})") from None
    if network not in _NETWORKS:
        known = ", ".join(_NETWORKS)
        raise checkpoint.CheckpointError(f"{path}: its network must be one of {known}, got {network!r}")
    return network, classes
