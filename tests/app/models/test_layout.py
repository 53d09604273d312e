"""The memory format of a network's parameters."""

import pytest
import torch
from torch import nn

from wae.models.layout import in_format


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_only_parameters_of_four_dimensions_are_laid_out(memory_format):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(2, 4, 3))
    assert in_format(network, memory_format) is network
    flat, deep = (layer.weight for layer in network)
    assert flat.is_contiguous(memory_format=memory_format)
    assert deep.is_contiguous()
