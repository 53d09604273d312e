"""The base class of networks on an image's ``low`` and ``high``, and their form for inference."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from wae.wording import shown
from wae_kernels.nn import Decoder, Encoder

from .autoencoder import reconstruct
from .haar import Haar
from .plain import is_plain
from .stock import StockEncoder


class WAENetwork(nn.Module, ABC):
    """The parts with which every WAE network begins. A subclass adds the parts behind the normalisations.

    ::

        image -> encoder -> low  -> low_norm  -> ...
                         -> high -> high_norm -> ...

    Args:
        encoder: splits the image. Its convolutions ``low`` and ``high`` make the two parts.
        image_scale, image_shift: three numbers each. The encoder sees ``image * scale + shift``.
        decoder: the encoder's decoder, for :meth:`reconstruct`; None if nothing is to be reconstructed.
    """

    bodies: ClassVar[tuple[str, ...]]
    """The names of the attributes that hold the networks on ``low`` and ``high``."""

    low_norm: nn.Module
    high_norm: nn.Module
    image_scale: Tensor
    image_shift: Tensor

    def __init__(
        self,
        encoder: Encoder | Haar,
        image_scale: Sequence[float] = (1.0, 1.0, 1.0),
        image_shift: Sequence[float] = (0.0, 0.0, 0.0),
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        like = encoder.low.weight
        self.low_norm = nn.BatchNorm2d(encoder.low.out_channels, affine=False).to(like)
        self.high_norm = nn.BatchNorm2d(encoder.high.out_channels, affine=False).to(like)
        self.register_buffer("image_scale", numbers_like("image_scale", image_scale, like))
        self.register_buffer("image_shift", numbers_like("image_shift", image_shift, like))

    def __prepare_scriptable__(self) -> NoReturn:
        """Tell torch.jit.script, which calls this, that it cannot compile the network."""
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}, whose encoder chooses in Python what it "
            'runs: wae.inference.export.export(model, path, "torch") writes a file without Python code'
        )

    @abstractmethod
    def behind_encoder(self, size: Sequence[int]) -> nn.Module:
        """The part behind the encoder, with the same modules: what an inference engine runs.

        It maps ``low`` and ``high`` of an image of ``size`` (H, W) to the network's scores.
        """

    def decompose(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(low, high)`` of ``image``, (N, 3, H, W), as the encoder makes them.

        They are not normalised yet, unless :func:`fold_normalization` has put the normalisations into the
        encoder. Both are (N, 3, ceil(H/2), ceil(W/2)); a :class:`wae.models.haar.Haar` makes 9 channels of
        ``high``. Raises RuntimeError for anything that :func:`wae_kernels.encode` refuses.
        """
        low, high = self.encoder(image, self.image_scale, self.image_shift)
        return low, high

    def reconstruct(self, low: Tensor, high: Tensor, size: Sequence[int]) -> Tensor:
        """Reconstruct the image of ``size`` (H, W), (N, 3, H, W), from ``low`` and ``high``.

        Scale and shift are undone. Raises RuntimeError if there is no decoder, and for anything that
        :func:`wae_kernels.decode` refuses.
        """
        if self.decoder is None:
            name = type(self).__name__
            raise RuntimeError(f"the model has no decoder: give {name} one, or set model.decoder")
        return reconstruct(self.decoder, low, high, size, self.image_scale, self.image_shift)


def numbers_like(name: str, values: Sequence[float], like: Tensor) -> Tensor:
    """``values`` as a tensor with the dtype and the device of ``like``.

    If that is "meta", where values are lost, the tensor is on the default device. Raises ValueError, which
    starts with ``name``, unless there are three values.
    """
    device = None if like.is_meta else like.device
    numbers = torch.as_tensor(values, dtype=like.dtype, device=device).clone()
    if numbers.shape != (3,):
        raise ValueError(f"{name} must be three numbers, got {shown(values)}")
    return numbers


def check_classes(classes: object) -> None:
    """Raise ValueError unless ``classes``, a number of scores, is an integer of at least 1."""
    if isinstance(classes, bool) or not isinstance(classes, Integral) or classes < 1:
        raise ValueError(f"classes must be an integer of at least 1, got {shown(classes)}")


