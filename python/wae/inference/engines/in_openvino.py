"""OpenVINO on the CPU, and NNCF's quantization."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.inference import signal_stack

from .engine import Engine, Prepared, Run, Samples
from .in_file import PACKAGES, InFile, kept_folder, one_or_more, to_onnx
from .int8 import ByteInput, Simulation, movements_between, require_same, saturates


@signal_stack.kept()
def _prepare(
    module: nn.Module, inputs: Sequence[Tensor], wanted: str, samples: Samples, compared: Sequence[Tensor]
) -> Prepared:
    import openvino

    model = openvino.Core().read_model(to_onnx(module, inputs, True).SerializeToString())
    simulation = None
    if wanted == "int8":
        require_same(module, _runner(model), [inputs, *samples])
        model, simulation = _quantized(model, samples, compared)
    with kept_folder() as folder:
        openvino.save_model(model, folder / "network.xml", compress_to_fp16=False)
        opened = partial(_open, wanted)
        return InFile(folder, opened, _take_bytes, simulation, temporary=True)


@signal_stack.kept()
def _take_bytes(folder: Path) -> Sequence[ByteInput]:
    import openvino

    model = openvino.Core().read_model(folder / "network.xml")
    inputs = _take_bytes_in(model)
    if inputs:
        # into another file first: the model still reads its weights from the old one
        openvino.save_model(model, folder / "bytes.xml", compress_to_fp16=False)
        for kind in ("xml", "bin"):
            (folder / f"bytes.{kind}").replace(folder / f"network.{kind}")
    return inputs


_HINTS = {"float32": "f32", "int8": "f32", "bfloat16": "bf16", "float16": "f16"}


@signal_stack.kept()
def _open(wanted: str, folder: Path, batch: int | None) -> Run:
    import openvino

    # No CACHE_DIR, which would save at most 0.4 s: OpenVINO computes wrong scores from a damaged cache.
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": _HINTS[wanted],
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    model = core.read_model(folder / "network.xml")
    if batch is not None:
        model.reshape({x.get_any_name(): [batch, *list(x.partial_shape)[1:]] for x in model.inputs})
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    # Results of known sizes are allocated once. Making arrays and dictionaries of them in each call takes
    # 0.2 ms more, because the network has pushed Python out of the CPU's caches.
    known = all(x.partial_shape.is_static and x.element_type == openvino.Type.f32 for x in compiled.outputs)
    outputs = compiled.outputs if known else ()
    results = [torch.empty(tuple(x.shape), dtype=torch.float32) for x in outputs]
    for number, result in enumerate(results):
        request.set_output_tensor(number, openvino.Tensor(result.numpy(), shared_memory=True))

    def run(*tensors: Tensor) -> Any:
        arrays = [x.contiguous().numpy() for x in tensors]  # kept here: OpenVINO does not keep them alive
        for number, array in enumerate(arrays):
            request.set_input_tensor(number, openvino.Tensor(array, shared_memory=True))
        found = request.infer(share_outputs=True)
        return one_or_more(results or [torch.from_numpy(x) for x in found.values()])

    return run


def _runner(model: Any) -> Run:
    """Runs ``model``, an ``openvino.Model``, in float32."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": _HINTS["float32"]})

    def run(*tensors: Tensor) -> Any:
        found = compiled([x.contiguous().numpy() for x in tensors])
        return one_or_more([torch.from_numpy(x) for x in found.values()])

    return run


def _quantized(
    model: Any, samples: Sequence[Sequence[Tensor]], compared: Sequence[Tensor]
) -> tuple[Any, Simulation]:
    """``model``, an ``openvino.Model``, in int8 by NNCF's post-training quantization, and its simulation."""
    terminal = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(terminal):  # NNCF prints its progress bars to stdout
        import nncf

        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset([[x.contiguous().numpy() for x in sample] for sample in samples])
        fix = nncf.OverflowFix.ENABLE if saturates() else nncf.OverflowFix.FIRST_LAYER
        options = nncf.AdvancedQuantizationParameters(overflow_fix=fix)
        quantized = nncf.quantize(model, data, subset_size=len(samples), advanced_parameters=options)
    (before, exact), (after, results) = (_layers(network, compared) for network in (model, quantized))
    return quantized, Simulation(movements_between(before, after), exact, results)


_NEAR = 1e-3  # of a step: a lower limit this close to the byte -128 counts as that byte


