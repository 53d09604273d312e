"""Exports a network to a file that runs without the Python code of this package.

============== =========================================== ===============================================
format         what the file holds                         what runs it
============== =========================================== ===============================================
``onnx``       standard ONNX, the encoder as convolutions  ONNX Runtime, OpenVINO, TensorRT, ...
``torch``      a torch.export program that calls our op    ``torch.export.load``, after
                                                           ``import wae_kernels``
``aoti``       code compiled for this machine's kind of    ``torch._inductor.aoti_load_package``, after
               CPU or GPU, which calls our op              ``import wae_kernels``
``executorch`` a program for phones, the encoder as        ExecuTorch
               convolutions, for a fixed batch size
============== =========================================== ===============================================
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.data.input import IMAGENET
from wae.difference import relative_difference
from wae.errors import UsageError
from wae.models.network import WAENetwork
from wae.models.plain import unwrapped
from wae.models.stock import portable
from wae.progress import bar
from wae.storage.checkpoint import Description
from wae.storage.files import refuse_existing, temporary_folder, write
from wae.wording import counted

from . import aoti, executorch
from .agreement import (
    agreement,
    check_parts,
    named_by,
    other_images,
    require_equal_once,
    require_no_drop,
    scores_of,
)
from .arguments import check_arguments, check_number, example_images
from .calibration import STEP, Calibration, CalibrationError, Source, gather
from .engines import ENGINES, EngineError, Run, as_engine_error, in_onnxruntime, onnx_session, to_onnx
from .engines.int8 import Movement
from .folding import fold
from .not_finite import finite_images, nan_where_not_finite
from .precision import name_of, tolerance
from .programs import any_batch, as_bytes, exported
from .undisturbed import undisturbed


@dataclass(frozen=True)
class Format:
    """A file format: how a network is written in it, and how a file is loaded as a function of images."""

    suffix: str
    """The usual extension, with its dot."""
    make: Callable[[nn.Module, Tensor, bool, Mapping[str, str]], bytes]
    """Takes the network, example images, whether the file must accept any number of images, and the file's
    metadata; returns the file's content."""
    load: Callable[[bytes], Run]
    """Takes the file's content; returns a function of images."""
    fixed: bool = False
    """Whether a file is always for a fixed batch size."""


def export(
    model: nn.Module,
    path: Path | str,
    file_format: str,
    size: tuple[int, int] = (224, 224),
    batch: int | None = None,
    image_dtype: torch.dtype = torch.uint8,
    force: bool = False,
    *,
    precision: str | None = None,
    calibration: Source | None = None,
    calibration_images: int = 100,
    max_drop: float | None = 0.005,
    described: Description | None = None,
) -> dict[str, Any]:
    """Write ``model`` to the file ``path``, from images to scores, with BatchNorm folded.

    Before the file takes its place it is loaded, and its scores are compared with the model's.

    Args:
        model: a :class:`wae.models.network.WAENetwork`, or any other network that scores images or their
            pixels, in evaluation mode.
        path: the file to write. Its folder is made if it is missing.
        file_format: a key of :data:`FORMATS`.
        size: (H, W) of the images.
        batch: the number of images in a call. None for any number; in "executorch" None is one image.
        image_dtype: the dtype of the images: uint8, or the dtype of the model's parameters.
        force: replace a file that is there.
        precision: None for the model's own precision; "int8", in the format "onnx" only, for a file in QDQ
            format.
        calibration, calibration_images, max_drop: see :func:`wae.deploy`.
        described: the description in the network's checkpoint. It becomes the file's :func:`metadata`, and
            says how files in the folder ``calibration`` become images.

    Returns:
        ``difference``: the norm of the difference between the file's scores and the model's, over the norm of
        the model's; and with ``calibration`` the entries of :func:`wae.deploy`'s report, except ``engine``,
        ``precision`` and ``encoder``.

    Raises:
        TypeError, ValueError: an argument does not fit.
        FileExistsError: there is a file at ``path`` and ``force`` is false.
        EngineError: a package is missing, or the network cannot be exported.
        CalibrationError: int8 without calibration images; or there are too few of them, or wrong ones.
        DisagreementError: the file does not compute what ``model`` does, or its drop is too large; it is not
            written.
        OSError: the file cannot be written.
    """
    model = unwrapped(model)
    check_arguments(model, size, 1 if batch is None else batch)
    if max_drop is not None:
        check_number("max_drop", max_drop)
    _check_format(file_format, image_dtype, next(model.parameters()).dtype, precision)
    if precision == "int8" and calibration is None:
        raise CalibrationError("calibration: int8 takes its scales from images, got None")
    path = Path(path)
    refuse_existing(path, force)
    if FORMATS[file_format].fixed:
        batch = batch or 1
    with undisturbed(next(model.parameters()).device):
        data = None
        if calibration is not None:
            input = IMAGENET if described is None else described.input
            data = gather(calibration, size, calibration_images, hasattr(model, "image_scale"), input)
            images, held_out = (_as(image_dtype, part) for part in (data.images, data.held_out))
            data = Calibration(images, held_out, data.labels)
        says = {} if described is None else metadata(described, size, image_dtype)
        content, report = _made(model, file_format, size, batch, image_dtype, precision, data, says)
        if data is not None:
            report["max_drop"] = max_drop
            require_no_drop(f"the {file_format} file", report)
    write(path, content, force)
    return report


