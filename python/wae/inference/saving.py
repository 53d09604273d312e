"""Writes deployed networks as folders, for :func:`wae.load_deployed`.

======================= =========================================================================
``deployed.json``       sizes, precision, report, versions, and the SHA-256 of every other file
``encoder.safetensors`` the encoder, with scale and shift; missing if the network has no encoder
``end.safetensors``     the fusion of a segmentation network, if our op runs it
``network.*``           the engine's own file: OpenVINO's IR, an ONNX file, an AOTInductor package,
                        or a torch.export program
======================= =========================================================================
"""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import wae_kernels
from wae.errors import WaeError
from wae.models.haar import Haar
from wae.models.plain import is_plain
from wae.storage.files import sha256, written_folder
from wae_kernels.nn import Encoder

from .encoder_int8 import ByteEncoder, Int8Encoder
from .engines import ENGINES, EngineError, Prepared, Run
from .front import End, Front
from .precision import DTYPES, NAMES, name_of, native

ABOUT, ENCODER, END = "deployed.json", "encoder.safetensors", "end.safetensors"
FORMATS = (1, 2)
"""The formats that are read. Folders with a fusion have the second, so that older versions, which would
leave the fusion out, refuse them."""
INSTRUCTIONS = "instructions for"
"""The entry of ``made by`` with the precisions for which the CPU has instructions. Without those for int8 the
sums of 8-bit weights saturate, and compiled code may use any of them."""
ENCODERS: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (Encoder, Haar, Int8Encoder, ByteEncoder)
}
"""The encoders that can be saved, by the names of their classes."""


class SavedError(WaeError, RuntimeError):
    """A folder holds no deployed network, is damaged, or was made by other versions or for another CPU."""


def save(
    about: Mapping[str, Any],
    folder: Path,
    force: bool,
    front: Front,
    prepared: Prepared,
    end: End | None,
    scores_dtype: torch.dtype,
    inputs: Sequence[Tensor],
    check: Callable[[Run], None],
) -> None:
    """The work of :meth:`wae.inference.deployed.Deployed.save`.

    Args:
        about: the entries of ``deployed.json`` that the network knows.
        folder, force: see there.
        front, prepared, end: the network's parts.
        scores_dtype: the dtype of its scores.
        inputs: example inputs of the engine.
        check: raises an error unless the engine's file, loaded, computes what the network does. It is called
            only if the file was made for this purpose: foreign engines and those of int8 run what they save.
    """
    check_name(folder)
    engine = ENGINES[about["engine"]]
    if engine.load is None or front.device.type != "cpu":
        raise EngineError(f"{engine.name} on {front.device.type} cannot be saved")
    if front.encoder is not None and not _is_its_tensors(front.encoder):
        raise EngineError(
            "the encoder cannot be saved: it has hooks, changed layers or a forward of its own, which a file "
            "of tensors cannot hold"
        )
    with written_folder(folder, force, ABOUT) as new:
        with engine.errors():
            prepared.save(new, inputs)
        if not engine.foreign and about["precision"] in DTYPES:
            with engine.errors():
                run = engine.load(new, about["batch"], about["precision"]).for_batch(about["batch"])
            check(run)
        if front.encoder is not None:
            tensors = dict(front.encoder.state_dict())
            tensors |= {"image_scale": front.image_scale, "image_shift": front.image_shift}
            _write(tensors, new / ENCODER)
        if end is not None:
            _write(end.decoder.state_dict(), new / END)
        about = {
            "format": FORMATS[end is not None],
            **about,
            "encoder": type(front.encoder).__name__ if front.encoder is not None else None,
            "scales": hasattr(front, "image_scale"),
            "end": end is not None,
            "dtypes": {"model": name_of(front.like.dtype), "scores": name_of(scores_dtype)},
            "inputs": {
                "dtype": name_of(front.dtype),
                "channels_last": front.memory_format == torch.channels_last,
            },
            "made by": made_by(engine.name),
            "files": {path.name: sha256(path) for path in sorted(new.iterdir()) if path.is_file()},
        }
        (new / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def check_name(folder: Path) -> None:
    """Raise SavedError if the path of ``folder`` is no Unicode text, because no engine opens a file there."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise SavedError(f"{str(folder)!a}: a name in this path is not UTF-8; rename it") from None


def _is_its_tensors(encoder: nn.Module) -> bool:
    """Whether the name of its class and its tensors are enough to rebuild ``encoder``."""
    return type(encoder) in ENCODERS.values() and all(
        is_plain(part) and (not isinstance(part, Encoder) or part.is_fused) for part in encoder.modules()
    )


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}))


def made_by(engine: str) -> dict[str, str]:
    """The versions, and the kind of CPU, on which the engine's file depends."""
    packages = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}.get(engine, ("torch",))
    versions = {package: str(importlib.import_module(package).__version__) for package in packages}
    computed = " ".join(name for name in NAMES if native(name, torch.device("cpu")))
    return {**versions, "wae": wae_kernels.__version__, "processor": _processor(), INSTRUCTIONS: computed}


def _processor() -> str:
    """The CPU's architecture, and its capability as PyTorch sees it when it compiles or chooses kernels."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
