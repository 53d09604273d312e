"""Random crops of a few images, for training without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dataset import DatasetError, Draw, random_seed


class Crops:
    """Random crops, randomly flipped, transposed and with permuted colour channels: see :class:`Dataset`.

    Every image is equally likely. Colour channels are permuted so that what is learned from a few images does
    not depend on their colours. Each batch is one pixel less high with probability 1/2, and independently one
    pixel less wide, so that odd sizes are trained too.

    Args:
        images: (3, H, W) uint8 each, no side shorter than ``crop``.
        crop: side of a crop in pixels, at least 2.
        length: crops per epoch, at least 1.
        seed: seeds the crops.

    Raises:
        DatasetError: there is no image, an image is smaller than a crop, or ``crop`` or ``length`` is too
            small.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, images: Sequence[Tensor], crop: int, length: int, seed: int) -> None:
        if not images:
            raise DatasetError("images: need at least one")
        if crop < 2 or length < 1:
            raise DatasetError(f"crop and length: need at least 2 and 1, got {crop} and {length}")
        for image in images:
            height, width = image.shape[1:]
            if min(height, width) < crop:
                size = f"{height} x {width}"
                raise DatasetError(f"an image of {size} is smaller than a crop of {crop} x {crop}")
        self.images, self.crop, self.seed = list(images), crop, seed
        self._length = length

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Uint8 crops (N, 3, h, w), and zeros (N,) int64 as labels.

        Crop ``i`` of an epoch is the same in any batch, except for the last row and column, which some
        batches lack.
        """
        short = torch.Generator().manual_seed(random_seed(Draw.CROPS, self.seed, epoch, indices[0], 1))
        height, width = (self.crop - _draw(2, short) for _ in range(2))
        crops = [self._crop(index, epoch)[:, :height, :width] for index in indices]
        return torch.stack(crops), torch.zeros(len(crops), dtype=torch.int64)

    def renumbered(self, numbers: Sequence[int]) -> Crops:
        """Return itself: there are no classes."""
        return self

    def plain(self) -> Crops:
        """Return itself: the crops are the data."""
        return self

    def _crop(self, index: int, epoch: int) -> Tensor:
        random = torch.Generator().manual_seed(random_seed(Draw.CROPS, self.seed, epoch, index, 0))
        image = self.images[_draw(len(self.images), random)]
        if _draw(2, random):
            image = image.transpose(1, 2)
        top, left = (_draw(size - self.crop + 1, random) for size in image.shape[1:])
        crop = image[:, top : top + self.crop, left : left + self.crop]
        crop = crop.flip([dim for dim in (1, 2) if _draw(2, random)])
        return crop[torch.randperm(3, generator=random)]


def _draw(n: int, random: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=random))
