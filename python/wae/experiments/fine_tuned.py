"""What a claim makes of its trained full network, with that as the teacher.

WAE, begun as ``wae accelerate`` begins it, and its rival: half the resolution with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wae.data.dataset import Dataset
from wae.models.baselines import FullResolution
from wae.storage.checkpoint import load_classifier
from wae.training.original_start import made_of_original, start_as_original, student
from wae.training.plan import Plan

from .reproduce import WAE, Claim, Job, weights_path

FINE_TUNED = "WAE, fine-tuned"


@dataclass(frozen=True)
class FineTuned(Claim):
    """A claim that has the two networks, by :data:`FINE_TUNED` and :attr:`half_fine_tuned`."""

    @property
    def half_fine_tuned(self) -> str:
        """The network at half the resolution, begun and taught as :data:`FINE_TUNED` is: its rival."""
        return f"{self.half}, fine-tuned"

    def needs(self, network: str) -> str | None:
        """See :meth:`Claim.needs`."""
        return self.full if network in (FINE_TUNED, self.half_fine_tuned) else super().needs(network)

    def plan_of(self, network: str, seed: int) -> Plan:
        """See :meth:`Claim.plan_of`: what is fine-tuned has the plan of what it is, and a teacher."""
        if network == FINE_TUNED:
            return made_of_original(super().plan_of(WAE, seed))
        if network == self.half_fine_tuned:
            return student(super().plan_of(self.half, seed))
        return super().plan_of(network, seed)

    def start(self, job: Job, folder: Path, training: Dataset) -> tuple[nn.Module, dict[str, Any]]:
        """See :meth:`Claim.start`: with the weights of the trained full network."""
        if job.network not in (FINE_TUNED, self.half_fine_tuned):
            return super().start(job, folder, training)
        full = load_classifier(weights_path(folder, Job(self.full, job.seed)))
        assert isinstance(full, FullResolution)
        torch.manual_seed(job.seed)
        model = self.build(job.network)
        start_as_original(model, full, training)
        return model, {}
