"""``wae reproduce camvid``, on a few made-up road scenes in CamVid's folders."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reproductions import tiny_plan
from scenes import write_scenes

from wae.cli import main
from wae.data.dataset import DatasetError
from wae.difference import relative_difference
from wae.experiments import panels, reproduce
from wae.experiments.reproduction import camvid
from wae.experiments.reproduction.camvid import CLASSES, HALF, NETWORKS, CamVid
from wae.experiments.reproduction.claim import WAE, Job
from wae.experiments.reproduction.fine_tuned import FINE_TUNED, fine_tuned
from wae.experiments.reproduction.results import read_result, result_path, weights_path, write_json
from wae.experiments.reproduction.table import markdown, rows
from wae.inference.maps import colours
from wae.models.counting import count
from wae.models.network import WAENetwork
from wae.models.segmentation.segmenter import FullResolutionSegmenter, HalfResolutionSegmenter
from wae.storage.checkpoint import describe, load_classifier, save_classifier
from wae.storage.weights_file import CheckpointError
from wae.training import plan
from wae.training.accuracy import PixelAccuracy, evaluate
from wae.training.norms import remeasure_norms

TINY = tiny_plan("wae_enet", 4, epochs=2, learning_rate=1e-3, optimizer="adam", class_balance=1.02)
CLAIM = CamVid(TINY, "enet", (24, 32))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """As published, without classes.txt. The made-up classes have numbers of CamVid's."""
    return write_scenes(
        tmp_path_factory.mktemp("camvid"), (("train", 8), ("val", 2), ("test", 3)), classes=None
    )


def test_each_part_has_its_own_purpose(scenes, tmp_path):
    assert CLAIM.prepared(scenes, tmp_path) == scenes
    training, chosen_by = CLAIM.sets(scenes, 3)
    held_out = CLAIM.held_out(scenes)
    assert [len(data) for data in (training, chosen_by, held_out)] == [8, 2, 3]
    assert [data.samples[0][0].split("/")[-3] for data in (training, chosen_by, held_out)] == [
        "train",
        "val",
        "test",
    ]
    assert (len(training.labels), training.shape, training.seed) == (11, (24, 32), 3)
    images, again = (training.batch([0], epoch)[0] for epoch in (0, 1))
    assert not torch.equal(images, again)  # augmented
    assert torch.equal(*(chosen_by.batch([0], epoch)[0] for epoch in (0, 1)))


def test_scenes_are_known_by_the_files_of_images_and_labels(scenes, tmp_path):
    copied = shutil.copytree(scenes, tmp_path / "elsewhere")
    known = CLAIM.on(scenes).data
    assert CLAIM.on(copied).data == known
    (copied / "test" / "labels" / "00.png").write_bytes(b"other labels")
    assert plan.changed(known, CLAIM.on(copied).data) == ["file sizes of test"]


