"""What ``wae.deploy`` makes: it is called with images, from any thread, and gives the model's scores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from .agreement import require_equal
from .arguments import example_images
from .engines import Engine, Prepared, Run
from .front import End, Front, finite_by_numpy, without_numbers_of_nan
from .precision import DTYPES
from .saving import save
from .undisturbed import undisturbed

_log = logging.getLogger(__name__)


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
            OSError: the disk is full, say.
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
