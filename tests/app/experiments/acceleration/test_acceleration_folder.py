"""The folder of an acceleration and its record: which runs may resume there."""

import pytest
from accelerations import task_of
from tiny_original import SIDE

from wae.experiments.acceleration.folder import RECORD, open_record
from wae.storage.weights_file import CheckpointError


def test_resume_needs_the_same_test_images(tmp_path):
    """Otherwise the report would compare accuracies on different images."""
    task, _ = task_of(tmp_path)
    open_record(tmp_path, task.as_dict())
    task.opened[SIDE] = task.sets(SIDE)._replace(test=task.sets(SIDE).test.subset(range(6)))
    with pytest.raises(CheckpointError, match="was begun with another test data; --force starts over"):
        open_record(tmp_path, task.as_dict())


def test_a_folder_that_holds_something_else_stays_as_it_is(tmp_path):
    task, _ = task_of(tmp_path)
    (tmp_path / "trials").mkdir()
    with pytest.raises(FileExistsError, match="neither empty nor the folder of an acceleration"):
        open_record(tmp_path, task.as_dict())
    assert (tmp_path / "trials").is_dir()


@pytest.mark.parametrize("text", ["", "{}", "[" * 200_000, '{"settings": {}, "found": 3}'], ids=range(4))
def test_a_damaged_record_is_refused(tmp_path, text):
    task, _ = task_of(tmp_path)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(CheckpointError, match=r"accelerate\.json: is damaged; --force starts over"):
        open_record(tmp_path, task.as_dict())
