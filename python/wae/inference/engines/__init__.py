"""Engines that run a network's forward pass: PyTorch itself and other runtimes, behind one interface.

::

    run = ENGINES["openvino"].build(module, inputs)
    outputs = run(*inputs)

An engine computes on the device of its inputs, with the number of threads that torch has when it is built.
The next run may overwrite what a run returned, and two runs of one engine must not overlap.
"""

from .engine import Engine, EngineError, Prepared, Run, as_engine_error
from .in_file import to_onnx
from .in_onnxruntime import ONNXRUNTIME, onnx_session
from .in_openvino import OPENVINO
from .in_pytorch import COMPILE, CUDAGRAPHS, EAGER, TENSORRT, WINOGRAD

__all__ = [
    "ENGINES",
    "Engine",
    "EngineError",
    "Prepared",
    "Run",
    "as_engine_error",
    "onnx_session",
    "to_onnx",
]

ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (EAGER, COMPILE, WINOGRAD, ONNXRUNTIME, OPENVINO, CUDAGRAPHS, TENSORRT)
}
"""All engines, by name. ``wae.deploy`` tries them in this order."""
