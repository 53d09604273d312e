"""Deployed networks as folders, for :func:`wae.load_deployed`.

======================= =========================================================================
``deployed.json``       sizes, precision, report, versions, and SHA-256 of every other file
``encoder.safetensors`` the encoder, with scale and shift; none where the network has no encoder
``end.safetensors``     the full-resolution end of a network that scores pixels, where our op runs it
``network.*``           the engine's own file: OpenVINO's IR, an ONNX file, a package of AOTInductor,
                        or a torch.export program
``compiled/``           what OpenVINO compiled of it, for its own use
======================= =========================================================================
"""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Mapping, Sequence
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
from .engines import ENGINES, EngineError, Prepared
from .front import End, Front
from .precision import name_of

ABOUT, ENCODER, END = "deployed.json", "encoder.safetensors", "end.safetensors"
FORMATS = (1, 2)
"""That are read. Those with an end have the second: who knows the first alone would leave the end out."""
ENCODERS: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (Encoder, Haar, Int8Encoder, ByteEncoder)
}


class SavedError(WaeError, RuntimeError):
    """A folder is no deployed network, is damaged, or was made by other versions or for another processor."""


def save(
    about: Mapping[str, Any],
    folder: Path,
    force: bool,
    front: Front,
    prepared: Prepared,
    end: End | None,
    scores_dtype: torch.dtype,
    inputs: Sequence[Tensor],
) -> None:
    """The work of :meth:`.deployed.Deployed.save`, with what it says ``about`` itself."""
    engine = ENGINES[about["engine"]]
    if engine.load is None or front.device.type != "cpu":
        raise EngineError(f"{engine.name} on {front.device.type} cannot be saved")
    if front.encoder is not None and not _is_its_tensors(front.encoder):
        raise EngineError(
            "the encoder cannot be saved: it has hooks, or layers or a forward of its own, which a file of "
            "tensors leaves out"
        )
    with written_folder(folder, force, ABOUT) as new:
        with engine.errors():
            prepared.save(new, inputs)
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


def _is_its_tensors(encoder: nn.Module) -> bool:
    """Whether :func:`wae.load_deployed` gets the same encoder from its type's name and its tensors."""
    return type(encoder) in ENCODERS.values() and all(
        is_plain(part) and (not isinstance(part, Encoder) or part.is_fused) for part in encoder.modules()
    )


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}))


def made_by(engine: str) -> dict[str, str]:
    """The versions that matter to the engine's file."""
    packages = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}.get(engine, ("torch",))
    versions = {package: str(importlib.import_module(package).__version__) for package in packages}
    return {**versions, "wae": wae_kernels.__version__, "processor": _processor()}


def _processor() -> str:
    """Its architecture and the instructions that PyTorch's compilers and kernels choose by."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
