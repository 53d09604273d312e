"""Class maps: label PNGs and overlays, and `wae predict --maps`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from wae import cli
from wae.data.images import read_numbers
from wae.data.input import whole
from wae.inference.maps import Maps, at_size, colours
from wae.models.registry import build
from wae.storage.checkpoint import Input, save_classifier

INPUT = whole(16, 24)


def save_image(path: Path, size: tuple[int, int] = (24, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    save_classifier(path, build("wae_enet", 3), "wae_enet", ("road", "tree", "sky"), INPUT)
    return path


def run(*arguments: object) -> int:
    return cli.main(["predict", *map(str, arguments)])


def test_at_size_takes_the_best_of_the_interpolated_scores() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 7, 9)
    wanted = F.interpolate(scores[None], [20, 31], mode="bilinear", align_corners=False)[0].argmax(0)
    found = at_size(scores, (20, 31))
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), wanted)


def test_colours_are_distinct() -> None:
    assert len({tuple(colour) for colour in colours(64).tolist()}) == 64
    assert torch.equal(colours(64)[:11], colours(11))


def test_labels_and_overlays_show_the_classes_at_the_images_size(tmp_path: Path) -> None:
    path = save_image(tmp_path / "in" / "deep" / "a.png", (20, 30))
    scores = torch.zeros(3, 16, 24)
    scores[1, :, 12:] = 1
    Maps(tmp_path / "out", [tmp_path / "in"], INPUT).write(path, scores)
    labels = tmp_path / "out" / "labels" / "deep" / "a.png"
    numbers = read_numbers(labels)
    assert torch.equal(numbers, at_size(scores, (20, 30)))
    assert set(numbers[:, 0].tolist()) == {0}
    assert set(numbers[:, -1].tolist()) == {1}
    with Image.open(labels) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), colours(3)[numbers.long()].numpy())
    with Image.open(tmp_path / "out" / "overlays" / "deep" / "a.png") as image, Image.open(path) as photo:
        mixed = (np.asarray(photo).astype(int) + colours(3)[numbers.long()].numpy()) // 2
        assert np.array_equal(np.asarray(image), mixed)


def test_more_than_256_classes_are_written_in_16_bits(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", (16, 24))
    scores = torch.zeros(300, 16, 24)
    scores[299] = 1
    Maps(tmp_path / "out", [path], INPUT).write(path, scores)
    assert set(read_numbers(tmp_path / "out" / "labels" / "a.png").flatten().tolist()) == {299}


def test_maps_show_the_crop_that_the_network_sees(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", (40, 60))
    Maps(tmp_path / "out", [path], Input(16, 20)).write(path, torch.zeros(2, 16, 16))
    assert read_numbers(tmp_path / "out" / "labels" / "a.png").shape == (16, 16)


def test_a_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    first, second = save_image(tmp_path / "a.png"), save_image(tmp_path / "a.jpg")
    maps = Maps(tmp_path / "out", [first, second], INPUT)
    maps.write(first, torch.zeros(2, 16, 24))
    for refusing in (maps, Maps(tmp_path / "out", [first, second], INPUT)):
        with pytest.raises(FileExistsError, match=r"a\.png"):
            refusing.write(second, torch.zeros(2, 16, 24))
    forced = Maps(tmp_path / "out", [first, second], INPUT, force=True)
    forced.write(second, torch.zeros(2, 16, 24))
    with pytest.raises(FileExistsError, match=r"^a\.png is the name of the maps of another image, too$"):
        forced.write(first, torch.zeros(2, 16, 24))  # the message said that --force replaces the file
    (tmp_path / "out" / "labels" / "a.png").unlink()
    with pytest.raises(FileExistsError, match=r"overlays/a\.png exists"):
        Maps(tmp_path / "out", [first], INPUT).write(first, torch.zeros(2, 16, 24))
    assert not list((tmp_path / "out" / "labels").iterdir())


def test_maps_stay_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``../a.png`` is relative to ``.``, for pathlib, so the maps went to ``out/a.png``."""
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    save_image(Path("../a.png"))
    Maps(tmp_path / "out", [Path(), Path("../a.png")], INPUT).write(Path("../a.png"), torch.zeros(2, 16, 24))
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["a.png"] * 2
    assert (tmp_path / "out" / "labels" / "a.png").exists()


def test_writing_a_map_takes_no_longer_for_more_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for those in the folder nor for those on the command line."""
    path = save_image(tmp_path / "a.png")
    maps = Maps(tmp_path / "out", [path], INPUT)

    def asked(*_: object) -> None:
        raise AssertionError

    for owner, name in ((os, "listdir"), (Path, "is_relative_to")):
        monkeypatch.setattr(owner, name, asked)
    maps.write(path, torch.zeros(2, 16, 24))


def test_predict_writes_the_maps(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.png", "c.png"):
        save_image(tmp_path / "in" / name)
    (tmp_path / "in" / "a.png").write_bytes(b"broken")
    assert run(tmp_path / "in", "--weights", checkpoint, "--maps", tmp_path / "out", "--batch", 2) == 1
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(entry["path"]).name for entry in entries] == ["a.png", "b.png", "c.png"]
    assert "error" in entries[0]
    for entry in entries[1:]:
        numbers = read_numbers(tmp_path / "out" / "labels" / Path(entry["path"]).name)
        assert numbers.shape == (24, 30)
        assert sum(each["share"] for each in entry["classes"]) == pytest.approx(1)
        assert numbers.max() < 3
        assert {each["label"] for each in entry["classes"]} <= {"road", "tree", "sky"}
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2
    assert run(tmp_path / "in" / "b.png", "--weights", checkpoint, "--maps", tmp_path / "out") == 1
    assert "b.png" in capsys.readouterr().err


def test_the_table_is_of_shares(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = save_image(tmp_path / "a.png")
    assert run(photo, "--weights", checkpoint, "--format", "table") == 0
    assert capsys.readouterr().out.startswith("  share  class  image\n")


def test_maps_by_an_engine_agree(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save_image(tmp_path / "a.png")
    found = []
    for options in ((), ("--engine", "eager", "--batch", 2)):
        assert run(photo, "--weights", checkpoint, "--format", "jsonl", *options) == 0
        classes = json.loads(capsys.readouterr().out)["classes"]
        found.append({each["class"]: each["share"] for each in classes})
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_wrong_usage_of_maps_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save_image(tmp_path / "in" / "a.png")
    assert run(photo, "--maps", tmp_path / "out") == 2
    assert "needs a segmentation network" in capsys.readouterr().err
    assert run(tmp_path / "in", "--weights", checkpoint, "--maps", tmp_path / "in" / "out") == 1
    assert "is in" in capsys.readouterr().err
    assert not (tmp_path / "in" / "out").exists()
    for source in (save_image(tmp_path / "out" / "labels" / "a.png"), tmp_path / "out" / "labels"):
        before = (tmp_path / "out" / "labels" / "a.png").read_bytes()
        assert run(source, "--weights", checkpoint, "--maps", tmp_path / "out", "--force") == 1
        assert "is where the maps" in capsys.readouterr().err
        assert (tmp_path / "out" / "labels" / "a.png").read_bytes() == before
