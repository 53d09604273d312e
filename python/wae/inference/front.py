"""Before and behind an engine: the encoder as our op, or a cast; the end of networks that score pixels."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from wae.models.network import WAENetwork
from wae.models.segmentation.segmenter import BeforeFusion, PixelsBehindEncoder
from wae.models.stock import portable
from wae_kernels import backends
from wae_kernels.nn import ScoreDecoder
from wae_kernels.parameters import KERNEL_CHANNELS

_Result = TypeVar("_Result")


class Front:
    """Makes an engine's inputs of images.

    Args:
        encoder: with scale and shift, in whatever precision; None where the engine takes the images
            themselves.
        like: any tensor of the model's dtype and device.
        image_scale, image_shift: of the encoder.
        dtype, memory_format: of the results; an encoder that makes integers keeps them.
        on_own_thread: whether to compute, be it a cast alone, on a thread of its own, for an engine with
            threads of its own. PyTorch's threads wait for their next work in a loop, for milliseconds, on
            cores that the engine needs. Those of this thread are nobody else's, so they can be ended
            (docs/deploy.md).
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        like: Tensor,
        image_scale: Tensor | None,
        image_shift: Tensor | None,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        on_own_thread: bool = False,
    ) -> None:
        self.encoder, self.like = encoder, like.new_empty(0)
        self.dtype, self.memory_format = dtype, memory_format
        if image_scale is not None:  # where there is one, example images are 0..255
            self.image_scale, self.image_shift = image_scale, image_shift
        own = on_own_thread and self.device.type == "cpu"
        self._thread = ThreadPoolExecutor(1, "wae-front") if own else None
        self._process: int | None = None  # that has the thread

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.like.device

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """The inputs of ``images``, (N, 3, H, W)."""
        return self.beside_engine(self._inputs, images)

    def beside_engine(self, function: Callable[[Tensor], _Result], tensor: Tensor) -> _Result:
        """``function(tensor)``, on the thread of its own where there is one.

        Raises RuntimeError in a process that was forked after the first call: it has no such thread.
        """
        if self._thread is None:
            return function(tensor)
        if self._process not in (None, os.getpid()):
            raise RuntimeError(
                "this network was called before the process was forked, and threads do not survive that: "
                "fork first, or start processes by spawn"
            )
        self._process = os.getpid()
        return self._thread.submit(_and_end_helpers, function, tensor).result()

    def _inputs(self, images: Tensor) -> Sequence[Tensor]:
        images = self._images(images)
        parts: Sequence[Tensor] = (images.to(self.dtype),)
        if self.encoder is not None:
            parts = self.encoder(images, self.image_scale, self.image_shift)
            parts = [x.to(self.dtype) if x.is_floating_point() else x for x in parts]
        return [x.contiguous(memory_format=self.memory_format) for x in parts]

    def _images(self, images: Tensor) -> Tensor:
        return images if images.dtype == torch.uint8 else images.to(self.like.dtype)


def _and_end_helpers(function: Callable[[Tensor], _Result], tensor: Tensor) -> _Result:
    with torch.no_grad():  # the caller's holds for the caller's thread
        result = function(tensor)
    pause = _openmp_pause()
    if pause is not None:
        pause(1)  # omp_pause_soft: they start again in some 0.05 ms
    return result


class End:
    """The full-resolution end of a network that scores pixels, as our op behind an engine.

    Args:
        decoder: the network's fusion. It stays in its own dtype.
        size: (H, W) of the images.
        front: on whose thread it runs.
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
    if not _has_kernel(behind.fusion, front.device):
        return portable(behind), None
    return BeforeFusion(behind).eval(), End(cast(ScoreDecoder, behind.fusion), behind.size, front)


def _has_kernel(fusion: nn.Module, device: torch.device) -> bool:
    if device.type != "cpu" or not isinstance(fusion, ScoreDecoder) or not fusion.is_fused:
        return False
    weight = fusion.conv1.weight
    runs = backends.backend_for(device, weight.dtype, weight.shape[0]) != "reference"
    return runs and max(fusion.low.in_channels, fusion.high.in_channels) <= KERNEL_CHANNELS


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
    front, behind = in_front(model, size, dtype, memory_format, on_own_thread=False)
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
    on_own_thread: bool,
) -> tuple[Front, nn.Module]:
    """``model``, folded, in two: what makes inputs of images, and what an engine makes scores of these with.

    The images are of ``size`` (H, W). The first part stays in the model's dtype on a processor; on a GPU its
    op computes in ``dtype`` as well.
    """
    like = next(model.parameters())
    if not isinstance(model, WAENetwork):
        scale, shift = getattr(model, "image_scale", None), getattr(model, "image_shift", None)
        front = Front(None, like, scale, shift, dtype, memory_format, on_own_thread)
        return front, model
    if like.is_cuda:
        model = model.to(dtype)
        like = next(model.parameters())
    front = Front(
        model.encoder, like, model.image_scale, model.image_shift, dtype, memory_format, on_own_thread
    )
    return front, model.behind_encoder(size).eval()


@functools.cache
def _openmp_pause() -> Callable[[int], int] | None:
    """OpenMP 5.0's omp_pause_resource_all, where it ends the calling thread's helpers and no other's.

    That is so in GNU's library, which PyTorch's builds for Linux have. LLVM's and Intel's end those of the
    whole process: there they stay.
    """
    try:
        library = ctypes.CDLL(None)
        if hasattr(library, "__kmpc_fork_call"):
            return None
        return cast(Callable[[int], int], library.omp_pause_resource_all)
    except (OSError, TypeError, AttributeError):  # TypeError: on Windows
        return None