def _take_bytes_in(model: Any) -> Sequence[ByteInput]:
    """Make ``model``, from :func:`_quantized`, take the bytes to which its first step quantizes its inputs.

    Returns an empty sequence, and changes nothing, unless every input has such a step.
    """
    import numpy as np
    from openvino import opset13

    found = []
    for parameter in model.get_parameters():
        steps = [x.get_node() for x in parameter.output(0).get_target_inputs()]
        taken = _bytes_of(steps[0]) if len(steps) == 1 else None
        if taken is None:
            return ()
        found.append((parameter, steps[0], taken))
    for parameter, step, taken in found:
        new = opset13.parameter(
            parameter.get_partial_shape(), np.int8 if taken.dtype == torch.int8 else np.uint8
        )
        new.set_friendly_name(parameter.get_friendly_name())
        new.output(0).get_tensor().set_names(parameter.output(0).get_names())
        numbers = opset13.multiply(opset13.convert(new, "f32"), np.float32(taken.scale))
        for reader in step.output(0).get_target_inputs():
            reader.replace_source_output(numbers.output(0))
        model.replace_parameter(model.get_parameter_index(parameter), new)
    model.validate_nodes_and_infer_types()
    return [taken for _, _, taken in found]


def _bytes_of(step: Any) -> ByteInput | None:
    """The bytes that ``step`` makes; None if it is no such step, or its bytes need a zero point."""
    if step.get_type_name() != "FakeQuantize" or step.get_attributes()["levels"] != 256:
        return None
    limits = [step.input_value(i).get_node() for i in range(1, 5)]
    if any(each.get_type_name() != "Constant" or each.data.size != 1 for each in limits):
        return None
    low, high, low_out, high_out = (float(each.data.item()) for each in limits)
    scale = (high - low) / 255
    if (low, high) != (low_out, high_out) or not scale > 0:
        return None
    if abs(low / scale + 128) < _NEAR:
        return ByteInput(scale, 0, torch.int8)
    return ByteInput(scale, 0, torch.uint8) if low == 0 else None


_LAYERS = ("Convolution", "GroupConvolution", "MatMul")


def _layers(model: Any, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], Sequence[Tensor]]:
    """The results of convolutions and matrix products, bias included, by name; and those of the model."""
    import openvino

    outputs, model = len(model.outputs), model.clone()
    layers = [op for op in model.get_ops() if op.get_type_name() in _LAYERS]
    ports = [_with_bias(op).output(0) for op in layers]
    # OpenVINO (2026.4) computes a BatchNorm of rounded numbers wrongly, unless its result is an output
    norms = [op.output(0) for op in model.get_ops() if op.get_type_name() == "BatchNormInference"]
    model.add_outputs(ports + norms)  # one that is an output already stays one
    # Rounded as in int8, but computed in float32: the int8 kernels return zeros for results in the middle of
    # a network (OpenVINO 2026.4).
    settings = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer([x.contiguous().numpy() for x in inputs])
    numbers = [torch.from_numpy(request.get_output_tensor(n).data.copy()) for n in range(len(model.results))]
    names = (result.input_value(0).get_node().get_friendly_name() for result in model.results)
    by_name = dict(zip(names, numbers, strict=True))
    return {
        op.get_friendly_name().removesuffix("/WithoutBiases"): by_name[port.get_node().get_friendly_name()]
        for op, port in zip(layers, ports, strict=True)
    }, numbers[:outputs]


def _with_bias(op: Any) -> Any:
    """The last multiplication by, or addition of, constants behind ``op``; ``op`` itself if there is none.

    NNCF moves values between a layer and its bias, so that only the result behind both can be compared.
    """
    while True:
        readers = [x.get_node() for x in op.output(0).get_target_inputs()]
        readers = [reader for reader in readers if reader.get_type_name() != "ShapeOf"]
        if len(readers) != 1 or readers[0].get_type_name() not in ("Multiply", "Add"):
            return op
        others = [x.get_node() for x in readers[0].input_values() if x.get_node() != op]
        if len(others) != 1 or not _is_constant(others[0]):  # a residual connection, for example
            return op
        op = readers[0]


def _is_constant(op: Any) -> bool:
    """Whether ``op`` depends on constants and shapes only; a shape can be part of reshaping a bias."""
    if op.get_type_name() in ("Constant", "ShapeOf"):
        return True
    inputs = [x.get_node() for x in op.input_values()]
    return bool(inputs) and all(map(_is_constant, inputs))


OPENVINO = Engine(
    "openvino",
    ("cpu",),
    {"openvino": "openvino"},
    _prepare,
    lambda folder, batch, computed: InFile(folder, partial(_open, computed)),
    tuple(_HINTS),
    foreign=True,
    converters=PACKAGES,
    int8_packages={"nncf": "nncf"},
)
