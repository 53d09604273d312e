"""Training segmentation networks: the loop, stages and checkpoints are those of classifiers."""

import json
import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from scenes import TINY_PLAN, small_network, small_segmenter, write_scenes
from torch import nn
from trained import StopAt

from wae import cli
from wae.commands import train as command
from wae.data.dataset import NOT_COUNTED
from wae.data.images import ImageError
from wae.data.input import Input, whole
from wae.data.segmentation import segmentation_folder
from wae.models.counting import count
from wae.models.registry import build
from wae.models.segmentation.libraries import AnySize
from wae.models.segmentation.segmenter import FullResolutionSegmenter, HalfResolutionSegmenter, wae_segmenter
from wae.storage import weights_file
from wae.storage.checkpoint import describe, load_classifier, save_classifier
from wae.storage.weights_file import CheckpointError
from wae.training import norms
from wae.training.accuracy import PixelAccuracy, counts_for, evaluate
from wae.training.losses import class_weights, cross_entropy, mimic_loss
from wae.training.objective import Objective
from wae.training.plan import Plan, PlanError, Stage, find, read
from wae.training.rehearsal import rehearse
from wae.training.session import Session
from wae.training.trainer import Observer, train

LABELLED = Stage("classifier", 2, 0.02, "adam", class_balance=1.02)
JOINT = replace(LABELLED, kind="joint", epochs=5, energy_weight=0.1, transform_weight=0.01)
PLAN = Plan(
    "small",
    (Stage("transform", 1, 1e-3, "adam", energy_weight=0.1), LABELLED, JOINT),
    batch=5,
    start="linear",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with 20 training images."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def data(folder, part="train", **options):
    return segmentation_folder(folder, part, whole(36, 48), **options)


def run(folder, plan=PLAN, model=None, **options):
    model = small_segmenter() if model is None else model
    sets = data(folder, augment=True, keep=True), data(folder, "val", keep=True)
    return model, train(model, plan, *sets, **options)


# ------------------------------------------------------------------------------------------------- the stages


def test_a_segmenter_learns_in_three_stages(scenes):
    model, history = run(scenes)
    assert [epoch.kind for epoch in history] == ["transform", *["classifier"] * 2, *["joint"] * 5]
    assert history[0].accuracy is None
    last = history[-1].accuracy
    assert isinstance(last, PixelAccuracy)
    assert last.images == 4
    assert last.mean_iou > 0.8
    assert last.pixels > 0.9
    assert set(history[-1].losses) == {"loss", "cross entropy", "transform", "reconstruction", "energy"}
    assert evaluate(model, data(scenes, "val")) == pytest.approx(last)


@pytest.mark.parametrize(
    ("stage", "moved"),
    [(PLAN.stages[0], "transform"), (LABELLED, "rest"), (replace(JOINT, transform_weight=0.0), "no decoder")],
    ids=["transform", "classifier", "joint"],
)
def test_each_stage_trains_its_own_parts(scenes, stage, moved):
    model = small_segmenter()
    before = {name: p.clone() for name, p in model.named_parameters()}
    run(scenes, Plan("small", (replace(stage, epochs=1),), batch=5), model)
    for name, parameter in model.named_parameters():
        of_transform = name.startswith(("encoder.", "decoder."))
        wanted = {
            "transform": of_transform,
            "rest": not of_transform,
            "no decoder": not name.startswith("decoder."),
        }[moved]
        assert torch.equal(parameter, before[name]) != wanted, name


def test_a_network_without_an_encoder_is_trained_by_the_stages_with_labels(scenes):
    network = small_network()
    model = build("enet", 3)
    model.network = network
    model.image_scale.fill_(1 / 64)
    model.image_shift.fill_(-2)
    _, history = run(scenes, PLAN.without_encoder(), model)
    assert [epoch.kind for epoch in history] == ["classifier"] * 7
    assert history[-1].accuracy.mean_iou > 0.8


def test_the_scores_of_low_have_their_own_loss_if_low_weight_is_set(scenes):
    model, (images, labels) = small_segmenter().eval(), data(scenes).batch(range(4), 0)
    losses = Objective(model, replace(JOINT, low_weight=0.5, transform_weight=0.0))(images, labels)
    coarse = model.low_network(model.low_norm(model.decompose(images)[0]))
    expected = cross_entropy(F.interpolate(coarse, (36, 48), mode="bilinear"), labels)
    torch.testing.assert_close(losses["low cross entropy"], expected)
    torch.testing.assert_close(losses["loss"], losses["cross entropy"] + 0.5 * expected)
    losses["low cross entropy"].backward()
    assert all(p.grad is None for p in model.fusion.parameters())


class Guided(nn.Module):
    """Returns auxiliary scores besides the main ones, in training."""

    auxiliary: ClassVar[dict[str, float]] = {"coarse": 0.4}

    def __init__(self):
        super().__init__()
        self.network, self.coarse = small_network(), nn.Conv2d(3, 3, 4, stride=4)

    def forward(self, image):
        scores = self.network(image)
        return {"out": scores, "coarse": self.coarse(image)} if self.training else scores


@pytest.mark.parametrize("form", [FullResolutionSegmenter, HalfResolutionSegmenter, wae_segmenter])
def test_auxiliary_losses_have_the_weights_that_the_network_gives_them(scenes, form):
    torch.manual_seed(0)
    model, seen = form(Guided()).train(), []
    network = next(module for module in model.modules() if isinstance(module, Guided))
    hook = network.register_forward_hook(lambda module, given, result: seen.append(result))
    images, labels = data(scenes).batch(range(2), 0)
    weights = torch.tensor([1.0, 2.0, 4.0])
    losses = Objective(model, LABELLED, weights=weights)(images, labels)
    hook.remove()
    coarse = F.interpolate(seen[0]["coarse"], (36, 48), mode="bilinear")
    torch.testing.assert_close(losses["coarse cross entropy"], cross_entropy(coarse, labels, weights))
    wanted = losses["cross entropy"] + 0.4 * losses["coarse cross entropy"]
    torch.testing.assert_close(losses["loss"], wanted)
    assert "coarse cross entropy" not in Objective(model.eval(), LABELLED)(images, labels)
    assert not network._forward_hooks


class GuidedAtFullSize(nn.Module):
    """As :class:`Guided`, with auxiliary scores as large as the main ones, as PSPNet has."""

    auxiliary: ClassVar[dict[str, float]] = {"aux": 0.4}

    def __init__(self):
        super().__init__()
        self.network, self.aux = small_network(), nn.Conv2d(3, 3, 1)

    def forward(self, image):
        scores = self.network(image)
        return {"out": scores, "aux": self.aux(image)} if self.training else scores


def test_auxiliary_scores_of_padding_are_cut_off(scenes):
    """Scaled to the labels together with the padding, they would be too small for them."""
    torch.manual_seed(0)
    model, seen = wae_segmenter(AnySize(GuidedAtFullSize(), 16)).train(), []
    hook = model.low_network.register_forward_hook(lambda module, given, result: seen.append(result))
    images, labels = data(scenes).batch(range(2), 0)
    losses = Objective(model, LABELLED)(images, labels)
    hook.remove()
    assert seen[0]["aux"].shape[2:] == (18, 24)
    expected = F.interpolate(seen[0]["aux"], (36, 48), mode="bilinear")
    torch.testing.assert_close(losses["aux cross entropy"], cross_entropy(expected, labels))


def test_coarse_auxiliary_scores_of_padding_are_cut_off(scenes):
    """They have no pixel at the border of the image."""
    torch.manual_seed(0)
    network = Guided()
    model, (images, labels) = wae_segmenter(AnySize(network, 16)).train(), data(scenes).batch(range(2), 0)
    low = model.low_norm(model.decompose(images)[0])
    padded = F.pad(low, (0, 8, 0, 14), mode="replicate")  # from 18 x 24 to 32 x 32
    coarse = F.interpolate(network(padded)["coarse"], (32, 32), mode="bilinear")[:, :, :18, :24]
    expected = cross_entropy(F.interpolate(coarse, (36, 48), mode="bilinear"), labels)
    torch.testing.assert_close(Objective(model, LABELLED)(images, labels)["coarse cross entropy"], expected)


def test_auxiliary_scores_of_low_are_not_stretched_at_an_odd_edge():
    """All of them scaled to the labels would move those at the far edge by a pixel."""
    torch.manual_seed(0)
    model, seen = wae_segmenter(GuidedAtFullSize()).train(), []
    model.low_network.register_forward_hook(lambda module, given, result: seen.append(result["aux"]))
    images = torch.randint(256, (2, 3, 35, 47), dtype=torch.uint8)
    labels = torch.randint(3, (2, 35, 47))
    losses = Objective(model, LABELLED)(images, labels)
    expected = F.interpolate(seen[0], (36, 48), mode="bilinear")[:, :, :35, :47]
    torch.testing.assert_close(losses["aux cross entropy"], cross_entropy(expected, labels))


# ------------------------------------------------------------------------------------------- loss and measure


def test_rare_classes_count_more_and_ignored_pixels_do_not_count():
    weights = class_weights(torch.tensor([0.9, 0.1, 0.0]), 1.02)
    assert weights.tolist() == pytest.approx([1 / math.log(1.92), 1 / math.log(1.12), 1 / math.log(1.02)])
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    torch.testing.assert_close(
        cross_entropy(scores, labels, weights), F.cross_entropy(scores, labels, weights)
    )
    labels[0] = NOT_COUNTED
    torch.testing.assert_close(
        cross_entropy(scores, labels, weights, 0.1),
        F.cross_entropy(scores[1:], labels[1:], weights, label_smoothing=0.1),
    )
    assert cross_entropy(scores, torch.full_like(labels, NOT_COUNTED), weights) == 0
    torch.testing.assert_close(cross_entropy(scores[:, :, 0, 0], labels[:, 0, 0].clamp(min=0)),
                               F.cross_entropy(scores[:, :, 0, 0], labels[:, 0, 0].clamp(min=0)))  # fmt: skip


def test_the_mimic_loss_treats_each_pixel_as_an_image():
    torch.manual_seed(0)
    scores, wanted = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    flat = (x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (scores, wanted))
    torch.testing.assert_close(mimic_loss(scores, wanted, 2.0), mimic_loss(*flat, 2.0))


def test_class_weights_come_from_the_training_labels(scenes):
    shares = data(scenes).shares()
    seen = []

    class Watch(Observer):
        def step(self, number, losses):
            seen.append(losses["loss"].item())

    model = small_segmenter().eval()
    plan = Plan("small", (replace(LABELLED, epochs=1, learning_rate=0.0),), batch=20)
    training = data(scenes)
    train(model, plan, training, data(scenes, "val"), observer=Watch())
    images, labels = training.batch(range(20), 0)
    with torch.no_grad():
        expected = cross_entropy(model.train()(images), labels, class_weights(shares, 1.02).float())
    assert seen[0] == pytest.approx(expected.item(), rel=1e-3)


def test_accumulation_gives_the_gradient_of_the_full_batch(tmp_path):
    """Each counted pixel has the weight of its class, however many are counted in its part of the batch."""
    folder = write_scenes(tmp_path / "scenes")
    for number in range(14):  # some parts have no counted pixel
        Image.fromarray(np.full((36, 48), 3, np.uint8)).save(folder / "train" / "labels" / f"{number:02}.png")
    trained, losses = [], []
    for accumulate in (1, 10):
        torch.manual_seed(0)
        model = FullResolutionSegmenter(nn.Conv2d(3, 3, 3, padding=1), [1 / 64] * 3, [-2.0] * 3)
        plan = Plan("small", (replace(LABELLED, optimizer="sgd"),), batch=20, accumulate=accumulate)
        losses.append([epoch.losses["loss"] for epoch in run(folder, plan, model)[1]])
        trained.append(model.network.weight)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-6)


