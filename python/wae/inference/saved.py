"""``wae.load_deployed``: loads what :mod:`.saving` wrote, without the model's class or a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wae.errors import WaeError
from wae.storage.files import read_json, sha256
from wae_kernels.nn import Encoder, ScoreDecoder

from .deployed import Deployed
from .encoder_int8 import ByteEncoder, Int8Encoder
from .engines import ENGINES, EngineError
from .engines.int8 import ByteInput
from .front import End, Front
from .precision import DTYPES
from .saving import ABOUT, ENCODER, ENCODERS, END, FORMATS, INSTRUCTIONS, SavedError, check_name, made_by
from .undisturbed import undisturbed

_Module = TypeVar("_Module", bound=nn.Module)

_log = logging.getLogger(__name__)


def load_deployed(folder: Path | str, rebuild: bool = False) -> Deployed:
    """Load the network that :meth:`Deployed.save` wrote into ``folder``. It runs on the CPU.

    Load only files that you trust: an AOTInductor package is machine code. Leave the folder in place: ONNX
    Runtime and OpenVINO read it again at the first call with another number of images.

    Args:
        folder: the folder that was given to ``save``.
        rebuild: load the network even if another version of the engine or of this package, or another kind of
            CPU, made it. By default such a network is refused, because it may be slow, not run or, in int8,
            be wrong. The engine compiles it again if it has to. An AOTInductor package is always refused.

    Raises:
        SavedError: there is no deployed network in ``folder``, it is damaged, or it is refused as above.
        EngineError: the engine is not installed, or does not accept the file.
    """
    with undisturbed(torch.device("cpu")):
        return _loaded(Path(folder), rebuild)


def _loaded(folder: Path, rebuild: bool) -> Deployed:
    """The network in ``folder``; if another process replaces the folder meanwhile, the new one.

    The parts of two networks would be a network whose scores are wrong.
    """
    check_name(folder)
    about = _about(folder)
    try:
        deployed = _assembled(folder, about, rebuild)
    except (WaeError, OSError):
        if _about(folder)["files"] == about["files"]:
            raise
        return _loaded(folder, rebuild)
    return deployed if _about(folder)["files"] == about["files"] else _loaded(folder, rebuild)


def _assembled(folder: Path, about: Mapping[str, Any], rebuild: bool) -> Deployed:
    for name, wanted in about["files"].items():
        path = folder / name
        if not path.is_file() or sha256(path) != wanted:
            raise SavedError(f"{path} is {'damaged' if path.exists() else 'missing'}: save the network again")
    engine, precision, batch = ENGINES[about["engine"]], about["precision"], about["batch"]
    reason = engine.why_not_load(precision)
    if reason is not None:
        raise EngineError(reason)
    _require_same(folder, about, rebuild)
    assert engine.load is not None
    with engine.errors():
        prepared = engine.load(folder.absolute(), batch, precision)  # it is read after a chdir too
        run = prepared.for_batch(batch)
    dtypes = {key: DTYPES[name] for key, name in about["dtypes"].items()}
    front = _front(folder, about, dtypes["model"], engine.foreign)
    size = tuple(about["size"])
    end = _end(folder, dtypes["model"], size, front) if about.get("end") else None  # older folders lack it
    deployed = Deployed(front, prepared, run, engine, precision, size, batch, dtypes["scores"], end)
    deployed.difference, deployed.seconds = about["difference"], about["seconds"]
    deployed.report = about["report"]
    return deployed


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = read_json(folder / ABOUT)
        known = about["format"]
        fits = known not in FORMATS or _fits(about)
    except OSError as error:
        raise SavedError(f"{folder} holds no deployed network: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        fits, known = False, FORMATS[0]
    if not fits:
        raise SavedError(f"{folder / ABOUT} is damaged: save the network again")
    if known not in FORMATS:
        reads = " and ".join(map(str, FORMATS))
        raise SavedError(f"{folder / ABOUT} has format {known}, this version reads {reads}")
    return about


def _fits(about: dict[str, Any]) -> bool:
    """Whether :func:`load_deployed` can use every entry. May also raise if it cannot."""
    inputs, dtypes = about["inputs"], about["dtypes"]
    names = (inputs["dtype"], dtypes["model"], dtypes["scores"])
    return (
        about["engine"] in ENGINES
        and about["encoder"] in (None, *ENCODERS)
        and all(name in DTYPES for name in names)
        and all(isinstance(text, str) for pair in about["files"].items() for text in pair)
        and all(isinstance(entry, dict) for entry in (about["made by"], about["files"]))
        and len(about["size"]) == 2
        and all(type(side) is int and side > 0 for side in (*about["size"], about["batch"]))
        and isinstance(inputs["channels_last"], bool)
        and about["precision"] in ENGINES[about["engine"]].precisions
        and {"difference", "seconds", "report", "scales"} <= about.keys()
    )


def _require_same(folder: Path, about: Mapping[str, Any], rebuild: bool) -> None:
    here = made_by(about["engine"])
    there = {INSTRUCTIONS: here[INSTRUCTIONS], **about["made by"]}  # older folders lack it
    other = [f"{key} {there.get(key)} (here {here[key]})" for key in here if here[key] != there.get(key)]
    if not other:
        return
    message = f"{folder} was made by {', '.join(other)}"
    if not rebuild:
        raise SavedError(f"{message}: save it again here, or load it with rebuild=True")
    if about["engine"] in ("compile", "winograd") and about["precision"] != "int8":
        raise SavedError(
            f"{message}: compiled code cannot be rebuilt without the model; deploy and save it again"
        )
    _log.warning("%s: %s rebuilds it", message, about["engine"])


def _encoder(kind: type[nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """An encoder of this ``kind``, with the width of ``tensors``."""
    if kind is Encoder:
        return Encoder(len(tensors["conv1.bias"]))
    if kind is Int8Encoder:
        return Int8Encoder(Encoder(len(tensors["conv1_bias"])))
    if kind is ByteEncoder:
        exact = Encoder(len(tensors["encoder.conv1_bias"]))
        dtypes = [tensors[f"{name}_zero_point"].dtype for name in ("low", "high")]
        return ByteEncoder(Int8Encoder(exact), [ByteInput(1.0, 0, dtype) for dtype in dtypes])
    return kind()


def _upgrade(tensors: dict[str, Tensor]) -> None:
    """Bring an encoder's ``tensors`` from an older folder into today's form.

    Today zero points have the dtype of the bytes. In older folders they are 0..255 for both dtypes, and
    ``signed`` says for ``low`` and ``high`` whether the bytes are int8, with zero points 128 less.
    """
    if "signed" not in tensors:
        return
    older = zip(("low", "high"), tensors.pop("signed"), tensors.pop("zero_point"), strict=True)
    for name, signed, zero_point in older:
        typed = (zero_point - 128).to(torch.int8) if signed else zero_point.to(torch.uint8)
        tensors[f"{name}_zero_point"] = typed


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise SavedError(f"{path} is damaged: {error}") from None


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Raise SavedError if the block, which uses the tensors in ``path``, finds others than were saved."""
    try:
        yield
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SavedError(f"{path} is damaged: it has other tensors than were saved: {error}") from None