def test_missing_parts_are_found_before_anything_is_trained(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: there is no such folder"):
        CLAIM.prepared(tmp_path / "nowhere", tmp_path)
    write_scenes(tmp_path / "data", (("train", 1), ("val", 1)), classes=None)
    with pytest.raises(DatasetError, match="test/images: there is no such folder"):
        CLAIM.prepared(tmp_path / "data", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_kinds_and_costs_of_the_networks(network):
    claim = camvid.claim(network)
    kinds = {claim.full: FullResolutionSegmenter, HALF: HalfResolutionSegmenter, WAE: WAENetwork}
    models = {name: claim.build(name) for name in claim.registered}
    assert all(isinstance(models[name], kind) for name, kind in kinds.items())
    assert models[WAE].decoder is not None
    costs = {name: count(model, claim.input.shape).multiply_adds for name, model in models.items()}
    assert costs[HALF] < 0.27 * costs[claim.full]
    scale = claim.build(claim.full).image_scale
    assert torch.allclose(scale * 255, 1 / torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize(("options", "epochs"), [("--times 0.5", 50), ("--quick", 24), ("", 100)])
def test_options_multiply_the_epochs_with_labels(options, epochs, monkeypatch, capsys):
    make, made = camvid.claim, []
    monkeypatch.setattr(camvid, "claim", lambda *arguments: made.append(make(*arguments)) or made[0])
    assert main(["reproduce", "camvid", *options.split()]) != 0
    assert "--data" in capsys.readouterr().err
    assert sum(stage.epochs for stage in made[0].wae.stages if stage.kind != "transform") == epochs


def test_all_networks_are_trained_with_labels_for_the_same_epochs_at_the_same_rates():
    claim = camvid.claim(times=1 / 4)
    assert not claim.wae.remeasure_norms  # a result has both accuracies
    assert plan.find("camvid").remeasure_norms
    labelled = {}
    for network in claim.registered:
        stages = [s for s in claim.plan_of(network, 1).stages if s.kind != "transform"]
        labelled[network] = sum(stage.epochs for stage in stages)
        assert {(s.learning_rate, s.weight_decay, s.class_balance, s.optimizer) for s in stages} == {
            (s.learning_rate, s.weight_decay, s.class_balance, s.optimizer) for s in claim.wae.stages[1:]
        }
    assert len(set(labelled.values())) == 1
    segnets = "sky building pole road pavement tree sign fence car pedestrian cyclist".split()
    assert (*segnets, "(unlabelled)") == CLASSES
    assert claim.size == (360, 480)
    assert claim.wae.stages[-1].epochs == max(1, plan.find("camvid").stages[-1].epochs // 4)


def test_fine_tuned_networks_start_as_the_trained_network_on_a_smaller_image(scenes, tmp_path):
    torch.manual_seed(1)
    full = CLAIM.build(CLAIM.full)
    training, _ = CLAIM.sets(scenes, 0)
    path = weights_path(tmp_path, Job(CLAIM.full, 3))
    save_classifier(path, full, CLAIM.registered[CLAIM.full], training.labels, CLAIM.input)
    half, wae = (
        CLAIM.start(Job(name, 3), tmp_path, training)[0].eval() for name in (fine_tuned(HALF), FINE_TUNED)
    )
    images, _ = CLAIM.held_out(scenes).batch(range(3), epoch=0)
    with torch.no_grad():
        same = HalfResolutionSegmenter(full.network, full.image_scale.tolist(), full.image_shift.tolist())
        assert torch.equal(half(images), same.eval()(images))
        small = full._normalized(images).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        low, _ = wae.decompose(images)
        assert relative_difference(wae.low_norm(low), small) < 0.05
        assert relative_difference(wae.low_network(small), full.network.eval()(small)) < 1e-5


@pytest.mark.parametrize(("name", "own"), [("half, bilinear, fine-tuned", HALF), (FINE_TUNED, WAE)])
def test_fine_tuning_distils_in_every_stage_with_labels(name, own):
    claim = camvid.claim()
    made, alone = (claim.plan_of(network, 2) for network in (name, own))
    assert claim.needs(name) == claim.full
    assert len(made.stages) == len(alone.stages)
    for stage, plain in zip(made.stages, alone.stages, strict=True):
        distilled = {"mimic_weight": 1.0, "mimic_temperature": 4.0, "mimic_mirrored": True}
        first = {"learning_rate": 3e-4}
        assert stage == replace(plain, **(first if plain.kind == "transform" else distilled))


@pytest.mark.slow
def test_each_epoch_is_tested_on_val_and_the_result_on_test(scenes, tmp_path, monkeypatch):
    wanted, messages = [Job(WAE, 0), Job(HALF, 0)], []
    results = reproduce.run(tmp_path, scenes, wanted, CLAIM, 2, tell=messages.append)
    assert [(r.network, len(r.epochs)) for r in results] == [(WAE, 2), (HALF, 2)]
    assert len(messages) == 3 + 2
    for job, result in zip(wanted, results, strict=True):
        weights = weights_path(tmp_path, job)
        model = load_classifier(weights)
        found = evaluate(model, CLAIM.held_out(scenes))
        assert result.accuracy == pytest.approx(found.mean_iou)
        assert result.measured == pytest.approx(found._asdict())
        assert set(result.measured) == set(PixelAccuracy._fields)
        assert result.measured["images"] == 3
        remeasure_norms(model, CLAIM.sets(scenes, 0)[0].plain(), TINY.batch)
        reestimated = evaluate(model, CLAIM.held_out(scenes))
        assert result.remeasured["accuracy"] == pytest.approx(reestimated.mean_iou)
        assert result.remeasured["loss"] == pytest.approx(reestimated.loss)
        assert result.remeasured["loss"] != pytest.approx(found.loss)
        assert result.multiply_adds == count(model, (24, 32)).multiply_adds
        assert describe(weights).input.shape == (24, 32)
        assert json.loads((tmp_path / f"{job.stem}.json").read_text())["settings"]["size"] == [24, 32]
    assert reproduce.run(tmp_path, scenes, wanted, CLAIM, 2, tell=messages.append) == results
    assert len(messages) == 5
    for number, job in enumerate(wanted):  # as before there were such; the second has no weights
        write_json(result_path(tmp_path, job), asdict(replace(results[number], remeasured={})))
    weights_path(tmp_path, wanted[1]).unlink()
    assert reproduce.open_jobs(tmp_path, wanted, CLAIM) == wanted[:1]
    assert reproduce.to_train(tmp_path, wanted[:1], CLAIM) == []
    with monkeypatch.context() as patch:  # for a read-only folder, the table is printed without them
        patch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
        assert reproduce.open_jobs(tmp_path, wanted, CLAIM) == []
    bare = reproduce.run(tmp_path, "there is no data", wanted, CLAIM, 1)
    assert [result.remeasured for result in bare] == [{}, {}]
    filled, bare = reproduce.run(tmp_path, scenes, wanted, CLAIM, 1, tell=messages.append)
    assert filled == read_result(tmp_path, wanted[0], CLAIM) == results[0]
    assert not bare.remeasured
    assert len(messages) == 5  # nothing was trained
    with pytest.raises(CheckpointError, match="comes from other settings"):
        read_result(tmp_path, wanted[0], replace(CLAIM, size=(24, 40)))
    table = markdown(rows(results, CLAIM, seconds=0), CLAIM)
    assert "| network | mean IoU, mean of seeds |" in table
    assert "| re-estimated statistics | recovered |" in table


def test_a_picture_shows_the_truth_and_each_networks_prediction(scenes, tmp_path, monkeypatch):
    scenes, labelled, names = shutil.copytree(scenes, tmp_path / "data"), panels.labelled, []
    monkeypatch.setattr(panels, "labelled", lambda name, image: names.append(name) or labelled(name, image))
    path = scenes / "test" / "labels" / "00.png"
    numbers = np.array(Image.open(path))
    numbers[:2] = CLASSES.index("(unlabelled)")
    Image.fromarray(numbers).save(path)
    assert CLAIM.picture(scenes, tmp_path) is None
    for name, registered in CLAIM.registered.items():
        path = weights_path(tmp_path, Job(name, 1))
        save_classifier(path, CLAIM.build(name), registered, CLASSES[:-1], CLAIM.input)
    assert CLAIM.picture(tmp_path / "nowhere", tmp_path) is None  # it was an error, and no table was written
    picture = np.asarray(CLAIM.picture(scenes, tmp_path))
    zoom = round(220 / 32)
    height, width = 24 * zoom, 32 * zoom
    assert picture.shape[1] > 5 * width
    assert list(dict.fromkeys(names)) == ["image", "truth", CLAIM.full, HALF, WAE]
    palette = np.concatenate([colours(11).numpy(), np.zeros((1, 3), np.uint8)])
    _, labels = CLAIM.held_out(scenes).batch([0], epoch=0)
    assert (labels < 0).any()
    truth = palette[labels[0].clamp(min=-1).numpy()]
    x, y = 2 * 8 + width, 8 + 22  # the second panel
    np.testing.assert_array_equal(picture[y : y + height : zoom, x : x + width : zoom], truth)
    images, _ = CLAIM.held_out(scenes).batch([0], epoch=0)
    for name in (CLAIM.full, HALF, WAE):
        x += width + 8
        model = load_classifier(weights_path(tmp_path, Job(name, 1)))
        found = palette[model(images)[0].argmax(0).numpy()]
        np.testing.assert_array_equal(picture[y : y + height : zoom, x : x + width : zoom], found, name)


def test_the_results_in_the_repository_are_those_of_the_plan():
    """So a run in a copy of the folder starts from them."""
    folder = Path(__file__).resolve().parents[4] / "docs" / "results" / "camvid-enet-90x120"
    claim = camvid.claim(size=(90, 120), times=1 / 4)
    wanted = [Job(network, seed) for network in (claim.full, HALF, WAE) for seed in range(3)]
    assert reproduce.open_jobs(folder, wanted, claim) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("camvid",), "--data: needs the folder with CamVid's train, val and test"),
        (
            ("camvid", "--data", "x", "--network", "vgg"),
            "--network: must be one of enet, mobilenet_deconv, .*",
        ),
        (("camvid", "--data", "x", "--size", "64"), "--size: camvid needs HEIGHTxWIDTH, got 64"),
        (("camvid", "--data", "x", "--kept-aside"), "--kept-aside: is only for imagenette"),
        (("camvid", "--data", "x", "--also-at", "40"), "--also-at: is only for imagenette"),
        (("imagenette", "--data", "x", "--also-at", "64"), "also_at: must be between 32 and 64"),
        (("imagenette", "--data", "x", "--network", "enet"), "--network: must be one of small_vgg"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path, capsys):
    assert main(["reproduce", *arguments, "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message.removesuffix(".*") in printed
