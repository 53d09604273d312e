"""``wae.deploy``: a network in its fast form for inference. Our op runs the encoder, an engine runs the rest.

::

    deployed = deploy(model.eval(), size=(224, 224), batch=8)
    scores = deployed(images)  # uint8 or floating point, any strides
    deployed.engine            # for example "openvino"; deploy(..., engine="openvino") skips the search
    deployed.save("out")       # load_deployed("out") loads it in a new process, without the model
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wae.data.input import IMAGENET, Input
from wae.models.layout import in_format
from wae.models.plain import unwrapped
from wae.wording import counted, first_line, milliseconds

from . import precision as precisions
from .agreement import (
    DisagreementError,
    agreement,
    check_parts,
    dependence_on_number,
    named_by,
    other_images,
    other_number,
    require_equal_once,
    require_no_drop,
    require_simulated,
    scores_of,
)
from .arguments import check_arguments, check_number, example_images, first_parameter
from .batches import filled
from .calibration import STEP, Calibration, CalibrationError, Source, gather
from .deployed import Deployed
from .encoder_int8 import hand_bytes_over, put_where_faster
from .engines import ENGINES, Engine, EngineError
from .engines.int8 import listed
from .folding import fold
from .front import End, Front, before_end, in_front, whole
from .precision import DTYPES, NAMES, dtype_of, name_of, tolerance
from .timing import interleaved, synchronize_for
from .undisturbed import undisturbed

_COMPARED = 8  # images on which an int8 network and its layers are compared

_AS_FAR = 2.0
"""In int8 scores may be this many times as far from the model's for one number of images as for another."""

_log = logging.getLogger(__name__)


class _Task(NamedTuple):
    """What every candidate is built from, and what it is compared with."""

    model: nn.Module
    images: Tensor
    expected: Tensor
    dependence: float
    """See :func:`.agreement.dependence_on_number`."""
    memory_format: torch.memory_format
    calibration: Calibration | None
    named: Tensor | None
    """The classes that the model predicts for the held-out images."""
    max_drop: float | None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
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
    """Make the fast form of ``model`` for inference, on the model's device.

    BatchNorm is folded into the convolutions, the encoder runs as our op, and everything behind it runs in
    ``engine``, which packs its weights. The result is compared with ``model`` once, on example images. It is
    compared for another number of images too if ``model`` scores an image otherwise then.

    With ``calibration`` it is also checked on held-out images, from which no scale was taken.
    ``Deployed.report`` then has these entries, all of which JSON can hold:

    - ``engine``, ``precision``: as in the attributes of :class:`Deployed`;
    - ``calibration_images``, ``checked_images``: the numbers of images;
    - ``agreement``: the share of the held-out images, or of their pixels, for which the result and ``model``
      predict the same class;
    - ``accuracy``: a dictionary with the accuracies of ``model`` and ``deployed``; None without labels;
    - ``drop``: the accuracy lost, or without labels 1 - ``agreement``;
    - ``max_drop``: the argument;
    - ``encoder``, for int8: its ``precision``, and the ``seconds`` of both encoders if they were timed;
    - ``layers``, for int8: [name, relative difference] of each layer's results, the largest first.

    Args:
        model: a :class:`wae.models.network.WAENetwork`, or any other network that scores images or their
            pixels, in evaluation mode. It is copied, without wrappers
            (:func:`wae.models.plain.unwrapped`).
        size: (H, W) of the images.
        batch: the number of images in most calls.
        engine: a key of :data:`wae.inference.engines.ENGINES`; or "auto", which builds all that are
            installed, times them for this size and batch, and keeps the fastest. Its steps are logged at the
            level INFO.
        precision: the precision to compute in: "float32", "bfloat16", "float16", "int8" or "float64". None
            is the model's own; "auto" is the fastest of the first four, 16-bit ones only if the CPU has
            instructions for them, int8 only with ``calibration``. On a CPU the encoder stays in the model's
            own precision; with "int8" it runs in int8 too if the CPU has VNNI, the images are uint8 and int8
            is faster. int8 needs the extra ``int8`` (docs/deploy.md).
        calibration: images that give the scales of int8, and that the result is checked on: see
            :data:`wae.inference.calibration.Source`.
        calibration_images: the number of images that give the scales.
        max_drop: the largest ``drop`` that is accepted, 0.005 being half a point; None for any.
        input: how files in the folder ``calibration`` become images: a checkpoint's ``describe(path).input``.
        dtype: deprecated; ``precision`` as a dtype.
        memory_format: the memory format in which PyTorch's engines compute. Other engines choose their own.
        seconds: the seconds that "auto" spends on timing, all engines together.

    Raises:
        TypeError, ValueError: an argument does not fit.
        CalibrationError: int8 without calibration images; or there are too few of them, or wrong ones.
        EngineError: the engine is not installed, does not run on the model's device or in this precision, or
            does not accept the model; or a hook on a WAE network itself changes its scores.
        DisagreementError: the result does not compute what ``model`` does, for ``batch`` images or for
            another number of them; or its drop is too large, and the message names the layers that moved
            most; or int8 kernels are much farther from ``model`` than the quantized network.
    """
    model = unwrapped(model)
    check_arguments(model, size, batch)
    _check_options(engine, memory_format, seconds, max_drop)
    if dtype is not None:
        precision = _from_dtype(dtype, precision)
    _check_precision(precision, calibration)
    own, device = first_parameter(model).dtype, first_parameter(model).device
    wanted = _precisions(precision, own, device, calibration is not None)
    here = [one for one in ENGINES.values() if device.type in one.devices]
    engines = here if engine == "auto" else [ENGINES[engine]]
    if engine == "auto" and all(one.why_not(device, name) for one in engines for name in wanted):
        raise EngineError(f"no engine that is installed computes in {' or '.join(wanted)} on {device.type}")
    _say_what_is_emulated(wanted, device, engine, logging.INFO if precision == "auto" else logging.WARNING)
    with undisturbed(device):
        widest = max((DTYPES[name] for name in wanted if name in DTYPES), key=_bits, default=own)
        if _bits(widest) > _bits(own):
            model = copy.deepcopy(model).to(widest)
        task = _task(model, size, batch, calibration, calibration_images, input, max_drop, memory_format)
        if "auto" not in (engine, precision):
            return _deploy_in(task, ENGINES[engine], wanted[0])
        reasons: list[str] = []
        candidates = [
            deployed
            for one in engines
            for name in wanted
            if name in one.precisions and (deployed := _attempt(task, one, name, reasons))
        ]
        if not candidates:
            raise EngineError(f"no engine runs the model: {'; '.join(dict.fromkeys(reasons))}")
        return _fastest(candidates, task.images, seconds)


