"""What `wae eval` measures and prints, for networks whose times are given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from printed_tables import rich_cells
from torch import nn

from wae.data.input import whole
from wae.experiments import evaluation, machine
from wae.experiments.evaluation import Candidate, DeployedCandidate
from wae.inference.timing import Timing
from wae.models.registry import build
from wae.storage.checkpoint import Description, load_classifier, save_classifier
from wae.training.accuracy import Accuracy, PixelAccuracy


def candidate(number, height, width, classes=10):
    """A convolution of ``number`` channels, for images of that size."""
    described = Description("small_vgg", classes, input=whole(height, width))
    model = nn.Sequential(nn.Conv2d(3, number, 1, bias=False)).eval()
    model.register_forward_pre_hook(_to_float)
    return Candidate(Path(f"{number}.st"), described, model)


def _to_float(module, given):
    """Unless it is float32, the image must come in channels_last, in which networks are fastest."""
    (image,) = given
    assert image.dtype == torch.float32 or image.is_contiguous(memory_format=torch.channels_last)
    return (image.float(),)


def interleaved(seen, *seconds):
    """Replaces the real timing: runs each call once, and reports these ``seconds``."""

    def timed(calls, *_, settle, **__):
        timed.settle = settle
        seen.extend(tuple(call().shape) for call in calls.values())
        return {name: Timing(t, t, t, 1) for name, t in zip(calls, seconds, strict=True)}

    return timed


def test_times_and_costs_are_compared_with_the_first_network(monkeypatch):
    one, other, seen = candidate(8, 20, 30), candidate(2, 40, 10, classes=5), []
    monkeypatch.setattr(machine, "interleaved", interleaved(seen, 0.008, 0.002))
    evaluation.measure([one, other], 1.0)
    assert seen == [(1, 8, 20, 30), (1, 2, 40, 10)]
    assert (one.seconds, other.seconds) == (0.008, 0.002)
    assert (one.multiply_adds, other.multiply_adds) == (8 * 3 * 600, 2 * 3 * 400)
    one.multiply_adds, other.multiply_adds = 3 * 10**9, 10**9
    one.accuracy, other.accuracy = Accuracy(0.75, 0.9, 1.0, 8), Accuracy(0.5, 1.0, 1.0, 8)
    assert rich_cells(evaluation.table([one, other])) == [
        ["small_vgg (8.st)", "25.00 %", "10.00 %", "8 (1.00x)", "3.000 G (1.00x)"],
        ["small_vgg (2.st)", "50.00 %", "", "2 (4.00x)", "1.000 G (3.00x)"],
    ]
    other.multiply_adds = 30_000  # it was 0.000 G
    assert rich_cells(evaluation.table([one, other]))[1][-1] == "30.00 K (100000.00x)"
    other.multiply_adds = 10**9
    data = evaluation.as_data([one, other])
    assert [(d["path"], d["top1"], d["seconds_per_image"], d["multiply_adds"]) for d in data] == [
        ("8.st", 0.75, 0.008, 3 * 10**9),
        ("2.st", 0.5, 0.002, 10**9),
    ]


def test_a_segmentation_network_has_its_own_columns_even_with_few_classes():
    entry = candidate(1, 8, 8, classes=5)
    entry.path = Path("\x1b[2J.st")
    entry.accuracy, entry.seconds, entry.multiply_adds = PixelAccuracy(0.5, 0.75, 0.6, 1.0, 8), 0.001, 10**9
    measured = ["50.00 %", "75.00 %"]
    assert rich_cells(evaluation.table([entry])) == [
        [r"small_vgg (\x1b[2J.st)", *measured, "1 (1.00x)", "1.000 G (1.00x)"]
    ]


def test_deployed_networks_are_timed_with_full_batches_and_tested_with_any_batch(monkeypatch):
    deployments, seen = [], []

    class Deployed:
        """Takes exactly four images; each of its scores is the sum of an image's pixels."""

        batch, size, engine, precision = 4, (20, 30), "eager", "int8"

        def __init__(self, model):
            self.channels = model[0].out_channels

        def __call__(self, images):
            assert len(images) == 4
            return images.double().sum((1, 2, 3))[:, None].expand(4, self.channels)

    def footprint_of(deployed):
        return SimpleNamespace(peak=12.0) if deployed.channels == 8 else None

    def deploy(model, size, batch, engine, **options):
        deployments.append((size, batch, engine, options))
        return Deployed(model)

    monkeypatch.setattr(evaluation, "deploy", deploy)
    monkeypatch.setattr(machine, "interleaved", interleaved(seen, 0.008, 0.002))
    monkeypatch.setattr(evaluation, "footprint_of", footprint_of)
    entries = [DeployedCandidate(candidate(n, 20, 30), "int8", "eager", 4, "images") for n in (8, 2)]
    options = {"precision": "int8", "calibration": "images", "max_drop": None}
    assert deployments == [((20, 30), 4, "eager", options)] * 2
    images = torch.ones(3, 3, 20, 30, dtype=torch.uint8) * torch.tensor([[[[1]]], [[[2]]], [[[3]]]]).byte()
    assert entries[0](images)[:, 0].tolist() == [1800, 3600, 5400]
    evaluation.measure_deployed(entries, 1.0)
    assert seen == [(4, 8), (4, 2)]
    assert machine.interleaved.settle == 1  # a first call may take seconds
    assert [entry.seconds for entry in entries] == [0.008, 0.002]
    for entry, top1 in zip(entries, (0.75, 0.5), strict=True):
        entry.accuracy = Accuracy(top1, 1.0, 1.0, 8)
    assert rich_cells(evaluation.deployed_table(entries)) == [
        ["small_vgg (8.st)", "int8", "eager", "75.00 %", "8", "500.0", "12"],
        ["small_vgg (2.st)", "int8", "eager", "50.00 %", "2", "2000.0", ""],
    ]
    data = evaluation.deployed_as_data(entries)
    assert [(d["path"], d["batch"], d["top1"], d["seconds_per_call"], d["megabytes"]) for d in data] == [
        ("8.st", 4, 0.75, 0.008, 12.0),
        ("2.st", 4, 0.5, 0.002, None),
    ]


def test_a_wae_network_is_timed_with_its_normalisation_folded(tmp_path):
    path = tmp_path / "model.safetensors"
    save_classifier(path, build("wae_small_vgg", 3), "wae_small_vgg")
    found = evaluation.candidate(path, load_classifier(path), torch.device("cpu"))
    images = torch.full((2, 3, 28, 28), 9.0)
    assert isinstance(found.model.low_norm, nn.Identity)
    assert found.model.encoder.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = load_classifier(path)(images)
        torch.testing.assert_close(found.model(images), wanted, rtol=1e-3, atol=1e-4)
