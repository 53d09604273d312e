"""Predictions on a Ray cluster: the class for ``map_batches``, and the command."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wae.integrations
from wae import cli
from wae.data.walk import find
from wae.inference import predict
from wae.models.registry import build
from wae.storage.checkpoint import describe, load_classifier, save_classifier
from wae.storage.weights_file import WEIGHTS

CLOTHES = WEIGHTS / "fashion-mnist.safetensors"
NEEDED = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow", "pandas")),
    reason="Ray Data is not installed",
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five random images: one is broken, and one has a name that is not UTF-8."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"no image")
    os.rename(folder / "2.png", os.fsencode(folder) + b"/\xe9.png")
    return folder


def without_cluster(photos: Path) -> list[dict[str, object]]:
    """The output of ``wae predict``, by path."""
    described = describe(CLOTHES)
    network = predict.runner(load_classifier(CLOTHES), described.input)
    form = predict.JsonLines(described.labels)
    found = predict.predict(network, find([photos]), described.input)
    return [json.loads(line) for made in found for line in form.lines(made)]


def assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """The same classes, with probabilities that are equal but for rounding."""
    assert [(c["class"], c["label"]) for c in one] == [(c["class"], c["label"]) for c in other]
    assert [c["probability"] for c in one] == pytest.approx([c["probability"] for c in other], rel=1e-3)


# ---------------------------------------------------------------------------------------------- Predictor


@NEEDED
@pytest.mark.parametrize("read", [False, True], ids=["paths", "contents"])
def test_a_predictor_gives_the_results_of_the_command(photos: Path, read: bool) -> None:
    from wae.integrations.ray import Predictor

    paths = [found.path for found in find([photos])]
    files = {"path": np.array([os.fsencode(path) for path in paths], object)}
    if read:
        files["bytes"] = np.array([path.read_bytes() for path in paths], object)
    made = Predictor(CLOTHES, batch=2)(files)
    rows = [
        {"path": path, **({"error": error} if error else {"classes": classes})}
        for path, classes, error in zip(made["path"], made["classes"], made["error"], strict=True)
    ]
    expected = without_cluster(photos)
    assert [row["path"].replace(r"\xe9", "?") for row in rows] == [
        str(entry["path"]).replace("\udce9", "?") for entry in expected
    ]
    for row, entry in zip(rows, expected, strict=True):
        assert row.get("error") == entry.get("error")
        assert_same(row.get("classes", []), entry.get("classes", []))
    assert "this is not an image" in rows[1]["error"]
    assert all(column.dtype == object and column.shape == (5,) for column in made.values())


@NEEDED
def test_a_file_with_an_error_is_not_read(photos: Path) -> None:
    from wae.integrations.ray import Predictor

    files = {"path": np.array([str(photos / "0.png")], object), "error": np.array(["locked"], object)}
    made = Predictor(CLOTHES)(files)
    assert (made["error"][0], made["classes"][0]) == ("locked", None)


# ------------------------------------------------------------------------------------------------ command


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray"], "--ray: needs -o FOLDER"),
        (["--ray", "-o", "out", "--format", "jsonl"], "--format: cannot be combined with --ray"),
        (["--ray", "-o", "out", "--precision", "int8"], "needs --engine with a name"),
        (["--ray", "-o", "out", "--engine", "auto"], "needs --engine with a name"),
        (["--ray", ".", "-o", "out"], "--ray: needs an address, got the path .; name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_conflicting_options_are_refused(
    photos: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert cli.main(["predict", str(photos), *options]) == 2
    assert said in capsys.readouterr().err


@NEEDED
def test_segmentation_networks_are_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "enet.safetensors", tmp_path / "out"
    save_classifier(weights, build("enet", 3), "enet")
    assert cli.main(["predict", str(photos), "--weights", str(weights), "--ray", "-o", str(out)]) == 1
    assert "enet scores pixels; a classifier is needed" in capsys.readouterr().err
    assert not out.exists()


def test_without_ray_the_command_says_what_to_install(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "wae.integrations.ray", raising=False)
    monkeypatch.delattr(wae.integrations, "ray", raising=False)
    assert cli.main(["predict", str(photos), "--ray", "-o", "out"]) == 1
    assert 'pip install "wae-kernels[ray]"' in capsys.readouterr().err


@NEEDED
def test_a_folder_with_other_files_is_refused(photos: Path, tmp_path: Path) -> None:
    """Before the cluster is contacted."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    (tmp_path / "out" / "old.parquet").touch()
    for force in ([], ["--force"]):
        command = ["predict", str(photos), "--ray", "127.0.0.1:1", "-o", str(tmp_path / "out"), *force]
        assert cli.main(command) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine.txt", "old.parquet"]


