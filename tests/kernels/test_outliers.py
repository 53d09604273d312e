"""The effect of a pixel on neighbours that are far smaller, or zero (figures: docs/kernels.md)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from cases import Cell, encoder, image_of
from compare import PLAIN, WINOGRAD, relative_error
from torch import Tensor

from wae_kernels import backends, reference

OUTLIER = (0, 1, 30, 31)
READS_IT = (slice(13, 18), slice(14, 18))
IN_ITS_TILES = (slice(13, 19), slice(13, 19))


def errors_at(cell: Cell, places: Tensor, factor: float) -> float:
    """The larger relative error of low and high at the ``places`` of a 64 x 64 image's outputs."""
    image = image_of(1, 64, 64, device=cell.device)
    image[OUTLIER] *= factor
    parameters = encoder(device=cell.device)
    wanted = reference.encode(image.double(), *(p.double() for p in parameters))
    found = torch.ops.wae.encode(image, *parameters)
    return max(relative_error(o[0, :, places], r[0, :, places]) for o, r in zip(found, wanted, strict=True))


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6])
def test_outputs_outside_its_tiles_are_accurate(cell: Cell, factor: float) -> None:
    places = torch.ones(32, 32, dtype=torch.bool)
    places[IN_ITS_TILES] = False
    assert errors_at(cell, places, factor) <= WINOGRAD


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6])
def test_outputs_that_read_it_are_accurate(cell: Cell, factor: float) -> None:
    places = torch.zeros(32, 32, dtype=torch.bool)
    places[READS_IT] = True
    assert errors_at(cell, places, factor) <= WINOGRAD


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6])
def test_reference_is_accurate_in_its_tiles(factor: float) -> None:
    """The reference does not use Winograd arithmetic; choose it if this matters."""
    places = torch.zeros(32, 32, dtype=torch.bool)
    places[IN_ITS_TILES] = True
    places[READS_IT] = False
    cell = Cell("reference")
    with backends.use("reference"):
        assert errors_at(cell, places, factor) <= PLAIN


def errors_beside_black(cell: Cell, bias: float) -> list[float]:
    """The errors of the parameters' gradients for a square of noise in a black image.

    ``bias`` is the size of the biases. The numbers are always the same: with others, a sum might be within
    rounding of zero without being one of zeros.
    """
    torch.manual_seed(0)
    image, gradients = torch.zeros(2, 3, 28, 28), [image_of(2, 14, 14, device=cell.device) for _ in range(2)]
    image[..., 7:21, 7:21] = torch.rand(2, 3, 14, 14)
    parameters = [p if p.dim() > 1 else p.sign() * bias for p in encoder(device=cell.device)]

    def gradients_in(dtype: torch.dtype) -> Sequence[Tensor]:
        inputs = [p.to(dtype).requires_grad_() for p in parameters]
        encode = reference.encode if dtype == torch.float64 else torch.ops.wae.encode
        halves = encode(image.to(cell.device, dtype), *inputs)
        return torch.autograd.grad(halves, inputs, [g.to(dtype) for g in gradients])

    found, wanted = gradients_in(torch.float32), gradients_in(torch.float64)
    return [relative_error(f, w) for f, w in zip(found, wanted, strict=True)]


def test_gradients_beside_black(cell: Cell) -> None:
    """With biases of zero those of the biases may be wrong: Winograd rounds sums of zeros."""
    assert max(errors_beside_black(cell, bias=0.0)[::2]) <= WINOGRAD
    assert max(errors_beside_black(cell, bias=0.01)) <= WINOGRAD


def test_reference_gives_black_no_gradient() -> None:
    with backends.use("reference"):
        assert max(errors_beside_black(Cell("reference"), bias=0.0)) <= WINOGRAD
