"""The networks by name, and a table of what they cost: ``python -m wae.models.registry``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import resnet50, vgg16

from wae_kernels.nn import Encoder

from .autoencoder import AutoEncoder
from .baselines import resnet50_half, vgg16_half, wavelet_cnn
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
"""Billions of multiply-adds in the paper (SPEC section 4). The encoder's are not in WAE-VGG16's."""


def on_meta(name: str) -> nn.Module:
    """The network ``name``, a key of NETWORKS, without memory for its weights: to be counted."""
    with torch.device("meta"):
        return NETWORKS[name]().eval()


def encoder_multiply_adds(network: nn.Module) -> int:
    """How many of ``network``'s multiply-adds, on one 224 x 224 image, are its encoders'."""
    return sum(count(part).multiply_adds for part in network.modules() if isinstance(part, Encoder))


def table() -> str:
    """Parameters and multiply-adds of every network, on one 224 x 224 image, as Markdown."""
    lines = [
        "| network | parameters | multiply-adds | of these, the encoder | published, without the encoder |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in NETWORKS:
        network = on_meta(name)
        parameters, total = count(network)
        published = f"{PUBLISHED[name]} G" if name in PUBLISHED else ""
        share = encoder_multiply_adds(network)
        encoder = f"{share / 1e9:.3f} G" if share else ""
        lines.append(f"| {name} | {parameters:,} | {total / 1e9:.3f} G | {encoder} | {published} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
