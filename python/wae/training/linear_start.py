"""The linear start of training: the best linear transform of 2x2 blocks, written into the published layers.

A 2x2 block of a colour image has 12 numbers; ``low`` and ``high`` together keep 6. The 6 linear combinations
with the least mean squared error span the leading eigenvectors of the blocks' second moments. Within that
space the three directions nearest to the block's mean colours become ``low``, which is then a small image,
and the other three become ``high``.

The trunks pass each colour through as two channels, ReLU(x) and ReLU(-x), one of which is zero::

    encoder   image -> +-r +-g +-b -> same -> same -> low, high     4 of 9 taps: the 2x2 block
    decoder   low, high -> +-r +-g +-b -> same -> same -> image     likewise, transposed

so 6 of the 16 channels are used. The others start as random features that nothing reads yet: their outgoing
weights are zero, and training is free to use them.

The blocks of grey images have only 4 numbers. The two channels of ``high`` that are then left over read the
random features; the decoder does not need them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wae.models.accelerated import show_small_image
from wae.models.autoencoder import AutoEncoder
from wae.models.network import WAENetwork
from wae_kernels.nn import Decoder, Encoder

_NO_ENERGY = 1e-9  # as a share of the energy of the leading direction
_SMALL = 0.2  # factor that makes random weights small
_PASSED = 6  # channels that carry the image: the positive and negative parts of three colours


class LinearTransform(NamedTuple):
    """Two orthonormal (12, 3) float64 frames; rows are (row, column, colour) of a block.

    A column may be zero.
    """

    low: Tensor
    high: Tensor


def blocks(image: Tensor) -> Tensor:
    """The 2x2 blocks of a (3, H, W) image as (n, 12), each laid out (row, column, colour).

    If a side is odd, its last row or column is left out.
    """
    height, width = (size // 2 * 2 for size in image.shape[1:])
    cut = image[:, :height, :width].reshape(3, height // 2, 2, width // 2, 2)
    return cut.permute(1, 3, 2, 4, 0).reshape(-1, 12)


def unblock(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """The (3, H, W) image of even ``size``, (H, W), whose :func:`blocks` are ``rows``."""
    height, width = size
    return rows.reshape(height // 2, width // 2, 2, 2, 3).permute(4, 0, 2, 1, 3).reshape(3, height, width)


def best_linear(images: Iterable[Tensor], least_energy: bool = False) -> LinearTransform:
    """The best linear transform of 2x2 blocks that keeps 6 of 12 numbers, in float64.

    Every image has the same weight, whatever its size.

    Args:
        images: (3, H, W) each, in the units in which the transform will be used, because it maps zero to
        zero.
        least_energy: use the three leading directions for ``low`` instead of those nearest to the mean
            colours. ``high`` then has the least possible energy, but ``low`` is not a small image: this is
            for bodies that are trained from scratch. For grey images, whose blocks have 4 numbers, ``low``
            keeps 3 and ``high`` 1; the two directions of ``high`` without energy are zero.

    Raises:
        ValueError: an image is smaller than a block, or holds numbers that are not finite.
    """
    moments = torch.zeros(12, 12, dtype=torch.float64)
    for image in images:
        rows = blocks(image.double())
        if not len(rows):
            height, width = image.shape[1:]
            raise ValueError(
                f"the linear start needs images of at least 2 x 2 pixels, got {height} x {width}"
            )
        moments += rows.T @ rows / len(rows)
    if not moments.isfinite().all():
        raise ValueError("the linear start needs images whose numbers are finite in the network's units")
    energies, directions = torch.linalg.eigh(moments)
    kept = directions[:, -6:]
    if least_energy:
        kept = kept * (energies[-6:] > _NO_ENERGY * energies[-1])
        return LinearTransform(kept[:, 3:].flip(1), kept[:, :3].flip(1))
    means = torch.eye(3, dtype=torch.float64).repeat(4, 1) / 2  # unit vectors: colour averaged over the block
    # The orthonormal frame within `kept` that is nearest to `means` (the orthogonal Procrustes problem).
    u, _, vh = torch.linalg.svd(kept.T @ means, full_matrices=True)
    return LinearTransform(kept @ u[:, :3] @ vh, kept @ u[:, 3:])


def linear_reconstruction(image: Tensor, transform: LinearTransform) -> Tensor:
    """A (3, H, W) image of even size after the transform and its inverse: (3, H, W) float64."""
    basis = torch.cat(transform, dim=1)
    rows = blocks(image.double()) @ basis @ basis.T
    return unblock(rows, (image.shape[1], image.shape[2]))


@torch.no_grad()
def write_linear_start(encoder: Encoder, decoder: Decoder, transform: LinearTransform) -> None:
    """Set the weights so that encoder and decoder compute ``transform`` and its inverse (up to rounding).

    ``low`` and ``high`` are half the transform's coefficients, so that ``low`` is a mean colour rather than
    twice that. Channels that are not needed keep their random weights.

    Raises:
        ValueError: encoder and decoder have fewer than 6 channels.
    """
    if encoder.conv1.out_channels < _PASSED:
        raise ValueError(
            f"the linear start needs {_PASSED} channels, the encoder has {encoder.conv1.out_channels}"
        )
    colours = torch.eye(3, dtype=torch.float64)
    signs = torch.stack((colours, -colours), 1).reshape(_PASSED, 3)  # +r -r +g -g +b -b
    same = torch.eye(_PASSED, dtype=torch.float64)
    for layer, centre in (
        (encoder.conv1, signs),
        (encoder.conv2, same),
        (encoder.conv3, same),
        (decoder.conv1, same),
        (decoder.conv2, same),
        (decoder.conv3, signs.T),
    ):
        _pass_through(layer, centre)
    for name, frame in transform._asdict().items():
        # From (row, column, colour, coefficient) to (coefficient, signed channel, row, column).
        taps = torch.einsum("rcki,sk->isrc", frame.view(2, 2, 3, 3), signs)
        _read_blocks(getattr(encoder, name), taps / 2)
        _write_blocks(getattr(decoder, name), taps * 2)


def _pass_through(layer: nn.Conv2d, centre: Tensor) -> None:
    """Make the first channels read only the passed ones, at the kernel's centre, with weights ``centre``."""
    layer.weight[: len(centre)] = 0
    layer.weight[: len(centre), : centre.shape[1], 1, 1] = centre.to(layer.weight)
    _zero_bias(layer, len(centre))


