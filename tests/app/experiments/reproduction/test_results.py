"""Result files: read back as a training wrote them, and refused if they are damaged."""

import json
from dataclasses import asdict

import pytest
from reproductions import DIGITS

from wae.experiments.reproduction.claim import Job
from wae.experiments.reproduction.results import Result, read_result
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
    (tmp_path / f"{job.stem}.json").write_text(json.dumps(asdict(result)))
    assert read_result(tmp_path, job, DIGITS) == result