def _check_options(engine: Any, memory_format: Any, seconds: Any, max_drop: Any) -> None:
    """Raise ValueError unless these arguments of :func:`deploy` are usable."""
    check_number("seconds", seconds)
    if max_drop is not None:
        check_number("max_drop", max_drop)
    if engine != "auto" and engine not in ENGINES:
        raise ValueError(f"engine must be one of auto, {', '.join(ENGINES)}, got {engine!r}")
    if memory_format not in (torch.channels_last, torch.contiguous_format):
        formats = "torch.channels_last or torch.contiguous_format"
        raise ValueError(f"memory_format must be {formats}, got {memory_format}")


def _check_precision(precision: Any, calibration: Source | None) -> None:
    """Raise ValueError if there is no such precision, CalibrationError if int8 has no images."""
    if precision not in (None, "auto", *NAMES):
        raise ValueError(f"precision must be one of auto, {', '.join(NAMES)}, got {precision!r}")
    if precision == "int8" and calibration is None:
        raise CalibrationError(
            "calibration: int8 takes its scales from images: give a tensor, a loader or a folder of images"
        )


def _from_dtype(dtype: torch.dtype, precision: str | None) -> str:
    warnings.warn(
        'deploy(dtype=...) is now deploy(precision="float32" | "bfloat16" | ...)',
        DeprecationWarning,
        stacklevel=3,
    )
    if precision is not None:
        raise ValueError("dtype is the old name of precision: pass only one of them")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES.values()))}, got {dtype}")
    return name_of(dtype)


def _precisions(precision: str | None, own: torch.dtype, device: torch.device, calibrated: bool) -> list[str]:
    """The precisions to try."""
    if precision is None:
        return [name_of(own)]
    if precision != "auto":
        return [precision]
    names = ["float32"]
    for name in ("bfloat16", "float16"):
        if precisions.native(name, device):
            names.append(name)
        else:  # emulated, 16-bit numbers take several times as long as float32; int8 may still be faster
            _log.info("left out: this CPU has no instructions for %s", name)
    return [*names, "int8"] if calibrated else names


def _say_what_is_emulated(wanted: Sequence[str], device: torch.device, engine: str, level: int) -> None:
    who = "engines emulate" if engine == "auto" else f"{engine} emulates"
    for name in wanted:
        if not precisions.native(name, device):
            _log.log(level, "this CPU has no instructions for %s: %s it with others", name, who)


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
    dependence = dependence_on_number(model, images, expected)
    data = held_out = None
    if calibration is not None:
        data = gather(calibration, size, count, hasattr(model, "image_scale"), input)
        held_out = named_by(model, data)
    return _Task(model, images, expected, dependence, memory_format, data, held_out, max_drop)


def _attempt(task: _Task, engine: Engine, name: str, reasons: list[str]) -> Deployed | None:
    """:func:`_deploy_in`; None, a line in the log, and another of the ``reasons`` if it fails."""
    _log.info("building %s in %s", engine.name, name)
    try:
        return _deploy_in(task, engine, name)
    except (EngineError, DisagreementError, OSError) as error:  # OSError if the disk is full
        _log.info("left out: %s", error)
        reasons.append(first_line(error))
        return None


