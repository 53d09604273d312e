"""Deployment of all networks in their fastest forms, and the ONNX file."""

import json

import pytest
import torch
from accelerations import task_of
from tiny_original import CLASSES, SIDE
from torch import nn

from wae.data.dataset import InMemory
from wae.experiments import machine
from wae.experiments.acceleration import deployment, measuring
from wae.experiments.acceleration.folder import Record
from wae.experiments.acceleration.networks import initialised
from wae.inference.agreement import DisagreementError
from wae.inference.saved import load_deployed
from wae.inference.timing import Timing
from wae.models.counting import count
from wae.training.accuracy import evaluate


def test_an_onnx_file_that_disagrees_is_left_out_with_the_reason(tmp_path, monkeypatch):
    def export(*arguments, **options):
        raise DisagreementError("the onnx file is off by 1\nand more")

    monkeypatch.setattr(deployment, "export", export)
    task, _ = task_of(tmp_path)
    assert deployment.write_onnx(task, initialised(task, task.form), task.form) == {
        "not written": "the onnx file is off by 1"
    }


def test_an_onnx_file_says_its_labels_and_how_images_are_prepared(tmp_path):
    """As files of `wae export` do; it said neither."""
    task, _ = task_of(tmp_path)
    assert "difference" in deployment.write_onnx(task, initialised(task, task.form), task.form)
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "model.onnx")
    says = session.get_modelmeta().custom_metadata_map
    assert json.loads(says["labels"]) == list(CLASSES)
    assert json.loads(says["input"])["resize"] == task.original.input.resize


def test_each_network_is_deployed_timed_and_tested(tmp_path, monkeypatch):
    """The test images are labelled as the original classifies them, and the training images are not.

    In PyTorch WAE is timed with its normalisations folded, as when baselines are pruned to its time.
    """
    task, images = task_of(tmp_path, engine="eager", precision="float32", images=2)
    test, stock = task.sets(SIDE).test, task.original.classifier()
    with torch.no_grad():
        test.targets[:] = stock(test.images).argmax(1)
        images.targets[:] = (stock(images.images).argmax(1) + 1) % 5
    ours = initialised(task, task.form).eval()
    with torch.no_grad():
        share = (ours(test.images).argmax(1) == test.targets).float().mean().item()
    names = ("original, PyTorch", "original, deployed", "accelerated, PyTorch", "accelerated, deployed")
    shapes, normalised, forward = [], set(), nn.BatchNorm2d.forward
    monkeypatch.setattr(
        nn.BatchNorm2d, "forward", lambda norm, x: normalised.add(norm.num_features) or forward(norm, x)
    )

    def interleaved(calls, *_, **__):
        assert tuple(calls) == names
        normalised.clear()
        shapes.extend(len(call()) for call in calls.values())
        assert normalised
        assert 3 not in normalised  # the number of channels of low and high
        return {
            name: Timing(seconds, 0, 0, 1) for name, seconds in zip(names, (4.0, 3.0, 2.0, 1.0), strict=True)
        }

    monkeypatch.setattr(machine, "interleaved", interleaved)
    monkeypatch.setattr(machine.OtherPrograms, "cores", lambda others: 0.75)
    found = deployment.deploy_all(task, Record(tmp_path / "record.json", {}), ours, SIDE)
    assert shapes == [2] * 4
    assert found["others"] == 0.75
    sides = [found[name] for name in ("original", "accelerated")]
    assert [(side["eager seconds"], side["seconds"]) for side in sides] == [(4.0, 3.0), (2.0, 1.0)]
    assert [side["accuracy"] for side in sides] == [1.0, pytest.approx(share)]
    costs = [count(network, (SIDE, SIDE)).multiply_adds for network in (stock, ours)]
    assert [side["multiply_adds"] for side in sides] == costs
    assert sum(entry["right"] for entry in sides[1]["classes"]) == round(share * len(test))
    assert load_deployed(tmp_path / "deployed").size == (SIDE, SIDE)


@pytest.mark.parametrize(("deployed", "name"), [(0, "original"), (1, "accelerated")])
def test_a_network_that_no_engine_runs_is_named_with_the_way_to_go_on(tmp_path, monkeypatch, deployed, name):
    done = []

    def fastest(*_):
        if len(done) == deployed:
            raise DisagreementError("int8 loses 50 %")
        done.append(None)

    monkeypatch.setattr(deployment, "fastest", fastest)
    task, _ = task_of(tmp_path)
    ours = initialised(task, task.form).eval()
    message = f"^the {name} network: int8 loses 50 %; what was trained is kept: .* another --precision"
    with pytest.raises(DisagreementError, match=message):
        deployment.deploy_all(task, Record(tmp_path / "record.json", {}), ours, SIDE)


def test_images_are_counted_by_class_without_those_that_fill_a_batch(tmp_path):
    class Deployed(nn.Module):
        """Accepts exactly three images; the first pixel is the number of the class."""

        batch = 3

        def forward(self, images):
            assert len(images) == 3
            return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 5).float()

    images = torch.tensor([0, 1, 1, 0, 0, 3, 3], dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 3, 2, 2)
    data = InMemory(images.clone(), torch.tensor([0, 0, 1, 1, 0, 3, 2]), CLASSES, False, 0)
    filled = deployment.Filled(Deployed())
    task, _ = task_of(tmp_path)
    accuracy, classes = measuring.accuracies(task, filled, data, 5)
    pairs = [(entry["right"], entry["of"]) for entry in classes]
    assert pairs == [(2, 3), (1, 2), (0, 1), (1, 1), (0, 0)]
    assert accuracy == evaluate(filled, data, 5)
    assert accuracy.top1 == pytest.approx(4 / 7)
