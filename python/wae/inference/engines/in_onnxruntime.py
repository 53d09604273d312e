"""ONNX Runtime on the CPU, and its static quantization."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.progress import track
from wae.storage.files import temporary_folder

from .engine import Engine, Prepared, Run, Samples
from .in_file import BATCH, PACKAGES, InFile, kept_folder, one_or_more, to_onnx
from .int8 import ByteInput, Simulation, errors_only, movements_between, require_same, saturates


def _prepare(
    module: nn.Module, inputs: Sequence[Tensor], wanted: str, samples: Samples, compared: Sequence[Tensor]
) -> Prepared:
    network = to_onnx(module, inputs, True).SerializeToString()
    with kept_folder() as folder:
        path = folder / "network.onnx"
        path.write_bytes(network)
        simulation = None
        if wanted == "int8":
            require_same(module, onnx_session(path), [inputs, *samples])
            simulation = quantize(path, samples, compared)
        return InFile(folder, _open, _take_bytes, simulation, temporary=True)


def _open(folder: Path, batch: int | None) -> Run:
    return onnx_session(folder / "network.onnx", batch)


def onnx_session(path: Path, batch: int | None = None) -> Run:
    """Load the ONNX model at ``path`` into ONNX Runtime on the CPU.

    The runner takes ``batch`` images, or any number if ``batch`` is None, and as many threads as torch has
    now.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # idle threads would keep spinning after a run, on the cores that our op needs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if batch is not None:
        options.add_free_dimension_override_by_name(BATCH, batch)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*tensors: Tensor) -> Any:
        arrays = (x.contiguous().numpy() for x in tensors)
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        return one_or_more([torch.from_numpy(x) for x in results])

    return run


class _Reader:
    """Feeds the samples to ONNX Runtime's calibration, and shows a progress bar."""

    def __init__(self, names: Sequence[str], samples: Sequence[Sequence[Tensor]]) -> None:
        self._samples = iter(track(samples, "calibrating"))
        self._names = names

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self._samples, None)
        if sample is None:
            return None
        arrays = (x.contiguous().numpy() for x in sample)
        return dict(zip(self._names, arrays, strict=True))