def _fastest(candidates: Sequence[Deployed], images: Tensor, seconds: float) -> Deployed:
    several = len({deployed.precision for deployed in candidates}) > 1
    by_name = {f"{d.engine} {d.precision}" if several else d.engine: d for d in candidates}
    timings = interleaved(
        {name: partial(deployed, images) for name, deployed in by_name.items()},
        seconds,
        settle=1,
        synchronize=synchronize_for(images.device),
    )
    medians = {name: timing.median for name, timing in timings.items()}
    for name, median in medians.items():
        _log.info("%s: %s ms", name, milliseconds(median))
    fastest = by_name[min(medians, key=lambda name: medians[name])]
    fastest.seconds = medians
    return fastest


def _deploy_in(task: _Task, engine: Engine, name: str) -> Deployed:
    """Build the network in one engine and precision, and check it."""
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
    """The parts that run in front of the engine, in the engine, and behind it."""
    dtype = engine.input_dtype(name)
    memory_format = torch.contiguous_format if engine.foreign else task.memory_format
    like = first_parameter(task.model)
    folded = fold(task.model, task.images[:1])  # one is enough: the result is compared on all
    if engine.whole:
        front, rest = whole(folded, like, task.size, dtype, memory_format)
    else:
        front, rest = in_front(folded, like, task.size, dtype, memory_format, before_threads=engine.foreign)
    end = None
    if engine.foreign:  # PyTorch's engines run our op themselves
        rest, end = before_end(rest, front)
    if dtype != like.dtype:  # else also a network with parameters of other dtypes computes as it is written
        rest = rest.to(dtype)
    return front, in_format(rest, memory_format), end


def _check(task: _Task, deployed: Deployed, encoder: dict[str, Any]) -> None:
    """Record how far the scores and classes are from the model's; raise DisagreementError if too far.

    ``encoder`` is as for :func:`_report`.
    """
    what, precision = f"the model in {deployed.engine}", deployed.precision
    images, usual = task.images, tolerance(dtype_of(precision), task.images.device)
    most = usual if precision in DTYPES else math.inf  # how far int8 may be is max_drop's matter
    deployed.difference = _require_scores(what, deployed, task.model, images, task.expected, most)
    if task.dependence > usual:
        deployed._depends_on_number = True
        other = other_number(images)
        calls = [
            (f"{what}, given {counted(len(x), 'image')},", deployed, task.model, x, expected)
            for x, expected in ((images, task.expected), (other, scores_of(task.model, other)))
        ]
        if precision not in DTYPES:
            most = max(usual, _AS_FAR * min(_require_scores(*call, most) for call in calls))
        for call in calls:
            _require_scores(*call, most)
    if task.calibration is not None:
        deployed.report = _report(task, deployed, encoder)
        require_no_drop(f"{what} in {precision}", deployed.report)
    if precision == "int8":
        if task.dependence <= usual:
            _check_kernels(task, deployed)
        deployed._prepared.simulation = None  # of no more use, and large if pixels have scores


def _check_kernels(task: _Task, deployed: Deployed) -> None:
    """Compare what an int8 network's kernels compute with its simulation: see :func:`require_simulated`."""
    assert task.calibration is not None
    assert deployed._prepared.simulation is not None
    images = task.calibration.held_out[: min(_COMPARED, deployed.batch)]
    inputs = deployed._front(filled(images, deployed.batch))
    with deployed._engine.errors():
        results = listed(deployed._run(*inputs))
    require_simulated(deployed.engine, results, len(images), deployed._prepared.simulation)


def _require_scores(
    what: str, deployed: Deployed, model: nn.Module, images: Tensor, expected: Tensor, most: float
) -> float:
    """:func:`require_equal_once` of the scores of ``images``, ``expected``, or of :func:`other_images`."""
    others = ([deployed(x), scores_of(model, x)] for x in other_images(model, images))
    return require_equal_once(what, chain([[deployed(images), expected]], others), most)


def _report(task: _Task, deployed: Deployed, encoder: dict[str, Any]) -> dict[str, Any]:
    """The report: see :func:`deploy`. ``encoder`` is what :func:`put_where_faster` returned."""
    assert task.calibration is not None
    assert task.named is not None
    report = {
        "engine": deployed.engine,
        "precision": deployed.precision,
        **agreement(deployed, deployed.batch, task.named, task.calibration, task.images.device),
        "max_drop": task.max_drop,
    }
    if deployed.precision == "int8":
        report["encoder"] = encoder
        assert deployed._prepared.simulation is not None
        report["layers"] = [list(movement) for movement in deployed._prepared.simulation.movements]
    return report
