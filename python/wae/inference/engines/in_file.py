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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.inference.programs import any_batch, exported, several
from wae.storage.files import full_disk_named

from .engine import Prepared, Run
from .int8 import ByteInput, Movement

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
    """
    shapes = any_batch(module, inputs) if dynamic else None
    inputs = several(inputs) if dynamic else inputs
    logger = logging.getLogger("onnx_ir")  # it warns about empty lists among an operator's attributes
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            exported(module, inputs, shapes), tuple(inputs), dynamo=True, verbose=False, **options
        )
        assert program is not None  # with dynamo=True
        proto = program.model_proto
        for value in program.model.graph.initializers.values():
            value.const_value = None  # onnxscript's global rules keep the last graph alive, weights included
        if dynamic:
            _name_batch(proto)
        _pad_before_average_pools(proto)
        return proto
    finally:
        logger.setLevel(level)


def _name_batch(proto: Any) -> None:
    """Rename the first dimension of all inputs to :data:`BATCH`; torch.export named it after a symbol."""
    graph = proto.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for dim in dims:
        if dim.HasField("dim_param"):
            dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, dim.dim_param)


def _pad_before_average_pools(proto: Any) -> None:
    """Give average pools that round up and count the padding (``count_include_pad``) a padding of their own.

    PyTorch counts the padding, but nothing that the last window covers beyond it. OpenVINO, and ONNX Runtime
    in int8, count that too, which makes the last row and column too small.
    """
    import onnx

    graph = proto.graph
    sides = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    for place, node in reversed(list(enumerate(graph.node))):
        has = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type != "AveragePool" or not (has.get("ceil_mode") and has.get("count_include_pad")):
            continue
        source, (result,), pads = node.input[0], node.output, any(has["pads"])
        padded, amounts = f"{result}_padded", f"{result}_pads"
        pool = {name: has[name] for name in ("ceil_mode", "kernel_shape", "strides")}
        inputs = [padded if pads else source]
        node.CopyFrom(onnx.helper.make_node("AveragePool", inputs, [result], node.name, **pool))
        if pads:
            added = _padding(has, sides[source], sides[result])
            graph.initializer.append(onnx.numpy_helper.from_array(added, amounts))
            graph.node.insert(place, onnx.helper.make_node("Pad", [source, amounts], [padded]))


def _padding(pool: Mapping[str, Any], source: Sequence[int], result: Sequence[int]) -> Any:
    """The padding of a pool with these attributes and sizes, an array as ONNX's Pad takes it.

    After the last row and column it ends where the last window does: another one might begin in more.
    """
    before, after = pool["pads"][: len(source)], pool["pads"][len(source) :]
    windows = zip(result, pool["strides"], pool["kernel_shape"], source, before, strict=True)
    covered = [(count - 1) * stride + kernel - side - first for count, stride, kernel, side, first in windows]
    return torch.tensor([0, 0, *before, 0, 0, *map(min, after, covered)]).numpy()


class InFile(Prepared):
    """A network in a file, which a foreign engine reads again for each batch size.

    Args:
        folder: the folder that holds the file.
        open: takes the folder, the number of images (None for any number), and whether the engine may store
            compiled code in the folder; returns a runner.
        take_bytes: changes the file in the folder; see :meth:`Prepared.take_bytes`.
        movements: see :class:`Prepared`.
        temporary: whether the folder is removed together with this object.
    """

    def __init__(
        self,
        folder: Path,
        open: Callable[[Path, int | None, bool], Run],
        take_bytes: Callable[[Path], Sequence[ByteInput]] = lambda folder: (),
        movements: Sequence[Movement] = (),
        temporary: bool = False,
    ) -> None:
        self._folder, self._open, self.movements = folder, open, movements
        self._take_bytes = take_bytes
        self._temporary = temporary
        if temporary:
            weakref.finalize(self, _remove, folder, os.getpid())

    def for_batch(self, batch: int | None) -> Run:
        """See :class:`Prepared`."""
        return self._open(self._folder, batch, not self._temporary)

    def take_bytes(self) -> Sequence[ByteInput]:
        """See :class:`Prepared`."""
        return self._take_bytes(self._folder)

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """Copy the file, and have the engine compile it now, so that loading it need not."""
        for path in self._folder.glob("network.*"):  # the folder of a loaded network holds other files too
            (folder / path.name).write_bytes(path.read_bytes())
        self._open(folder, inputs[0].shape[0], True)


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
