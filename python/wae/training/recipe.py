"""What decides the outcome of a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of stage 1, besides the photos' pixels.

    Raises ValueError where a number is not usable.
    """

    photos: tuple[str, ...]
    """The names of the photos, for the record."""
    steps: int = 40_000
    """Of the optimizer."""
    batch: int = 8
    """Crops per step."""
    crop: int = 64
    """Pixels along a side of the largest crop."""
    learning_rate: float = 1e-3
    """Of Adam, at its highest: it rises over the first hundredth of the steps, then falls as a cosine."""
    energy_weight: float = 1e-3
    """lambda: how much the mean square of ``high`` counts beside the reconstruction's mean squared error,
    both in the encoder's units (-1..1)."""
    seed: int = 0
    """Of the random weights and of the crops."""

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("crop", 2),
            ("learning_rate", 0),
            ("energy_weight", 0),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
