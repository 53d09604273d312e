"""OpenVINO: which results of its graph belong to a layer."""

import numpy as np
import pytest
import torch
from torch import nn

from wae.difference import relative_difference
from wae.inference import precision
from wae.inference.engines import ENGINES, in_openvino


def _norm(channels):
    """A BatchNorm that changes its input much."""
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight, 2, 0.5)
    nn.init.normal_(norm.bias, 1)
    return norm


def _behind_a_relu():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), _norm(8), nn.Conv2d(8, 8, 3), nn.ReLU())


def _first():
    return nn.Sequential(_norm(3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("make", [_behind_a_relu, _first])
def test_layers_behind_a_norm_are_simulated_right(make):
    """Kernels that are wrong would pass the check against a simulation that is as wrong."""
    engine, images = ENGINES["openvino"], torch.randn(4, 3, 12, 12)
    if reason := engine.why_not("cpu", "int8"):
        pytest.skip(reason)
    network = make().eval()
    simulation = engine.make(network, [images[:1]], "int8", [[images]], [images]).simulation
    assert torch.allclose(simulation.exact[0], network(images), atol=1e-4)
    assert 0 < relative_difference(simulation.results[0], simulation.exact[0]) < 0.05
    assert len(simulation.movements) == 2
    assert all(0 < movement.difference < 0.05 for movement in simulation.movements)


@pytest.mark.slow
@torch.no_grad()
def test_weights_have_7_bits_if_sums_saturate(monkeypatch):
    """In all layers: without VNNI results would be wrong by 40 %."""
    engine, images = ENGINES["openvino"], torch.randn(4, 3, 12, 12)
    if reason := engine.why_not("cpu", "int8"):
        pytest.skip(reason)
    network, quantized, models = _behind_a_relu().eval(), in_openvino._quantized, []
    kept = lambda *given: models.append(quantized(*given)) or models[-1]  # noqa: E731
    monkeypatch.setattr(in_openvino, "_quantized", kept)
    for native, largest in ((True, 127), (False, 64)):
        monkeypatch.setattr(precision, "native", lambda *_, native=native: native)
        prepared = engine.make(network, [images[:1]], "int8", [[images]], [images])
        weights = [op.data for op in models[-1][0].get_ops() if op.get_type_name() == "Constant"]
        weights = [array.astype(int) for array in weights if array.dtype == np.int8 and array.ndim == 4]
        assert max(np.abs(array).max() for array in weights) in (largest - 1, largest)
    run = engine.open(prepared, len(images), [images])
    assert relative_difference(run(images), network(images)) < 0.05


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