# A 3x3 kernel of stride 2 and padding 1 covers the rows 2y-1 .. 2y+1: its last two taps cover the block.


def _read_blocks(layer: nn.Conv2d, taps: Tensor) -> None:
    """Make the layer read 2x2 blocks of the passed channels; ``taps`` is (coefficient, channel, 2, 2).

    A coefficient without taps reads the random features, with small weights so that it has little energy. If
    it were constant, nothing could be learned from it, and the following normalisation would multiply its
    gradients by 300.
    """
    layer.weight[taps.flatten(1).any(1)] = 0
    layer.weight *= _SMALL
    layer.weight[:, :_PASSED] = 0
    layer.weight[:, :_PASSED, 1:, 1:] = taps.to(layer.weight)
    _zero_bias(layer, 3)


def _write_blocks(layer: nn.ConvTranspose2d, taps: Tensor) -> None:
    """Make the layer write 2x2 blocks to the passed channels; ``taps`` is (coefficient, channel, 2, 2)."""
    layer.weight[:, :_PASSED] = 0
    layer.weight[:, :_PASSED, 1:, 1:] = taps.to(layer.weight)
    _zero_bias(layer, _PASSED)


def _zero_bias(layer: nn.Conv2d | nn.ConvTranspose2d, channels: int) -> None:
    assert layer.bias is not None  # every layer of encoder and decoder has one
    layer.bias[:channels] = 0


def start_linear(
    model: WAENetwork | AutoEncoder, images: Iterable[Tensor], least_energy: bool = False
) -> None:
    """Initialise encoder and decoder with :func:`best_linear` of the images as the encoder sees them.

    The images, (3, H, W) uint8 each, are on the CPU. Raises ValueError if one is smaller than a block, or the
    model has no learned encoder and decoder.
    """
    if model.decoder is None or not isinstance(model.encoder, Encoder):
        raise ValueError("a linear start needs a model with a learned encoder and a decoder")
    scale, shift = (numbers.cpu().view(3, 1, 1) for numbers in (model.image_scale, model.image_shift))
    transform = best_linear((image * scale + shift for image in images), least_energy)
    write_linear_start(model.encoder, model.decoder, transform)


def start_as_small_image(model: WAENetwork, images: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Initialise encoder and decoder with the best linear transform whose ``low`` is a small image.

    Its units are those that the trained network on ``low`` expects: see
    :func:`wae.models.accelerated.show_small_image`.

    Args:
        model: with a learned encoder and a decoder; its scale and shift are set to ``scale`` and ``shift``.
        images: (N, 3, H, W) uint8.
        scale, shift: (3,) each, of the trained network that works on ``low``.

    Raises:
        ValueError: an image is smaller than a block.
    """
    model.image_scale.copy_(scale)
    model.image_shift.copy_(shift)
    start_linear(model, images)
    show_small_image(model, images, scale, shift)