def _check_format(file_format: Any, image_dtype: Any, dtype: torch.dtype, precision: Any) -> None:
    """Raise UsageError unless these arguments of :func:`export` fit each other and the model's ``dtype``."""
    if file_format not in FORMATS:
        raise UsageError(f"file_format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    if image_dtype not in (torch.uint8, dtype):
        raise UsageError(f"image_dtype must be torch.uint8 or {dtype}, got {image_dtype}")
    if precision not in (None, "int8"):
        raise UsageError(f"precision must be None or int8, got {precision!r}")
    if precision == "int8" and file_format != "onnx":
        raise UsageError(f"precision: int8 needs the format onnx, got {file_format}")


def _made(
    model: nn.Module,
    file_format: str,
    size: tuple[int, int],
    batch: int | None,
    image_dtype: torch.dtype,
    precision: str | None,
    data: Calibration | None,
    says: Mapping[str, str],
) -> tuple[bytes, dict[str, Any]]:
    """The file's content, and its report without ``max_drop``."""
    form, dtype = FORMATS[file_format], next(model.parameters()).dtype
    cases = [example_images(model, count, size, image_dtype) for count in ((batch,) if batch else (2, 1, 3))]

    def given(images: Tensor) -> Tensor:
        return images if isinstance(model, WAENetwork) else images.to(dtype)

    expected = [scores_of(model, given(x)) for x in cases]
    check_parts(model, given(cases[0]), expected[0])
    movements: Sequence[Movement] = ()
    with as_engine_error(f"{file_format} does not take this network"):
        with bar(f"exporting as {file_format}", None):
            network = _FromImages(fold(model, given(cases[0])), size, dtype, precision == "int8").eval()
            content = form.make(network, cases[0], batch is None, says)
        run, scores = _scores(form, content, cases)
    differences, most = [], tolerance(dtype, cases[0].device)
    for images, *pair in zip(cases, scores, expected, strict=True):
        what = f"the {file_format} file, given {counted(len(images), 'image')},"
        others = ([run(x.clone()), scores_of(model, given(x))] for x in other_images(model, images))
        differences.append(require_equal_once(what, chain([pair], others), most))
    if precision == "int8":  # of the graph that was found to be right
        assert data is not None
        with as_engine_error(f"{file_format} does not take this network in int8"):
            content, movements = _in_int8(content, data.images, batch or STEP)
            run, scores = _scores(form, content, cases)
        differences = [relative_difference(x, y) for x, y in zip(scores, expected, strict=True)]
    report: dict[str, Any] = {"difference": max(differences)}
    if data is not None:
        report |= agreement(run, batch or STEP, named_by(model, data), data, cases[0].device)
        if precision == "int8":
            report["layers"] = [list(movement) for movement in movements]
    return content, report


def _scores(form: Format, content: bytes, cases: Sequence[Tensor]) -> tuple[Run, list[Tensor]]:
    """The function that a file's ``content`` is, and its scores of each of ``cases``."""
    with bar("comparing it with the model", None):
        run = form.load(content)
        return run, [run(x.clone()) for x in cases]  # cloned because a network may change its input


def _as(dtype: torch.dtype, images: Tensor) -> Tensor:
    """``images`` in the file's ``dtype``. Raises CalibrationError if uint8 would change their values."""
    converted = images.to(dtype)
    if dtype == torch.uint8 and not torch.equal(converted.to(images.dtype), images):
        raise CalibrationError(
            "calibration: the file takes uint8 images, but these are not integers from 0 to 255: pass their "
            "dtype as image_dtype"
        )
    return converted


def _in_int8(content: bytes, images: Tensor, batch: int) -> tuple[bytes, Sequence[Movement]]:
    """The ONNX file ``content`` quantized to int8, and how far its layers moved.

    The file may be for ``batch`` images only, so the last batch is padded with the first images.
    """
    numbers = torch.arange(len(images) + -len(images) % batch, device="cpu") % len(images)
    samples = [(part,) for part in images[numbers].split(batch)]
    with temporary_folder() as folder:
        path = folder / "network.onnx"
        path.write_bytes(content)
        simulation = in_onnxruntime.quantize(path, samples, samples[0])
        return path.read_bytes(), simulation.movements


class _FromImages(nn.Module):
    """The network with one input, ``images``, which may be uint8 even if the network takes only floats.

    Args:
        network: in evaluation mode.
        size: (H, W) of the images.
        dtype: the model's.
        int8: whether it will be quantized. The encoder then computes finite numbers of any image.
    """

    image_scale: Tensor
    image_shift: Tensor

    def __init__(self, network: nn.Module, size: Sequence[int], dtype: torch.dtype, int8: bool) -> None:
        super().__init__()
        self.dtype, self.int8 = dtype, int8  # folded, the network may have no parameter left
        self.encoder: nn.Module | None = None
        self.network = network
        if isinstance(network, WAENetwork):
            self.encoder, self.network = network.encoder, network.behind_encoder(size)
            self.register_buffer("image_scale", network.image_scale)
            self.register_buffer("image_shift", network.image_shift)

    def forward(self, images: Tensor) -> Tensor:
        inputs: Sequence[Tensor]
        if self.encoder is None:
            inputs = (images.to(self.dtype),)
        else:
            inputs = self.encoder(images, self.image_scale, self.image_shift)
        looked_at = [images] if self.int8 else inputs
        are_finite = finite_images(looked_at) if images.is_floating_point() else None
        scores: Tensor = self.network(*inputs)
        return scores if are_finite is None else nan_where_not_finite(scores, are_finite)


def metadata(described: Description, size: tuple[int, int], image_dtype: torch.dtype) -> dict[str, str]:
    """The metadata of an exported file, by name: ``network``, ``input`` and, if there are any, ``labels``.

    The last two are JSON. ``input`` says how an image becomes the file's input: ``resize`` is the length of
    the shorter side after scaling, or the lengths of both sides (H, W); ``crop`` is the (H, W) of the centre
    crop. It also has the order of the colours and the range of the values. ``mean`` and ``std`` are 0 and 1,
    because the network's own scale and shift are in the file.
    """
    input = described.input.of_size(size)
    preprocessing = {
        "resize": [input.resize, input.width or input.resize] if input.squash else input.resize,
        "interpolation": input.interpolation + (", antialiased" if input.interpolation != "nearest" else ""),
        "crop": list(size),
        "grayscale": input.grayscale,
        "channels": "RGB",
        "layout": "NCHW",
        "dtype": name_of(image_dtype),
        "range": [0, 255],
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    }
    says = {"network": described.network, "input": json.dumps(preprocessing)}
    return says if described.labels is None else {**says, "labels": json.dumps(described.labels)}


# ------------------------------------------------------------------------------------------------- formats

METADATA = "metadata.json"
"""The name of the metadata among the ``extra_files`` of a torch.export file."""


def _program(network: nn.Module, images: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    return exported(network, [images], any_batch(network, [images]) if dynamic else None)


def _make_torch(network: nn.Module, images: Tensor, dynamic: bool, says: Mapping[str, str]) -> bytes:
    return as_bytes(_program(network, images, dynamic), {METADATA: json.dumps(says)})


def _load_torch(content: bytes) -> Run:
    return torch.export.load(io.BytesIO(content)).module()


def _make_aoti(network: nn.Module, images: Tensor, dynamic: bool, says: Mapping[str, str]) -> bytes:
    return aoti.package(_program(network, images, dynamic), says)


def _load_aoti(content: bytes) -> Run:
    run: Run = torch._inductor.aoti_load_package(io.BytesIO(content))
    return lambda images: run(images.contiguous())  # it refuses other strides, and calibration may have any


def _make_onnx(network: nn.Module, images: Tensor, dynamic: bool, says: Mapping[str, str]) -> bytes:
    reason = ENGINES["onnxruntime"].why_not("cpu")
    if reason is not None:
        raise EngineError(reason)
    proto = to_onnx(
        portable(network), (images.cpu(),), dynamic, input_names=["images"], output_names=["scores"]
    )
    for key, value in says.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()
    return content


def _load_onnx(content: bytes) -> Run:
    with temporary_folder() as folder:
        path = folder / "model.onnx"  # given bytes, the session would keep a copy of them
        path.write_bytes(content)
        session = onnx_session(path)
    return lambda images: session(images.cpu()).to(images.device)


def _make_executorch(network: nn.Module, images: Tensor, dynamic: bool, says: Mapping[str, str]) -> bytes:
    return executorch.package(_program(portable(network), images.cpu(), dynamic), says)


def _load_executorch(content: bytes) -> Run:
    run = executorch.load(content)
    return lambda images: run(images.cpu()).to(images.device)


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", _make_onnx, _load_onnx),
    "torch": Format(".pt2", _make_torch, _load_torch),
    "aoti": Format(".pt2", _make_aoti, _load_aoti),
    "executorch": Format(".pte", _make_executorch, _load_executorch, fixed=True),
}
"""All formats, by name."""
