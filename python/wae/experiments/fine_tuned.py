"""What a claim makes of its trained full network, with that as the teacher.

WAE, begun as ``wae accelerate`` begins it, and its rival: half the resolution with the same weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae.data.dataset import Dataset
from wae.inference.calibration import spread
from wae.models.accelerated import split
from wae.models.baselines import FullResolution
from wae.models.classifier import WAEClassifier
from wae.models.network import WAENetwork
from wae.models.segmentation.segmenter import WAESegmenter
from wae.storage.checkpoint import load_classifier
from wae.training.linear_start import start_as_small_image
from wae.training.plan import Plan
from wae_kernels.checks import half_of

from .reproduce import WAE, Claim, Job, student, weights_path

FINE_TUNED = "WAE, fine-tuned"
_CAREFUL = 3e-4  # rate of stage 1, where ``low`` is a small image already
_SAMPLE = 2000 * 64 * 64  # pixels of the training images that it is made one on


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
        if network == self.half_fine_tuned:
            return student(super().plan_of(self.half, seed))
        if network != FINE_TUNED:
            return super().plan_of(network, seed)
        plan = student(super().plan_of(WAE, seed))
        first, *others = plan.stages
        stages = replace(first, learning_rate=_CAREFUL), *others
        return replace(plan, start="random", norm_statistics="kept", stages=stages)

    def start(self, job: Job, folder: Path, training: Dataset) -> tuple[nn.Module, dict[str, Any]]:
        """See :meth:`Claim.start`: with the weights of the trained full network."""
        if job.network not in (FINE_TUNED, self.half_fine_tuned):
            return super().start(job, folder, training)
        full = load_classifier(weights_path(folder, Job(self.full, job.seed)))
        assert isinstance(full, FullResolution)
        torch.manual_seed(job.seed)
        model = self.build(job.network)
        if isinstance(model, WAENetwork):
            height, width = self.input.shape
            _give_weights(model, full, (half_of(height), half_of(width)))
            images = _sample(training, max(1, _SAMPLE // (height * width)))
            start_as_small_image(model, images, full.image_scale, full.image_shift)
        else:
            model.load_state_dict(full.state_dict())
        return model, {}


def _give_weights(model: WAENetwork, full: FullResolution, size: tuple[int, int]) -> None:
    """Give the network on ``low``, of ``size`` (h, w), the weights of that in ``full``."""
    if isinstance(model, WAESegmenter):
        model.low_network.load_state_dict(full.network.state_dict())
        return
    assert isinstance(model, WAEClassifier)
    body, matrix = split(copy.deepcopy(full.network), size)
    named = zip(model.low_body.state_dict(), body.state_dict().values(), strict=True)
    model.low_body.load_state_dict(dict(named))  # the same body, by names of its own
    model.low_classifier.load_state_dict(matrix.state_dict())
    for parameter in model.fusion_classifier.parameters():
        nn.init.zeros_(parameter)


def _sample(training: Dataset, count: int) -> Tensor:
    """So many images from all over ``training``, or all."""
    return training.batch(spread(len(training), count).tolist(), 0)[0]
