"""The networks by name, and tables of what they cost.

``python -m wae.models.registry`` prints that of the networks here; with names of torchvision or timm behind
it, that of WAE around those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torchvision.models import resnet50, vgg16

from wae_kernels.nn import Encoder

from .around import wae_around
from .autoencoder import AutoEncoder
from .baselines import resnet50_half, vgg16_half, wavelet_cnn
from .bodies import standard_body
from .counting import count
from .resnet50 import wae_resnet50
from .vgg16 import wae_vgg16

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "encoder": Encoder,
    "autoencoder": AutoEncoder,
    "vgg16": vgg16,
    "vgg16_half": vgg16_half,
    "wae_vgg16": wae_vgg16,
    "wavelet_vgg16": lambda: wavelet_cnn(wae_vgg16()),
    "resnet50": resnet50,
    "resnet50_half": resnet50_half,
    "wae_resnet50": wae_resnet50,
    "wavelet_resnet50": lambda: wavelet_cnn(wae_resnet50()),
}

PUBLISHED = {"vgg16": 15.36, "vgg16_half": 3.89, "wae_vgg16": 4.11}
"""Billions of multiply-adds in the paper (docs/network.md). The encoder's are not in WAE-VGG16's."""


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that ``build`` makes, without memory for its weights: to be counted."""
    with torch.device("meta"):
        return build().eval()


def encoder_multiply_adds(network: nn.Module) -> int:
    """How many of ``network``'s multiply-adds, on one 224 x 224 image, are its encoders'."""
    return sum(count(part).multiply_adds for part in network.modules() if isinstance(part, Encoder))


def around(names: Sequence[str]) -> dict[str, Callable[[], nn.Module]]:
    """Each network of torchvision or timm without its classifier, and WAE around it."""
    networks: dict[str, Callable[[], nn.Module]] = {}
    for name in names:
        networks[f"body of {name}"] = partial(standard_body, name)
        networks[f"WAE around {name}"] = partial(wae_around, name)
    return networks


def table(networks: dict[str, Callable[[], nn.Module]]) -> str:
    """Parameters and multiply-adds of ``networks``, on one 224 x 224 image, as Markdown."""
    lines = [
        "| network | parameters | multiply-adds | of these, the encoder | published, without the encoder |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, build in networks.items():
        network = on_meta(build)
        parameters, total = count(network)
        published = f"{PUBLISHED[name]} G" if name in PUBLISHED else ""
        share = encoder_multiply_adds(network)
        encoder = f"{share / 1e9:.3f} G" if share else ""
        lines.append(f"| {name} | {parameters:,} | {total / 1e9:.3f} G | {encoder} | {published} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(around(sys.argv[1:]) if sys.argv[1:] else NETWORKS))
