"""The result of ``wae.deploy``: called with images, from any thread, it returns the model's scores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .agreement import TRIES, require_equal_once
from .arguments import example_images
from .engines import Engine, EngineError, Prepared, Run
from .front import End, Front
from .not_finite import finite_by_numpy, finite_images, nan_where_not_finite
from .precision import IMAGES, dtype_of, tolerance
from .saving import save
from .undisturbed import undisturbed

_log = logging.getLogger(__name__)


class Deployed:
    """The result of :func:`wae.deploy`: call it with images, from any thread.

    One call runs at a time; calls from other threads wait.

    Attributes:
        engine: the name of the engine that runs the bodies and classifiers.
        precision: the precision that they compute in.
        size: (H, W) of the images it takes.
        batch: the number of images it was made for. Any other number works too; the first call with one
            prepares the engine again, which takes as long as the first time.
        difference: the norm of the difference between its scores and the model's, over the norm of the
            model's, when it was made.
        seconds: the median seconds of a call for each engine that ``engine="auto"`` tried; else empty.
        report: what was found on the held-out images of ``calibration``; else empty. See :func:`wae.deploy`.
    """

    difference: float
    seconds: dict[str, float]
    report: dict[str, Any]

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
        self._depends_on_number = False  # see agreement.dependence_on_number
        self._lock = threading.Lock()
        self._run = run
        self._run_any: dict[bool, Run] = {}  # by whether it was compared for a single image or for several

    def __repr__(self) -> str:
        return (
            f"Deployed(engine={self.engine!r}, precision={self.precision!r}, size={self.size}, "
            f"batch={self.batch}, difference={self.difference:.2g})"
        )

    def __call__(self, images: Tensor) -> Tensor:
        """The model's scores of ``images``.

        They do not depend on autocast, inference mode, or torch's default dtype and device around the call.
        The scores of an image with NaN or infinity are NaN in every engine.

        Args:
            images: (N, 3, H, W) on the model's device, any strides, in a dtype of
                :data:`.precision.IMAGES`; H and W are those of ``size``. A WAE network applies its
                ``image_scale`` and ``image_shift``, as the model does; any other network takes the values as
                they are.

        Returns:
            (N, classes) or (N, classes, H, W), in the model's dtype, or in that of ``precision`` if it is
            wider.

        Raises:
            TypeError, ValueError: ``images`` is anything else; the message says what is needed.
            RuntimeError: ``images`` have tangents or come from a transform of torch.func, or the process was
                forked after an earlier call in another engine than PyTorch's.
            EngineError, DisagreementError: the engine cannot be prepared for another number of images.
        """
        self._check(images)
        images = _plain(images)
        with self._lock, undisturbed(images.device):
            inputs = self._front(images)
            are_finite = self._finite(images, inputs)
            scores: Tensor = self._runner(inputs)(*inputs)
            if self._end is not None:
                scores = self._end(scores).to(self._scores_dtype)
            else:  # the engine may overwrite its result in the next call
                scores = scores.to(self._scores_dtype, copy=True)
            return scores if are_finite is None else nan_where_not_finite(scores, are_finite)

    def _finite(self, images: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
        """Which of ``images`` are finite; None if all are, because they are integers."""
        if not images.is_floating_point():
            return None
        numbers = inputs if inputs[0].is_floating_point() else [images]
        return finite_images(numbers, finite_by_numpy if self._engine.foreign else None)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Deployed can be neither copied nor pickled: save() it, and load it with wae.load_deployed()"
        )

    def save(self, folder: Path | str, force: bool = False) -> None:
        """Write what :func:`wae.load_deployed` needs into a new ``folder``, completely or not at all.

        What PyTorch's engines save is another form of the network, and is compared with this one.

        Args:
            folder: the folder to make, and its parents where they are missing.
            force: replace a deployed network that is there.

        Raises:
            FileExistsError: something is at ``folder``, and ``force`` is false or it is no deployed network.
            EngineError: the engine cannot save networks, or not one whose scores of an image depend on the
                other images in the call; or the encoder has hooks or changed layers.
            DisagreementError: what was saved gives other scores.
            SavedError: a name in the path of ``folder`` is not UTF-8.
            OSError: the folder cannot be written; the disk is full, for example.
        """
        if self._depends_on_number and not self._engine.foreign:
            raise EngineError(
                f"{self.engine} cannot save this network: its scores of an image depend on how many images "
                "are in the call, or on which, but a file has one graph for any number, or runs it in chunks"
            )
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
            save(about, Path(folder), force, *parts, self._scores_dtype, inputs, self._check_saved)

    def _runner(self, inputs: Sequence[Tensor]) -> Run:
        number = inputs[0].shape[0]
        if number == self.batch:
            return self._run
        alone = number == 1 and not self._compared_as_made
        if alone not in self._run_any:
            run = self._run_any.get(not alone) or self._opened(inputs)
            self._require_same(run, "prepared for any number of images", self._comparable(run, alone))
            self._run_any[alone] = run
        return self._run_any[alone]

    def _opened(self, inputs: Sequence[Tensor]) -> Run:
        """A runner for any number of images."""
        _log.info("preparing %s for any number of images", self.engine)
        # cloned, and made again in a comparison, because a network may change its input
        return self._engine.open(self._prepared, None, [x.clone() for x in inputs])

    @property
    def _compared_as_made(self) -> bool:
        """Whether a runner for any number is compared on :attr:`batch` images, whatever the call's number."""
        return self._engine.foreign or self._depends_on_number

    def _comparable(self, run: Run, alone: bool) -> int:
        """The number of images on which ``run``, for any number, is compared: 1 if ``alone``, else several.

        PyTorch's compilers make code of their own for a single image, which says nothing about that for
        several, nor the reverse. But only :attr:`batch` images are comparable if the scores of images depend
        on each other, or those of a single one have another shape.
        """
        number = 1 if alone else max(self.batch, 2)
        if number == self.batch or self._compared_as_made:
            return self.batch
        takes_one = run if alone else self._run
        with self._engine.errors():
            scores = takes_one(*self._front(example_images(self._front, 1, self.size)))
        return number if scores.dim() > 1 and len(scores) == 1 else self.batch

    def _check_saved(self, run: Run) -> None:
        self._require_same(run, "saved and loaded", self.batch)

    def _require_same(self, run: Run, how: str, number: int) -> None:
        """Raise DisagreementError unless ``run`` gives the scores of the runner for :attr:`batch`."""
        most = tolerance(dtype_of(self.precision), self._front.device)
        require_equal_once(f"{self.engine}, {how},", self._of_both(run, number), most)

    def _of_both(self, run: Run, number: int) -> Iterator[Sequence[Tensor]]:
        """On sets of ``number`` example images, the results of ``run`` and of the runner for :attr:`batch`.

        One set for scores of images; more for scores of pixels, because the network may unpool (see
        :func:`.agreement.other_images`), which an engine's graph does not tell.
        """
        for seed in range(TRIES):
            images = example_images(self._front, max(number, self.batch), self.size, seed=seed)
            parts = [self._run(*self._front(part)).clone() for part in images.split(self.batch)]
            expected = parts[0] if number == self.batch else torch.cat(parts)[:number]
            yield run(*self._front(images[:number])), expected
            if expected.dim() == 2:
                return

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {type(images).__name__}")
        if _is_transformed(images):
            raise RuntimeError(
                "a deployed network has no derivatives and no vmap: use the model that it was made from"
            )
        if images.layout != torch.strided:
            raise TypeError(f"images must be a dense tensor, got the layout {images.layout}")
        wanted = (3, *self.size)
        if images.dim() != 4 or tuple(images.shape[1:]) != wanted or images.shape[0] == 0:
            raise ValueError(
                f"images must be (N, {', '.join(map(str, wanted))}) with N at least 1, "
                f"got {tuple(images.shape)}"
            )
        if images.dtype not in IMAGES.values():
            raise TypeError(f"images must be one of {', '.join(IMAGES)}, got {images.dtype}")
        if images.device != self._front.device:
            raise ValueError(f"images must be on {self._front.device}, got {images.device}")


def _plain(images: Tensor) -> Tensor:
    """``images`` as a plain tensor, if only their class is a library's: a compiler may refuse that class."""
    has_own_memory = type(images).__torch_dispatch__ is Tensor.__torch_dispatch__
    return images.as_subclass(Tensor) if has_own_memory else images


def _is_transformed(images: Tensor) -> bool:
    """Whether a call is part of a transform of torch.func or of a forward-mode derivative."""
    if torch._C._functorch.is_functorch_wrapped_tensor(images):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(images).tangent is not None
