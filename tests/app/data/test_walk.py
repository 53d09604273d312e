"""wae.data.walk: finds the images in folders, sorted, each once, and counts what it leaves out."""

import errno
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from wae.data.walk import Found, LeftOut, find, is_hidden

IMAGES = ("a.JPG", "b.png", "c.jfif", "sub/d.webp", "sub/deeper/e.avif")
HIDDEN = (".hidden.png", "._0.png", ".thumbs/f.png", ".ipynb_checkpoints/b.png", "@eaDir/b.png")
SYSTEM = ("__MACOSX/b.png", "Thumbs.db", "sub/desktop.ini")
OTHERS = ("notes.txt", "sub/f.heic", "sub/g.HEIC", "LICENSE", "x.\x1b[2J")


@pytest.fixture
def folder(tmp_path):
    """Images among other files."""
    for name in (*IMAGES, *HIDDEN, *SYSTEM, *OTHERS):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, "png")
    return tmp_path / "photos"


def names(folder, *sources):
    left_out = LeftOut()
    return [str(file.path.relative_to(folder)) for file in find(sources or [folder], left_out)], str(left_out)


def test_images_are_found_in_order_and_other_files_are_counted(folder):
    found, left_out = names(folder)
    assert found == list(IMAGES)
    assert left_out == "left out: 8 hidden, 5 of other types (.heic, no extension, .txt, ...)"


def test_a_path_given_by_the_user_is_searched_whatever_its_name(folder):
    sources = (folder / "notes.txt", folder / ".thumbs", folder / "sub", folder / "missing")
    assert names(folder, *sources)[0] == [
        "notes.txt",
        ".thumbs/f.png",
        "sub/d.webp",
        "sub/deeper/e.avif",
        "missing",
    ]


def test_a_link_given_by_the_user_is_searched(folder):
    link = folder.parent / "link"
    link.symlink_to(folder / "sub")
    assert [file.path for file in find([link])] == [link / "d.webp", link / "deeper" / "e.avif"]


def test_links_to_folders_and_special_files_are_left_out(folder, monkeypatch):
    sub = folder / "sub"
    (sub / "loop").symlink_to(folder)
    (sub / "here").symlink_to(".")
    (sub / "loop.png").symlink_to("loop.png")
    (sub / "void.png").symlink_to("nowhere")
    (sub / "link.png").symlink_to(folder / "b.png")
    os.mkfifo(sub / "pipe.png")
    monkeypatch.chdir(sub)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        found, left_out = names(sub)
    assert found == ["d.webp", "link.png", "loop.png", "void.png", "deeper/e.avif"]
    assert left_out == "left out: 1 hidden, 2 of other types (.heic), 2 linked folders, 2 special files"


@pytest.mark.parametrize(
    "name",
    "@eaDir|#recycle|$RECYCLE.BIN|System Volume Information|lost+found|__MACOSX|Thumbs.db|ehthumbs.db"
    "|desktop.ini|.DS_Store".split("|"),
)
def test_files_that_systems_create_are_hidden(name):
    assert is_hidden(name)
    assert not is_hidden(f"my {name}")


@pytest.mark.parametrize(("extension", "shown"), [("a" * 15, f".{'a' * 15}"), ("a" * 16, "...")])
def test_a_long_extension_is_not_shown(tmp_path, extension, shown):
    (tmp_path / f"file.{extension}").touch()
    assert names(tmp_path)[1] == f"left out: 1 of other types ({shown})"


def test_the_summary_is_empty_if_nothing_is_left_out(folder):
    assert names(folder, folder / "sub" / "deeper") == (["sub/deeper/e.avif"], "")


def test_at_most_five_types_are_shown(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.x{number}").touch()
    (tmp_path / "more.x6").touch()
    assert names(tmp_path)[1] == "left out: 8 of other types (.x6, .x0, .x1, .x2, .x3, ...)"
    (tmp_path / "5.x5").unlink()
    (tmp_path / "4.x4").unlink()
    assert names(tmp_path)[1] == "left out: 6 of other types (.x6, .x0, .x1, .x2, .x3)"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_an_unreadable_folder_is_reported_and_the_others_are_searched(folder, monkeypatch, number):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "deeper":
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (folder / "sub" / "last").mkdir()
    (folder / "sub" / "last" / "g.png").touch()
    assert list(find([folder / "sub"])) == [
        Found(folder / "sub/d.webp"),
        Found(folder / "sub/deeper", os.strerror(number)),
        Found(folder / "sub/last/g.png"),
    ]
