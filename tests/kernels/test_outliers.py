"""The effect of a pixel that is far larger than the others on its neighbours (figures: docs/kernels.md)."""

from __future__ import annotations

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
