"""The folder of an acceleration, and its record: which folder a run goes on with."""

import pytest
from accelerations import task_of
from tiny_original import SIDE

from wae.experiments.acceleration.folder import RECORD, Record, open_record
from wae.storage.weights_file import CheckpointError


def test_a_run_goes_on_with_its_own_test_images_alone(tmp_path):
    """Else the report would compare a network's accuracy on some with the other's on others."""
    task, _ = task_of(tmp_path)
    record = open_record(tmp_path, task.as_dict())
    task.opened[SIDE] = task.sets(SIDE)._replace(test=task.sets(SIDE).test.subset(range(6)))
    with pytest.raises(CheckpointError, match="was begun with another test data; --force starts over"):
        open_record(tmp_path, task.as_dict())
    del record.settings["test data"]  # a folder of before it was known
    record.write()
    assert open_record(tmp_path, task.as_dict()).settings["test data"]["number of images"] == 6


def test_the_trial_of_a_mirrored_teacher_was_called_as_that_of_a_plain_one(tmp_path):
    """The report had it beside the same trial under its own name."""
    names = [f"trial: size 48, factor 4, mimic {weight}" for weight in ("0", "1", "0.5", "2, mirrored")]
    task, _ = task_of(tmp_path, mimic_mirrored=True)
    Record(tmp_path / RECORD, task.as_dict(), dict.fromkeys([*names, "mimic"], 1)).write()
    now = [names[0], f"{names[1]}, mirrored", f"{names[2]}, mirrored", names[3], "mimic"]
    assert list(open_record(tmp_path, task.as_dict()).found) == now
    plain, _ = task_of(tmp_path)
    plain.opened.update(task.opened)  # the same images
    Record(tmp_path / RECORD, plain.as_dict(), dict.fromkeys(names, 1)).write()
    assert list(open_record(tmp_path, plain.as_dict()).found) == names


@pytest.mark.parametrize("text", ["", "{}", "[" * 200_000, '{"settings": {}, "found": 3}'], ids=range(4))
def test_a_damaged_record_is_refused(tmp_path, text):
    task, _ = task_of(tmp_path)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(CheckpointError, match=r"accelerate\.json: is damaged; --force starts over"):
        open_record(tmp_path, task.as_dict())


def test_a_folder_of_before_there_was_a_setting_had_its_default(tmp_path):
    (task, other) = (task_of(tmp_path, mimic_mirrored=mirrored)[0] for mirrored in (False, True))
    record = open_record(tmp_path, task.as_dict())
    del record.settings["mimic_mirrored"]
    record.found["head"] = 1
    record.write()
    assert open_record(tmp_path, task.as_dict()).found == {"head": 1}
    other.opened.update(task.opened)  # the same images
    with pytest.raises(CheckpointError, match=r"another mimic_mirrored \(False, not True\)"):
        open_record(tmp_path, other.as_dict())


def test_a_folder_of_before_there_was_a_choice_of_optimizers_goes_on_with_the_one_there_was(tmp_path):
    task, _ = task_of(tmp_path)
    record = open_record(tmp_path, task.as_dict())
    assert record.found == {}
    del record.settings["optimizer"]
    record.write()
    assert open_record(tmp_path, task.as_dict()).found == {"optimizer": {"name": "adamw"}}
