"""Engines for a network's forward pass: PyTorch itself, and the optimisers of others, behind one call.

::

    run = ENGINES["openvino"].build(module, inputs)
    outputs = run(*inputs)

An engine computes on the device of the inputs, with as many threads as torch has when it is built. What a
run returns may be overwritten by the next one, and runs of one engine must not overlap.
"""

from .engine import Engine, EngineError, Prepared, Run
from .in_file import to_onnx
from .in_onnxruntime import ONNXRUNTIME, onnx_session
from .in_openvino import OPENVINO
from .in_pytorch import COMPILE, CUDAGRAPHS, EAGER, TENSORRT, WINOGRAD

__all__ = ["ENGINES", "Engine", "EngineError", "Prepared", "Run", "onnx_session", "to_onnx"]

ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (EAGER, COMPILE, WINOGRAD, ONNXRUNTIME, OPENVINO, CUDAGRAPHS, TENSORRT)
}
"""All engines, by name. ``wae.deploy`` tries them in this order."""
