"""The fast form of a network for inference: our op in front, and behind it the engine that is fastest here.

::

    deployed = deploy(model.eval(), size=(224, 224), batch=8)
    scores = deployed(images)  # uint8 or floating point, any strides
    deployed.engine            # "openvino", say; deploy(..., engine="openvino") need not search again
    deployed.save("out")       # load_deployed("out") has it back in a second
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wae.data.input import IMAGENET, Input
from wae.difference import relative_difference

from . import precision as precisions
from .agreement import (
    DisagreementError,
    agreement,
    check_parts,
    classes_of,
    named_by,
    require_equal,
    require_no_drop,
    scores_of,
)
from .arguments import check_arguments, example_images, first_parameter
from .calibration import STEP, Calibration, CalibrationError, Source, gather
from .deployed import Deployed
from .encoder_int8 import hand_bytes_over, put_where_faster
from .engines import ENGINES, Engine, EngineError
from .folding import fold
from .front import End, Front, before_end, in_front, whole
from .precision import DTYPES, NAMES, name_of
from .timing import interleaved
from .undisturbed import undisturbed

_COMPARED = 8  # images on which the layers of a network in int8 are compared

_log = logging.getLogger(__name__)


class _Task(NamedTuple):
    """The source of every candidate, and its standard of comparison."""

    model: nn.Module
    images: Tensor
    expected: Tensor
    memory_format: torch.memory_format
    calibration: Calibration | None
    named: Tensor | None
    """The classes that the model names on what the calibration held back."""
    max_drop: float | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[2], self.images.shape[3]


def deploy(
    model: nn.Module,
    size: tuple[int, int] = (224, 224),
    batch: int = 1,
    engine: str = "auto",
    *,
    precision: str | None = None,
    calibration: Source | None = None,
    calibration_images: int = 100,
    max_drop: float | None = 0.005,
    input: Input = IMAGENET,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
    seconds: float = 3.0,
) -> Deployed:
    """Make the fast form of ``model`` for inference, on the device where the model is.

    BatchNorm is folded into the convolutions, the encoder runs as our op, and everything behind it in
    ``engine``, which packs the weights for itself. The result is checked against ``model`` once.

    With ``calibration`` it is also checked on those of its images that no scale came from, and
    ``Deployed.report`` has, as data for JSON: ``calibration_images``, ``checked_images``, ``agreement`` (the
    share of images, or of their pixels, of which it and the model name the same class), ``accuracy``
    (``model`` and ``deployed``; None without labels), ``drop`` (of accuracy; of agreement without labels),
    ``max_drop``, and for int8 ``encoder`` (its ``precision``, and ``seconds`` of both where they were timed)
    and ``layers``: (name, relative difference) of each layer's results, the one that moved most first.

    Args:
        model: a :class:`WAENetwork`, or any other network that scores images or their pixels, in evaluation
            mode. It is copied.
        size: (H, W) of the images.
        batch: how many images a call has, mostly.
        engine: a key of :data:`ENGINES`; or "auto", which builds all that are installed, times them for
            this size and batch, and keeps the fastest. What it does is logged, at the level INFO.
        precision: "float32", "bfloat16", "float16" or "int8" (or "float64"), to compute in; "auto" for
            whichever is fastest, int8 only with ``calibration``; None for the model's own. On a processor the
            encoder stays in the model's own, but for int8: there it is in int8 too where the processor has
            VNNI, the images are uint8 and that is faster. int8 needs the extra ``int8`` (docs/deploy.md).
        calibration: images for int8's scales, and to check on: see :data:`.calibration.Source`.
        calibration_images: how many to take scales from.
        max_drop: the largest drop that is accepted; None for any.
        input: how files in the folder ``calibration`` become images: a checkpoint's ``describe(path).input``.
        dtype: the old name of ``precision``, as a dtype.
        memory_format: of what PyTorch's own engines compute on. Others choose for themselves.
        seconds: that "auto" spends on timing, all engines together.

    Raises:
        TypeError, ValueError: an argument does not fit.
        CalibrationError: int8 without images to calibrate on, or with too few or wrong ones.
        EngineError: the engine is not installed, does not run on the model's device or in this precision, or
            refuses the model; or a hook on the whole of a WAE network changes its scores.
        DisagreementError: the result does not compute what ``model`` does; or its drop is too large, and the
            message names the layers that moved most.
    """
    check_arguments(model, size, batch)
    if engine != "auto" and engine not in ENGINES:
        raise ValueError(f"engine must be one of auto, {', '.join(ENGINES)}, got {engine!r}")
    if dtype is not None:
        precision = _from_dtype(dtype, precision)
    own = first_parameter(model).dtype
    if precision not in (None, "auto", *NAMES):
        raise ValueError(f"precision must be one of auto, {', '.join(NAMES)}, got {precision!r}")
    if precision == "int8" and calibration is None:
        raise CalibrationError(
            "calibration: int8 takes its scales from images: give some, a loader of some, or a folder"
        )
    wanted = _precisions(precision, own, calibration is not None)
    device = first_parameter(model).device
    _say_what_is_emulated(wanted, device, engine, logging.INFO if precision == "auto" else logging.WARNING)
    with undisturbed(device):
        widest = max((DTYPES[name] for name in wanted if name in DTYPES), key=_bits, default=own)
        if _bits(widest) > _bits(own):
            model = copy.deepcopy(model).to(widest)
        task = _task(model, size, batch, calibration, calibration_images, input, max_drop, memory_format)
        if "auto" not in (engine, precision):
            return _deploy_in(task, ENGINES[engine], wanted[0])
        engines = list(ENGINES.values()) if engine == "auto" else [ENGINES[engine]]
        candidates = [
            deployed
            for one in engines
            for name in wanted
            if name in one.precisions and (deployed := _attempt(task, one, name))
        ]
        if not candidates:
            raise EngineError("no engine runs the model: see the log of wae.deploy, at the level INFO")
        return _fastest(candidates, task.images, seconds)


def _from_dtype(dtype: torch.dtype, precision: str | None) -> str:
    warnings.warn(
        'deploy(dtype=...) is now deploy(precision="float32" | "bfloat16" | ...)',
        DeprecationWarning,
        stacklevel=3,
    )
    if precision is not None:
        raise ValueError("dtype is the old name of precision: give one of them")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES.values()))}, got {dtype}")
    return name_of(dtype)


def _precisions(precision: str | None, own: torch.dtype, calibrated: bool) -> list[str]:
    """Those to try."""
    if precision is None:
        return [name_of(own)]
    if precision != "auto":
        return [precision]
    return ["float32", "bfloat16", "float16", *(["int8"] if calibrated else [])]


def _say_what_is_emulated(wanted: Sequence[str], device: torch.device, engine: str, level: int) -> None:
    who = "engines emulate" if engine == "auto" else f"{engine} emulates"
    for name in wanted:
        if not precisions.native(name, device):
            _log.log(level, "this processor has no instructions for %s: %s it with others", name, who)


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


def _task(
    model: nn.Module,
    size: tuple[int, int],
    batch: int,
    calibration: Source | None,
    count: int,
    input: Input,
    max_drop: float | None,
    memory_format: torch.memory_format,
) -> _Task:
    images = example_images(model, batch, size)
    expected = scores_of(model, images)
    check_parts(model, images, expected)
    data = held_out = None
    if calibration is not None:
        data = gather(calibration, size, count, hasattr(model, "image_scale"), input)
        held_out = named_by(model, data)
    return _Task(model, images, expected, memory_format, data, held_out, max_drop)


def _attempt(task: _Task, engine: Engine, name: str) -> Deployed | None:
    """:func:`_deploy_in`, or None and a message."""
    _log.info("building %s in %s", engine.name, name)
    try:
        return _deploy_in(task, engine, name)
    except (EngineError, DisagreementError, OSError) as error:  # the last of a full disk
        _log.info("left out: %s", error)
        return None


def _fastest(candidates: Sequence[Deployed], images: Tensor, seconds: float) -> Deployed:
    several = len({deployed.precision for deployed in candidates}) > 1
    by_name = {f"{d.engine} {d.precision}" if several else d.engine: d for d in candidates}
    timings = interleaved(
        {name: partial(deployed, images) for name, deployed in by_name.items()},
        seconds,
        settle=1,
        synchronize=torch.cuda.synchronize if images.is_cuda else lambda: None,
    )
    medians = {name: timing.median for name, timing in timings.items()}
    for name, median in medians.items():
        _log.info("%s: %.2f ms", name, 1e3 * median)
    fastest = by_name[min(medians, key=lambda name: medians[name])]
    fastest.seconds = medians
    return fastest


def _deploy_in(task: _Task, engine: Engine, name: str) -> Deployed:
    """Build and check."""
    device, own = task.images.device, first_parameter(task.model).dtype
    reason = engine.why_not(device, name)
    if reason is not None:
        raise EngineError(reason)
    front, rest, end = _divided(task, engine, name)
    samples: list[Sequence[Tensor]] = []
    compared: Sequence[Tensor] = ()
    encoder: dict[str, Any] = {}
    if name == "int8":
        assert task.calibration is not None
        parts = task.calibration.images.split(STEP)
        encoder = put_where_faster(front, task.images, parts)
        samples = [front(part) for part in parts]
        compared = front(task.calibration.held_out[:_COMPARED])
    prepared = engine.make(rest, front(task.images), name, samples, compared)
    with engine.errors():
        hand_bytes_over(front, prepared)
    run = engine.open(prepared, len(task.images), front(task.images))
    deployed = Deployed(front, prepared, run, engine, name, task.size, len(task.images), own, end)
    _check(task, deployed, encoder)
    return deployed


def _divided(task: _Task, engine: Engine, name: str) -> tuple[Front, nn.Module, End | None]:
    """What runs in front of the engine, what the engine runs, and what runs behind it."""
    dtype = engine.input_dtype(name)
    memory_format = torch.contiguous_format if engine.foreign else task.memory_format
    folded = fold(task.model, task.images[:1])  # the result is compared on all
    if engine.whole:
        front, rest = whole(folded, task.size, dtype, memory_format)
    else:
        front, rest = in_front(folded, task.size, dtype, memory_format, before_threads=engine.foreign)
    end = None
    if engine.foreign:  # PyTorch's engines run our op themselves
        rest, end = before_end(rest, front)
    return front, rest.to(dtype).to(memory_format=memory_format), end


def _check(task: _Task, deployed: Deployed, encoder: dict[str, Any]) -> None:
    """Note how far the scores and classes are from the model's; raises DisagreementError where too far.

    ``encoder`` is as for :func:`_report`.
    """
    what, precision = f"the model in {deployed.engine}", deployed.precision
    scores = deployed(task.images)
    if precision in DTYPES:
        deployed.difference = require_equal(what, scores, task.expected, DTYPES[precision])
    else:
        deployed.difference = relative_difference(scores, task.expected)
    if task.calibration is not None:
        deployed.report = _report(task, deployed, encoder)
        require_no_drop(f"{what} in {precision}", deployed.report)


def _report(task: _Task, deployed: Deployed, encoder: dict[str, Any]) -> dict[str, Any]:
    """See :func:`deploy`; ``encoder`` is what :func:`put_where_faster` found."""
    assert task.calibration is not None
    assert task.named is not None
    found = classes_of(deployed, task.calibration.held_out, deployed.batch, task.images.device)
    report = {
        "engine": deployed.engine,
        "precision": deployed.precision,
        **agreement(found, task.named, task.calibration),
        "max_drop": task.max_drop,
    }
    if deployed.precision == "int8":
        report["encoder"] = encoder
        report["layers"] = [list(movement) for movement in deployed._prepared.movements]
    return report
