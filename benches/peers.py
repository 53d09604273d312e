"""A module through everything that could run it instead of us. Peers that are not installed are left out."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Sides = dict[str, Callable[[], Any]]


def eager(module: nn.Module, inputs: Sequence[Tensor]) -> Sides:
    """Stock PyTorch in both memory formats."""
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    last_inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    return {
        "PyTorch eager": lambda: module(*inputs),
        "PyTorch eager, channels_last": lambda: last(*last_inputs),
    }


def compiled(module: nn.Module, inputs: Sequence[Tensor]) -> Sides:
    """torch.compile, which may take a minute before the first result."""
    function = torch.compile(module, mode="max-autotune", fullgraph=True)
    return {"torch.compile max-autotune": lambda: function(*inputs)}


def engines(module: nn.Module, inputs: Sequence[Tensor]) -> Sides:
    """ONNX Runtime and OpenVINO, on the processor, with as many threads as torch has."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, tuple(inputs), path, dynamo=True, external_data=False, verbose=False)
        model = path.read_bytes()
    arrays = [x.numpy() for x in inputs]
    return {**_onnxruntime(model, arrays), **_openvino(model, arrays)}


def _onnxruntime(model: bytes, arrays: Sequence[Any]) -> Sides:
    if importlib.util.find_spec("onnxruntime") is None:
        return {}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {node.name: array for node, array in zip(session.get_inputs(), arrays, strict=True)}
    return {"ONNX Runtime": lambda: session.run(None, feed)}


def _openvino(model: bytes, arrays: Sequence[Any]) -> Sides:
    if importlib.util.find_spec("openvino") is None:
        return {}
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()

    def run() -> list[Any]:
        outputs = request.infer(list(arrays), share_inputs=True, share_outputs=True)
        return list(outputs.values())

    return {"OpenVINO": run}
