"""``wae train --original``: WAE initialised and distilled from the trained network at full resolution."""

from dataclasses import replace

import pytest
import torch
from scenes import CLASSES, TINY_PLAN, write_scenes

from wae import cli
from wae.data.input import whole
from wae.models.registry import build
from wae.storage.checkpoint import describe, load_classifier, save_classifier
from wae.training import fine_tuning
from wae.training.fine_tuning import fine_tuning_plan
from wae.training.objective import Objective
from wae.training.plan import Plan, Stage, find, read
from wae.training.pretrained import scale_for_photos

DISTILLED = {"mimic_weight": 1.0, "mimic_temperature": 4.0, "mimic_mirrored": True}
ORDER = ("road", "car", "sky")  # another than in the data
INPUT = whole(24, 32)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def checkpoint(path, name="enet", labels=ORDER, input=INPUT):
    torch.manual_seed(3)
    model = build(name, len(labels))
    scale_for_photos(model)
    model.image_shift.add_(0.5)  # unlike that of other networks
    save_classifier(path, model, name, labels, input)
    return path


@pytest.fixture
def original(tmp_path):
    return checkpoint(tmp_path / "enet.safetensors")


@pytest.fixture
def train(scenes, original, tmp_path):
    """Runs ``wae train`` by the tiny plan, with further arguments."""
    (tmp_path / "tiny.toml").write_text(TINY_PLAN.replace("wae_enet", "wae_icnet"))

    def run(*arguments):
        given = ["--data", scenes, "--plan", tmp_path / "tiny.toml", "-o", tmp_path / "out", *arguments]
        return cli.main(["train", *map(str, given)])

    return run


@pytest.fixture
def teachers(monkeypatch):
    """The teacher of each stage that is trained."""
    found, init = [], Objective.__init__

    def seen(self, model, stage, teacher=None, *rest):
        found.append(teacher)
        init(self, model, stage, teacher, *rest)

    monkeypatch.setattr(Objective, "__init__", seen)
    return found


def assert_parameters_of(model, expected):
    for name, parameter in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name


def test_wae_is_initialised_from_the_original_and_distilled_from_it(train, original, tmp_path, teachers):
    assert train("--original", original, "--learning-rate", 0) == 0
    made = tmp_path / "out" / "model.safetensors"
    model, network = load_classifier(made), load_classifier(original)
    assert (describe(made).network, describe(made).labels) == ("wae_enet", ORDER)
    assert describe(made).input.shape == (24, 32)  # the original's, not that of the data
    assert_parameters_of(model.low_network, network.network)
    assert torch.equal(model.image_scale, network.image_scale)
    assert torch.equal(model.image_shift, network.image_shift)
    images = torch.randint(256, (2, 3, 36, 48), dtype=torch.uint8)
    torch.testing.assert_close(teachers[-1].cpu().eval()(images), network.eval()(images))
    plan = read(tmp_path / "out" / "plan.toml")
    assert (plan.model, plan.start, plan.norm_statistics) == ("wae_enet", "random", "kept")
    assert [stage.learning_rate for stage in plan.stages] == [3e-4, 0]  # of fine-tuning, and as given
    assert {name: getattr(plan.stages[1], name) for name in DISTILLED} == DISTILLED
    assert train("--original", original, "--learning-rate", 0, "--resume") == 0


def test_half_the_resolution_is_initialised_from_the_original_too(train, original, tmp_path):
    assert train("--original", original, "--model", "enet_half", "--learning-rate", 0) == 0
    made = load_classifier(tmp_path / "out" / "model.safetensors")
    assert_parameters_of(made, load_classifier(original))


@pytest.mark.parametrize(("given", "shape"), [((), (24, 32)), (("--size", "12x16"), (12, 16))])
def test_images_are_prepared_as_for_the_original(train, tmp_path, given, shape):
    """It is the teacher too, and does worse on other images than those that it was trained on."""
    input = replace(INPUT, interpolation="bicubic", grayscale=True)
    grey = checkpoint(tmp_path / "grey.safetensors", input=input)
    assert train("--original", grey, "--model", "enet_half", "--learning-rate", 0, *given) == 0
    made = describe(tmp_path / "out" / "model.safetensors").input
    assert made == replace(whole(*shape), interpolation="bicubic", grayscale=True)