def test_class_balance_must_exceed_1_and_needs_pixel_labels():
    with pytest.raises(PlanError, match=r"must be 0 or a number above 1, got 0\.5"):
        Stage("classifier", 1, 0.1, class_balance=0.5)
    from trained import network
    from trained import run as run_classifier

    plan = Plan("tiny", (replace(LABELLED, epochs=1),), batch=8)
    with pytest.raises(ValueError, match="class_balance: needs training images with a class for each pixel"):
        run_classifier(plan, network())
    run_classifier(replace(plan, stages=(replace(plan.stages[0], kind="transform"),)), network())  # no labels


def test_accuracies_are_those_of_a_confusion_matrix(scenes):
    counts = counts_for(data(scenes))  # three classes
    right = torch.tensor([[0, 0, 0, 0, 0, 1, NOT_COUNTED, NOT_COUNTED]])
    taken = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0]])
    scores = F.one_hot(taken, 3).permute(0, 2, 1).float() * 50
    counts.add(scores[..., None, :], right[:, None])
    counts.add(scores[..., None, :], right[:, None])
    found = counts.result()
    assert found.pixels == pytest.approx(4 / 6)
    assert found.mean_iou == pytest.approx((3 / 5 + 1 / 3) / 2)  # the third class does not occur
    assert found.mean_class == pytest.approx((3 / 5 + 1 / 1) / 2)  # of the pixels that are of the class
    assert found.loss == pytest.approx(2 * 50 / 6)
    assert (found.images, found.score) == (2, found.mean_iou)
    with pytest.raises(ValueError, match="at least one pixel that is counted"):
        counts_for(data(scenes)).result()