def check_is_like(name: str, given: nn.Module | None, network: Tensor) -> None:
    """Raise ValueError if the argument ``name`` has another dtype or device than ``network``'s parameter."""
    own = network if given is None else next(given.parameters(), network)
    if (own.dtype, own.device) != (network.dtype, network.device):
        raise ValueError(
            f"{name} is {own.dtype} on {own.device}, but the network is {network.dtype} on "
            f"{network.device}: use {name}.to({str(network.device)!r}, {network.dtype})"
        )


_Low = TypeVar("_Low")
_High = TypeVar("_High")


class SideBySide(nn.Module):
    """Two networks, on ``low`` and on ``high``, which do not depend on each other."""

    side_stream: torch.cuda.Stream | None = None
    """The stream for the network on ``high``; set within :func:`on_two_streams`."""

    def both(self, low: Callable[[], _Low], high: Callable[[], _High]) -> tuple[_Low, _High]:
        """The results of both functions; they run on two streams if there is a ``side_stream``."""
        side = self.side_stream
        if side is None:
            return low(), high()
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            of_high = high()
        of_low = low()
        main.wait_stream(side)
        return of_low, of_high


@contextmanager
def on_two_streams(module: nn.Module) -> Iterator[None]:
    """Run the two bodies of each network in ``module`` on two streams, for a CUDA graph to capture.

    With one image neither body has enough work for the full GPU. Without a graph, launching the kernels takes
    longer than running them, and a second stream would gain nothing.
    """
    pairs = [part for part in module.modules() if isinstance(part, SideBySide)]
    before = [pair.side_stream for pair in pairs]
    try:
        for pair in pairs:
            pair.side_stream = torch.cuda.Stream()
        yield
    finally:
        for pair, stream in zip(pairs, before, strict=True):
            pair.side_stream = stream


_Network = TypeVar("_Network", bound=WAENetwork)


def fold_normalization(model: _Network) -> _Network:
    """A copy of ``model`` for inference, with its two normalisations folded into the encoder's branches.

    Its scores are those of ``model.eval()``, up to rounding, without two passes over ``low`` and ``high``.
    The copy has no decoder, because a decoder needs ``low`` and ``high`` as they are before normalisation.

    A normalisation is kept if it, the branch or the encoder is more than its tensors, for example hooked or
    pruned, or if it or the branch is of another kind than the constructor's, such as one with a scale. Both
    are kept if the encoder is wrapped or has a ``forward`` of its own.
    """
    folded = copy.deepcopy(model).eval()
    folded.decoder = None
    if not (is_plain(folded.encoder) and type(folded.encoder).forward in _RETURN_THEIR_BRANCHES):
        return folded
    for branch, norm in (("low", "low_norm"), ("high", "high_norm")):
        layers = folded.encoder.get_submodule(branch), folded.get_submodule(norm)
        if _can_be_one(*layers):
            setattr(folded.encoder, branch, _normalizing(*layers))
            setattr(folded, norm, nn.Identity().eval())
    return folded


_RETURN_THEIR_BRANCHES = Encoder.forward, Haar.forward, StockEncoder.forward
"""Methods whose results are those of the layers ``low`` and ``high``, which another may change."""


def _can_be_one(branch: nn.Module, norm: nn.Module) -> bool:
    """Whether :func:`_normalizing` can compute both layers."""
    if type(branch) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return False
    usual = branch.bias is not None and norm.running_mean is not None and not norm.affine
    return usual and is_plain(branch) and is_plain(norm)


@torch.no_grad()
def _normalizing(branch: nn.Module, norm: nn.Module) -> nn.Module:
    """A copy of ``branch`` that computes ``norm(branch(x))``, in float64, so that only the result is rounded.

    A copy because the two branches may share weights.
    """
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    branch = copy.deepcopy(branch)
    weight, bias = branch.get_parameter("weight"), branch.get_parameter("bias")
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    weight.copy_(weight.double() * factor.view(-1, 1, 1, 1))
    bias.copy_((bias.double() - norm.running_mean.double()) * factor)
    return branch
