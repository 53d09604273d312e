"""Batches for engines that are prepared for a fixed number of images."""

import pytest
import torch
from small_networks import assert_close

from wae.inference.batches import in_chunks


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_runner_for_one_batch_size_takes_any_number_of_images_in_chunks(memory_format):
    """AOTInductor's packages need the strides they were compiled for, and may reuse the output buffer."""
    buffer = torch.empty(4, 3)

    def run(x, y):
        assert len(x) == len(y) == 4
        assert x.is_contiguous(memory_format=memory_format)
        return buffer.copy_((x + y).sum((2, 3)))

    any_number = in_chunks(run, 4)
    for count in (4, 1, 10):
        x, y = (torch.randn(count, 3, 2, 5).to(memory_format=memory_format) for _ in range(2))
        assert_close(any_number(x, y), (x + y).sum((2, 3)))
