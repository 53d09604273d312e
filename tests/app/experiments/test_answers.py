"""The answers of the web page, and their times."""

import time
from types import SimpleNamespace

import torch

from wae.data.input import Input
from wae.experiments.answers import Candidate, answers


class Computed(torch.Tensor):
    """Scores that a GPU takes 20 ms to compute, after the call has returned."""

    def cpu(self):
        time.sleep(0.02)
        return self.as_subclass(torch.Tensor)


def test_the_time_of_a_gpu_ends_when_the_scores_are_there():
    """Not when the work is launched."""
    described = SimpleNamespace(input=Input(8, 8), classes=2, labels=None)
    scores = torch.tensor([[1.0, 3.0]]).as_subclass(Computed)
    candidate = Candidate("network", described, lambda images: scores, trained=True)
    (answer,) = answers([candidate], torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert answer.seconds >= 0.02
    assert list(answer.shares) == ["class 1", "class 0"]
