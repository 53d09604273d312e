"""What short trainings choose."""

import io
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerations import MIRRORED, PLAIN, task_of
from rich.console import Console

from wae.experiments.acceleration import training, trials
from wae.experiments.acceleration.folder import Record
from wae.experiments.acceleration.plans import plan_for
from wae.experiments.acceleration.settings import NO_TEACHER, Recipe
from wae.training.accuracy import Accuracy
from wae.training.small_data import ADAMW, OPTIMIZERS, SGD
from wae.training.state import Epoch
from wae.training.trainer import DivergedError, TrainingError


def test_a_trial_is_trained_and_tested_on_training_images_only(tmp_path, monkeypatch):
    """A fifth of the images is held out, and not augmented. The test images are not used.

    The classes take turns here: every fifth image is of one class, which no trial would be trained on.
    """
    task, images = task_of(tmp_path)
    seen, printed = [], io.StringIO()
    task = replace(task, console=Console(file=printed, width=200))

    def train(model, plan, training, test, *, teacher, **options):
        seen.append((plan, training, test, teacher))
        return [Epoch(0, "joint", 0, {}, Accuracy(top1, 1.0, 1.0, 4), 1.0) for top1 in (0.5, 0.75, 0.25)]

    monkeypatch.setattr(training, "train", train)
    record = Record(tmp_path / "record.json", {})
    kept = [trials.trial(task, record, task.form, recipe) for recipe in (NO_TEACHER, PLAIN, PLAIN)]
    assert kept == [0.25] * 3
    names = [f"trial: size 48, factor 4, mimic {weight}" for weight in (0, 1)]
    assert list(record.found) == names
    (*_, no_teacher), (plan, others, held_out, teacher) = seen  # the third result is read from the record
    assert printed.getvalue().count("trial, size 48, factor 4, mimic 1: 25.00 %") == 1
    fifth = [0, 6, 12, 18]
    assert torch.equal(held_out.images, images.images[fifth])
    assert torch.equal(others.images, images.images[[n for n in range(20) if n not in fifth]])
    assert held_out.targets.tolist() == [0, 1, 2, 3]
    assert (others.augment, held_out.augment) == (True, False)
    full_plan = plan_for(task, 16, PLAIN)
    assert [s.epochs for s in plan.stages] == [max(1, round(s.epochs / 4)) for s in full_plan.stages]
    for one, other in zip(plan.stages, full_plan.stages, strict=True):
        assert one.warmup / one.epochs == pytest.approx(other.warmup / other.epochs)
    assert plan.stages[-1].mimic_weight == 1.0
    assert no_teacher is None
    with torch.no_grad():
        assert torch.equal(teacher(held_out.images), task.original.classifier()(held_out.images))


def test_a_trial_of_fewer_images_than_a_batch_uses_a_smaller_batch(tmp_path):
    task, _ = task_of(tmp_path, batch=18, epochs=1)
    assert 0 <= trials.trial(task, Record(tmp_path / "record.json", {}), task.form, NO_TEACHER) <= 1


@pytest.mark.parametrize(
    ("without", "plain", "mirrored", "best"),
    [
        (0.5, 0.6, 0.7, MIRRORED),
        (0.5, 0.6, 0.6, PLAIN),  # needs one pass of the original less
        (0.5, 0.6, 0.4, PLAIN),
        (0.6, 0.5, None, NO_TEACHER),  # if a teacher does not help, the mirrored one is not tried
        (0.5, 0.5, None, NO_TEACHER),
    ],
)
def test_the_best_trial_decides_the_distillation(tmp_path, monkeypatch, without, plain, mirrored, best):
    task, _ = task_of(tmp_path)
    kept = {NO_TEACHER: without, PLAIN: plain, MIRRORED: mirrored}
    monkeypatch.setattr(trials, "trial", lambda task, record, form, recipe: kept[recipe])
    assert trials.best_distillation(task, None, task.form, ADAMW) == {
        "weight": best.weight,
        "mirrored": best.mirrored,
        "accuracies": {str(recipe): accuracy for recipe, accuracy in kept.items() if accuracy is not None},
    }


@pytest.mark.parametrize("entries", [{"flip": False}, {"augment": False}], ids=str)
def test_without_flipped_training_images_no_mirrored_teacher_is_tried(tmp_path, monkeypatch, entries):
    task, images = task_of(tmp_path)
    for name, value in entries.items():
        setattr(images, name, value)
    monkeypatch.setattr(
        trials, "trial", lambda task, record, form, recipe: {NO_TEACHER: 0.5, PLAIN: 0.6}[recipe]
    )
    assert not trials.best_distillation(task, None, task.form, ADAMW)["mirrored"]


