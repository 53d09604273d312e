"""Plans: what a file may contain, what is refused, and the plans that come with the package."""

from dataclasses import fields, replace

import pytest

from wae.models.registry import NETWORKS, PARTS
from wae.models.segmentation import networks as segmentation
from wae.training import plan
from wae.training.plan import KINDS, PLANS, Plan, PlanError, Stage

STAGE = {"kind": "joint", "epochs": 2, "learning_rate": 0.1}
SHIPPED = sorted(path.stem for path in PLANS.glob("*.toml"))


def test_plans_come_with_the_package():
    assert {"digits", "wae_resnet50", "wae_vgg16"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_plan_names_a_known_network_and_survives_toml(name, tmp_path):
    shipped = plan.find(name)
    own = {*NETWORKS, *PARTS, *(f"wae_{name}" for name in segmentation.NETWORKS)}
    assert shipped.model in own
    kinds = [KINDS.index(stage.kind) for stage in shipped.stages]
    assert kinds == sorted(kinds)
    (tmp_path / "again.toml").write_text(shipped.as_toml())
    assert plan.read(tmp_path / "again.toml") == shipped
    assert plan.find(str(tmp_path / "again.toml")) == shipped


@pytest.mark.parametrize("name", ["wae_vgg16", "wae_resnet50"])
def test_the_papers_plans_have_its_stages_and_its_gamma(name):
    papers = plan.find(name)
    assert tuple(stage.kind for stage in papers.stages) == KINDS
    assert papers.stages[2].transform_weight == 1e-3


def test_lasting_scales_warm_up_and_step_epochs():
    """A warm-up of unchanged length could outlast the training, and the rate never reach its maximum."""
    cosine = Stage("joint", 20, 0.1, warmup=3.0)
    assert cosine.lasting(5) == replace(cosine, epochs=5, warmup=0.75)
    assert cosine.lasting(40) == replace(cosine, epochs=40, warmup=6.0)
    uneven = replace(cosine, epochs=3, warmup=0.1)  # in floating point, 0.1 * 3 / 3 is not 0.1
    assert uneven.lasting(3) == uneven
    stepped = replace(cosine, schedule="step", step_epochs=8)
    assert [stepped.lasting(epochs).step_epochs for epochs in (5, 7, 40, 1)] == [2, 3, 16, 1]


def test_a_rate_for_labels_leaves_stage_1_its_own():
    """As Adam's rate, the 0.05 of SGD turns 45 dB into 14 within 60 steps."""
    digits = plan.find("digits")
    assert [stage.learning_rate for stage in digits.at_rate(0.3).stages] == [1e-3, 0.3, 0.3]
    assert [stage.learning_rate for stage in digits.only("transform").at_rate(0.3).stages] == [0.3]


def test_a_plan_for_some_stages_or_for_a_network_without_an_encoder():
    full = plan.find("digits")
    assert [stage.kind for stage in full.only("transform", "joint").stages] == ["transform", "joint"]
    plain = full.without_encoder()
    assert [stage.kind for stage in plain.stages] == ["classifier", "classifier"]
    assert plain.stages[1] == replace(full.stages[2], kind="classifier")
    assert plain.start == "random"
    with pytest.raises(PlanError, match="one stage with labels, because wae_small_vgg has no encoder"):
        full.only("transform").without_encoder()
    with pytest.raises(PlanError, match="at least one stage of kind transform, got classifier, classifier"):
        plain.only("transform")


def test_a_network_without_low_has_no_low_weight():
    whole = plan.find("camvid")
    weights = [stage.low_weight for stage in whole.stages if stage.kind != "transform"]
    assert any(weights)
    assert not any(stage.low_weight for stage in whole.without_encoder().stages)
    assert [stage.low_weight for stage in whole.without_encoder(low=True).stages] == weights


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "model is missing"),
        ({"model": 3, "stages": [STAGE]}, "model must be a name, got 3"),
        ({"model": "m", "stages": []}, "stages must hold at least one stage"),
        ({"model": "m", "stages": 3}, r"stages must be tables, \[\[stages\]\], got 3"),
        ({"model": "m", "stages": [3]}, "stages must be tables"),
        ({"model": "m", "steps": 3}, "there is no entry 'steps'; known are model, stages, batch"),
        ({"batch": 0}, "batch must be an integer from 1 to 10000000, got 0"),
        ({"seed": -1}, "seed must be an integer from 0 to 2147483648, got -1"),
        ({"batch": True}, "batch must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"remeasure_norms": "yes"}, "remeasure_norms must be true or false, got 'yes'"),
        ({"precision": "int8"}, "precision must be one of float32, .*, got 'int8'"),
        ({"stages": [{"kind": "joint", "epochs": 1}]}, "stage 1: learning_rate is missing"),
        ({"stages": [STAGE, {**STAGE, "kind": "both"}]}, "stage 2: kind must be one of transform, "),
        ({"stages": [{**STAGE, "epochs": 0}]}, "stage 1: epochs must be an integer from 1"),
        ({"stages": [{**STAGE, "learning_rate": "1"}]}, "learning_rate must be a number"),
        ({"stages": [{**STAGE, "learning_rate": float("nan")}]}, "learning_rate must be a number .*nan"),
        ({"stages": [{**STAGE, "sparsity": 1.5}]}, "sparsity must be a number from 0 to 1, got 1.5"),
        ({"stages": [{**STAGE, "sparsity": 1}]}, "stage 1: sparsity must be a number below 1, got 1"),
        ({"stages": [{**STAGE, "ema": 1.0}]}, "stage 1: ema must be a number below 1, got 1.0"),
        ({"stages": [{**STAGE, "momentum": 1}]}, "stage 1: momentum must be a number below 1, got 1"),
        ({"stages": [{**STAGE, "mimic_mirrored": 1}]}, "mimic_mirrored must be true or false, got 1"),
        ({"stages": [{**STAGE, "mimic_temperature": 0}]}, "mimic_temperature must be a number from 0.001"),
        ({"stages": [{**STAGE, "step_epochs": 0}]}, "step_epochs must be an integer from 1"),
        ({"stages": [{**STAGE, "class_balance": 1}]}, "class_balance must be 0 or a number above 1, got 1"),
        ({"stages": [{**STAGE, "lr": 1}]}, "stage 1: there is no entry 'lr'"),
    ],
    ids=str,
)
def test_wrong_plans_are_refused(entries, message):
    whole = entries if "model" in entries or not entries else {"model": "m", "stages": [STAGE], **entries}
    with pytest.raises(PlanError, match=message):
        plan.from_dict(whole)


