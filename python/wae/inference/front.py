"""Before and behind an engine: the encoder as our op, or a cast; the end of networks that score pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from wae.models.network import WAENetwork
from wae.models.segmentation.segmenter import BeforeFusion, PixelsBehindEncoder
from wae.models.stock import portable
from wae_kernels import backends
from wae_kernels.nn import Encoder, ScoreDecoder
from wae_kernels.parameters import KERNEL_CHANNELS
from wae_kernels.threads import sleeping

_Result = TypeVar("_Result")


class Front:
    """Makes an engine's inputs of images.

    Args:
        encoder: with scale and shift, in whatever precision; None where the engine takes the images
            themselves.
        like: any tensor of the model's dtype and device.
        image_scale, image_shift: of the encoder.
        dtype, memory_format: of the results; an encoder that makes integers keeps them.
        before_threads: whether the engine has threads of its own. Then none of ours should wait in a loop
            for its next work, on the cores that they need (docs/deploy.md).
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        like: Tensor,
        image_scale: Tensor | None,
        image_shift: Tensor | None,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        before_threads: bool = False,
    ) -> None:
        self.dtype, self.memory_format = dtype, memory_format
        self.encoder, self.like = encoder, like.new_empty(0)
        if image_scale is not None:  # where there is one, example images are 0..255
            self.image_scale, self.image_shift = image_scale, image_shift
        self._before_threads = before_threads and self.device.type == "cpu"
        self._can_sleep = _can_sleep(encoder)
        self._process: int | None = None  # of the first call before such an engine

    @property
    def encoder(self) -> nn.Module | None:
        """See above; one in int8 can take its place."""
        return self._encoder

    @encoder.setter
    def encoder(self, encoder: nn.Module | None) -> None:
        self._encoder = encoder
        # Others need not take them: one in int8 has its own dtype, a forward or a hook of the user's may know
        # only the model's three arguments.
        is_ours = type(encoder) is Encoder and encoder.is_fused
        self._wanted = (self.dtype, self.memory_format) if is_ours else ()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.like.device

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """The inputs of ``images``, (N, 3, H, W)."""
        return self.beside_engine(self._inputs, images)

    def beside_engine(self, function: Callable[[Tensor], _Result], tensor: Tensor) -> _Result:
        """``function(tensor)``, after which no thread of ours takes an engine's time, where that can be.

        Raises RuntimeError in a process that was forked after the first call: the engine's threads do not
        live on in it.
        """
        if not self._before_threads:
            return function(tensor)
        if self._process not in (None, os.getpid()):
            raise RuntimeError(
                "this network was called before the process was forked, and threads do not survive that: "
                "fork first, or start processes by spawn"
            )
        self._process = os.getpid()
        with sleeping() if self._can_sleep else nullcontext():
            return function(tensor)

    def _inputs(self, images: Tensor) -> Sequence[Tensor]:
        images = self._images(images)
        if self.encoder is None:
            parts: Sequence[Tensor] = (images.to(self.dtype),)
        else:
            parts = self.encoder(images, self.image_scale, self.image_shift, *self._wanted)
            parts = [x.to(self.dtype) if x.is_floating_point() else x for x in parts]
        return [x.contiguous(memory_format=self.memory_format) for x in parts]

    def _images(self, images: Tensor) -> Tensor:
        return images if images.dtype == torch.uint8 else images.to(self.like.dtype)


def _can_sleep(encoder: nn.Module | None) -> bool:
    """Whether :func:`sleeping` leaves the encoder its threads: PyTorch's own operators lose theirs.

    The cast of images, where there is no encoder, takes one thread little longer than many.
    """
    if encoder is None:
        return True
    ours = next((module for module in encoder.modules() if isinstance(module, Encoder)), None)
    return ours is not None and ours.is_fused and _has_kernel(ours.conv1.weight)


