"""Networks in int8, each by the library that its engine's makers have for it: none is written here.

The scales come from samples of the network's inputs. Each function gives the quantized network, and how far
the results of every convolution and matrix product moved, so that a loss of accuracy has a place.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from wae.difference import relative_difference
from wae.progress import track

from . import precision
from .programs import any_batch, exported, several

PACKAGES = {
    "openvino": {"nncf": "nncf"},
    "onnxruntime": {},
    "compile": {"torchao": "torchao"},
}
"""By engine, what it needs for int8 beside its own packages."""


class Movement(NamedTuple):
    """How far int8 moved one layer's results."""

    layer: str
    difference: float
    """Relative, in the norm."""


class ByteInput(NamedTuple):
    """An input of bytes: the byte b stands for (b - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: torch.dtype
    """uint8 or int8."""


def _movements(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Movement]:
    """Of the layers that are in both, the one that moved most first."""
    found = [
        Movement(name, relative_difference(after[name], wanted))
        for name, wanted in before.items()
        if name in after and after[name].shape == wanted.shape
    ]
    return sorted(found, key=lambda movement: -movement.difference)


# ------------------------------------------------------------------------------------------------ OpenVINO


def by_nncf(
    model: Any, samples: Sequence[Sequence[Tensor]], compared: Sequence[Tensor]
) -> tuple[Any, list[Movement]]:
    """An ``openvino.Model`` in int8, by NNCF's post-training quantization."""
    terminal = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(terminal):  # where its progress bars belong
        import nncf

        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset([[x.contiguous().numpy() for x in sample] for sample in samples])
        quantized = nncf.quantize(model, data, subset_size=len(samples))
    before, after = (_openvino_layers(network, compared) for network in (model, quantized))
    return quantized, _movements(before, after)


_WHOLE = 1e-3  # of a step: so near to the byte -128 the lower limit is taken for it


def bytes_for_openvino(model: Any) -> Sequence[ByteInput]:
    """Have ``model``, of :func:`by_nncf`, take the bytes that its first step makes of its inputs.

    Returns nothing, and changes nothing, unless every input has such a step.
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
    """The bytes that ``step`` makes; None if it is another kind of step, or they need a zero point."""
    if step.get_type_name() != "FakeQuantize" or step.get_attributes()["levels"] != 256:
        return None
    limits = [step.input_value(i).get_node() for i in range(1, 5)]
    if any(each.get_type_name() != "Constant" or each.data.size != 1 for each in limits):
        return None
    low, high, low_out, high_out = (float(each.data.item()) for each in limits)
    scale = (high - low) / 255
    if (low, high) != (low_out, high_out) or not scale > 0:
        return None
    if abs(low / scale + 128) < _WHOLE:
        return ByteInput(scale, 0, torch.int8)
    return ByteInput(scale, 0, torch.uint8) if low == 0 else None


_OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "MatMul")


def _openvino_layers(model: Any, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The results of its convolutions and matrix products, bias included, by name."""
    import openvino

    model = model.clone()
    layers = [op for op in model.get_ops() if op.get_type_name() in _OPENVINO_LAYERS]
    ports = [_with_bias(op).output(0) for op in layers]
    model.add_outputs(ports)  # one that is an output already stays one
    # Rounded as in int8, but computed in float32: from the kernels for int8, results in the middle of a
    # network come as zeros (OpenVINO 2026.4).
    settings = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer([x.contiguous().numpy() for x in inputs])
    results = {
        result.input_value(0).get_node().get_friendly_name(): request.get_output_tensor(number).data
        for number, result in enumerate(model.results)
    }
    return {
        op.get_friendly_name().removesuffix("/WithoutBiases"): torch.from_numpy(
            results[port.get_node().get_friendly_name()].copy()
        )
        for op, port in zip(layers, ports, strict=True)
    }


def _with_bias(op: Any) -> Any:
    """The last constant factor or addend behind ``op``: NNCF moves numbers between a layer and its bias."""
    while True:
        readers = [x.get_node() for x in op.output(0).get_target_inputs()]
        readers = [reader for reader in readers if reader.get_type_name() != "ShapeOf"]
        if len(readers) != 1 or readers[0].get_type_name() not in ("Multiply", "Add"):
            return op
        others = [x.get_node() for x in readers[0].input_values() if x.get_node() != op]
        if len(others) != 1 or not _is_constant(others[0]):  # a shortcut around the layer, say
            return op
        op = readers[0]


def _is_constant(op: Any) -> bool:
    """Whether ``op`` is made of constants, and of shapes: one brings a bias to its layer's rank."""
    if op.get_type_name() in ("Constant", "ShapeOf"):
        return True
    made_of = [x.get_node() for x in op.input_values()]
    return bool(made_of) and all(map(_is_constant, made_of))


# -------------------------------------------------------------------------------------------- ONNX Runtime


