"""What can run a network's forward pass: PyTorch itself, and the optimisers of others, behind one call.

::

    run = ENGINES["openvino"].build(module, inputs)
    outputs = run(*inputs)

An engine computes on the device of the inputs, with as many threads as torch has when it is built. What a
run returns may be overwritten by the next one, and runs of one engine must not overlap.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from wae.errors import WaeError
from wae_kernels import backends

from .winograd import replaced

Run = Callable[..., Any]
"""Takes the module's inputs, and returns what the module returns: a tensor, or several."""


class EngineError(WaeError, RuntimeError):
    """An engine cannot be used here: it is missing, or it does not take the network."""


@dataclass(frozen=True)
class Engine:
    """One way to run a module.

    Attributes:
        name: its key in :data:`ENGINES`.
        devices: types of device it computes on.
        packages: what it imports, by the name that pip knows.
        compile: see :meth:`build`.
        foreign: whether it is not PyTorch's: it copies all but contiguous tensors, and has its own threads.
        kernels: whether it needs our compiled kernels.
    """

    name: str
    devices: tuple[str, ...]
    packages: dict[str, str]
    compile: Callable[[nn.Module, Sequence[Tensor], bool], Run]
    foreign: bool = False
    kernels: bool = False

    def why_not(self, device: torch.device | str) -> str | None:
        """What is in the way of this engine on ``device``, for a person to read; None if nothing is."""
        kind = torch.device(device).type
        if kind not in self.devices:
            return f"{self.name} runs on {' or '.join(self.devices)}, not on {kind}"
        missing = [pip for module, pip in self.packages.items() if importlib.util.find_spec(module) is None]
        if missing:
            return f"{self.name} needs packages that are not installed: `pip install {' '.join(missing)}`"
        if self.kernels and not backends.backend_for(device).startswith("cpu"):
            return f"{self.name} needs the compiled kernels: `wae info` tells why they do not run"
        return None

    def build(self, module: nn.Module, inputs: Sequence[Tensor], dynamic: bool = False) -> Run:
        """Prepare ``module``, in evaluation mode, for inputs like these.

        Args:
            module: takes ``inputs`` and returns a tensor or several. It must not change afterwards.
            inputs: their dtypes, shapes and memory formats are what the result is made for.
            dynamic: whether their first dimension, the same for all, may be another at each call.

        Raises:
            EngineError: the engine is not installed, does not run on the inputs' device, or refuses the
                module.
        """
        reason = self.why_not(inputs[0].device)
        if reason is not None:
            raise EngineError(reason)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the engines' own parts
                run = self.compile(module, inputs, dynamic)
                run(*inputs)  # some prepare more at the first call
        except Exception as error:  # whatever kind the engine has
            raise EngineError(f"{self.name} does not run this network: {error}") from error
        return run


# ------------------------------------------------------------------------------------------------- PyTorch


