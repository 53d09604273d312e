"""The folder of an acceleration and its record: which runs may resume there."""

import pytest
from accelerations import task_of
from tiny_original import SIDE

from wae.experiments.acceleration.folder import BASELINES, RECORD, Record, clear, open_record
from wae.storage.weights_file import CheckpointError


def test_resume_needs_the_same_test_images(tmp_path):
    """Otherwise the report would compare accuracies on different images."""
    task, _ = task_of(tmp_path)
    record = open_record(tmp_path, task.as_dict())
    task.opened[SIDE] = task.sets(SIDE)._replace(test=task.sets(SIDE).test.subset(range(6)))
    with pytest.raises(CheckpointError, match="was begun with another test data; --force starts over"):
        open_record(tmp_path, task.as_dict())
    del record.settings["test data"]  # as in records from before it was recorded
    record.write()
    assert open_record(tmp_path, task.as_dict()).settings["test data"]["number of images"] == 6


def test_trials_of_a_mirrored_teacher_lose_their_old_names(tmp_path):
    """An earlier version named them as with a plain teacher; the report listed a trial under both names."""
    names = [f"trial: size 48, factor 4, mimic {weight}" for weight in ("0", "1", "0.5", "2, mirrored")]
    task, _ = task_of(tmp_path, mimic_mirrored=True)
    Record(tmp_path / RECORD, task.as_dict(), dict.fromkeys([*names, "mimic"], 1)).write()
    now = [names[0], f"{names[1]}, mirrored", f"{names[2]}, mirrored", names[3], "mimic"]
    assert list(open_record(tmp_path, task.as_dict()).found) == now
    plain, _ = task_of(tmp_path)
    plain.opened.update(task.opened)  # the same images
    Record(tmp_path / RECORD, plain.as_dict(), dict.fromkeys(names, 1)).write()
    assert list(open_record(tmp_path, plain.as_dict()).found) == names


def test_baselines_that_an_earlier_version_called_rivals_are_found(tmp_path):
    task, _ = task_of(tmp_path)
    Record(tmp_path / RECORD, task.as_dict(), {"rival: half resolution": {"side": 24}}).write()
    (tmp_path / "rivals").mkdir()
    (tmp_path / "rivals" / "half resolution.safetensors").touch()
    assert open_record(tmp_path, task.as_dict()).found == {"baseline: half resolution": {"side": 24}}
    assert [path.name for path in (tmp_path / BASELINES).iterdir()] == ["half resolution.safetensors"]


def test_starting_over_removes_what_an_earlier_version_called_rivals(tmp_path):
    task, _ = task_of(tmp_path)
    Record(tmp_path / RECORD, task.as_dict()).write()
    (tmp_path / "rivals").mkdir()
    clear(tmp_path)
    assert open_record(tmp_path, task.as_dict()).found == {}


def test_a_folder_that_holds_something_else_stays_as_it_is(tmp_path):
    task, _ = task_of(tmp_path)
    (tmp_path / "rivals").mkdir()
    with pytest.raises(FileExistsError, match="neither empty nor the folder of an acceleration"):
        open_record(tmp_path, task.as_dict())
    assert (tmp_path / "rivals").is_dir()


@pytest.mark.parametrize("text", ["", "{}", "[" * 200_000, '{"settings": {}, "found": 3}'], ids=range(4))
def test_a_damaged_record_is_refused(tmp_path, text):
    task, _ = task_of(tmp_path)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(CheckpointError, match=r"accelerate\.json: is damaged; --force starts over"):
        open_record(tmp_path, task.as_dict())


def test_a_setting_that_an_older_record_lacks_had_its_default(tmp_path):
    (task, other) = (task_of(tmp_path, mimic_mirrored=mirrored)[0] for mirrored in (False, True))
    record = open_record(tmp_path, task.as_dict())
    del record.settings["mimic_mirrored"]
    record.found["head"] = 1
    record.write()
    assert open_record(tmp_path, task.as_dict()).found == {"head": 1}
    other.opened.update(task.opened)  # the same images
    with pytest.raises(CheckpointError, match=r"another mimic_mirrored \(False, not True\)"):
        open_record(tmp_path, other.as_dict())


def test_an_older_record_without_an_optimizer_resumes_with_adamw(tmp_path):
    task, _ = task_of(tmp_path)
    record = open_record(tmp_path, task.as_dict())
    assert record.found == {}
    del record.settings["optimizer"]
    record.write()
    assert open_record(tmp_path, task.as_dict()).found == {"optimizer": {"name": "adamw"}}
