"""Scores of images that are not finite."""

import pytest
import torch

from wae.inference.not_finite import finite_by_numpy, nan_where_not_finite


@pytest.mark.parametrize("finite", [None, finite_by_numpy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_needs_all_of_its_inputs(finite, dtype):
    low, high = torch.zeros(2, 4, 3, 2, 2, dtype=dtype)
    low[1, 2, 1, 0], high[2, 0, 0, 1] = torch.nan, -torch.inf
    scores = nan_where_not_finite(torch.ones(4, 5), (low, high), finite)
    assert scores.isnan().all(1).tolist() == [False, True, True, False]
    assert torch.equal(scores[::3], torch.ones(2, 5))
