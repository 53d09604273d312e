"""The folder of an acceleration and its record: which runs may resume there."""

import pytest
import torch
from accelerations import task_of
from tiny_original import SIDE, build

from wae.experiments.acceleration.folder import RECORD, clear, clear_subfolder, open_record
from wae.storage.weights_file import CheckpointError


def test_resume_needs_the_same_test_images(tmp_path):
    """Otherwise the report would compare accuracies on different images."""
    task, _ = task_of(tmp_path)
    open_record(tmp_path, task.as_dict())
    task.opened[SIDE] = task.sets(SIDE)._replace(test=task.sets(SIDE).test.subset(range(6)))
    with pytest.raises(
        CheckpointError, match="was begun with other settings: test data; --force starts over"
    ):
        open_record(tmp_path, task.as_dict())


def test_resume_needs_the_same_weights_under_any_path(tmp_path):
    """In another folder, or from another working directory."""
    records, first, copy, other = (tmp_path / name for name in ("out", "first.pth", "copy.pth", "other.pth"))
    records.mkdir()
    weights = build().state_dict()
    for path in (first, copy):
        torch.save(weights, path)
    torch.save({name: 2 * tensor for name, tensor in weights.items()}, other)
    torch.manual_seed(0)  # the images are noise
    begun, _ = task_of(tmp_path, weights=str(first))
    open_record(records, begun.as_dict())
    torch.manual_seed(0)
    open_record(records, task_of(tmp_path, weights=str(copy))[0].as_dict())
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="was begun with other settings: weights; --force starts over"):
        open_record(records, task_of(tmp_path, weights=str(other))[0].as_dict())


def test_after_the_training_the_deployments_settings_may_change_until_it_is_done(tmp_path):
    """A network that loses too much in int8 was lost, with its training: only --force was left."""
    torch.manual_seed(0)  # the images are noise
    record = open_record(tmp_path, task_of(tmp_path, precision="int8", epochs=1)[0].as_dict())

    def again(**options):
        torch.manual_seed(0)
        return open_record(tmp_path, task_of(tmp_path, **{"epochs": 1, **options})[0].as_dict())

    other = {"precision": "float32", "engine": "eager", "max_drop": 0.5}
    with pytest.raises(CheckpointError, match=r"other settings: engine .*, max_drop .*, precision"):
        again(**other)
    record.once("training", dict)
    with pytest.raises(CheckpointError, match=r"begun with other settings: epochs \(1, not 2\);"):
        again(epochs=2, **other)
    resumed = again(**other)
    resumed.once("deployed", dict)
    assert again(**other).found.keys() == {"training", "deployed"}
    with pytest.raises(CheckpointError, match=r"other settings: precision \('float32', not 'bfloat16'"):
        again(**{**other, "precision": "bfloat16"})


def test_a_folder_that_holds_something_else_stays_as_it_is(tmp_path):
    task, _ = task_of(tmp_path)
    (tmp_path / "trials").mkdir()
    with pytest.raises(FileExistsError, match="neither empty nor the folder of an acceleration"):
        open_record(tmp_path, task.as_dict())
    assert (tmp_path / "trials").is_dir()


def test_starting_over_removes_only_what_an_acceleration_wrote(tmp_path):
    """It removed its folders with everything in them, that of the trials also at the end of each run."""
    made = (
        *(RECORD, "model.safetensors", "trials/head.safetensors", "trials/.head.safetensors.0123abcd.part"),
        *("baselines/half resolution.safetensors", "tensorboard/events.out.tfevents.1"),
        "deployed/deployed.json",
    )
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    own = "notes.txt", "trials/notes.txt", "baselines/of last week.json"
    for name in own:
        (tmp_path / name).write_text("mine")
    clear_subfolder(tmp_path, "trials")
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {"notes.txt"}
    clear(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(own)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "trials", "baselines"}


def test_a_subfolder_that_is_a_link_is_left_alone(tmp_path):
    for name in ("elsewhere", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "mine.safetensors").write_text("mine")
    (tmp_path / "out" / RECORD).write_text("{}")
    for name in ("trials", "baselines", "deployed"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    clear(tmp_path / "out")
    assert (tmp_path / "elsewhere" / "mine.safetensors").exists()


@pytest.mark.parametrize("text", ["", "{}", "[" * 200_000, '{"settings": {}, "found": 3}'], ids=range(4))
def test_a_damaged_record_is_refused(tmp_path, text):
    task, _ = task_of(tmp_path)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(CheckpointError, match=r"accelerate\.json: is damaged; --force starts over"):
        open_record(tmp_path, task.as_dict())
