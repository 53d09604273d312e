"""The networks of a claim that are initialised from its trained full network and distilled from it.

These are WAE, which starts as in ``wae accelerate``, and its baselines: the full network on smaller images.
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
from wae.training.fine_tuning import distilled, fine_tuning_plan, initialise_from_original
from wae.training.plan import Plan

from .claim import WAE, Claim, Job
from .results import weights_path

_SUFFIX = ", fine-tuned"


def fine_tuned(network: str) -> str:
    """The name of ``network`` when it is initialised and distilled from the trained full network."""
    return network + _SUFFIX


FINE_TUNED = fine_tuned(WAE)


@dataclass(frozen=True)
class FineTuned(Claim):
    """A claim that also trains :func:`fine_tuned` networks: WAE, and those with the full one's parameters."""

    def needs(self, network: str) -> str | None:
        """See :meth:`Claim.needs`."""
        return self.full if network.endswith(_SUFFIX) else super().needs(network)

    def plan_of(self, network: str, seed: int) -> Plan:
        """See :meth:`Claim.plan_of`: a fine-tuned network has the plan of the same network, and a teacher."""
        plan = super().plan_of(network.removesuffix(_SUFFIX), seed)
        if network == FINE_TUNED:
            return fine_tuning_plan(plan)
        return distilled(plan) if network.endswith(_SUFFIX) else plan

    def start(self, job: Job, folder: Path, training: Dataset) -> tuple[nn.Module, dict[str, Any]]:
        """See :meth:`Claim.start`: with the weights of the trained full network."""
        if not job.network.endswith(_SUFFIX):
            return super().start(job, folder, training)
        full = load_classifier(weights_path(folder, Job(self.full, job.seed)))
        assert isinstance(full, FullResolution)
        torch.manual_seed(job.seed)
        model = self.build(job.network)
        initialise_from_original(model, full, training)
        return model, {}
