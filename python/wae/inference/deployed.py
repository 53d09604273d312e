"""The fast form of a network for inference: our op in front, and behind it the engine that is fastest here.

::

    deployed = deploy(model.eval(), size=(224, 224), batch=8)
    scores = deployed(images)  # uint8 or floating point, any strides
    deployed.engine            # "openvino", say; deploy(..., engine="openvino") need not search again
    deployed.save("out")       # load_deployed("out") has it back in a second
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wae.data.input import IMAGENET, Input
from wae.difference import relative_difference
from wae.errors import WaeError
from wae.models.classifier import WAEClassifier
from wae.models.network import WAENetwork
from wae.models.plain import is_plain
from wae.models.segmentation.segmenter import WAESegmenter
from wae.wording import counted, first_line

from . import precision as precisions
from .batches import filled
from .calibration import STEP, Calibration, CalibrationError, Source, gather
from .encoder_int8 import hand_bytes_over, put_where_faster
from .engines import ENGINES, Engine, EngineError, Prepared, Run
from .folding import fold
from .front import End, Front, before_end, finite_by_numpy, in_front, whole, without_numbers_of_nan
from .precision import DTYPES, NAMES, name_of
from .saving import save
from .timing import interleaved

__all__ = ["ENGINES", "CalibrationError", "Deployed", "DisagreementError", "EngineError", "deploy", "fold"]

MOST_PIXELS = 2**28
"""In a call: 5,000 images of 224 x 224. What is far beyond any memory is refused before memory is taken."""

_COMPARED = 8  # images on which the layers of a network in int8 are compared
_PIXELS_AT_ONCE = 32 * 224 * 224  # that the model itself gets to be compared with
_NAMED = 3  # layers that an error names

_log = logging.getLogger(__name__)


class DisagreementError(WaeError, RuntimeError):
    """A deployed or exported model does not compute the same as the model."""


class Deployed:
    """The result of :func:`deploy`: call it with images, from any thread.

    A lock lets one call in at a time: others wait.

    Attributes:
        engine: the name of the engine that runs the bodies and classifiers.
        precision: that they are computed in.
        size: (H, W) of the images it takes.
        batch: the number of images it was made for. Others work, the first after as long a preparation.
        difference: how far its scores were from the model's when it was made, relative, in the norm.
        seconds: for each engine that ``engine="auto"`` tried, the median of one call; else empty.
        report: what was found on the images that ``calibration`` held back; else empty. See :func:`deploy`.
    """

    difference: float
    seconds: dict[str, float]
    report: dict[str, Any]
    _run_any: Run | None

    def __init__(
        self,
        front: Front,
        prepared: Prepared,
        run: Run,
        engine: Engine,
        precision: str,
        size: tuple[int, int],
        batch: int,
        scores_dtype: torch.dtype,
        end: End | None = None,
    ) -> None:
        self.engine, self.precision, self.size, self.batch = engine.name, precision, size, batch
        self.difference, self.seconds, self.report = float("nan"), {}, {}
        self._engine, self._front, self._prepared = engine, front, prepared
        self._scores_dtype, self._end = scores_dtype, end
        self._lock = threading.Lock()
        self._run, self._run_any = run, None

    def __repr__(self) -> str:
        return (
            f"Deployed(engine={self.engine!r}, precision={self.precision!r}, size={self.size}, "
            f"batch={self.batch}, difference={self.difference:.2g})"
        )

    def __call__(self, images: Tensor) -> Tensor:
        """The model's scores of ``images``, (N, classes) or (N, classes, H, W).

        They are in the model's dtype (or that of a wider ``precision``).

        They do not depend on autocast, inference mode, or torch's default dtype around the call. Those of an
        image with NaN or infinity are NaN in every engine.

        Args:
            images: (N, 3, H, W) on the model's device, any strides, uint8 or floating point; H and W are
                those of ``size``. A WAE network's ``image_scale`` and ``image_shift`` are applied, as the
                model itself does; any other network takes its numbers as they are.

        Raises:
            TypeError, ValueError: ``images`` is something else; the message says what it needs.
        """
        self._check(images)
        with self._lock, undisturbed(images.device):
            inputs = self._front(images)
            scores: Tensor = self._runner(inputs)(*inputs)
            if self._end is not None:
                scores = self._end(scores).to(self._scores_dtype)
            else:  # the engine may write its next result to the same place
                scores = scores.to(self._scores_dtype, copy=True)
            if not images.is_floating_point():
                return scores
            numbers = inputs if inputs[0].is_floating_point() else [images]
            return without_numbers_of_nan(scores, numbers, finite_by_numpy if self._engine.foreign else None)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Deployed is neither copied nor pickled: save() it, and wae.load_deployed() it there"
        )

    def save(self, folder: Path | str, force: bool = False) -> None:
        """Write what :func:`wae.load_deployed` needs into ``folder``, which is made.

        Raises:
            FileExistsError: there is something at ``folder``, and ``force`` is false or it is no such folder.
            EngineError: the engine cannot be saved, or an encoder with hooks or changed layers.
        """
        with self._lock, undisturbed(self._front.device):
            inputs = self._front(example_images(self._front, self.batch, self.size))
            about = {
                "engine": self.engine,
                "precision": self.precision,
                "size": list(self.size),
                "batch": self.batch,
                "difference": self.difference,
                "seconds": self.seconds,
                "report": self.report,
            }
            parts = self._front, self._prepared, self._end
            save(about, Path(folder), force, *parts, self._scores_dtype, inputs)

    def _runner(self, inputs: Sequence[Tensor]) -> Run:
        if inputs[0].shape[0] == self.batch:
            return self._run
        if self._run_any is None:
            _log.info("preparing %s for any number of images", self.engine)
            run = self._engine.open(self._prepared, None, inputs)
            examples = self._front(example_images(self._front, self.batch, self.size))
            expected = self._run(*examples).clone()
            require_equal(
                f"{self.engine}, prepared for any number of images,",
                run(*examples),
                expected,
                # int8 rounds to one of 256 numbers: another order of sums moves some to the next
                DTYPES.get(self.precision, torch.bfloat16),
            )
            self._run_any = run
        return self._run_any

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {type(images).__name__}")
        wanted = (3, *self.size)
        if images.dim() != 4 or tuple(images.shape[1:]) != wanted or images.shape[0] == 0:
            raise ValueError(
                f"images must be (N, {', '.join(map(str, wanted))}) with N at least 1, "
                f"got {tuple(images.shape)}"
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
        if images.device != self._front.device:
            raise ValueError(f"images must be on {self._front.device}, got {images.device}")


def undisturbed(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Within it the caller's autocast, inference mode and gradients are off.

    Only what is on is switched off: to enter all three contexts takes 0.1 ms once a network has run, which
    leaves no Python in the processor's caches.
    """
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type):
        return _all_off(device)
    return torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext()


