"""Images for engines that are prepared for a number of them."""

from __future__ import annotations

import torch
from torch import Tensor


def filled(images: Tensor, batch: int) -> Tensor:
    """``images``, and up to ``batch`` black ones: an engine would be prepared anew for fewer."""
    missing = batch - len(images)
    return torch.cat((images, images.new_zeros(missing, *images.shape[1:]))) if missing else images
