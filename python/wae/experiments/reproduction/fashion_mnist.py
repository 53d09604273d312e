"""The claim on Fashion-MNIST: the small VGG at 28 x 28 and at 14 x 14, and what recovers the difference.

The plan is ``training/plans/fashion_mnist.toml``. Besides the paper's networks there is WAE distilled from
the network at 28 x 28.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from wae.data.dataset import Dataset
from wae.data.input import Input
from wae.data.loading import open_dataset
from wae.models.registry import build
from wae.training.fine_tuning import distilled
from wae.training.plan import Plan, find

from .claim import DECOMPOSITION, WAE, WAVELET, Claim, longer

FULL, HALF, MIMIC = "28 x 28", "14 x 14", "WAE, mimic"


def claim(times: float = 1.0) -> FashionMnist:
    """The claim, with the plan's epochs with labels multiplied by ``times``."""
    return FashionMnist(longer(find("fashion_mnist"), times))


@dataclass(frozen=True)
class FashionMnist(Claim):
    """See the module."""

    full = FULL
    half = HALF
    input = Input(size=28, resize=28, grayscale=True)
    registered: ClassVar[Mapping[str, str | None]] = {
        FULL: "small_vgg",
        HALF: "small_vgg_half",
        WAVELET: "wavelet_small_vgg",
        DECOMPOSITION: "wae_small_vgg",
        WAE: "wae_small_vgg",
        MIMIC: "wae_small_vgg",
    }

    def build(self, network: str) -> nn.Module:
        """See :meth:`Claim.build`."""
        name = self.registered[network]
        assert name is not None
        return build(name, 10)

    def parts(self, data: str | Path) -> Mapping[str, Dataset]:
        """See :meth:`Claim.parts`."""
        named = {"train": True, "test": False}
        return {part: open_dataset(data, train, augment=False, seed=0) for part, train in named.items()}

    def prepared(self, data: str | Path, folder: Path) -> str | Path:
        """See :meth:`Claim.prepared`: ``data`` is ``fashion-mnist``, or a folder of its four files."""
        open_dataset(data, train=False, augment=False, seed=0)
        return data

    def sets(self, data: str | Path, seed: int) -> tuple[Dataset, Dataset]:
        """See :meth:`Claim.sets`."""
        training, test = (open_dataset(data, train=part, augment=part, seed=seed) for part in (True, False))
        return training, test

    def needs(self, network: str) -> str | None:
        """See :meth:`Claim.needs`: the student needs its trained teacher."""
        return FULL if network == MIMIC else None

    def plan_of(self, network: str, seed: int) -> Plan:
        """See :meth:`Claim.plan_of`."""
        if network != MIMIC:
            return super().plan_of(network, seed)
        return distilled(super().plan_of(WAE, seed))
