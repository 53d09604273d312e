"""Random crops of a few photos, for trainings without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dataset import DatasetError, Draw, random_seed


class Crops:
    """Random crops, flipped, transposed, and with their colours exchanged at random: see :class:`Dataset`.

    Every photo is equally likely. The colours are exchanged for what is learnt from few photos to be true of
    any, not of the colours of these. In half of the batches each the crops are one pixel less high or wide:
    odd sizes are trained too.

    Args:
        photos: (3, H, W) uint8 each, no side shorter than ``crop``.
        crop: pixels along a crop's side.
        length: crops in an epoch.
        seed: of the crops.

    Raises:
        DatasetError: there is no photo, or one is smaller than a crop; ``crop`` or ``length`` is too small.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, photos: Sequence[Tensor], crop: int, length: int, seed: int) -> None:
        if not photos:
            raise DatasetError("photos: need at least one")
        if crop < 2 or length < 1:
            raise DatasetError(f"crop and length: need at least 2 and 1, got {crop} and {length}")
        for photo in photos:
            height, width = photo.shape[1:]
            if min(height, width) < crop:
                raise DatasetError(f"a photo of {height} x {width} is smaller than a crop of {crop} x {crop}")
        self.photos, self.crop, self.seed = list(photos), crop, seed
        self._length = length

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Uint8 crops (N, 3, h, w), and zeros, (N,) int64, for labels. Crop ``i`` of an epoch is the same in
        any batch, but for the last row and column that some batches are without.
        """
        short = torch.Generator().manual_seed(random_seed(Draw.CROPS, self.seed, epoch, indices[0], 1))
        height, width = (self.crop - _draw(2, short) for _ in range(2))
        crops = [self._crop(index, epoch)[:, :height, :width] for index in indices]
        return torch.stack(crops), torch.zeros(len(crops), dtype=torch.int64)

    def renumbered(self, numbers: Sequence[int]) -> Crops:
        """The same: there are no classes."""
        return self

    def _crop(self, index: int, epoch: int) -> Tensor:
        random = torch.Generator().manual_seed(random_seed(Draw.CROPS, self.seed, epoch, index, 0))
        photo = self.photos[_draw(len(self.photos), random)]
        if _draw(2, random):
            photo = photo.transpose(1, 2)
        top, left = (_draw(size - self.crop + 1, random) for size in photo.shape[1:])
        crop = photo[:, top : top + self.crop, left : left + self.crop]
        crop = crop.flip([dim for dim in (1, 2) if _draw(2, random)])
        return crop[torch.randperm(3, generator=random)]


def _draw(n: int, random: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=random))
