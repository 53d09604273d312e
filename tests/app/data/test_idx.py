"""wae.data.idx: Fashion-MNIST as published, and malformed or different files."""

import gzip
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wae.data.dataset import DatasetError
from wae.data.idx import FASHION_MNIST_FOLDER, _read_idx, fashion_mnist
from wae.data.loading import open_dataset

needs_fashion_mnist = pytest.mark.skipif(
    not (FASHION_MNIST_FOLDER / "t10k-images-idx3-ubyte.gz").is_file(),
    reason="dataset-fashion-mnist is not installed",
)


def test_fashion_mnist_is_flipped_but_not_shifted(monkeypatch):
    def black(folder, file):
        return torch.zeros(3, *file.shape[1:], dtype=torch.uint8)

    monkeypatch.setattr("wae.data.idx._published", black)
    made = open_dataset("fashion-mnist", True, True, 4)
    assert (made.augment, made.seed, made.pad, made.flip) == (True, 4, 0, True)
    assert made.batch([0], 0)[0].shape == (1, 3, 28, 28)


@needs_fashion_mnist
def test_installed_fashion_mnist_is_complete():
    train, held_out = (fashion_mnist(None, part, False, 0) for part in (True, False))
    assert (len(train), len(held_out)) == (60_000, 10_000)
    assert torch.bincount(train.targets).tolist() == [6000] * 10
    assert torch.bincount(held_out.targets).tolist() == [1000] * 10
    assert train.labels[9] == "Ankle boot"
    assert train.batch([0], 0)[1].tolist() == [9]
    # trousers are tall and narrow
    trousers = held_out.images[held_out.targets == 1].float().mean(0)[0]
    assert trousers.mean(0).gt(50).sum() < trousers.mean(1).gt(50).sum()


@needs_fashion_mnist
def test_uncompressed_files_of_a_folder_are_read_and_verified(tmp_path):
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(gzip.decompress((FASHION_MNIST_FOLDER / f"{name}.gz").read_bytes()))
    plain = open_dataset(tmp_path, False, False, 0)
    compressed = fashion_mnist(FASHION_MNIST_FOLDER, False, False, 0)
    assert torch.equal(plain.images, compressed.images)
    assert torch.equal(plain.targets, compressed.targets)
    with pytest.raises(DatasetError, match="no train-images-idx3-ubyte"):
        open_dataset(tmp_path, True, False, 0)

    with (tmp_path / "t10k-labels-idx1-ubyte").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([(byte + 1) % 10]))
    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte: .* SHA-256"):
        open_dataset(tmp_path, False, False, 0)


def test_the_error_for_missing_files_names_the_package(tmp_path):
    with pytest.raises(
        DatasetError, match=r"no train-images-idx3-ubyte .*dataset-fashion-mnist, or name a folder"
    ):
        fashion_mnist(tmp_path, True, False, 0)


def idx(shape, content):
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + content


def test_a_valid_file_with_other_content_is_refused(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx((10_000, 28, 28), bytes(7_840_000)))
    with pytest.raises(DatasetError, match=r"t10k-images-idx3-ubyte: .*SHA-256"):
        fashion_mnist(tmp_path, False, False, 0)


VALID = idx((3, 2), b"pixels")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "not an IDX file of 3 x 2 bytes"),
        ("a", VALID[:7], "not an IDX file"),
        ("a", b"\0\0\x0d" + VALID[3:], "not an IDX file"),  # floats
        ("a", idx((2, 3), b"pixels"), "not an IDX file"),
        ("a", idx((0xFFFFFFFF, 0xFFFFFFFF), b"pixels"), "not an IDX file"),
        ("a", gzip.compress(VALID, mtime=0), "not an IDX file"),  # compressed, but not named .gz
        ("a", VALID[:-1], "announces 6 bytes, but there are 5"),
        ("a", VALID + b"!", "announces 6 bytes, but there are more"),
        ("a.gz", VALID, "damaged or cannot be read"),
        ("a.gz", gzip.compress(VALID, mtime=0)[:-1], "damaged or cannot be read"),
        # a wrong checksum
        ("a.gz", gzip.compress(VALID, mtime=0)[:-8] + bytes(8), "damaged or cannot be read"),
        ("a.gz", gzip.compress(VALID, mtime=0)[:10] + b"\xff" * 30, "damaged or cannot be read"),
        ("a.gz", gzip.compress(VALID[:-1], mtime=0), "announces 6 bytes, but there are 5"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{name}: .*{message}"):
        _read_idx(tmp_path / name, (3, 2))


@given(
    at=st.integers(0, len(VALID)),
    cut=st.integers(0, len(VALID)),
    new=st.binary(max_size=20),
    compressed=st.booleans(),
)
def test_a_modified_file_is_read_exactly_or_refused(tmp_path, at, cut, new, compressed):
    content = VALID[:at] + new + VALID[at + cut :]
    path = tmp_path / ("a.gz" if compressed else "a")
    path.write_bytes(gzip.compress(content) if compressed else content)
    if content.startswith(VALID[:12]) and len(content) == len(VALID):
        assert _read_idx(path, (3, 2)).tobytes() == content[12:]
    else:
        with pytest.raises(DatasetError, match=str(path)):
            _read_idx(path, (3, 2))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_after_the_gzip_magic_are_refused(tmp_path, content):
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b\x08" + content)
    with pytest.raises(DatasetError, match=r"a\.gz"):
        _read_idx(tmp_path / "a.gz", (3, 2))


def test_a_gzip_bomb_is_not_decompressed(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(VALID + bytes(50_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match="there are more"):
            _read_idx(tmp_path / "a.gz", (3, 2))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
