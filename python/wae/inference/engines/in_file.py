"""Networks in a file, for engines that are not part of PyTorch: they get each network as an ONNX model."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.inference.programs import any_batch, exported, several
from wae.storage.files import full_disk_named

from .engine import EngineError, Prepared, Run
from .int8 import ByteInput, Simulation

PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript"}
"""The modules that :func:`to_onnx` imports, mapped to the names that pip installs."""

BATCH = "batch"
"""The name of the first dimension in an ONNX model that takes any number of images."""


def to_onnx(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool = False, **options: Any) -> Any:
    """Export ``module`` to an ``onnx.ModelProto``.

    Args:
        module: the network, in evaluation mode.
        inputs: example inputs of the network.
        dynamic: make a model for any number of images, not only the number in ``inputs``.
        options: passed to :func:`torch.onnx.export`.

    Raises:
        EngineError: an average pool has a ``divisor_override``.
    """
    shapes = any_batch(module, inputs) if dynamic else None
    inputs = several(inputs) if dynamic else inputs
    logger = logging.getLogger("onnx_ir")  # it warns about empty lists among an operator's attributes
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        traced = exported(module, inputs, shapes)
        _refuse_divisors(traced)
        program = torch.onnx.export(traced, tuple(inputs), dynamo=True, verbose=False, **options)
        assert program is not None  # with dynamo=True
        proto = program.model_proto
        for value in program.model.graph.initializers.values():
            value.const_value = None  # onnxscript's global rules keep the last graph alive, weights included
        if dynamic:
            _name_batch(proto)
        _count_without_padding(proto)
        return proto
    finally:
        logger.setLevel(level)


def _refuse_divisors(program: torch.export.ExportedProgram) -> None:
    """Raise EngineError if an average pool has a divisor of its own: the exporter drops it without a word."""
    pools = (torch.ops.aten.avg_pool2d.default, torch.ops.aten.avg_pool3d.default)
    for node in program.graph.nodes:
        if node.target in pools and [*node.args[6:], node.kwargs.get("divisor_override")][0] is not None:
            raise EngineError("ONNX has no average pool with a divisor_override, as this network has")


def _name_batch(proto: Any) -> None:
    """Rename the first dimension of all inputs to :data:`BATCH`; torch.export named it after a symbol."""
    graph = proto.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for dim in dims:
        if dim.HasField("dim_param"):
            dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, dim.dim_param)


def _count_without_padding(proto: Any) -> None:
    """Make average pools leave out the padding that they count, and scale their results.

    They count their own if they have ``count_include_pad``, and the zeros that a Pad puts before them. If the
    padded numbers are those of a convolution without a ReLU that another layer reads too, OpenVINO in int8
    gives wrong results, also with a Pad, which it joins with the pool. If a pool rounds up, OpenVINO, and
    ONNX Runtime in int8, also count what the last window covers beyond the padding, which PyTorch does not.
    """
    import onnx

    graph = proto.graph
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info)}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "AveragePool":
            continue
        has = _attributes(node)
        source, sides, zeros = _source(graph, types, node)
        if not has.get("count_include_pad") and not any(zeros):
            continue
        (result,), pads = node.output, any((*has["pads"], *zeros))
        if pads and not all(sides):  # the size depends on the numbers
            continue
        new = result if not pads else f"{result}_unscaled"
        pool = {name: value for name, value in has.items() if name != "count_include_pad"}
        if pads:
            shares = _shares(has, sides, zeros)
            pool |= {"ceil_mode": 0, "pads": _covered(has, sides, zeros, shares.shape[2:])}
        node.CopyFrom(onnx.helper.make_node("AveragePool", [source], [new], node.name, **pool))
        if pads:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(types[source].elem_type)
            graph.initializer.append(onnx.numpy_helper.from_array(shares.astype(dtype), f"{result}_shares"))
            graph.node.insert(place + 1, onnx.helper.make_node("Mul", [new, f"{result}_shares"], [result]))
    _remove_unread_pads(graph)


def _source(graph: Any, types: Mapping[str, Any], pool: Any) -> tuple[str, list[int], list[int]]:
    """What ``pool`` averages: its name, its sides, and the zeros that a Pad adds before and after them.

    A Pad counts as part of what is averaged if it leaves a window with nothing but zeros.
    """
    has = _attributes(pool)
    for source, zeros in (_before_zeros(graph, pool.input[0]), (pool.input[0], [])):
        sides = [dim.dim_value for dim in types[source].shape.dim[2:]] if source in types else [0]
        if not zeros or (all(sides) and _shares(has, sides, zeros).all()):
            break
    return source, sides, zeros or [0] * len(has["pads"])


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def _before_zeros(graph: Any, name: str) -> tuple[str, list[int]]:
    """The input of the Pad that makes ``name`` by adding zeros; how many before the sides, then after them.

    If there is no such Pad, ``name`` and an empty list.
    """
    import onnx

    pad = next((node for node in graph.node if name in node.output), None)
    if pad is None or pad.op_type != "Pad" or _attributes(pad).get("mode", b"constant") != b"constant":
        return name, []
    constants = {each.name: each for each in graph.initializer}
    source, *others = pad.input  # the amounts, the value if it is not 0, and the axes if not all
    if len(others) > 2 or any(other not in constants for other in others):
        return name, []
    amounts, value, *_ = [*(onnx.numpy_helper.to_array(constants[other]).tolist() for other in others), 0.0]
    before, after = amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :]
    if value != 0 or min(amounts) < 0 or any((*before[:2], *after[:2])):
        return name, []
    return source, [*before[2:], *after[2:]]


def _remove_unread_pads(graph: Any) -> None:
    """Remove the Pads whose results nothing reads, and their constants."""
    unread = {node.output[0] for node in graph.node if node.op_type == "Pad"}
    unread -= {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    removed = [node for node in graph.node if unread & {*node.output}]
    for node in removed:
        graph.node.remove(node)
    unread |= {name for node in removed for name in node.input[1:]}
    unread -= {name for node in graph.node for name in node.input}
    for values in (graph.initializer, graph.value_info):
        for value in [each for each in values if each.name in unread]:
            values.remove(value)


def _shares(pool: Mapping[str, Any], sides: Sequence[int], zeros: Sequence[int]) -> Any:
    """The share of each window that is not padding, an array.

    Args:
        pool: the attributes of the pool, as they are in ONNX.
        sides: of its inputs, without ``zeros``.
        zeros: that a Pad adds, before the sides and after them.
    """
    average = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(sides)]
    ones = torch.ones(1, 1, *sides, dtype=torch.float32, device="cpu")
    around = zip(reversed(zeros[: len(sides)]), reversed(zeros[len(sides) :]), strict=True)
    return average(
        F.pad(ones, list(chain.from_iterable(around))),
        pool["kernel_shape"],
        pool["strides"],
        pool["pads"][: len(sides)],
        bool(pool.get("ceil_mode")),
        bool(pool.get("count_include_pad")),
    ).numpy()


def _covered(
    pool: Mapping[str, Any], sides: Sequence[int], zeros: Sequence[int], counts: Sequence[int]
) -> list[int]:
    """The padding that the windows of a pool cover, ``counts`` along each side, as ONNX's attribute ``pads``.

    A pool that rounds up may have one more window in ONNX than in PyTorch. For the rest see :func:`_shares`.
    """
    before = [own + added for own, added in zip(pool["pads"], zeros, strict=True)][: len(sides)]
    windows = zip(counts, pool["strides"], pool["kernel_shape"], sides, before, strict=True)
    after = [(count - 1) * stride + kernel - side - first for count, stride, kernel, side, first in windows]
    return [*before, *(max(0, covered) for covered in after)]


class InFile(Prepared):
    """A network in a file, which a foreign engine reads again for each batch size.

    Args:
        folder: the folder that holds the file.
        open: takes the folder and the number of images (None for any number); returns a runner.
        take_bytes: changes the file in the folder; see :meth:`Prepared.take_bytes`.
        simulation: see :class:`Prepared`.
        temporary: whether the folder is removed together with this object.
    """

    def __init__(
        self,
        folder: Path,
        open: Callable[[Path, int | None], Run],
        take_bytes: Callable[[Path], Sequence[ByteInput]] = lambda folder: (),
        simulation: Simulation | None = None,
        temporary: bool = False,
    ) -> None:
        self._folder, self._open, self.simulation = folder, open, simulation
        self._take_bytes = take_bytes
        if temporary:
            weakref.finalize(self, _remove, folder, os.getpid())

    def for_batch(self, batch: int | None) -> Run:
        """See :class:`Prepared`."""
        return self._open(self._folder, batch)

    def take_bytes(self) -> Sequence[ByteInput]:
        """See :class:`Prepared`."""
        return self._take_bytes(self._folder)

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """See :class:`Prepared`."""
        for path in self._folder.glob("network.*"):  # the folder of a loaded network holds other files too
            (folder / path.name).write_bytes(path.read_bytes())


def _remove(folder: Path, owner: int) -> None:
    """Remove ``folder`` in the process ``owner``, which made it: a forked child only borrows it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def kept_folder() -> Iterator[Path]:
    """A temporary folder for an :class:`InFile`; it is removed here only if the block raises."""
    folder = Path(tempfile.mkdtemp())
    try:
        with full_disk_named(folder):
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def one_or_more(results: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """``results`` as a module returns them: a single result without a sequence around it."""
    return results if len(results) > 1 else results[0]