class End:
    """The full-resolution end of a network that scores pixels, as our op behind an engine.

    Args:
        decoder: the network's fusion. It stays in its own dtype.
        size: (H, W) of the images.
        front: that makes the inputs of the same engine.
    """

    def __init__(self, decoder: ScoreDecoder, size: Sequence[int], front: Front) -> None:
        self.decoder, self._size, self._front = decoder, tuple(size), front

    def __call__(self, halves: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), of what :class:`BeforeFusion` gives."""
        return self._front.beside_engine(self._scores, halves)

    def _scores(self, halves: Tensor) -> Tensor:
        low, high = self.decoder.low, self.decoder.high
        parts = halves.to(low.weight.dtype).split((low.in_channels, high.in_channels), 1)
        scores: Tensor = self.decoder(*parts, self._size)
        return scores


def before_end(behind: nn.Module, front: Front) -> tuple[nn.Module, End | None]:
    """``behind``, the network behind ``front``, in two: what an engine runs, and the end as our op.

    The end is None, and ``behind`` whole in PyTorch's operators, where our op has no kernel for it.
    """
    if not isinstance(behind, PixelsBehindEncoder):
        return behind, None
    if not _can_end(behind.fusion):
        return portable(behind), None
    return BeforeFusion(behind).eval(), End(cast(ScoreDecoder, behind.fusion), behind.size, front)


def _can_end(fusion: nn.Module) -> bool:
    """Whether our op has a kernel for this fusion."""
    if not isinstance(fusion, ScoreDecoder) or not fusion.is_fused or not _has_kernel(fusion.conv1.weight):
        return False
    return max(fusion.low.in_channels, fusion.high.in_channels) <= KERNEL_CHANNELS


def _has_kernel(weight: Tensor) -> bool:
    """Whether the processor's compiled kernels take a network with this first convolution."""
    on_processor = weight.device.type == "cpu"
    return on_processor and backends.backend_for("cpu", weight.dtype, weight.shape[0]) != "reference"


class _Untouched(Front):
    """Hands the images on, bytes or not, to an engine that runs the encoder itself."""

    def _inputs(self, images: Tensor) -> Sequence[Tensor]:
        return [self._images(images)]


class _Whole(nn.Module):
    """``front`` and the network behind it: scores of images."""

    def __init__(self, front: Front, behind: nn.Module) -> None:
        super().__init__()
        self._front, self.encoder, self.behind = front, front.encoder, behind

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.behind(*self._front(images))
        return scores


def whole(
    model: nn.Module, size: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format
) -> tuple[Front, nn.Module]:
    """As :func:`in_front`, for an engine that runs the encoder too: its inputs are images of any dtype."""
    front, behind = in_front(model, size, dtype, memory_format, before_threads=False)
    if front.encoder is None:
        return front, behind
    images = _Untouched(None, front.like, front.image_scale, front.image_shift, dtype, memory_format)
    return images, _Whole(front, behind).eval()


def without_numbers_of_nan(
    scores: Tensor, inputs: Sequence[Tensor], finite: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``scores``, (N, ...), with NaN for each image of which some ``inputs``, (N, ...), are not finite.

    The ReLU and the pooling of several engines make a number of NaN, and so plain scores of a broken image.

    Args:
        scores: see above.
        inputs: see above.
        finite: says of one of ``inputs`` which images are, (N,); None for PyTorch's operators.
    """
    found = [finite(x) if finite else x.flatten(1).isfinite().all(1) for x in inputs]
    are_finite = torch.stack(found).all(0)
    return torch.where(are_finite.view(-1, *[1] * (scores.dim() - 1)), scores, torch.nan)


def finite_by_numpy(x: Tensor) -> Tensor:
    """Which images of ``x``, (N, 3, H, W) on the processor, have finite numbers only, (N,).

    On the calling thread alone: PyTorch's others would wait for their next work in a loop, on cores that an
    engine needs for the next call.
    """
    numbers = x.float() if x.dtype == torch.bfloat16 else x  # which numpy does not have
    return torch.from_numpy(np.isfinite(numbers.detach().numpy()).all((1, 2, 3)))


def in_front(
    model: nn.Module,
    size: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    before_threads: bool,
) -> tuple[Front, nn.Module]:
    """``model``, folded, in two: what makes inputs of images, and what an engine makes scores of these with.

    The images are of ``size`` (H, W). The first part stays in the model's dtype on a processor; on a GPU its
    op computes in ``dtype`` as well.
    """
    like = next(model.parameters())
    if not isinstance(model, WAENetwork):
        scale, shift = getattr(model, "image_scale", None), getattr(model, "image_shift", None)
        front = Front(None, like, scale, shift, dtype, memory_format, before_threads)
        return front, model
    if like.is_cuda:
        model = model.to(dtype)
        like = next(model.parameters())
    front = Front(
        model.encoder, like, model.image_scale, model.image_shift, dtype, memory_format, before_threads
    )
    return front, model.behind_encoder(size).eval()