class _Reader:
    """Samples as ONNX Runtime asks for them; shows how far it is."""

    def __init__(self, names: Sequence[str], samples: Sequence[Sequence[Tensor]]) -> None:
        self._samples = iter(track(samples, "calibrating"))
        self._names = names

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self._samples, None)
        if sample is None:
            return None
        arrays = (x.contiguous().numpy() for x in sample)
        return dict(zip(self._names, arrays, strict=True))


def by_onnxruntime(
    path: Path, samples: Sequence[Sequence[Tensor]], compared: Sequence[Tensor] = ()
) -> list[Movement]:
    """Make the ONNX file at ``path`` one in int8, in the form QDQ, by ONNX Runtime's static quantization."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [node.name for node in onnx.load(path).graph.input]
    with tempfile.TemporaryDirectory() as folder, _errors_only():
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _Reader(names, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # without VNNI the processor's sums of two products are of 16 bits
            reduce_range=not precision.native("int8", torch.device("cpu")),
        )
        moved = _onnx_movements(prepared, quantized, compared) if compared else []
        path.write_bytes(quantized.read_bytes())
    return moved


def bytes_for_onnxruntime(path: Path) -> Sequence[ByteInput]:
    """Have the file of :func:`by_onnxruntime` take the bytes that its first step makes of its inputs.

    Returns nothing, and changes nothing, unless every input has such a step.
    """
    import onnx

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


def _onnx_movements(prepared: Path, quantized: Path, inputs: Sequence[Tensor]) -> list[Movement]:
    # in int8 a layer with a ReLU behind it has the name of that one's result, and negative numbers end later
    before = _onnx_results(prepared, inputs, _ONNX_LAYERS)
    rectified = _onnx_results(prepared, inputs, ("Relu",))
    after = _onnx_results(quantized, inputs, _ONNX_LAYERS)
    after = {name: x.relu() if name in rectified else x for name, x in after.items()}
    return _movements(before | rectified, after)


def _onnx_results(path: Path, inputs: Sequence[Tensor], kinds: Sequence[str]) -> dict[str, Tensor]:
    """The results of nodes of these kinds, by their names."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    names = [node.output[0] for node in model.graph.node if node.op_type in kinds]
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    arrays = [x.contiguous().numpy() for x in inputs]
    feeds = dict(zip((node.name for node in session.get_inputs()), arrays, strict=True))
    return {name: torch.from_numpy(x) for name, x in zip(names, session.run(names, feeds), strict=True)}


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """The library's advice goes to the root logger; a caller of ours did not ask for it."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


# ------------------------------------------------------------------------------------------------- PyTorch


def import_torchao() -> Any:
    """torchao's module of post-training quantization."""
    with warnings.catch_warnings(), _errors_only():
        warnings.simplefilter("ignore")
        import torchao.quantization.pt2e.lowering
        import torchao.quantization.pt2e.quantize_pt2e
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer
    return torchao.quantization.pt2e


def by_torchao(
    module: nn.Module,
    inputs: Sequence[Tensor],
    samples: Sequence[Sequence[Tensor]],
    compared: Sequence[Tensor],
) -> tuple[torch.export.ExportedProgram, list[Movement]]:
    """``module`` in int8 for Inductor's x86 kernels, for any number of images, by torchao's PT2E."""
    pt2e = import_torchao()
    x86 = pt2e.quantizer.x86_inductor_quantizer
    shapes, inputs = any_batch(inputs), several(inputs)
    # strict: the quantizer finds a layer's parts by where they stood in Python, which only that way tells
    traced = torch.export.export(module, tuple(inputs), dynamic_shapes=shapes, strict=True).module()
    before = _torch_layers(traced, compared)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    observed = pt2e.quantize_pt2e.prepare_pt2e(traced, quantizer)
    for sample in track(samples, "calibrating"):
        observed(*sample)
    quantized = pt2e.quantize_pt2e.convert_pt2e(observed)
    moved = _movements(before, _torch_layers(quantized, compared))
    return exported(quantized, inputs, shapes, strict=True), moved


def lowered(program: torch.export.ExportedProgram, batch: int) -> Callable[..., Any]:
    """``program``, of :func:`by_torchao`, as calls of oneDNN's int8 kernels, for ``batch`` images."""
    pt2e = import_torchao()
    examples = [
        torch.zeros(batch, *node.meta["val"].shape[1:], dtype=node.meta["val"].dtype)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    module: Callable[..., Any] = pt2e.lowering.lower_pt2e_quantized_to_x86(program.module(), tuple(examples))
    module(*examples)  # compiles, and warns
    return module


class _Layers(fx.Interpreter):
    """Runs a graph and keeps the results of its convolutions and matrix products."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.kept: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.target in (
            torch.ops.aten.conv2d.default,
            torch.ops.aten.conv_transpose2d.input,
            torch.ops.aten.linear.default,
        ):
            self.kept[node.name] = result
        return result


def _torch_layers(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    layers = _Layers(module)
    layers.run(*inputs)
    return layers.kept
