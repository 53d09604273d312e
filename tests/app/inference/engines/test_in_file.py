"""Engines that run a network from a file."""

import gc
import importlib
import os
import tempfile

import pytest
import torch
from small_networks import needs, photos
from torch import nn

from wae.inference.deploy import deploy
from wae.inference.engines import ENGINES, EngineError
from wae.inference.engines.in_file import InFile, to_onnx


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_tensor_keeps_the_weights_of_a_network_in_a_file(engine):
    """The exporter keeps the graph of its last network, which would keep the weights alive."""
    needs(engine)
    size = 1013 * 3 * 8 * 8
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1013)).eval()
    deployed = deploy(network, (8, 8), engine=engine)
    assert deployed(photos(1, (8, 8))).shape == (1, 1013)
    del network
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
    assert not [x for x in tensors if x.device.type == "cpu" and x.numel() == size]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (2, 1), (3, 1)])
def test_average_pools_that_round(engine, up, kernel, padding):
    """Up, OpenVINO also counted what the last window covers beyond the padding."""
    needs(engine)
    pool = nn.AvgPool2d(kernel, 2, padding, ceil_mode=up).eval()
    for size in ((8, 9), (9, 8)):
        images = torch.rand(2, 3, *size)
        run = ENGINES[engine].make(pool, [images]).for_batch(2)
        torch.testing.assert_close(run(images), pool(images))


@pytest.mark.parametrize(
    ("zeros", "pool", "nodes"),
    [
        ((0, 1, 2, 1), nn.AvgPool2d(3, 2), ["AveragePool", "Mul"]),
        ((1, 0, 1, 0), nn.AvgPool2d((3, 2), 2, (1, 0), ceil_mode=True), ["AveragePool", "Mul"]),
        ((3, 0, 0, 0), nn.AvgPool2d(3, 1, 1), ["Pad", "AveragePool", "Mul"]),
        ((0, 3, 0, 0), nn.AvgPool2d(2), ["Pad", "AveragePool"]),
        ((-1, 1, 0, 0), nn.AvgPool2d(2), ["Pad", "AveragePool"]),
    ],
)
def test_average_pools_behind_zeros(zeros, pool, nodes):
    """They become a pool that counts none, unless a window has nothing but zeros or the Pad also cuts."""
    needs("onnxruntime")
    network, images = nn.Sequential(nn.ZeroPad2d(zeros), pool).eval(), torch.rand(2, 3, 8, 9)
    proto = to_onnx(network, [images], True)
    assert [node.op_type for node in proto.graph.node] == nodes
    assert len(proto.graph.initializer) == nodes.count("Mul") + 2 * nodes.count("Pad")
    run = ENGINES["onnxruntime"].make(network, [images]).for_batch(2)
    torch.testing.assert_close(run(images), network(images))


@pytest.mark.parametrize(
    ("pool", "sides"), [(nn.AvgPool1d(3, 2, 1), (8,)), (nn.AvgPool3d((3, 2, 3), 2, (1, 0, 1)), (8, 9, 7))]
)
def test_average_pools_of_other_dimensions(pool, sides):
    needs("onnxruntime")
    numbers = torch.rand(2, 3, *sides)
    run = ENGINES["onnxruntime"].make(pool.eval(), [numbers]).for_batch(2)
    torch.testing.assert_close(run(numbers), pool(numbers))


def test_an_average_pool_with_its_own_divisor_is_refused():
    """PyTorch's exporter drops the divisor; in int8, where scores are not compared, that went unnoticed."""
    needs("onnxruntime")
    for pool in (nn.AvgPool2d(3, 2, 1, divisor_override=4), nn.AvgPool3d(2, divisor_override=3)):
        numbers = torch.rand(2, 3, *(6,) * (2 if isinstance(pool, nn.AvgPool2d) else 3))
        with pytest.raises(EngineError, match="divisor_override"):
            ENGINES["onnxruntime"].make(pool.eval(), [numbers])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_that_computes_something_else_is_not_quantized(engine, monkeypatch):
    """An error of the exporter would look like a loss of accuracy in int8; a small one would be accepted."""
    if reason := ENGINES[engine].why_not("cpu", "int8"):
        pytest.skip(reason)
    module = importlib.import_module(f"wae.inference.engines.in_{engine}")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    monkeypatch.setattr(module, "to_onnx", lambda network, *rest: to_onnx(other, *rest))
    inputs = [torch.randn(2, 3, 8, 8)]
    with pytest.raises(
        EngineError, match=f"{engine} does not run .*computes something else than the network"
    ):
        ENGINES[engine].make(other[0], inputs, "int8", [inputs], inputs)


class Beside(nn.Sequential):
    """The sum of two parts behind a convolution, whose results may be negative."""

    def forward(self, images):
        convolution, *parts = self
        x = convolution(images)
        return sum(part(x) for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("pools", ["up", "signed numbers", "behind zeros"])
def test_average_pools_in_int8(engine, pools):
    """ONNX Runtime halves the last row and column if a pool rounds up; OpenVINO fails with signs."""
    if reason := ENGINES[engine].why_not("cpu", "int8"):
        pytest.skip(reason)
    torch.manual_seed(0)
    first, *last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
    if pools == "up":
        network = nn.Sequential(first, nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True), last[0])
    else:
        pool = [nn.ZeroPad2d(1), nn.AvgPool2d(3, 1)] if pools == "behind zeros" else [nn.AvgPool2d(3, 1, 1)]
        network = Beside(first, nn.Sequential(*pool, last[0]), last[1])
    images = torch.rand(24, 3, 9, 11)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.filters", [])  # about the libraries' own parts
        deployed = deploy(
            network.eval(), images.shape[2:], 2, engine, precision="int8", calibration=images,
            calibration_images=12, max_drop=None,
        )  # fmt: skip
    with torch.no_grad():
        expected = network(images)
    assert (deployed(images[:2]) - expected[:2]).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("engine", [name for name in ENGINES if ENGINES[name].foreign])
def test_no_temporary_folder_is_left(engine, tmp_path, monkeypatch):
    needs(engine)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    network, inputs = nn.Flatten().eval(), [torch.zeros(1, 3, 4, 4)]
    prepared = ENGINES[engine].make(network, inputs)
    assert len(list(tmp_path.iterdir())) == 1
    del prepared
    gc.collect()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(InFile, "__init__", lambda *_, **__: 1 / 0)  # after the file was written
    with pytest.raises(EngineError, match="division by zero"):
        ENGINES[engine].make(network, inputs)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # from Python 3.12 on
def test_a_forked_child_does_not_delete_the_folder(tmp_path):
    """Otherwise a web server's worker that ends would delete the file of all others."""
    folder = tmp_path / "net"
    folder.mkdir()
    prepared = InFile(folder, lambda *_: print, temporary=True)
    if not (child := os.fork()):
        del prepared
        os._exit(0)
    os.waitpid(child, 0)
    assert folder.exists()
    del prepared
    assert not folder.exists()