def _end(folder: Path, dtype: torch.dtype, size: tuple[int, ...], front: Front) -> End:
    tensors = _tensors(folder / END)
    with _fitting(folder / END):
        classes, width = tensors["low.weight"].shape[:2]
        make = partial(ScoreDecoder, classes, len(tensors["high.weight"]), width)
        return End(_filled(make, tensors, dtype), size, front)


def _filled(make: Callable[[], _Module], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> _Module:
    """The module that ``make`` returns, with ``tensors`` as its state, in ``dtype``."""
    with torch.device("meta"):  # initial weights would take random numbers from the caller's generator
        module = make()
    module.to(dtype).to_empty(device="cpu").load_state_dict(tensors)  # torch's default dtype would round them
    return module.eval()


def _front(folder: Path, about: Mapping[str, Any], dtype: torch.dtype, foreign: bool) -> Front:
    encoder = scale = shift = None
    if about["encoder"] is not None:
        tensors = _tensors(folder / ENCODER)
        with _fitting(folder / ENCODER):
            scale, shift = tensors.pop("image_scale"), tensors.pop("image_shift")
            _upgrade(tensors)
            encoder = _filled(partial(_encoder, ENCODERS[about["encoder"]], tensors), tensors, dtype)
    elif about["scales"]:
        scale, shift = torch.ones(3), torch.zeros(3)  # only a mark: the network applies its own
    inputs = about["inputs"]
    memory_format = torch.channels_last if inputs["channels_last"] else torch.contiguous_format
    like = torch.empty(0, dtype=dtype)
    return Front(encoder, like, scale, shift, DTYPES[inputs["dtype"]], memory_format, before_threads=foreign)
