"""ONNX Runtime: sessions for a batch size, and int8 on CPUs whose sums saturate."""

import numpy as np
import pytest
import torch
from small_networks import needs
from torch import nn

from wae.difference import relative_difference
from wae.inference import precision
from wae.inference.engines import ENGINES
from wae.inference.engines.in_file import to_onnx
from wae.inference.engines.in_onnxruntime import onnx_session, quantize


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch 2.10 itself
def test_a_session_is_for_the_given_batch_size(tmp_path):
    """It is set by the dimension's name, for which torch.export would choose another."""
    needs("onnxruntime")
    images = torch.rand(2, 3, 4, 4)
    network = to_onnx(nn.Conv2d(3, 1, 3).eval(), [images], dynamic=True)
    (tmp_path / "network.onnx").write_bytes(network.SerializeToString())
    for_any, for_two = (onnx_session(tmp_path / "network.onnx", batch) for batch in (None, 2))
    assert torch.equal(for_any(images), for_two(images))
    assert for_any(images[:1]).shape == (1, 1, 2, 2)
    with pytest.raises(Exception, match="Got: 1 Expected: 2"):
        for_two(images[:1])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_grouped_transposed_convolution_stays_in_float32(groups):
    """In int8 ONNX Runtime refuses it: its bias and its scales "could not be broadcast together"."""
    engine, images = ENGINES["onnxruntime"], torch.randn(8, 3, 12, 12)
    if reason := engine.why_not("cpu", "int8"):
        pytest.skip(reason)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, groups=groups), nn.Conv2d(8, 4, 3)
    network = nn.Sequential(*layers).eval()
    prepared = engine.make(network, [images[:1]], "int8", [[images]], [images])
    found = engine.open(prepared, len(images), [images])(images)
    assert 0 < relative_difference(found, network(images)) < 0.05
    assert len(prepared.simulation.movements) == 3  # the last layer's was missing


class Masked(nn.Module):
    """Attention of each pixel to earlier ones: its mask is minus infinity for the others."""

    def __init__(self):
        super().__init__()
        self.layer, self.query = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)
        self.register_buffer("mask", torch.full((36, 36), -torch.inf).triu(1))

    def forward(self, image):
        x = self.layer(image).flatten(2).transpose(1, 2)
        return (self.query(x) @ x.transpose(1, 2) + self.mask).softmax(2) @ x


@pytest.mark.slow
@torch.no_grad()
def test_infinities_of_a_mask_stay_in_float32():
    """A scale of bytes that reach to infinity is infinite, and every other number becomes 0."""
    engine, images = ENGINES["onnxruntime"], torch.randn(8, 3, 8, 8)
    if reason := engine.why_not("cpu", "int8"):
        pytest.skip(reason)
    network = Masked().eval()
    prepared = engine.make(network, [images[:1]], "int8", [[images]], [images])
    found = engine.open(prepared, len(images), [images])(images)
    assert 0 < relative_difference(found, network(images)) < 0.05


def test_weights_have_7_bits_if_sums_saturate(tmp_path, monkeypatch):
    needs("onnxruntime")
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(
        np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 2, 2), "weight"
    )
    numbers = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["image", "weight"], ["out"])],
        "layer",
        [onnx.helper.make_tensor_value_info("image", numbers, [1, 3, 4, 4])],
        [onnx.helper.make_tensor_value_info("out", numbers, [1, 2, 3, 3])],
        [weight],
    )
    network = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    monkeypatch.setattr("warnings.filters", [])  # about the libraries' own parts
    for native, largest in ((True, 127), (False, 64)):
        monkeypatch.setattr(precision, "native", lambda *_, native=native: native)
        onnx.save(network, tmp_path / "layer.onnx")
        images = [torch.rand(1, 3, 4, 4)]
        quantize(tmp_path / "layer.onnx", [images], images)  # comparing layers failed without a ReLU
        stored = map(onnx.numpy_helper.to_array, onnx.load(tmp_path / "layer.onnx").graph.initializer)
        (quantized,) = (array for array in stored if array.shape == (2, 3, 2, 2))
        assert (quantized.dtype, np.abs(quantized.astype(int)).max()) == (np.int8, largest)
