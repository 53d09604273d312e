"""int8 in PyTorch: torchao's quantization, for Inductor's x86 kernels."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from wae.inference.batches import in_chunks
from wae.inference.programs import any_batch, as_bytes, exported, several
from wae.progress import track

from .engine import Prepared, Run
from .int8 import Simulation, errors_only, listed, movements_between, require_same, saturates


class InTorchAO(Prepared):
    """An int8 network from torchao. Its lowered form is for one batch size, and runs others in chunks."""

    def __init__(self, program: torch.export.ExportedProgram, simulation: Simulation | None = None) -> None:
        self._program, self.simulation = program, simulation
        self._batch: int = 0
        self._run: Run | None = None

    def for_batch(self, batch: int | None) -> Run:
        """See :class:`Prepared`."""
        if batch is None:
            assert self._run is not None, "must be prepared for one batch size first"
            return in_chunks(self._run, self._batch)
        self._batch = batch
        self._run = lowered(self._program, batch)
        return self._run

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """Write the quantized program, which is lowered when it is loaded."""
        (folder / "network.pt2").write_bytes(as_bytes(self._program))


def load(folder: Path, batch: int, computed: str) -> Prepared:
    """Load what :meth:`InTorchAO.save` wrote into ``folder``."""
    _import()  # registers its operators
    return InTorchAO(torch.export.load(folder / "network.pt2"))


def _import() -> Any:
    """torchao's module for post-training quantization."""
    with warnings.catch_warnings(), errors_only():
        warnings.simplefilter("ignore")
        import torchao.quantization.pt2e.lowering
        import torchao.quantization.pt2e.quantize_pt2e
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer
    return torchao.quantization.pt2e


def quantized(
    module: nn.Module,
    inputs: Sequence[Tensor],
    samples: Sequence[Sequence[Tensor]],
    compared: Sequence[Tensor],
) -> tuple[torch.export.ExportedProgram, Simulation]:
    """Quantize ``module`` to int8 for Inductor's x86 kernels by torchao's PT2E, for any number of images.

    Args:
        module: in evaluation mode.
        inputs: example inputs.
        samples: batches of inputs that give the scales.
        compared: inputs on which both networks are compared.

    Returns:
        The quantized program, and what it computes of ``compared``.
    """
    pt2e = _import()
    x86 = pt2e.quantizer.x86_inductor_quantizer
    shapes, inputs = any_batch(module, inputs), several(inputs)
    # strict, because the quantizer matches a layer's parts by their source in Python, which only it records
    traced = torch.export.export(module, tuple(inputs), dynamic_shapes=shapes, strict=True).module()
    _set_norms_apart(traced)
    before, exact = _torch_layers(traced, compared)
    _set_numbers_apart(traced)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=saturates()))
    observed = pt2e.quantize_pt2e.prepare_pt2e(traced, quantizer)
    require_same(module, copy.deepcopy(observed), [inputs, *samples])  # a copy, because it observes
    for sample in track(samples, "calibrating"):
        observed(*sample)
    _replace(observed, torch.ops.aten.batch_norm.default, _batch_norm)
    quantized = pt2e.quantize_pt2e.convert_pt2e(observed)
    _replace(quantized, _batch_norm, torch.ops.aten.batch_norm.default)
    after, results = _torch_layers(quantized, compared)
    simulation = Simulation(movements_between(before, after), exact, results)
    return exported(quantized, inputs, any_batch(quantized, inputs), strict=True), simulation


@torch.no_grad()
def _set_norms_apart(module: fx.GraphModule) -> None:
    """Put a copy between a BatchNorm and the layer before it if that or its weights are also used elsewhere.

    torchao folds a BatchNorm into a convolution before it, and does not see that others use that too.
    """
    graph = module.graph
    for norm in graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        layer = norm.args[0]
        used = [layer, *(each for each in layer.args[1:3] if isinstance(each, fx.Node))]
        if all(len(each.users) == 1 for each in used):
            continue
        with graph.inserting_before(norm):
            apart = graph.call_function(torch.ops.aten.clone.default, (layer,))
        apart.meta["val"] = layer.meta["val"]  # without its source, by which the quantizer finds convolutions
        norm.replace_input_with(layer, apart)
    module.recompile()


def _set_numbers_apart(module: fx.GraphModule) -> None:
    """Hide additions of numbers, such as that in ``0 + layer(x)``, with which ``sum`` begins.

    torchao joins an addition with the layer before it, and asserts that the other term is a tensor.
    """
    for operator in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor):
        for node in module.graph.find_nodes(op="call_function", target=operator):
            if not all(isinstance(term, fx.Node) for term in node.args[:2]):
                node.meta["source_fn_stack"] = [(node.name, "")]  # by which the quantizer finds an addition


def _batch_norm(*arguments: Any) -> Tensor:
    """A BatchNorm that torchao does not recognise.

    If it sees one, it looks for every form that training with simulated int8 gives a BatchNorm, which takes
    half a minute of tracing.
    """
    return torch.ops.aten.batch_norm.default(*arguments)  # type: ignore[no-any-return]


def _replace(module: fx.GraphModule, function: Callable[..., Any], by: Callable[..., Any]) -> None:
    for node in module.graph.find_nodes(op="call_function", target=function):
        node.target = by
    module.recompile()


def lowered(program: torch.export.ExportedProgram, batch: int) -> Callable[..., Any]:
    """Lower ``program``, from :func:`quantized`, to calls of oneDNN's int8 kernels, for ``batch`` images."""
    pt2e = _import()
    examples = [
        _zeros_like(node.meta["val"], batch)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    module: Callable[..., Any] = pt2e.lowering.lower_pt2e_quantized_to_x86(program.module(), tuple(examples))
    module(*examples)  # compiles now, and warns now
    return module


def _zeros_like(value: Tensor, batch: int) -> Tensor:
    """Zeros for ``batch`` images, in the memory format of ``value``, by which views are chosen."""
    is_last = value.dim() == 4 and value.stride(1) == 1
    zeros = torch.zeros(batch, *value.shape[1:], dtype=value.dtype)
    return zeros.contiguous(memory_format=torch.channels_last) if is_last else zeros


class _Layers(fx.Interpreter):
    """Runs a graph and keeps the results of its convolutions and linear layers, by name.

    If a BatchNorm reads a layer, it keeps the norm's results for it, because torchao folds the norm into it.
    """

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
        layer = node.all_input_nodes[0].name if node.target == torch.ops.aten.batch_norm.default else ""
        if layer in self.kept:
            self.kept[layer] = result
        return result


def _torch_layers(
    module: fx.GraphModule, inputs: Sequence[Tensor]
) -> tuple[dict[str, Tensor], Sequence[Tensor]]:
    """The results of the layers, by name, and the network's."""
    layers = _Layers(module)
    results = layers.run(*(x.clone() for x in inputs))  # cloned because a network may change its input
    return layers.kept, listed(results)