def quantize(path: Path, samples: Sequence[Sequence[Tensor]], compared: Sequence[Tensor]) -> Simulation:
    """Quantize the ONNX file at ``path`` to int8, in QDQ format, by ONNX Runtime's static quantization.

    Args:
        path: the float32 model; it is replaced.
        samples: batches of the model's inputs that give the scales.
        compared: inputs on which both models are compared.

    Returns:
        What the quantized model computes of ``compared``.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [node.name for node in onnx.load(path).graph.input]
    with temporary_folder() as folder, errors_only():
        prepared, quantized = folder / "prepared.onnx", folder / "quantized.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _Reader(names, samples),
            nodes_to_exclude=_left_in_float32(prepared, compared),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=saturates(),
        )
        _look_at_numbers(quantized)
        simulation = _simulation(prepared, quantized, compared)
        path.write_bytes(quantized.read_bytes())
    return simulation


def _left_in_float32(path: Path, inputs: Sequence[Tensor]) -> list[str]:
    """The names of the nodes of the model at ``path`` that stay in float32.

    To grouped transposed convolutions ONNX Runtime gives too few scales: it takes one for each output channel
    of a group, but the bias has those of all groups. No byte stands for infinity, which a mask may hold, so
    the nodes that read it or compute it from ``inputs`` stay as well.
    """
    import onnx

    graph = onnx.load(path).graph
    infinite = {each.name for each in graph.initializer if _is_infinite(onnx.numpy_helper.to_array(each))}
    if infinite:
        found, _ = _onnx_results(path, inputs, {node.op_type for node in graph.node})
        infinite |= {name for name, numbers in found.items() if _is_infinite(numbers.numpy())}
    return [
        node.name
        for node in graph.node
        if not infinite.isdisjoint((*node.input, *node.output))
        or (node.op_type == "ConvTranspose" and any(a.name == "group" and a.i > 1 for a in node.attribute))
    ]


def _is_infinite(numbers: Any) -> bool:
    """Whether ``numbers``, an array, has infinities."""
    import numpy as np

    return numbers.dtype.kind == "f" and bool(np.isinf(numbers).any())


def _look_at_numbers(path: Path) -> None:
    """Make what looks for NaN and infinity in the int8 model at ``path`` read numbers, not bytes of them."""
    import onnx

    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type not in ("IsNaN", "IsInf"):
            continue
        from_bytes = made.get(node.input[0])
        to_bytes = made.get(from_bytes.input[0]) if from_bytes is not None and from_bytes.input else None
        if to_bytes is not None and to_bytes.op_type == "QuantizeLinear":
            node.input[0] = to_bytes.input[0]
    onnx.save(model, path)


def _take_bytes(folder: Path) -> Sequence[ByteInput]:
    """Make the network in ``folder`` take the bytes to which its first step quantizes its inputs.

    Returns an empty sequence, and changes nothing, unless every input has such a step.
    """
    import onnx

    path = folder / "network.onnx"
    model = onnx.load(path)
    graph = model.graph
    numbers = {each.name: each for each in graph.initializer}
    found = []
    for given in graph.input:
        steps = [node for node in graph.node if given.name in node.input]
        if len(steps) != 1 or steps[0].op_type != "QuantizeLinear":
            return ()
        scale, zero_point = (onnx.numpy_helper.to_array(numbers[name]) for name in steps[0].input[1:])
        if scale.size != 1 or zero_point.dtype != "uint8":
            return ()
        found.append((given, steps[0], ByteInput(float(scale.item()), int(zero_point.item()), torch.uint8)))
    for given, step, _ in found:
        given.type.tensor_type.elem_type = onnx.TensorProto.UINT8
        graph.node.remove(step)
        for node in graph.node:
            node.input[:] = [given.name if name == step.output[0] else name for name in node.input]
    onnx.save(model, path)
    return [each for _, _, each in found]


_ONNX_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_OF_OUTPUT = "_QuantizeLinear_Input"  # follows the name of a layer whose rounded result is an output


def _simulation(prepared: Path, quantized: Path, inputs: Sequence[Tensor]) -> Simulation:
    # In int8 a layer before a ReLU has the name of the ReLU's result, but negative values are cut only later.
    before, exact = _onnx_results(prepared, inputs, _ONNX_LAYERS)
    rectified, _ = _onnx_results(prepared, inputs, ("Relu",))
    found, results = _onnx_results(quantized, inputs, _ONNX_LAYERS)
    after = {name.removesuffix(_OF_OUTPUT): x for name, x in found.items()}
    after = {name: x.relu() if name in rectified else x for name, x in after.items()}
    return Simulation(movements_between(before | rectified, after), exact, results)


def _onnx_results(
    path: Path, inputs: Sequence[Tensor], kinds: Collection[str]
) -> tuple[dict[str, Tensor], Sequence[Tensor]]:
    """The results of all nodes of these ``kinds``, by name, and the model's."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    names = [node.output[0] for node in model.graph.node if node.op_type in kinds]
    known = [output.name for output in model.graph.output]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    arrays = [x.contiguous().numpy() for x in inputs]
    feeds = dict(zip((node.name for node in session.get_inputs()), arrays, strict=True))
    wanted = [*dict.fromkeys((*known, *names))]
    found = dict(zip(wanted, map(torch.from_numpy, session.run(wanted, feeds)), strict=True))
    return {name: found[name] for name in names}, [found[name] for name in known]


ONNXRUNTIME = Engine(
    "onnxruntime",
    ("cpu",),
    {"onnxruntime": "onnxruntime"},
    _prepare,
    lambda folder, batch, computed: InFile(folder, _open),
    ("float32", "int8"),
    foreign=True,
    converters=PACKAGES,
)
