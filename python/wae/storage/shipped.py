"""The weights that come with this package, as a torchvision enum: ``Shipped.FASHION_MNIST.transforms()``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms.v2 import PILToTensor

from wae.data.input import Transforms
from wae.models.autoencoder import AutoEncoder

from . import weights_file
from .checkpoint import describe, load_classifier


def _autoencoder() -> Weights:
    path = weights_file.AUTOENCODER
    return Weights(path.as_uri(), PILToTensor, {"recipe": weights_file.read_recipe(path)})


def _classifier(path: Path, data: str) -> Weights:
    described, recipe = describe(path), weights_file.read_recipe(path)
    meta = {
        "network": described.network,
        "categories": list(described.labels or ()),
        "_metrics": {data: {"acc@1": 100 * recipe["accuracy"]}},
        "recipe": recipe,
    }
    return Weights(path.as_uri(), partial(Transforms, described.input), meta)


class Shipped(WeightsEnum):  # type: ignore[misc]  # torchvision has no types
    """The trained networks in ``wae/weights``. Each has ``transforms()``, ``meta``, and a file's ``url``."""

    AUTOENCODER = _autoencoder()
    FASHION_MNIST = _classifier(weights_file.CLASSIFIER, "Fashion-MNIST")

    @property
    def path(self) -> Path:
        """The safetensors file."""
        return weights_file.WEIGHTS / Path(self.url).name

    def get_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The network's tensors by name; nothing is downloaded."""
        return self.model().state_dict()

    def model(self) -> nn.Module:
        """The network with these weights, in float32, in evaluation mode."""
        if self is not Shipped.AUTOENCODER:
            return load_classifier(self.path)
        model = AutoEncoder().float().eval()  # whatever torch's default dtype is
        weights_file.load(self.path, model)
        return model
