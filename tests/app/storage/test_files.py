"""wae.storage.files and wae.storage.decomposed: nothing is lost, and no damaged file is believed."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wae.models.autoencoder import AutoEncoder
from wae.storage import decomposed, files


def test_written_makes_folders_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "new" / "file"
    with files.written(path) as file:
        file.write(b"all")
    assert path.read_bytes() == b"all"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_failure_halfway_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_halfway():
        with files.written(path, force=True) as file:
            file.write(b"half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_existing_file_is_refused_unless_forced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="--force"), files.written(path):
        pass
    with pytest.raises(FileExistsError, match="is a folder"), files.written(tmp_path, force=True):
        pass
    with files.written(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def decomposition(dtype=torch.float32, size=(5, 8), shape=(3, 3, 4)):
    low, high = torch.randn(2, *shape).to(dtype)
    return decomposed.Decomposition(low, high, size, "weights")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_decomposition_comes_back_as_it_went(tmp_path, dtype):
    made = decomposition(dtype)
    decomposed.save(tmp_path / "a", made)
    read = decomposed.load(tmp_path / "a")
    assert torch.equal(read.low, made.low)
    assert torch.equal(read.high, made.high)
    assert (read.size, read.weights, read.low.dtype) == (made.size, made.weights, dtype)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (decomposition(size=(7, 8)), "low has shape"),
        (decomposition(size=(-1, 0), shape=(3, 0, 0)), "low has shape"),
        (decomposition(torch.float64), "float32 or float16"),
        (decomposition()._replace(high=torch.full((3, 3, 4), np.nan)), "high must hold finite"),
        (decomposition()._replace(high=torch.zeros(3, 3, 5)), "high has shape"),
    ],
    ids=["size", "no pixels", "dtype", "nan", "high's shape"],
)
def test_inconsistent_content_is_refused(tmp_path, made, message):
    decomposed.save(tmp_path / "a", made)
    with pytest.raises(decomposed.ContainerError, match=message):
        decomposed.load(tmp_path / "a")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(decomposed.ContainerError, match="no such file"):
        decomposed.load(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(decomposed.ContainerError, match="cannot be read"):
        decomposed.load(path)
    decomposed.save(path, decomposition(), force=True)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(decomposed.ContainerError, match="cannot be read"):
        decomposed.load(path)
    save_file({"low": torch.zeros(1)}, path)
    with pytest.raises(decomposed.ContainerError, match="not written by `wae encode`"):
        decomposed.load(path)
    save_file({"low": torch.zeros(1)}, path, {"format": "wae decomposed image 1"})
    with pytest.raises(decomposed.ContainerError, match="cannot be read"):
        decomposed.load(path)


def test_a_fingerprint_changes_with_any_weight():
    model = AutoEncoder()
    before = decomposed.fingerprint(model)
    assert decomposed.fingerprint(model) == before
    with torch.no_grad():
        model.decoder.conv3.bias[0] += 1
    assert decomposed.fingerprint(model) != before
