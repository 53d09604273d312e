"""Result files: read back as written, refused if damaged; what a kill left beside them is removed."""

import json
from dataclasses import asdict, replace

import pytest
from reproductions import DIGITS

from wae.experiments import reproduce
from wae.experiments.reproduction.claim import Job
from wae.experiments.reproduction.results import (
    Result,
    needed_weights,
    read_result,
    result_path,
    weights_path,
    write_json,
)
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


def test_a_result_from_other_weights_than_those_there_counts_as_missing(tmp_path):
    """One that does not say from which it came is kept, and so is one whose teacher is not there."""
    teacher, student = Job("28 x 28", 0), Job("WAE, mimic", 0)
    result = Result(*student, 0.5, 1.0, [0.5], DIGITS.plan_of(*student).as_dict())
    weights_path(tmp_path, teacher).write_bytes(b"first")
    weights_path(tmp_path, student).touch()
    recorded = replace(result, needed_weights=needed_weights(tmp_path, student, DIGITS))
    for found, kept in ((recorded, None), (result, result)):
        write_json(result_path(tmp_path, student), asdict(found))
        weights_path(tmp_path, teacher).write_bytes(b"first")
        assert read_result(tmp_path, student, DIGITS) == found
        weights_path(tmp_path, teacher).write_bytes(b"second")
        assert read_result(tmp_path, student, DIGITS) == kept
        weights_path(tmp_path, teacher).unlink()
        assert read_result(tmp_path, student, DIGITS) == found


def test_a_result_of_other_images_is_refused(tmp_path):
    """One that does not say from which it came is kept."""
    job, known = Job("WAE", 0), DIGITS.on("digits").data
    assert known["number of images of train"] == 1500
    other = {**known, "number of images of train": 3}
    for data, refused in ((known, False), (other, True), ({}, False)):
        result = Result("WAE", 0, 0.5, 1.0, [0.5], DIGITS.plan_of("WAE", 0).as_dict(), data=dict(data))
        write_json(result_path(tmp_path, job), asdict(result))
        assert reproduce.run(tmp_path, "there is none", [job], DIGITS, 1) == [result]
        if refused:
            why = r"comes from other images: number of images of train \(3, not 1500\); use another folder"
            with pytest.raises(CheckpointError, match=f"wae-seed0.json: {why}"):
                reproduce.run(tmp_path, "digits", [job], DIGITS, 1)
        else:
            assert reproduce.run(tmp_path, "digits", [job], DIGITS, 1) == [result]


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
