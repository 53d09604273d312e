"""The fast form of a network for inference: our op in front, and behind it the engine that is fastest here.

::

    deployed = deploy(model.eval(), size=(224, 224), batch=8)
    scores = deployed(images)  # uint8 or floating point, any strides
    deployed.engine            # "openvino", say; deploy(..., engine="openvino") need not search again
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse

from wae.errors import WaeError
from wae.models.classifier import BehindEncoder, WAEClassifier, fold_normalization

from .engines import ENGINES, Engine, EngineError, Run
from .timing import interleaved

__all__ = ["ENGINES", "Deployed", "DisagreementError", "EngineError", "deploy", "fold"]

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""By the dtype that is computed in: how far scores may be from the model's, relative, in the norm."""

_log = logging.getLogger(__name__)


class DisagreementError(WaeError, RuntimeError):
    """What was made of a model does not compute what the model does."""


class Deployed:
    """What :func:`deploy` returns: call it with images.

    Attributes:
        engine: the name of the engine that runs the bodies and classifiers.
        size: (H, W) of the images it takes.
        batch: the number of images it was made for. Others work, the first after as long a preparation.
        difference: how far its scores were from the model's when it was made, relative, in the norm.
        seconds: for each engine that ``engine="auto"`` tried, the median of one call; else empty.
    """

    difference: float
    seconds: dict[str, float]

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        batch: int,
        engine: Engine,
        memory_format: torch.memory_format,
    ) -> None:
        self.engine, self.size, self.batch = engine.name, size, batch
        self.difference, self.seconds = float("nan"), {}
        self._like = _first_parameter(model)
        self._memory_format = torch.contiguous_format if engine.foreign else memory_format
        self._front, self._rest = _split(model)
        self._front_threads: int | None = None  # as many as PyTorch has
        self._build = engine.build
        self._examples = example_images(model, batch, size)
        with torch.no_grad():
            self._run = self._build(self._rest, self._inputs(self._examples))
            if engine.foreign and isinstance(model, WAEClassifier):
                self._front_threads = self._best_front_threads()
        self._run_any: Run | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The scores, (N, classes), of ``images``.

        Args:
            images: (N, 3, H, W) on the model's device, any strides, uint8 or floating point; H and W are
                those of ``size``. A WAE network's ``image_scale`` and ``image_shift`` are applied, as the
                model itself does; any other network takes its numbers as they are.

        Raises:
            TypeError, ValueError: ``images`` is something else; the message says what it needs.
        """
        self._check(images)
        with torch.inference_mode(False), torch.no_grad():
            inputs = self._inputs(images)
            scores: Tensor = self._runner(inputs)(*inputs)
            return scores.clone()  # the engine may write its next result to the same place

    def _inputs(self, images: Tensor) -> Sequence[Tensor]:
        images = images if images.dtype == torch.uint8 else images.to(self._like.dtype)
        with _threads(self._front_threads):
            return [x.contiguous(memory_format=self._memory_format) for x in self._front(images)]

    def _best_front_threads(self) -> int | None:
        """Whether the front is faster with one thread or with all.

        An engine's own threads still wait in a loop when the next call begins, and PyTorch's have to wait for
        a core. All begin together, so the slowest counts; one thread has a core already.
        """

        def call(threads: int | None) -> None:
            self._front_threads = threads
            self._run(*self._inputs(self._examples))

        choices = {"one": 1, "all": None}
        functions = {name: partial(call, threads) for name, threads in choices.items()}
        timings = interleaved(functions, seconds=0.3, min_rounds=5, burst=2, settle=1)
        return choices[min(timings, key=lambda name: timings[name].median)]

    def _runner(self, inputs: Sequence[Tensor]) -> Run:
        if inputs[0].shape[0] == self.batch:
            return self._run
        if self._run_any is None:
            _log.info("preparing %s for any number of images", self.engine)
            run = self._build(self._rest, inputs, dynamic=True)
            examples = self._inputs(self._examples)
            require_equal(
                f"{self.engine}, prepared for any number of images,",
                run(*examples),
                self._run(*examples),
                self._like.dtype,
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
        if images.device != self._like.device:
            raise ValueError(f"images must be on {self._like.device}, got {images.device}")


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Within it PyTorch has this number of threads; with None, as many as it has."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)


def deploy(
    model: nn.Module,
    size: tuple[int, int] = (224, 224),
    batch: int = 1,
    engine: str = "auto",
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
    seconds: float = 3.0,
) -> Deployed:
    """Make the fast form of ``model`` for inference, on the device where the model is.

    BatchNorm is folded into the convolutions, the encoder runs as our op, and everything behind it in
    ``engine``, which packs the weights for itself. The result is checked against ``model`` once.

    Args:
        model: a :class:`WAEClassifier`, or any other classifier of images, in evaluation mode. It is copied.
        size: (H, W) of the images.
        batch: how many images a call has, mostly.
        engine: a key of :data:`ENGINES`; or "auto", which builds all that are installed, times them for
            this size and batch, and keeps the fastest. What it does is logged, at the level INFO.
        dtype: to compute in; None for the model's own.
        memory_format: of what PyTorch's own engines compute on. Others choose for themselves.
        seconds: that "auto" spends on timing, all engines together.

    Raises:
        TypeError, ValueError: an argument does not fit.
        EngineError: the engine is not installed, does not run on the model's device, or refuses the model.
        DisagreementError: the result does not compute what ``model`` does.
    """
    check_arguments(model, size, batch)
    if engine != "auto" and engine not in ENGINES:
        raise ValueError(f"engine must be one of auto, {', '.join(ENGINES)}, got {engine!r}")
    if dtype is not None and dtype not in TOLERANCES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, TOLERANCES))}, got {dtype}")
    images = example_images(model, batch, size)
    expected = scores_of(model, images)
    folded = fold(model).to(dtype=dtype).to(memory_format=memory_format)
    make = partial(_deploy_in, folded, images, expected, memory_format)
    if engine != "auto":
        return make(ENGINES[engine])
    candidates = [deployed for name in ENGINES if (deployed := _attempt(make, ENGINES[name]))]
    if not candidates:
        raise EngineError("no engine runs the model: see the log of wae.deploy, at the level INFO")
    return _fastest(candidates, images, seconds)


def _attempt(make: Callable[[Engine], Deployed], engine: Engine) -> Deployed | None:
    """``make(engine)``, or None and a message."""
    _log.info("building %s", engine.name)
    try:
        return make(engine)
    except (EngineError, DisagreementError) as error:
        _log.info("left out: %s", error)
        return None


def _fastest(candidates: Sequence[Deployed], images: Tensor, seconds: float) -> Deployed:
    timings = interleaved(
        {deployed.engine: partial(deployed, images) for deployed in candidates},
        seconds,
        settle=1,
        synchronize=torch.cuda.synchronize if images.is_cuda else lambda: None,
    )
    medians = {name: timing.median for name, timing in timings.items()}
    for name, median in medians.items():
        _log.info("%s: %.2f ms", name, 1e3 * median)
    fastest = min(candidates, key=lambda deployed: medians[deployed.engine])
    fastest.seconds = medians
    return fastest


def _deploy_in(
    folded: nn.Module, images: Tensor, expected: Tensor, memory_format: torch.memory_format, engine: Engine
) -> Deployed:
    """Build and check."""
    size = (images.shape[2], images.shape[3])
    deployed = Deployed(folded, size, images.shape[0], engine, memory_format)
    deployed.difference = require_equal(
        f"the model in {engine.name}", deployed(images), expected, _first_parameter(folded).dtype
    )
    return deployed


@torch.no_grad()
def scores_of(model: nn.Module, images: Tensor) -> Tensor:
    """``model(images)``. Raises ValueError where it takes no such images, or gives no finite scores."""
    size = " x ".join(map(str, images.shape[2:]))
    try:
        scores: Tensor = model(images)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the model takes no images of {size}: {error}") from error
    if not isinstance(scores, Tensor):
        raise ValueError(f"the model must return its scores as one tensor, got {type(scores).__name__}")
    if not scores.isfinite().all():
        raise ValueError(f"the model's scores of an image of {size} are not finite")
    return scores


def require_equal(what: str, scores: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The relative difference of ``scores`` from ``expected``, in the norm.

    Raises DisagreementError unless it is at most the tolerance for numbers computed in ``dtype``.
    """
    if scores.shape != expected.shape:
        raise DisagreementError(
            f"{what} gives {tuple(scores.shape)} scores, the model {tuple(expected.shape)}"
        )
    wanted = expected.double()
    difference = float((scores.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
    if not difference <= TOLERANCES[dtype]:  # NaN neither
        raise DisagreementError(
            f"{what} gives scores that differ from the model's by {difference:.3g}, more than "
            f"{TOLERANCES[dtype]:g} (norm of the difference over norm of the scores)"
        )
    return difference


# ---------------------------------------------------------------------------------------------- the network


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, its BatchNorms folded into the convolutions before them.

    In a network that torch.fx cannot trace they stay: compilers find most of them later.
    """
    if not isinstance(model, WAEClassifier):
        return _fold_convolutions(copy.deepcopy(model))
    folded = fold_normalization(model)
    for name in ("low_body", "high_body"):
        setattr(folded, name, _fold_convolutions(getattr(folded, name)))
    return folded


def _fold_convolutions(network: nn.Module) -> nn.Module:
    try:
        calls = Counter(n.target for n in symbolic_trace(network).graph.nodes if n.op == "call_module")
        if any(n > 1 and list(network.get_submodule(name).parameters()) for name, n in calls.items()):
            return network  # fuse would fold into a shared convolution more than once
        folded: nn.Module = fuse(network)
    except Exception as error:  # any that the network's own code raises when it is traced
        _log.debug("BatchNorm stays in %s: %s", type(network).__name__, error)
        return network
    return folded


def _split(model: nn.Module) -> tuple[Run, nn.Module]:
    """What runs as it is and makes tensors of images; and what an engine makes scores of these with."""
    if isinstance(model, WAEClassifier):
        return model.decompose, BehindEncoder(model).eval()
    dtype = _first_parameter(model).dtype
    return lambda images: (images.to(dtype),), model


def example_images(
    model: nn.Module, batch: int, size: tuple[int, int], dtype: torch.dtype | None = None
) -> Tensor:
    """(batch, 3, *size), the same each time: smooth shapes with some noise, as photos are.

    They are 0..255 for a network that scales its images itself, and wherever they are uint8; else of about
    the mean and variance that networks are trained for.

    Args:
        model: whose images they are.
        batch: how many.
        size: their (H, W).
        dtype: None for uint8 where the model scales its images itself, else for the dtype of its parameters.
    """
    random = torch.Generator().manual_seed(0)
    shapes = F.interpolate(torch.randn(batch, 3, 5, 5, generator=random), size, mode="bicubic")
    photos = (128 + 50 * shapes + 10 * torch.randn(batch, 3, *size, generator=random)).clamp(0, 255)
    like = _first_parameter(model)
    scales = hasattr(model, "image_scale")
    if dtype is None:
        dtype = torch.uint8 if scales else like.dtype
    return (photos if scales or dtype == torch.uint8 else photos / 64 - 2).to(like.device, dtype)


def _first_parameter(model: nn.Module) -> Tensor:
    return next(model.parameters())


# -------------------------------------------------------------------------------------------------- checks


def check_arguments(model: Any, size: Any, batch: Any) -> None:
    """Raise TypeError or ValueError unless ``model`` can be run on ``batch`` images of ``size``.

    It must be a module in evaluation mode, with all its parameters on one device and of a dtype that is a key
    of :data:`TOLERANCES`.
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
    if _first_parameter(model).dtype not in TOLERANCES:
        raise ValueError(
            f"model must compute in one of {', '.join(map(str, TOLERANCES))}, "
            f"got {_first_parameter(model).dtype}"
        )
    if not isinstance(size, Sequence) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(f"size must be (H, W), two integers of at least 1, got {size}")
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch must be an integer of at least 1, got {batch!r}")