@contextlib.contextmanager
def _all_off(device: torch.device) -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


# ------------------------------------------------------------------------------------------------- deploying


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


def named_by(model: nn.Module, data: Calibration) -> Tensor:
    """The classes that ``model`` names on the images that were held out, (N, ...), on the processor.

    Raises CalibrationError where there are labels, and of another shape.
    """
    scores = (scores_of(model, part, "the images of calibration") for part in _ready(model, data))
    named = torch.cat([part.argmax(1).cpu() for part in scores])
    if data.labels is not None and data.labels.shape != named.shape:
        wanted, got = (", ".join(("N", *map(str, x.shape[1:]))) for x in (named, data.labels))
        raise CalibrationError(
            f"calibration: need the numbers of classes, ({wanted}), as labels, got ({got})"
        )
    return named


def _ready(model: nn.Module, data: Calibration) -> Iterator[Tensor]:
    """The images that were held out, as ``model`` takes them, a few at a time."""
    images = data.held_out
    at_once = max(1, _PIXELS_AT_ONCE // images[0, 0].numel())
    like = first_parameter(model)
    keeps = images.dtype == torch.uint8 and isinstance(model, WAENetwork)
    for part in images.split(at_once):
        yield part.to(like.device) if keeps else part.to(like.device, like.dtype)


def _attempt(task: _Task, engine: Engine, name: str) -> Deployed | None:
    """:func:`_deploy_in`, or None and a message."""
    _log.info("building %s in %s", engine.name, name)
    try:
        return _deploy_in(task, engine, name)
    except (EngineError, DisagreementError) as error:
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
    if not precisions.native(name, device):
        _log.warning(
            "this processor has no instructions for %s: %s emulates it with others", name, engine.name
        )
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
    folded = fold(task.model)
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


# -------------------------------------------------------------------------------------------------- checks


def agreement(found: Tensor, wanted: Tensor, data: Calibration) -> dict[str, Any]:
    """The part of :func:`deploy`'s report about the classes ``found``, where the model names ``wanted``.

    Both are (N, ...) on the processor, as the labels are. Accuracy leaves out labels below 0.
    """
    same = float((found == wanted).double().mean())
    accuracy, drop = None, 1 - same
    if data.labels is not None:
        counted = data.labels >= 0
        right = [float((classes == data.labels)[counted].double().mean()) for classes in (wanted, found)]
        accuracy, drop = dict(zip(("model", "deployed"), right, strict=True)), right[0] - right[1]
    return {
        "calibration_images": len(data.images),
        "checked_images": len(found),
        "agreement": same,
        "accuracy": accuracy,
        "drop": drop,
    }


def classes_of(run: Run, images: Tensor, batch: int, device: torch.device) -> Tensor:
    """The class that ``run`` names for each of ``images``, (M, ...), or of their pixels, on the processor.

    It gets ``batch`` of them at a time, on ``device``; fewer are filled up.
    """
    scores = (run(filled(part, batch).to(device))[: len(part)] for part in images.split(batch))
    return torch.cat([part.argmax(1).cpu() for part in scores])


def require_no_drop(what: str, report: dict[str, Any]) -> None:
    """Raise DisagreementError where the report's drop is too large."""
    if report["max_drop"] is None or report["drop"] <= report["max_drop"]:
        return
    of = "agreement with it" if report["accuracy"] is None else "accuracy"
    message = (
        f"{what} loses {report['drop']:.2%} of {of} on {counted(report['checked_images'], 'image')}, "
        f"more than max_drop={report['max_drop']:g}"
    )
    if report.get("layers"):
        worst = ", ".join(f"{name} ({difference:.1%})" for name, difference in report["layers"][:_NAMED])
        message += f"; most moved: {worst}"
    raise DisagreementError(message)


def scores_of(model: nn.Module, images: Tensor, what: str = "an image") -> Tensor:
    """``model(images)``. Raises ValueError where it takes no such images, or gives no finite scores."""
    size = " x ".join(map(str, images.shape[2:]))
    with undisturbed(images.device):
        try:
            scores: Tensor = model(images)
        except Exception as error:  # any that the model's own code raises
            raise ValueError(f"the model takes no images of {size}: {first_line(error)}") from error
        if not isinstance(scores, Tensor):
            raise ValueError(f"the model must return its scores as one tensor, got {type(scores).__name__}")
        if not scores.isfinite().all():
            raise ValueError(f"the model's scores of {what} of {size} are not finite")
        return scores


def check_parts(model: nn.Module, images: Tensor, expected: Tensor) -> None:
    """Raise EngineError where the parts of a WAE network do not give its scores, ``expected``.

    They are what is deployed or exported. What changes the scores beside them is a hook on the whole network,
    or a ``forward`` of its own or of its class. A hook that only looks on is left out without a word.
    """
    is_sum_of_parts = is_plain(model) and type(model).forward in (WAEClassifier.forward, WAESegmenter.forward)
    if is_sum_of_parts or not isinstance(model, WAENetwork):
        return
    with undisturbed(images.device):
        scores = model.behind_encoder(images.shape[2:])(*model.decompose(images))
    alike = scores.shape == expected.shape and expected.is_floating_point()  # not the numbers of classes
    if alike:
        alike = relative_difference(scores, expected) <= precisions.tolerance(expected.dtype, expected.device)
    if not alike:
        raise EngineError(
            f"{type(model).__name__} has a hook, or a forward of its own, that changes its scores: only its "
            f"parts run in an engine or a file. Put it on a part, such as {model.bodies[0]}, or do what it "
            "does before and after the call"
        )


def require_equal(what: str, scores: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The relative difference of ``scores`` from ``expected``, in the norm.

    Raises DisagreementError unless it is at most the tolerance for numbers computed in ``dtype``.
    """
    if scores.shape != expected.shape:
        raise DisagreementError(
            f"{what} gives {tuple(scores.shape)} scores, the model {tuple(expected.shape)}"
        )
    difference, most = relative_difference(scores, expected), precisions.tolerance(dtype, expected.device)
    if not difference <= most:  # NaN neither
        raise DisagreementError(
            f"{what} gives scores that differ from the model's by {difference:.3g}, more than "
            f"{most:g} (norm of the difference over norm of the scores)"
        )
    return difference


def example_images(
    model: nn.Module | Front, batch: int, size: tuple[int, int], dtype: torch.dtype | None = None
) -> Tensor:
    """(batch, 3, H, W), the same each time: smooth shapes with some noise, as photos are.

    They are 0..255 for a network that scales its images itself, and wherever they are uint8; else of about
    the mean and variance that networks are trained for.

    Args:
        model: whose images they are.
        batch: how many.
        size: their (H, W).
        dtype: None for uint8 where the model scales its images itself, else for the dtype of its parameters.
    """
    random = torch.Generator().manual_seed(0)
    shapes = F.interpolate(_normal(random, batch, 3, 5, 5), size, mode="bicubic")
    photos = (128 + 50 * shapes + 10 * _normal(random, batch, 3, *size)).clamp(0, 255)
    like = first_parameter(model)
    scales = hasattr(model, "image_scale")
    if dtype is None:
        dtype = torch.uint8 if scales else like.dtype
    return (photos if scales or dtype == torch.uint8 else photos / 64 - 2).to(like.device, dtype)


def _normal(random: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=random, dtype=torch.float32)  # whatever the default dtype is


def first_parameter(model: nn.Module | Front) -> Tensor:
    """It has the dtype and the device of the whole model."""
    return model.like if isinstance(model, Front) else next(model.parameters())


def check_arguments(model: Any, size: Any, batch: Any) -> None:
    """Raise TypeError or ValueError unless ``model`` can be run on ``batch`` images of ``size``.

    It must be a module in evaluation mode, with all its parameters finite, on one device, and of a dtype that
    is in :data:`.precision.DTYPES`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"model must be in evaluation mode, but {training[0]} is in training mode: call model.eval()"
        )
    devices = {str(tensor.device) for tensor in model.parameters()}
    if len(devices) != 1 or devices == {"meta"}:
        raise ValueError(
            f"model must have its parameters on one device, got {', '.join(sorted(devices)) or 'none'}"
        )
    dtype = first_parameter(model).dtype
    if dtype not in DTYPES.values():
        raise ValueError(f"model must compute in one of {', '.join(map(str, DTYPES.values()))}, got {dtype}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"model must have finite numbers only, but {name} has some that are not finite")
    if not isinstance(size, Sequence) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(f"size must be (H, W), two integers of at least 1, got {size}")
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch must be an integer of at least 1, got {batch!r}")
    if batch * size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"batch times size must be at most {MOST_PIXELS} pixels, got {batch} x {size[0]} x {size[1]}"
        )