def test_fewer_images_are_measured_if_they_are_large(scenes, monkeypatch):
    monkeypatch.setattr(norms, "_SAMPLE", 8)
    assert norms._most(data(scenes)) == 8
    for side, most in ((448, 2), (2048, 1)):
        assert norms._most(segmentation_folder(scenes, "train", whole(side, side))) == most


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_resume_after_interruption_gives_the_same_weights(scenes, tmp_path, epoch):
    uninterrupted, expected = run(scenes)
    with pytest.raises(KeyboardInterrupt):
        run(scenes, state=tmp_path / "state", observer=StopAt(epoch))
    model, history = run(scenes, model=small_segmenter(1), state=tmp_path / "state", resume=True)
    assert [epoch.losses for epoch in history] == [epoch.losses for epoch in expected]
    assert [epoch.accuracy for epoch in history] == [epoch.accuracy for epoch in expected]
    for name, tensor in uninterrupted.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="data that differs in file names"):
        train(model, PLAN, data(scenes).subset(range(10)), None, state=tmp_path / "state", resume=True)


@pytest.mark.parametrize(
    "name", ["enet", "enet_half", "wae_enet", "wae_mobilenet_deconv_compensated", "lraspp_mobilenet_v3_large"]
)
def test_networks_are_saved_and_loaded(tmp_path, name):
    rehearse(tmp_path, build(name, 4), name, list("abcd"), whole(36, 48))
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- command line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["enet", "enet_half"])
def test_a_network_without_wae_is_trained_by_the_default_plan(scenes, tmp_path, name):
    """That plan has a ``low_weight``, for a network on ``low``, which this one lacks."""
    out = tmp_path / "out"
    arguments = ["train", "--data", scenes, "--model", name, "--epochs", 1, "--batch", 10, "-o", out]
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert {stage.kind for stage in read(out / "plan.toml").stages} == {"classifier"}