@pytest.mark.parametrize("name", [f.name for f in fields(Stage) if f.type in ("int", "float")])
@pytest.mark.parametrize("number", [-1, 1e9])
def test_every_number_of_a_stage_has_limits(name, number):
    with pytest.raises(PlanError, match=f"^{name} must be "):
        Stage(**{**STAGE, name: number})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"model = ", "Invalid value"),
        (b"\xff\xfe", "decode"),
        (b"x = " + 5000 * b"[" + 5000 * b"]", "is nested too deeply"),
        (b'model = "m"\nbatch = 0\n[[stages]]\nkind = "joint"\nepochs = 1\nlearning_rate = 1', "batch must"),
    ],
    ids=["missing", "no TOML", "no text", "depth", "a wrong number"],
)
def test_an_error_in_a_file_names_it(tmp_path, content, message):
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match=rf"my\.toml: .*{message}"):
        plan.read(path)


@pytest.mark.parametrize("name", ["nothing", "../digits", "/etc/passwd.toml", ""])
def test_an_unknown_plan_is_refused(name):
    with pytest.raises(
        PlanError, match="is neither a file nor one of the plans autoencoder, camvid, digits, "
    ):
        plan.find(name)


def test_a_plan_can_be_made_in_python():
    assert plan.from_dict({"model": "m", "stages": [STAGE]}) == Plan("m", (Stage(**STAGE),))


def test_an_entry_that_an_older_plan_lacks_has_its_default():
    one = plan.from_dict({"model": "m", "stages": [STAGE]})
    made = one.as_dict()
    del made["stages"][0]["low_weight"]
    assert plan.differences(made, one) == ""
    other = replace(one, stages=(replace(one.stages[0], low_weight=0.5),))
    assert plan.differences(made, other) == "low_weight (0.0, not 0.5)"
    assert plan.differences({**made, "later": 1}, one) == "later (1, not None), low_weight (None, not 0.0)"


def test_changed_entries_are_named_in_order_and_without_long_values():
    assert plan.changed(dict.fromkeys("hgfedcba", "x" * 60), {}) == [*"abcdefgh"]


def test_default_loss_weights_are_the_papers():
    stage = Stage("joint", 1, 0.1)
    assert (stage.energy_weight, stage.transform_weight) == (1e-3, 1e-3)  # lambda and gamma


def test_differences_name_the_stage_or_the_number_of_stages():
    stage = Stage("joint", 1, 0.1)
    made = Plan("m", (stage,)).as_dict()
    assert plan.differences(made, Plan("m", (stage,))) == ""
    assert plan.differences(made, Plan("m", (stage, stage))) == "number of stages (1, not 2)"
    two, longer = Plan("m", (stage, stage)), Plan("m", (stage, replace(stage, epochs=3)))
    assert plan.differences(two.as_dict(), longer) == "epochs (1, not 3) of stage 2"