def _eager(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    return module


_MANY_WEIGHTS = 2**20  # of one layer: about what the second-level cache holds
_QUIET = {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}


def _torch_compile(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    def forward(*tensors: Tensor) -> Any:
        return module(*tensors)

    # PyTorch allows a code object some recompilations only: so each module gets one of its own.
    forward.__code__ = forward.__code__.replace()
    options: dict[str, Any] = {}
    if inputs[0].is_cuda:
        options = {"max_autotune": True, "triton.cudagraphs": not dynamic}
    elif any(isinstance(m, nn.Linear) and m.weight.numel() >= _MANY_WEIGHTS for m in module.modules()):
        # for few images a generated FC layer reads its weights from memory at twice the speed of MKL's
        options = {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN", **_QUIET}
    compiled: Run = torch.compile(
        forward, fullgraph=True, dynamic=None if dynamic else False, options=options
    )

    def run(*tensors: Tensor) -> Any:
        # Freezing makes constants of the weights, folds and packs them. As one of the options it would come
        # too late: tracing must know of it, whenever it happens.
        with torch._inductor.config.patch(freezing=True):
            return compiled(*tensors)

    if not dynamic:
        run(*inputs)
        return compiled
    inputs = _several(inputs)
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)
    run(*inputs)
    return run  # one image is compiled for by itself, when it comes


def _several(inputs: Sequence[Tensor]) -> list[Tensor]:
    """``inputs`` of at least two images: exporters take a first dimension of 1 for a constant."""
    return [x if x.shape[0] > 1 else torch.cat((x, x)) for x in inputs]


def _winograd(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    return _torch_compile(replaced(module), inputs, dynamic)


def _cudagraphs(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    if dynamic:
        return module  # a graph holds one shape
    held = [x.clone() for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries choose their algorithms before the capture
            module(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = module(*held)

    def run(*tensors: Tensor) -> Any:
        for mine, given in zip(held, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        return outputs

    return run


def _tensorrt(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    importlib.import_module("torch_tensorrt")  # registers the backend
    options: Any = {"enabled_precisions": {inputs[0].dtype}}
    compiled: Run = torch.compile(module, backend="torch_tensorrt", dynamic=dynamic, options=options)
    return compiled


# -------------------------------------------------------------------------------------------- through ONNX


def to_onnx(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool = False, **options: Any) -> Any:
    """``module`` as a ``torch.onnx.ONNXProgram``; with ``dynamic``, for any number of images.

    ``options`` go to :func:`torch.onnx.export`.
    """
    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} for _ in inputs)
        inputs = _several(inputs)
    return torch.onnx.export(
        module, tuple(inputs), dynamo=True, dynamic_shapes=shapes, verbose=False, **options
    )


def _onnxruntime(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    return onnx_session(to_onnx(module, inputs, dynamic).model_proto.SerializeToString())


def onnx_session(model: bytes) -> Run:
    """An ONNX ``model`` in ONNX Runtime on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # after a run its idle threads would keep the cores from our op, which runs on PyTorch's
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"  # of bytes the session would keep a copy
        path.write_bytes(model)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*tensors: Tensor) -> Any:
        arrays = (x.contiguous().numpy() for x in tensors)
        _end_threads()
        return _as_tensors(session.run(None, dict(zip(names, arrays, strict=True))))

    return run


def _openvino(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    model = core.read_model(to_onnx(module, inputs, dynamic).model_proto.SerializeToString())
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(*tensors: Tensor) -> Any:
        arrays = [x.contiguous().numpy() for x in tensors]
        _end_threads()
        outputs = request.infer(arrays, share_inputs=True, share_outputs=True)
        return _as_tensors(list(outputs.values()))

    return run


def _end_threads() -> None:
    """End PyTorch's idle threads; its next operation starts them again, in some 0.05 ms.

    They are OpenMP's, and wait for that operation in a loop. An engine with threads of its own would share
    the cores with them for milliseconds (docs/deploy.md).
    """
    pause = _openmp_pause()
    if pause is not None:
        pause(1)  # omp_pause_soft


@functools.cache
def _openmp_pause() -> Callable[[int], int] | None:
    """OpenMP 5.0's omp_pause_resource_all, of the library that PyTorch has loaded; None where it has none."""
    try:
        return cast(Callable[[int], int], ctypes.CDLL(None).omp_pause_resource_all)
    except (OSError, TypeError, AttributeError):  # TypeError: on Windows
        return None


def _as_tensors(arrays: Sequence[Any]) -> Tensor | list[Tensor]:
    tensors = [torch.from_numpy(array) for array in arrays]
    return tensors if len(tensors) > 1 else tensors[0]


_ONNX = {"onnx": "onnx", "onnxscript": "onnxscript"}

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("eager", ("cpu", "cuda"), {}, _eager),
        Engine("compile", ("cpu", "cuda"), {}, _torch_compile),
        Engine("winograd", ("cpu",), {}, _winograd, kernels=True),
        Engine("onnxruntime", ("cpu",), {**_ONNX, "onnxruntime": "onnxruntime"}, _onnxruntime, foreign=True),
        Engine("openvino", ("cpu",), {**_ONNX, "openvino": "openvino"}, _openvino, foreign=True),
        Engine("cudagraphs", ("cuda",), {}, _cudagraphs),
        Engine("tensorrt", ("cuda",), {"torch_tensorrt": "torch-tensorrt"}, _tensorrt),
    )
}
"""All engines, by name."""
