"""wae.training.accuracy: how a network is evaluated on a data set."""

import pytest
import torch
from trained import image_set, network

from wae.data.dataset import InMemory
from wae.training import accuracy
from wae.training.accuracy import evaluate


def test_accuracy_is_counted_over_all_images():
    class Always(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scores", torch.tensor([0.0, 2.0, 1.0]))

        def forward(self, images):
            return self.scores.expand(len(images), 3)

    found = evaluate(Always(), image_set(20, augment=False), batch=7)
    in_bfloat16 = evaluate(Always().bfloat16(), image_set(20, augment=False), batch=7)
    assert in_bfloat16 == pytest.approx(found)
    assert found.top1 == pytest.approx(7 / 20)
    losses = torch.tensor([0.0, 2.0, 1.0]).log_softmax(0).neg()[torch.arange(20) % 3]
    assert found.loss == pytest.approx(losses.mean().item())


def test_top5_counts_the_five_highest_scores():
    class Ranking(torch.nn.Module):
        """The scores of class 6 are the highest, those of class 0 the lowest."""

        def forward(self, images):
            return torch.arange(7.0).expand(len(images), 7)

    images = torch.zeros(7, 3, 2, 2, dtype=torch.uint8)
    found = evaluate(Ranking(), InMemory(images, torch.arange(7), "abcdefg", augment=False, seed=0))
    assert (found.top1, found.top5) == pytest.approx((1 / 7, 5 / 7))


@pytest.mark.parametrize(("processes", "steps"), [(1, [7, 7, 6]), (2, [14, 6])])
def test_evaluate_reports_the_number_of_images_in_each_step(monkeypatch, processes, steps):
    """The last batch is not full. The images of all processes count."""
    monkeypatch.setattr(accuracy, "rank_and_world", lambda: (0, processes))
    monkeypatch.setattr(accuracy, "gathered", lambda failed: failed)
    monkeypatch.setattr(accuracy, "summed", lambda total: total)
    reported = []
    evaluate(network(), image_set(20, augment=False), batch=7, advance=reported.append)
    assert reported == steps


def test_evaluate_uses_evaluation_mode_and_restores_the_mode():
    class Mode(torch.nn.Module):
        """Right about every image, but only in evaluation mode."""

        def forward(self, images):
            right = images.float().mean((2, 3)).argmax(1) + self.training
            return torch.nn.functional.one_hot(right % 3, 3).float()

    for mode in (True, False):
        model = Mode().train(mode)
        assert evaluate(model, image_set(augment=False)).top1 == 1.0
        assert model.training == mode
