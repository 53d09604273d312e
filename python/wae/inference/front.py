"""What runs around an engine: the encoder, as our op, or a cast in front; a segmenter's fusion behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar, cast

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
    """Turns images into an engine's inputs.

    Args:
        encoder: takes the images, scale and shift, in any precision; None if the engine takes the images
            themselves.
        like: any tensor of the model's dtype and on its device.
        image_scale, image_shift: the encoder's arguments, (3,) each; None for a network that takes its images
            as they are.
        dtype, memory_format: of the inputs. An encoder that returns integers keeps their dtype.
        before_threads: whether the engine has its own threads. If so, our threads must not spin between calls
            on the cores that the engine's need (docs/deploy.md).
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
        if image_scale is not None:  # its presence tells example_images that images are 0..255
            self.image_scale, self.image_shift = image_scale, image_shift
        self._before_threads = before_threads and self.device.type == "cpu"
        self._can_sleep = _can_sleep(encoder)
        self._process: int | None = None  # the process of the first call in front of such an engine

    @property
    def encoder(self) -> nn.Module | None:
        """See the class. An int8 encoder can replace it."""
        return self._encoder

    @encoder.setter
    def encoder(self, encoder: nn.Module | None) -> None:
        self._encoder = encoder
        # Other encoders need not accept them: an int8 encoder has its own dtype, and a user's forward or hook
        # may know only the model's three arguments.
        is_ours = type(encoder) is Encoder and encoder.is_fused
        self._wanted = (self.dtype, self.memory_format) if is_ours else ()

    @property
    def device(self) -> torch.device:
        """The device it computes on."""
        return self.like.device

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """The engine's inputs for ``images``, (N, 3, H, W)."""
        return self.beside_engine(self._inputs, images)

    def beside_engine(self, function: Callable[[Tensor], _Result], tensor: Tensor) -> _Result:
        """``function(tensor)``, run so that none of our threads spins afterwards, if that is possible.

        Raises RuntimeError in a process that was forked after the first call, because the engine's threads do
        not exist there.
        """
        if not self._before_threads:
            return function(tensor)
        if self._process not in (None, os.getpid()):
            raise RuntimeError(
                "this network was called before the process was forked, and its threads do not exist in the "
                "child: fork first, or start processes by spawn"
            )
        self._process = os.getpid()
        with sleeping() if self._can_sleep else nullcontext():
            return function(tensor)

    def _inputs(self, images: Tensor) -> Sequence[Tensor]:
        images = self._images(images)
        parts: Sequence[Tensor]
        if self.encoder is None and self._before_threads:
            parts = (images.to(self.dtype),)
        elif self.encoder is None:
            # PyTorch's engines get a copy: a network may change its input, and must not change the caller's.
            # Where a size is 1, the caller's stride, which may be any, would not be the one compiled for.
            parts = (images.to(self.dtype, memory_format=self.memory_format, copy=True),)
        else:
            parts = self.encoder(images, self.image_scale, self.image_shift, *self._wanted)
            parts = [x.to(self.dtype) if x.is_floating_point() else x for x in parts]
        return [x.contiguous(memory_format=self.memory_format) for x in parts]

    def _images(self, images: Tensor) -> Tensor:
        return images if images.dtype == torch.uint8 else images.to(self.like.dtype)


def _can_sleep(encoder: nn.Module | None) -> bool:
    """Whether the encoder keeps its threads under :func:`sleeping`: only our kernels do, not PyTorch's.

    Without an encoder there is only the cast of the images, which takes one thread little longer than many.
    """
    if encoder is None:
        return True
    ours = next((module for module in encoder.modules() if isinstance(module, Encoder)), None)
    return ours is not None and ours.is_fused and _has_kernel(ours.conv1.weight)


class End:
    """The fusion of a segmentation network, as our op behind an engine.

    Args:
        decoder: the network's fusion. It stays in its own dtype.
        size: (H, W) of the images.
        front: the front of the same engine.
    """

    def __init__(self, decoder: ScoreDecoder, size: Sequence[int], front: Front) -> None:
        self.decoder, self._size, self._front = decoder, tuple(size), front

    def __call__(self, halves: Tensor) -> Tensor:
        """The scores, (N, classes, H, W), from what :class:`BeforeFusion` returns, (N, classes + D, h, w)."""
        return self._front.beside_engine(self._scores, halves)

    def _scores(self, halves: Tensor) -> Tensor:
        low, high = self.decoder.low, self.decoder.high
        parts = halves.to(low.weight.dtype).split((low.in_channels, high.in_channels), 1)
        scores: Tensor = self.decoder(*parts, self._size)
        return scores


def before_end(behind: nn.Module, front: Front) -> tuple[nn.Module, End | None]:
    """Split ``behind``, the network behind ``front``, into what an engine runs and the fusion as our op.

    If our op has no kernel for the fusion, the engine runs all of ``behind``, in PyTorch's operators, and the
    second result is None.
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
    """Whether the compiled CPU kernels take a network whose first convolution has this weight."""
    on_cpu = weight.device.type == "cpu"
    return on_cpu and backends.backend_for("cpu", weight.dtype, weight.shape[0]) != "reference"


class _Untouched(Front):
    """Passes the images, in any dtype, to an engine that runs the encoder itself."""

    def _inputs(self, images: Tensor) -> Sequence[Tensor]:
        return [self._images(images)]


class _Whole(nn.Module):
    """``front`` and the network behind it, as one module from images to scores."""

    def __init__(self, front: Front, behind: nn.Module) -> None:
        super().__init__()
        self._front, self.encoder, self.behind = front, front.encoder, behind

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.behind(*self._front(images))
        return scores


def whole(
    model: nn.Module,
    like: Tensor,
    size: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> tuple[Front, nn.Module]:
    """Like :func:`in_front`, but for an engine that runs the encoder too and takes images of any dtype."""
    front, behind = in_front(model, like, size, dtype, memory_format, before_threads=False)
    if front.encoder is None:
        return front, behind
    images = _Untouched(None, front.like, front.image_scale, front.image_shift, dtype, memory_format)
    return images, _Whole(front, behind).eval()


def in_front(
    model: nn.Module,
    like: Tensor,
    size: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    before_threads: bool,
) -> tuple[Front, nn.Module]:
    """Split ``model``, folded, into its front and the network that an engine runs behind it.

    Args:
        model: in evaluation mode.
        like: any tensor of the model's dtype and on its device. The folded model may have no parameter left.
        size: (H, W) of the images.
        dtype, memory_format, before_threads: see :class:`Front`. On a CPU the front computes in the model's
            dtype; on a GPU in ``dtype``.
    """
    if not isinstance(model, WAENetwork):
        scale, shift = getattr(model, "image_scale", None), getattr(model, "image_shift", None)
        front = Front(None, like, scale, shift, dtype, memory_format, before_threads)
        return front, model
    if like.is_cuda and dtype != like.dtype:
        model = model.to(dtype)
        like = next(model.parameters())
    front = Front(
        model.encoder, like, model.image_scale, model.image_shift, dtype, memory_format, before_threads
    )
    return front, model.behind_encoder(size).eval()