@NEEDED
@pytest.mark.parametrize("way", ["--ray", "RAY_ADDRESS", "ray://"])
def test_an_address_where_nothing_listens_is_an_error_at_once(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was called, which retries for minutes"))
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        address = f"{'ray://' if way == 'ray://' else ''}127.0.0.1:{bound.getsockname()[1]}"
        if way == "RAY_ADDRESS":
            monkeypatch.setenv("RAY_ADDRESS", address)
        options = ["--ray", *([] if way == "RAY_ADDRESS" else [address]), "-o", str(tmp_path / "out")]
        assert cli.main(["predict", str(photos), *options]) == 1
    said = capsys.readouterr().err
    named = "RAY_ADDRESS: " if way == "RAY_ADDRESS" else ""
    assert said == f"wae: Ray: {named}nothing answers at {address}: Connection refused\n"
    assert not (tmp_path / "out").exists()


@NEEDED
@pytest.mark.parametrize(("given", "named"), [(["here:x"], ""), ([], "RAY_ADDRESS: ")])
def test_an_address_without_a_numeric_port_is_refused(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    named: str,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "here:x")
    assert cli.main(["predict", str(photos), "--ray", *given, "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"wae: Ray: {named}here:x is no address: ")


@NEEDED
@pytest.mark.slow  # starts a cluster of two nodes on this machine
def test_no_image_is_lost_with_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.dataset
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder, out, log = tmp_path / "photos", tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    slow = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8))
    slow.save(folder / "000.png")  # slow to decode, so that a node is lost in the middle of the work
    for number in range(1, 100):
        os.link(folder / "000.png", folder / f"{number:03}.png")
    broken = [folder / f"{number:03}.png" for number in (7, 47, 97)]
    for path in broken:
        path.unlink()
        path.write_bytes(b"no image")

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        lost, _ = (cluster.add_node(num_cpus=1) for _ in range(2))
        command = [sys.executable, "-m", "wae", "predict", str(folder), "--weights", str(CLOTHES)]
        command += ["--batch", "2", "--ray", cluster.address, "-o", str(out)]
        with log.open("wb") as errors:
            job = subprocess.Popen(command, stderr=errors, stdout=errors)
        try:
            while len(list(tmp_path.glob(".out.*/new/*.parquet"))) < 2:
                assert job.poll() is None, log.read_text()
                time.sleep(0.05)
            cluster.remove_node(lost, allow_graceful=False)
            assert job.poll() is None, "it was done before the machine was lost"
            assert job.wait(300) == 1, log.read_text()
        finally:
            job.kill()
            job.wait()
    finally:
        cluster.shutdown()

    rows = pyarrow.dataset.dataset(out).to_table().to_pylist()
    assert sorted(row["path"] for row in rows) == sorted(str(path) for path in folder.iterdir())
    failed = {row["path"]: row["error"] for row in rows if row["error"] is not None}
    assert sorted(failed) == [str(path) for path in broken]
    assert all("this is not an image" in error for error in failed.values())
    assert all(row["classes"] is None for row in rows if row["path"] in failed)
    good = [row["classes"] for row in rows if row["path"] not in failed]
    assert {len(classes) for classes in good} == {3}
    for classes in good:  # of the same image, under many names
        assert_same(classes, good[0])
    assert good[0][0]["label"] in (describe(CLOTHES).labels or ())
    said = log.read_text().splitlines()
    assert [line for line in said if line.startswith("wae: ")] == [
        f"wae: {path}: {failed[str(path)]}" for path in broken
    ]
