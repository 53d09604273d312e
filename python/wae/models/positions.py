"""Fits networks with position tables to another image size, by the libraries' own functions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import nn

from wae.wording import first_line

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer


def fit_to(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Make ``network`` take images of ``size`` (h, w), even if its position table is for another size.

    The table is interpolated: by torchvision's function for its ViT, by timm's for any network that has a
    ``set_input_size`` (ViT, Swin, EVA-02, ...). Any other network is left alone: convolutions take any size,
    and torchvision's Swin pads its windows.

    Changes ``network`` and returns it. Raises ValueError if the table cannot be fitted to that size.
    """
    from torchvision.models import VisionTransformer  # imported here because it takes long

    if isinstance(network, VisionTransformer):
        _fit_torchvision(network, size)
    elif callable(resize := getattr(network, "set_input_size", None)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                resize(img_size=size)
        except Exception as error:  # timm's code may raise anything
            why = first_line(error)
            raise ValueError(f"its positions do not fit images of {size[0]} x {size[1]}: {why}") from error
    return network


def _fit_torchvision(network: VisionTransformer, size: tuple[int, int]) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    patch = network.patch_size
    if size[0] != size[1] or size[0] % patch:
        raise ValueError(
            f"its images must be square, with sides divisible by the patch size {patch}, "
            f"got {size[0]} x {size[1]}"
        )
    table = network.encoder.pos_embedding
    if size[0] != network.image_size:
        state = interpolate_embeddings(size[0], patch, {"encoder.pos_embedding": table.detach()})
        network.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"], table.requires_grad)
        network.image_size = size[0]
        network.seq_length = network.encoder.pos_embedding.shape[1]