def test_another_teacher_can_be_given(train, original, tmp_path, teachers):
    other = checkpoint(tmp_path / "other.safetensors", "enet_half", CLASSES[:3])
    assert train("--original", original, "--teacher", other) == 0
    images = torch.randint(256, (2, 3, 36, 48), dtype=torch.uint8)
    scores = load_classifier(other).eval()(images)
    in_order = scores[:, [CLASSES.index(label) for label in ORDER]]
    torch.testing.assert_close(teachers[-1].cpu().eval()(images), in_order)


def test_resuming_with_another_original_is_refused(train, original, tmp_path, capsys):
    assert train("--original", original) == 0
    torch.manual_seed(4)
    save_classifier(original, build("enet", 3), "enet", ORDER, whole(36, 48), force=True)
    assert train("--original", original, "--resume") == 1
    assert "--original" in capsys.readouterr().err


def test_a_plan_keeps_its_entries_except_start_and_statistics():
    plan = find("camvid")
    made = fine_tuning_plan(plan)
    assert (made.start, made.norm_statistics, made.batch) == ("random", "kept", plan.batch)
    assert [stage.learning_rate for stage in made.stages] == [3e-4, 2e-3, 2e-3]
    own = Plan("wae_enet", (Stage("classifier", 1, 0.1, mimic_weight=0.5), Stage("joint", 1, 0.1)))
    assert fine_tuning_plan(own).stages == own.stages  # with its own distillation


def test_training_resumes_by_the_plan_that_it_wrote(train, original, tmp_path):
    assert train("--original", original, "--learning-rate", 0) == 0
    assert train("--original", original, "--plan", tmp_path / "out" / "plan.toml", "--resume") == 0


def test_an_unusable_teacher_is_refused_before_the_first_step(train, original, tmp_path, capsys):
    classifier = checkpoint(tmp_path / "small.safetensors", "small_photo_vgg")
    assert train("--original", original, "--teacher", classifier) == 1
    assert "small_photo_vgg is a classifier, but the data have a class for each pixel" in (
        capsys.readouterr().err
    )
    network = load_classifier(original)
    next(network.parameters()).data.fill_(3e38)  # sums of such numbers overflow
    save_classifier(original, network, "enet", ORDER, whole(36, 48), force=True)
    assert train("--original", original, "--resume") == 1
    printed = capsys.readouterr().err
    assert f"the teacher, {original}: its scores of the test images are not finite" in printed
    assert not (tmp_path / "out" / "state.safetensors").exists()


def test_images_without_finite_blocks_of_2x2_pixels_are_refused(train, original, capsys):
    assert train("--original", original, "--size", "1x3") == 1
    assert "needs images of at least 2 x 2 pixels, got 1 x 3" in capsys.readouterr().err
    network = load_classifier(original)
    network.image_scale.fill_(3e38)
    save_classifier(original, network, "enet", ORDER, whole(36, 48), force=True)
    assert train("--original", original) == 1
    assert "numbers are finite in the network's units" in capsys.readouterr().err


def test_an_unusable_original_is_refused(train, original, tmp_path, capsys):
    def refused(*arguments, status=1):
        assert train(*arguments) == status
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    name = str(original)
    assert f"{name}: holds enet, from which wae_icnet cannot be initialised" in refused(
        "--original", original, "--model", "wae_icnet"
    )
    assert "from which enet cannot be initialised" in refused("--original", original, "--model", "enet")
    half = checkpoint(tmp_path / "half.safetensors", "enet_half")
    assert "holds enet_half, from which wae_enet_half cannot be initialised" in refused("--original", half)
    small = checkpoint(tmp_path / "small.safetensors", "small_photo_vgg")
    assert "for classifiers there is wae accelerate" in refused("--original", small)
    for option in ("--weights", "--body-weights", "--autoencoder"):
        printed = refused("--original", original, option, original, status=2)
        assert f"--original and {option}: need one of them, got both" in printed
    assert "there is no such file" in refused("--original", tmp_path / "missing.safetensors")
    strangers = checkpoint(tmp_path / "strangers.safetensors", labels=("cat", "dog", "sky"))
    assert "its classes differ from those of the data" in refused("--original", strangers)


@pytest.mark.parametrize("number", [20, 3])
def test_images_that_cannot_be_read_are_refused(number):
    class Unreadable:
        def __len__(self):
            return number

        def batch(self, indices, epoch):
            return torch.empty(0, 3, 36, 48, dtype=torch.uint8), torch.empty(0, 36, 48)

    with pytest.raises(ValueError, match=f"none of the {number} images tried can be read"):
        fine_tuning.initialise_from_original(build("wae_enet", 3), build("enet", 3), Unreadable())
