"""ONNX Runtime: its int8 on processors whose sums saturate."""

import numpy as np
import pytest
import torch
from small_networks import needs

from wae.inference import precision
from wae.inference.engines.in_onnxruntime import quantize


def test_weights_have_7_bits_where_sums_saturate(tmp_path, monkeypatch):
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
    monkeypatch.setattr("warnings.filters", [])  # of the libraries' own parts
    for native, largest in ((True, 127), (False, 64)):
        monkeypatch.setattr(precision, "native", lambda *_, native=native: native)
        onnx.save(network, tmp_path / "layer.onnx")
        quantize(tmp_path / "layer.onnx", [[torch.rand(1, 3, 4, 4)]])
        stored = map(onnx.numpy_helper.to_array, onnx.load(tmp_path / "layer.onnx").graph.initializer)
        (quantized,) = (array for array in stored if array.shape == (2, 3, 2, 2))
        assert (quantized.dtype, np.abs(quantized.astype(int)).max()) == (np.int8, largest)