def test_with_mimic_mirrored_only_the_mirrored_teacher_is_tried(tmp_path, monkeypatch):
    task, _ = task_of(tmp_path, mimic_mirrored=True)
    kept = {NO_TEACHER: 0.5, MIRRORED: 0.6}
    monkeypatch.setattr(trials, "trial", lambda task, record, form, recipe: kept[recipe])
    found = trials.best_distillation(task, None, task.form, ADAMW)
    assert (found["weight"], found["mirrored"]) == MIRRORED[:2]
    assert list(found["accuracies"]) == ["mimic 0", "mimic 1, mirrored"]


@pytest.mark.parametrize(("options", "weight"), [({}, 1.0), ({"mimic": 0.25, "mimic_mirrored": True}, 0.25)])
@pytest.mark.parametrize("best", OPTIMIZERS)
def test_optimizers_are_tried_with_the_teacher_of_the_settings(tmp_path, monkeypatch, options, weight, best):
    task, _ = task_of(tmp_path, **options)
    tried = []

    def trial(task, record, form, recipe):
        tried.append(recipe)
        return 0.6 if recipe.optimizer == best else 0.5

    monkeypatch.setattr(trials, "trial", trial)
    assert trials.best_optimizer(task, None, task.form)["name"] == best
    assert tried == [Recipe(weight, bool(options), name) for name in OPTIMIZERS]
    monkeypatch.setattr(trials, "trial", lambda *_: 0.5)
    assert trials.best_optimizer(task, None, task.form)["name"] == ADAMW  # if it makes no difference


def test_distillation_is_tried_with_the_chosen_optimizer(tmp_path, monkeypatch):
    task, _ = task_of(tmp_path)
    tried = []
    monkeypatch.setattr(trials, "trial", lambda *given: tried.append(given[-1]) or len(tried))
    assert trials.best_distillation(task, None, task.form, SGD)["mirrored"]
    assert tried == [recipe._replace(optimizer=SGD) for recipe in (NO_TEACHER, PLAIN, MIRRORED)]


def test_a_diverged_trial_is_worse_than_an_accuracy_of_zero(tmp_path, monkeypatch):
    def train(model, plan, *_, **__):
        if plan.stages[-1].optimizer == ADAMW:
            raise DivergedError("the loss is nan in epoch 1", "; a file that goes away is the checkpoint")
        return [Epoch(0, "joint", 0, {}, Accuracy(0.0, 1.0, 1.0, 4), 1.0)]

    printed = io.StringIO()
    task = replace(task_of(tmp_path)[0], console=Console(file=printed, width=200))
    monkeypatch.setattr(training, "train", train)
    found = trials.best_optimizer(task, Record(tmp_path / "record.json", {}), task.form)
    assert found == {"name": SGD, "accuracies": {ADAMW: None, SGD: 0.0}}
    assert printed.getvalue().splitlines() == [
        "trial, size 48, factor 4, mimic 1: 11 epochs on 16 images",
        "trial, size 48, factor 4, mimic 1: the loss is nan in epoch 1",
        "trial, size 48, factor 4, mimic 1: the loss was no longer finite",
        "trial, size 48, factor 4, mimic 1, sgd: 11 epochs on 16 images",
        "trial, size 48, factor 4, mimic 1, sgd: 0.00 % of the held-out images",
    ]


@pytest.mark.parametrize(("options", "got"), [({}, "those of the plan"), ({"learning_rate": 0.5}, "0.5")])
def test_if_all_trials_diverge_nothing_is_chosen(tmp_path, monkeypatch, options, got):
    """The training would diverge as well."""
    task, _ = task_of(tmp_path, **options)
    monkeypatch.setattr(trials, "trial", lambda *_: None)
    wanted = rf"^learning_rate must be lower, got {got}: .* with a lower --learning-rate and --force$"
    for choose in (trials.best_optimizer, partial(trials.best_distillation, optimizer=ADAMW)):
        with pytest.raises(TrainingError, match=wanted):
            choose(task, None, task.form)


def test_unreadable_images_end_a_trial_and_do_not_count_as_divergence(tmp_path, monkeypatch):
    def train(*_, **__):
        raise TrainingError("none of the images of step 1 can be read")

    task, _ = task_of(tmp_path)
    monkeypatch.setattr(training, "train", train)
    record = Record(tmp_path / "record.json", {})
    with pytest.raises(TrainingError, match="can be read"):
        trials.trial(task, record, task.form, NO_TEACHER)
    assert record.found == {}
