"""Deployed networks as folders: there again in a second, without the model's class or a compiler.

======================= =========================================================================
``deployed.json``       sizes, precision, report, versions, and SHA-256 of every other file
``encoder.safetensors`` the encoder, with scale and shift; none where the network has no encoder
``network.*``           the engine's own file: OpenVINO's IR, an ONNX file, a package of AOTInductor,
                        or a torch.export program
``compiled/``           what OpenVINO compiled of it, for its own use
======================= =========================================================================
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import wae_kernels
from wae.errors import WaeError
from wae.models.haar import Haar
from wae_kernels.nn import Encoder

from .deployed import Deployed
from .engines import ENGINES, EngineError, Prepared
from .front import Front
from .precision import DTYPES, name_of

_ABOUT, _ENCODER = "deployed.json", "encoder.safetensors"
_FORMAT = 1
_ENCODERS: Mapping[str, type[Encoder | Haar]] = {"Encoder": Encoder, "Haar": Haar}

_log = logging.getLogger(__name__)


class SavedError(WaeError, RuntimeError):
    """A folder is no deployed network, is damaged, or was made by other versions or for another processor."""


def save(
    deployed: Deployed,
    folder: Path,
    force: bool,
    front: Front,
    prepared: Prepared,
    scores_dtype: torch.dtype,
    inputs: Sequence[Tensor],
) -> None:
    """What :meth:`Deployed.save` does."""
    engine = ENGINES[deployed.engine]
    if engine.load is None or front.device.type != "cpu":
        raise EngineError(f"{deployed.engine} on {front.device.type} cannot be saved")
    if folder.exists() and not (force and (folder / _ABOUT).is_file()):
        raise FileExistsError(f"{folder} is there already" + (": it is no deployed network" if force else ""))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        new = Path(beside) / "new"
        new.mkdir()
        with engine.errors():
            prepared.save(new, inputs)
        if front.encoder is not None:
            tensors = dict(front.encoder.state_dict())
            tensors |= {"image_scale": front.image_scale, "image_shift": front.image_shift}
            safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, new / _ENCODER)
        about = {
            "format": _FORMAT,
            "engine": deployed.engine,
            "precision": deployed.precision,
            "size": list(deployed.size),
            "batch": deployed.batch,
            "difference": deployed.difference,
            "seconds": deployed.seconds,
            "report": deployed.report,
            "encoder": type(front.encoder).__name__ if front.encoder is not None else None,
            "scales": hasattr(front, "image_scale"),
            "dtypes": {"model": name_of(front.like.dtype), "scores": name_of(scores_dtype)},
            "inputs": {
                "dtype": name_of(front.dtype),
                "channels_last": front.memory_format == torch.channels_last,
            },
            "made by": _made_by(deployed.engine),
            "files": {path.name: _sha256(path) for path in sorted(new.iterdir()) if path.is_file()},
        }
        (new / _ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        if folder.exists():
            folder.rename(Path(beside) / "old")
        new.rename(folder)


def load_deployed(folder: Path | str, rebuild: bool = False) -> Deployed:
    """The network that :meth:`Deployed.save` wrote into ``folder``.

    Only files that you trust: a package of AOTInductor is machine code.

    Args:
        folder: that was given to ``save``.
        rebuild: what was saved by another version of the engine or for another processor is refused, as it
            may be slow, or not run. True has the engine take it all the same, and compile it anew where it
            has to; a package of AOTInductor is refused always.

    Raises:
        SavedError: there is no deployed network, it is damaged, or, as above, not for this machine.
        EngineError: the engine is missing, or refuses the file.
    """
    folder = Path(folder)
    about = _about(folder)
    for name, wanted in about["files"].items():
        path = folder / name
        if not path.is_file() or _sha256(path) != wanted:
            raise SavedError(f"{path} is {'damaged' if path.exists() else 'missing'}: save the network again")
    engine, precision, batch = ENGINES[about["engine"]], about["precision"], about["batch"]
    _require_same(folder, about, rebuild)
    reason = engine.why_not("cpu", None)
    if reason is not None:
        raise EngineError(reason)
    assert engine.load is not None
    with engine.errors():
        prepared = engine.load(folder, batch, precision)
    dtypes = {key: DTYPES[name] for key, name in about["dtypes"].items()}
    front = _front(folder, about, dtypes["model"], engine.foreign)
    deployed = Deployed(front, prepared, engine, precision, tuple(about["size"]), batch, dtypes["scores"])
    deployed.difference, deployed.seconds = about["difference"], about["seconds"]
    deployed.report = about["report"]
    return deployed


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_text())
        known = about["format"]
    except OSError as error:
        raise SavedError(f"{folder} is no deployed network: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise SavedError(f"{folder / _ABOUT} is damaged: save the network again") from None
    if known != _FORMAT:
        raise SavedError(f"{folder / _ABOUT} has format {known}, this version reads {_FORMAT}")
    return about


def _require_same(folder: Path, about: Mapping[str, Any], rebuild: bool) -> None:
    here, there = _made_by(about["engine"]), about["made by"]
    other = [f"{key} {there.get(key)} (here {here[key]})" for key in here if here[key] != there.get(key)]
    if not other:
        return
    message = f"{folder} was made by {', '.join(other)}"
    if not rebuild:
        raise SavedError(f"{message}: save it again here, or load it with rebuild=True")
    if about["engine"] in ("compile", "winograd"):
        raise SavedError(
            f"{message}: compiled code cannot be rebuilt without the model; deploy and save it again"
        )
    _log.warning("%s: %s reads it anew", message, about["engine"])


def _made_by(engine: str) -> dict[str, str]:
    """The versions that matter to the engine's file."""
    packages = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}.get(engine, ("torch",))
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {**versions, "wae": wae_kernels.__version__, "processor": _processor()}


def _processor() -> str:
    """Its architecture and the instructions that PyTorch's compilers and kernels choose by."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _front(folder: Path, about: Mapping[str, Any], dtype: torch.dtype, foreign: bool) -> Front:
    encoder = scale = shift = None
    if about["encoder"] is not None:
        try:
            tensors = safetensors.torch.load_file(folder / _ENCODER)
        except (OSError, safetensors.SafetensorError) as error:
            raise SavedError(f"{folder / _ENCODER} is damaged: {error}") from None
        scale, shift = tensors.pop("image_scale"), tensors.pop("image_shift")
        kind = _ENCODERS[about["encoder"]]
        encoder = Encoder(len(tensors["conv1.bias"])) if kind is Encoder else Haar()
        encoder.load_state_dict(tensors)
        encoder = encoder.to(dtype).eval()
    elif about["scales"]:
        scale, shift = torch.ones(3), torch.zeros(3)  # the network has its own behind this
    inputs = about["inputs"]
    memory_format = torch.channels_last if inputs["channels_last"] else torch.contiguous_format
    like = torch.empty(0, dtype=dtype)
    return Front(encoder, like, scale, shift, DTYPES[inputs["dtype"]], memory_format, on_own_thread=foreign)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()
