"""A module through everything that could run it instead of us. Peers that are not installed are left out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wae.inference.engines import ENGINES

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
    return {
        title: partial(ENGINES[name].build(module, inputs), *inputs)
        for name, title in {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}.items()
        if ENGINES[name].why_not(inputs[0].device) is None
    }
