"""The plans of an acceleration's trainings."""

from dataclasses import replace

import pytest
from accelerations import task_of

from wae.experiments.acceleration import plans
from wae.experiments.acceleration.plans import plan_for
from wae.experiments.acceleration.settings import Recipe
from wae.training.fine_tuning import distilled
from wae.training.plan import Plan, Stage, find
from wae.training.small_data import OPTIMIZERS, SGD


@pytest.mark.parametrize(
    ("images", "batch"),
    [(1000, 30), (30, 30), (29, 24), (6, 6), (5, 5)],  # multiples of 6 parts; of 5 images there is none
)
def test_a_batch_fits_the_images_and_the_processes(tmp_path, monkeypatch, images, batch):
    plan = Plan("x", (Stage("joint", 1, 0.1),), batch=128, accumulate=3)
    task, _ = task_of(tmp_path, plan=plan, batch=30)
    monkeypatch.setattr(plans, "processes", lambda: 2)
    assert plan_for(task, images).batch == batch


def test_the_plan_fine_tunes_the_original_and_follows_the_settings(tmp_path):
    task, _ = task_of(tmp_path, epochs=6, seed=3)
    labelled = {"optimizer": "adamw", "weight_decay": 0.05, "mimic_weight": 0.5, "mimic_temperature": 2.0}
    # 2000 steps of 32 images are 64 epochs, capped at 30; epochs=6 scales 3, 10 and 30 to 1, 2 and 6
    stages = (
        Stage("transform", 1, 3e-4, "adam", warmup=0.1 / 3),
        Stage("classifier", 2, 1e-3, warmup=1.5 * 2 / 10, **labelled),
        Stage("joint", 6, 3e-4, warmup=1.5 * 6 / 30, encoder_rate=0.1, **labelled),
    )
    name = "sequential:given"
    assert plan_for(task, 1000, Recipe(0.5)) == Plan(name, stages, batch=32, norm_statistics="kept", seed=3)
    own = Plan(
        "x", (Stage("transform", 1, 0.1), Stage("joint", 4, 0.2, mimic_weight=3.0)), 64, start="linear"
    )
    task, _ = task_of(tmp_path, plan=own, learning_rate=0.5, batch=10)
    given = plan_for(task, 1000)
    assert (given.model, given.batch, given.start) == (name, 10, "random")
    assert [(s.epochs, s.learning_rate, s.mimic_weight) for s in given.stages] == [(1, 0.1, 0), (4, 0.5, 3)]
    task, _ = task_of(tmp_path, plan=own, mimic=0.0)
    assert plan_for(task, 1000).stages[1].mimic_weight == 0.0
    assert not any(stage.mimic_mirrored for stage in given.stages)
    task, _ = task_of(tmp_path, plan=own, mimic_mirrored=True)
    assert plan_for(task, 1000, task.settings.asked_distillation).stages[1] == replace(
        own.stages[1], mimic_mirrored=True
    )


def test_with_sgd_one_joint_stage_lasts_as_long_as_both_labelled_stages(tmp_path):
    """Its learning rate, weight decay and teacher are those of fine-tuning in `wae reproduce imagenette`."""
    task, _ = task_of(tmp_path)
    (transform, *labelled), (same, joint) = (
        plan_for(task, 1000, Recipe(1.0, optimizer=name)).stages for name in OPTIMIZERS
    )
    assert same == transform
    assert joint.epochs == sum(stage.epochs for stage in labelled)
    (published,) = distilled(find("imagenette")).only("joint").stages
    shared = ("kind", "optimizer", "weight_decay", "encoder_rate", "mimic_weight", "mimic_temperature")
    assert [getattr(joint, name) for name in shared] == [getattr(published, name) for name in shared]
    assert joint.learning_rate == published.learning_rate * 32 / 64  # in proportion to the batch


def test_to_name_the_usual_rate_changes_nothing(tmp_path):
    """At SGD's rate, Adam in stage 1 would make the auto-encoder forget the image."""
    usual = plan_for(task_of(tmp_path)[0], 1000, Recipe(optimizer=SGD))
    named, _ = task_of(tmp_path, optimizer=SGD, learning_rate=usual.stages[-1].learning_rate)
    assert plan_for(named, 1000, Recipe(optimizer=SGD)) == usual


@pytest.mark.parametrize("epochs", [None, 1, 2, 5, 50])
@pytest.mark.parametrize("shorter", [1, 4])
def test_with_both_optimizers_networks_are_trained_for_as_long(tmp_path, epochs, shorter):
    """They are compared with each other."""
    task, _ = task_of(tmp_path, epochs=epochs)
    lengths = [
        [stage.epochs for stage in plan_for(task, 500, Recipe(optimizer=name), shorter).stages]
        for name in OPTIMIZERS
    ]
    (transform, *labelled), (same, everything) = lengths
    assert same == transform
    assert everything == sum(labelled)
    if epochs and shorter == 1:
        assert max(labelled) == epochs


@pytest.mark.parametrize(
    ("batch", "images", "rate"), [(16, 1000, 0.0125), (128, 1000, 0.1), (128, 16, 0.0125)]
)
def test_sgds_rate_is_in_proportion_to_a_given_batch_too(tmp_path, batch, images, rate):
    plan, usual = (
        plan_for(task_of(tmp_path, **options)[0], images, Recipe(optimizer=SGD))
        for options in ({"batch": batch}, {})
    )
    assert plan.batch == min(batch, images)
    assert plan.stages[-1].learning_rate == pytest.approx(rate)
    assert plan.stages[-1].epochs == usual.stages[-1].epochs
