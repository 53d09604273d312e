"""Result files: read back as written, refused if damaged; what a kill left beside them is removed."""

import json
from dataclasses import asdict

import pytest
from reproductions import DIGITS

from wae.experiments import reproduce
from wae.experiments.reproduction.claim import Job
from wae.experiments.reproduction.results import Result, read_result, write_json
from wae.storage.weights_file import CheckpointError


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        ("[1]", "must be a mapping"),
        ("[" * 200_000, "nested too deeply"),
        ({"plan": 3}, r"plan must be of kind dict\[str, Any\], got 3"),
        ({"accuracy": "0.9"}, "accuracy must be of kind float, got '0.9'"),
        ({"network": "28 x 28"}, "it is the result of 28 x 28, seed 0"),
    ],
    ids=["cut", "list", "deep", "plan", "accuracy", "another"],
)
def test_a_damaged_result_is_refused(tmp_path, text, why):
    job = Job("WAE", 0)
    if isinstance(text, dict):
        result = Result("WAE", 0, 0.5, 1.0, [0.5], DIGITS.plan_of("WAE", 0).as_dict())
        text = json.dumps({**asdict(result), **text})
    (tmp_path / f"{job.stem}.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"not the result of a training .*{why}.*; remove it to repeat"):
        read_result(tmp_path, job, DIGITS)


def test_a_result_survives_json(tmp_path):
    job = Job("WAE", 0)
    result = Result("WAE", 0, 0.5, 1.0, [0.5], DIGITS.plan_of("WAE", 0).as_dict())
    write_json(tmp_path / f"{job.stem}.json", asdict(result))
    assert read_result(tmp_path, job, DIGITS) == result


LEFT = "wae-seed0.state.safetensors", "wae-seed0.start.json", ".wae-seed0.json.0123abcd.part"


@pytest.mark.parametrize("weights", [True, False])
def test_the_next_run_removes_what_a_kill_after_the_result_left(tmp_path, weights):
    """The checkpoint stayed forever. It has the weights too, so it stays if these are missing."""
    result = Result("WAE", 0, 0.5, 1.0, [0.5], DIGITS.plan_of("WAE", 0).as_dict())
    write_json(tmp_path / "wae-seed0.json", asdict(result))
    kept = {"wae-seed0.json", "wae-seed1.state.safetensors", *(["wae-seed0.safetensors"] if weights else [])}
    for name in {*LEFT, *kept}:
        (tmp_path / name).touch()
    assert reproduce.run(tmp_path, "there is none", [Job("WAE", 0)], DIGITS, 1) == [result]
    assert {file.name for file in tmp_path.iterdir()} == (kept if weights else {*LEFT, *kept})
