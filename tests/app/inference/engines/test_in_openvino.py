"""OpenVINO: which results of its graph belong to a layer."""

import numpy as np
import pytest
import torch

from wae.inference.engines import in_openvino


def test_layers_end_before_the_sum_with_a_shortcut():
    """Two layers whose results are added: each has its own result, bias included, and its own name."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13

    x = opset13.parameter([1, 1, 3, 3], np.float32)

    def layer(factor, bias, name):
        weight = np.full((1, 1, 1, 1), factor, dtype=np.float32)
        product = opset13.convolution(x, weight, [1, 1], [0, 0], [0, 0], [1, 1])
        product.set_friendly_name(f"{name}/WithoutBiases")
        shape = opset13.concat([[1], [-1], [1], [1]], 0)
        if name == "b":  # as the exporter gives a bias its layer's rank
            shape = opset13.broadcast(opset13.constant(1), opset13.shape_of(opset13.shape_of(product)))
        bias = opset13.reshape(np.array([bias], dtype=np.float32), shape, special_zero=False)
        return opset13.add(product, bias)

    model = openvino.Model([opset13.relu(opset13.add(layer(2, 1, "a"), layer(3, -1, "b")))], [x])
    image = torch.arange(9.0).view(1, 1, 3, 3)
    found, _ = in_openvino._layers(model, [image])
    assert set(found) == {"a", "b"}
    torch.testing.assert_close(found["a"], 2 * image + 1)
    torch.testing.assert_close(found["b"], 3 * image - 1)
