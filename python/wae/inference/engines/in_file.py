"""Networks in a file, which engines that are not PyTorch's read: each comes to them as an ONNX model."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.inference.programs import any_batch, exported, several

from .engine import Prepared, Run
from .int8 import ByteInput, Movement

PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript"}
"""What :func:`to_onnx` imports."""

BATCH = "batch"
"""The name of the first dimension in ONNX, where any number of images is possible."""


def to_onnx(module: nn.Module, inputs: Sequence[Tensor], dynamic: bool = False, **options: Any) -> Any:
    """``module`` as an ``onnx.ModelProto``; with ``dynamic``, for any number of images.

    ``options`` go to :func:`torch.onnx.export`.
    """
    shapes = any_batch(inputs) if dynamic else None
    inputs = several(inputs) if dynamic else inputs
    logger = logging.getLogger("onnx_ir")  # it warns of empty lists among an operator's attributes
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            exported(module, inputs, shapes), tuple(inputs), dynamo=True, verbose=False, **options
        )
        assert program is not None  # with dynamo=True
        proto = program.model_proto
        for value in program.model.graph.initializers.values():
            value.const_value = None  # onnxscript's global rules hold the last graph, and the weights with it
        if dynamic:
            _name_batch(proto)
        return proto
    finally:
        logger.setLevel(level)


def _name_batch(proto: Any) -> None:
    """Call the first dimension of all inputs :data:`BATCH`: it has the name of a symbol of torch.export's."""
    graph = proto.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for dim in dims:
        if dim.HasField("dim_param"):
            dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, dim.dim_param)


class InFile(Prepared):
    """A network in a file, which a foreign engine reads for the number of images that is wanted.

    Args:
        folder: where the file is.
        open: takes the folder, the number of images (None for any), and whether the engine may keep what it
            compiles in the folder.
        take_bytes: changes the file in the folder; see :meth:`Prepared.take_bytes`.
        movements: see :class:`Prepared`.
        temporary: whether the folder goes with this object.
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
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def for_batch(self, batch: int | None) -> Run:
        """See :class:`Prepared`."""
        return self._open(self._folder, batch, not self._temporary)

    def take_bytes(self) -> Sequence[ByteInput]:
        """See :class:`Prepared`."""
        return self._take_bytes(self._folder)

    def save(self, folder: Path, inputs: Sequence[Tensor]) -> None:
        """Copy the file, and let the engine compile it once, so that it need not when it is loaded."""
        for path in self._folder.glob("network.*"):  # beside them a loaded one's folder has other files
            (folder / path.name).write_bytes(path.read_bytes())
        self._open(folder, inputs[0].shape[0], True)


@contextmanager
def kept_folder() -> Iterator[Path]:
    """A temporary folder that stays for an :class:`InFile`, unless making it fails."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def one_or_more(results: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """As a module returns them: one alone is no sequence."""
    return results if len(results) > 1 else results[0]
