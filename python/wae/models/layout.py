"""The memory format of a network's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_format(network: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """``network``, whose four-dimensional parameters and buffers are now in ``memory_format``.

    ``network.to(memory_format=torch.channels_last)`` does not take those with five dimensions, such as the
    weights of a 3D convolution.
    """

    def placed(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=memory_format) if tensor.dim() == 4 else tensor

    network._apply(placed)
    return network
