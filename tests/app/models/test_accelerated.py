"""wae.models.accelerated: the parts of WAE around a trained network."""

import pytest
import torch
from torch import nn

from wae.models.accelerated import Form, accelerated
from wae.models.last_layer import split_last_linear

SIZE = (24, 24)


def test_a_parametrized_last_layer_is_copied():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    torch.nn.utils.parametrizations.weight_norm(network[-1])
    image = torch.randn(1, 3, *SIZE)
    body, linear = split_last_linear(network, SIZE)
    made = accelerated(nn.Sequential(body, linear), Form(2 * SIZE[0])).low_classifier
    with torch.no_grad():
        assert torch.allclose(made(body(image)), linear(body(image)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_all_parts_have_the_dtype_of_the_network(dtype):
    layers = nn.Conv2d(3, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, 2)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).to(dtype)
    model = accelerated(network.eval(), Form(24))
    tensors = (*model.parameters(), *model.buffers())
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}
    assert model(torch.zeros(1, 3, *SIZE, dtype=torch.uint8)).dtype == dtype