@pytest.mark.slow
def test_wae_train_trains_a_segmenter(scenes, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(TINY_PLAN)
    out = tmp_path / "out"
    arguments = ["train", "--data", scenes, "--plan", tmp_path / "tiny.toml", "--size", "36x40", "-o", out]
    assert cli.main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert "mean IoU" in printed
    assert "pixel accuracy" in printed
    described = describe(out / "model.safetensors")
    assert (described.network, described.labels) == ("wae_enet", ("sky", "road", "car"))
    assert described.input.shape == (36, 40)
    model = load_classifier(out / "model.safetensors")
    assert model.decoder is not None
    assert model(torch.zeros(1, 3, 36, 40, dtype=torch.uint8)).shape == (1, 3, 36, 40)
    made = weights_file.read_recipe(out / "model.safetensors")
    assert len(made["accuracy"]) == len(PixelAccuracy._fields)
    line = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert 0 <= line["accuracy"]["mean_iou"] <= 1
    assert cli.main([*map(str, arguments), "--resume"]) == 0


@pytest.mark.slow
def test_wae_train_says_which_classes_no_label_has(tmp_path, capsys):
    """The objects in masks of 0 and 255 are not counted, so everything seemed to be right."""
    folder = write_scenes(tmp_path / "data", (("train", 2), ("val", 1)), classes=("background", "object"))
    for path in folder.glob("*/labels/*.png"):
        Image.fromarray(255 * (np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    plan = Plan("enet", (replace(LABELLED, epochs=1),), batch=2)
    (tmp_path / "one.toml").write_text(plan.as_toml())
    command = ["train", "--data", folder, "--plan", tmp_path / "one.toml", "-o", tmp_path / "out", "--json"]
    assert cli.main([str(argument) for argument in command]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["epochs"][0]["accuracy"]["mean_iou"] == 1
    wanted = "train/images: no label has a pixel of object (1); pixels of 255 do not count"
    assert wanted in printed.err.replace("\n", "")


def test_a_classifier_is_refused_if_pixels_have_labels(scenes, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(TINY_PLAN)
    command = ["train", "--data", scenes, "--plan", tmp_path / "tiny.toml", "--model", "wae_resnet18"]
    assert cli.main([*map(str, command), "-o", str(tmp_path / "out")]) == 1
    wanted = "wae_resnet18 is a classifier, but the data have a class for each pixel"
    assert wanted in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*map(str, command), "--size", "36x", "-o", str(tmp_path / "out")])
    assert "needs a whole number" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model", "--teacher"])
def test_a_segmenter_is_refused_if_images_have_labels(tmp_path, capsys, option):
    wrong = "wae_enet" if option == "--model" else str(saved(tmp_path / "teacher", "wae_enet"))
    assert cli.main(["train", "--data", "digits", option, wrong, "-o", str(tmp_path / "o")]) == 1
    assert (
        "wae_enet is a segmentation network, but the data have a class for each image"
        in capsys.readouterr().err
    )


def test_choosing_a_plan_respects_the_given_size_and_pixel_limit(tmp_path):
    """These images are too large to be trained on without a size."""
    folder = write_scenes(tmp_path / "large", (("train", 1), ("val", 1)), (16, 2064))
    line = ["train", "--data", str(folder), "-o", str(tmp_path / "out")]

    def chosen(*more):
        return command._plan(cli.build_parser().parse_args([*line, *more]))[0]

    assert chosen("--size", "16x32") == find("camvid")
    with pytest.raises(ImageError, match="16 x 2064 pixels exceed the limit of 100"):
        chosen("--max-pixels", "100")


def saved(path, name="enet"):
    """Save a network with random weights, for the classes of the scenes; returns ``path``."""
    save_classifier(path, build(name, 3), name, ("sky", "road", "car"), whole(40, 48))
    return path


def test_test_images_are_scaled_to_the_size_of_the_training_images(tmp_path):
    write_scenes(tmp_path / "data", parts=(("train", 2),))
    write_scenes(tmp_path / "other", parts=(("val", 1),), size=(60, 50))
    (tmp_path / "other" / "val").rename(tmp_path / "data" / "val")
    sets = Session(PLAN, str(tmp_path / "data"), tmp_path / "out")._sets(Console())
    assert [part.shape for part in sets] == [(36, 48), (36, 48)]


def test_wae_eval_measures_at_the_size_of_the_checkpoint(tmp_path, capsys):
    path, folder = saved(tmp_path / "enet.safetensors"), write_scenes(tmp_path / "data")
    (folder / "val" / "images" / ".hidden.png").touch()
    assert cli.main(["eval", str(path), "--data", str(folder), "--seconds", "0", "--json"]) == 0
    printed = capsys.readouterr()
    (found,) = json.loads(printed.out)["networks"]
    assert found["multiply_adds"] == count(build("enet", 3), (40, 48)).multiply_adds
    assert 0 <= found["mean_iou"] <= 1
    assert "left out: 1 hidden" in printed.err


def test_wae_eval_refuses_data_of_the_other_kind(scenes, tmp_path, capsys):
    path = tmp_path / "small.safetensors"
    save_classifier(path, build("wae_small_vgg", 3), "wae_small_vgg", ("sky", "road", "car"), Input(28, 28))
    assert cli.main(["eval", str(path), "--data", str(scenes)]) == 1
    assert "wae_small_vgg is a classifier, but the data have" in capsys.readouterr().err
