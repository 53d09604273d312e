"""The baselines: everything that can run a module instead of our ops, if it is installed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wae.inference.engines import ENGINES, to_onnx

from .comparison import Side, tensors
from .devices import Calls, Inputs, Launched, Setting

_WITH_AUTOTUNE = {"cpu": (1, 8), "cuda": (1, 64)}
"""Batch sizes at which torch.compile, which takes a minute, is one of the baselines."""
_ELEMENTS = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: 16}
"""The dtypes as ONNX Runtime takes them: numpy's, or the number in ONNX."""


def over(function: Callable[..., Any], sets: Sequence[Inputs]) -> Calls:
    """One call of ``function`` for each set of inputs."""
    return [partial(function, *inputs) for inputs in sets]


def channels_last(sets: Sequence[Inputs]) -> list[Inputs]:
    """The same inputs in the memory format channels_last."""
    return [tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs) for inputs in sets]


def all_peers(module: nn.Module, sets: Sequence[Inputs], setting: Setting) -> dict[str, Side]:
    """Everything that can run ``module`` in this setting."""
    return {
        **eager(module, sets),
        **autocast(module, sets, setting),
        **(compiled(module, sets) if setting.batch in _WITH_AUTOTUNE[setting.name] else {}),
        **engines(module, sets),
    }


def eager(module: nn.Module, sets: Sequence[Inputs]) -> dict[str, Side]:
    """Stock PyTorch in both memory formats."""
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    return {
        "PyTorch eager": lambda: over(module, sets),
        "PyTorch eager, channels_last": lambda: over(last, channels_last(sets)),
    }


def autocast(module: nn.Module, sets: Sequence[Inputs], setting: Setting) -> dict[str, Side]:
    """Weights in float32, arithmetic in half precision."""
    dtype = setting.precision.dtype
    if dtype == torch.float32:
        return {}
    single = copy.deepcopy(module).float()

    def run(*inputs: Tensor) -> Any:
        with torch.autocast(sets[0][0].device.type, dtype):
            return single(*inputs)

    return {"PyTorch eager, autocast": lambda: over(run, sets)}


def compiled(module: nn.Module, sets: Sequence[Inputs]) -> dict[str, Side]:
    """torch.compile without its own CUDA graphs, because a round of calls is captured as one."""
    function = torch.compile(module, mode="max-autotune-no-cudagraphs", fullgraph=True)
    return {"torch.compile max-autotune": lambda: over(function, sets)}


def engines(module: nn.Module, sets: Sequence[Inputs]) -> dict[str, Side]:
    """Other libraries; on the CPU with the same number of threads as torch."""
    inputs, device = sets[0], sets[0][0].device
    found: dict[str, Side] = {
        title: lambda name=name: over(ENGINES[name].build(module, inputs), sets)
        for name, title in {
            "onnxruntime": "ONNX Runtime",
            "openvino": "OpenVINO",
            "tensorrt": "TensorRT",
        }.items()
        if ENGINES[name].why_not(device) is None
    }
    if device.type == "cuda" and _has_onnxruntime_cuda():
        found["ONNX Runtime"] = lambda: Launched(over(_onnxruntime_cuda(module, inputs), sets))
    return found


def _has_onnxruntime_cuda() -> bool:
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _onnxruntime_cuda(module: nn.Module, inputs: Inputs) -> Callable[..., Any]:
    """The module in ONNX Runtime on the GPU, reading and writing PyTorch's memory."""
    import onnxruntime

    model = to_onnx(module, inputs).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider"])
    outputs = [torch.empty_like(x) for x in tensors(module(*inputs))]

    def run(*given: Tensor) -> list[Tensor]:
        binding = session.io_binding()
        given = tuple(x.contiguous() for x in given)
        torch.cuda.current_stream().synchronize()  # the library uses its own stream
        for node, x in zip(session.get_inputs(), given, strict=True):
            binding.bind_input(node.name, "cuda", 0, _ELEMENTS[x.dtype], tuple(x.shape), x.data_ptr())
        for node, x in zip(session.get_outputs(), outputs, strict=True):
            binding.bind_output(node.name, "cuda", 0, _ELEMENTS[x.dtype], tuple(x.shape), x.data_ptr())
        session.run_with_iobinding(binding)
        return outputs

    return run
