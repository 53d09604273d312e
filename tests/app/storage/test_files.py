"""wae.storage.files and wae.storage.decomposed: no file is lost, and damaged files are refused."""

import errno
import fcntl
import hashlib
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wae.models.autoencoder import AutoEncoder
from wae.storage import decomposed, files


def test_written_creates_folders_and_leaves_no_temporary_file(tmp_path):
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


def test_a_parent_that_is_not_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "new", tmp_path / "file" / "folder" / "new"):
        with pytest.raises(NotADirectoryError) as error, files.written(target):
            pass
        assert error.value.filename == str(target.parent)


def test_a_folder_that_takes_no_files_is_known_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.refuse_existing(tmp_path / "file" / "folder" / "new")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to any folder
    with pytest.raises(PermissionError) as error:
        files.refuse_existing(tmp_path / "folder" / "new")
    assert error.value.filename == str(tmp_path / "folder" / "new")
    read_only = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda path: read_only)
    with pytest.raises(OSError, match="Read-only file system"):
        files.refuse_existing(tmp_path / "new")


def test_no_file_says_why_a_path_cannot_be_read(tmp_path):
    """A pipe is not opened, because that would block."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    reasons = {
        "file": None,
        ".": "this is a folder",
        "pipe": "this is not a regular file",
        "none": "there is no such file",
        "dangling": "there is no such file",
        "file/none": "there is no such file",
        "x" * 300: "File name too long",
    }
    assert {name: files.no_file(tmp_path / name) for name in reasons} == reasons
    for name in (name for name, why in reasons.items() if why):
        with pytest.raises(decomposed.ContainerError, match=reasons[name]):
            decomposed.load(tmp_path / name)


@pytest.mark.parametrize("force", [False, True])
def test_only_regular_files_are_replaced(tmp_path, force):
    """Root could replace others, but must not."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("nowhere")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.close()
    special = {name: os.lstat(tmp_path / name) for name in ("pipe", "link", "dangling", "socket")}
    for name, before in special.items():
        with (
            pytest.raises(FileExistsError, match=f"{name} is .*never replaced"),
            files.written(tmp_path / name, force),
        ):
            pytest.fail("the file was opened")
        assert os.path.samestat(os.lstat(tmp_path / name), before)
    if os.path.exists("/dev/full"):
        with pytest.raises(FileExistsError, match="/dev/full is no regular file"):
            files.refuse_existing(Path("/dev/full"), force)
    assert (tmp_path / "there").read_bytes() == b"old"


def test_a_file_that_appears_while_writing_is_not_replaced(tmp_path):
    path = tmp_path / "file"

    def write():
        with files.written(path) as file:
            file.write(b"mine")
            path.write_bytes(b"theirs")

    with pytest.raises(FileExistsError, match="--force"):
        write()
    assert path.read_bytes() == b"theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "図" * 85, "[*]?(" * 50], ids=["n", "é", "図", "*"])
def test_files_may_have_the_longest_names(tmp_path, name):
    for content in (b"old", b"new"):
        with files.written(tmp_path / name, force=True) as file:
            file.write(content)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {name: b"new"}


KILLED = """
import os, signal, sys
from pathlib import Path
from wae.storage.files import written
with written(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_write_removes_what_a_killed_process_left(tmp_path):
    path, others = tmp_path / "file", [".file.part", ".file.notes.part", ".file2.0123abcd.part", "file.part"]
    others += [".file.cafe.part", "a.file.0123abcd.part", ".file.0123abcd.part.txt"]
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -9
    assert len(list(tmp_path.glob(".file.*.part"))) == 1
    for name in others:
        (tmp_path / name).touch()
    with files.written(path) as file:
        file.write(b"all")
    assert path.read_bytes() == b"all"
    assert {p.name for p in tmp_path.iterdir()} == {"file", *others}


KILLED_FOLDER = """
import os, signal, sys
from pathlib import Path
from wae.storage.files import written_folder
step = sys.argv[2]
rename = Path.rename
def renamed(self, target):
    if step == "between" and self.name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = renamed
with written_folder(Path(sys.argv[1]), True, "mark") as new:
    (new / "mark").write_text("new")
    if step == "within":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("step", ["within", "between"])
def test_a_folder_survives_a_process_killed_while_replacing_it(tmp_path, step):
    """Between the two renames no folder has the name. The next write restores the old one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mark").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_FOLDER, str(folder), step], check=False)
    assert killed.returncode == -9
    assert folder.exists() == (step == "within")
    with pytest.raises(FileExistsError), files.written_folder(folder, False, "mark"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (folder / "mark").read_text() == "old"


def test_an_interrupted_replacement_restores_the_folder(tmp_path, monkeypatch):
    folder, rename = tmp_path / "folder", Path.rename
    with files.written_folder(folder, False, "mark") as new:
        (new / "mark").write_text("old")

    def interrupted(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), files.written_folder(folder, True, "mark") as new:
        (new / "mark").write_text("new")
    assert (folder / "mark").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_without_the_mark_is_not_replaced(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for force, message in ((True, "folder is there already: it has no mark"), (False, "is there already$")):
        with pytest.raises(FileExistsError, match=message), files.written_folder(folder, force, "mark"):
            pytest.fail("writing began")
    assert (folder / "thesis.txt").read_text() == "precious"
    assert list(tmp_path.iterdir()) == [folder]


def test_files_in_a_folder_are_recognised_by_any_path(tmp_path, monkeypatch):
    folder, beside = tmp_path / "out", tmp_path / "beside"
    for made in (folder, beside):
        made.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for path in (folder / "w", beside / ".." / "out" / "deep" / "w", tmp_path / "link" / "w", Path("w")):
        with pytest.raises(FileExistsError, match=f"--weights {path} is in .*, whose files are replaced"):
            files.refuse_within(folder, {"--weights": path})
    files.refuse_within(folder, {"--weights": beside / "w", "--teacher": tmp_path / "out.safetensors"})


def test_sha256_covers_all_of_a_large_file(tmp_path):
    content = bytes(range(256)) * 20_000  # more than one read
    (tmp_path / "file").write_bytes(content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_link_to_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mark").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("real")
    with (
        pytest.raises(FileExistsError, match="link is a link, which is never replaced"),
        files.written_folder(link, True, "mark"),
    ):
        pass
    assert link.is_symlink()
    assert (link / "mark").read_text() == "old"


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127])
def test_folders_may_have_the_longest_names(tmp_path, name):
    for content in ("old", "new"):
        with files.written_folder(tmp_path / name, True, "mark") as new:
            (new / "mark").write_text(content)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "mark").read_text() == "new"


def test_concurrent_writers_of_a_folder_do_not_disturb_each_other(tmp_path):
    folder = tmp_path / "folder"
    with files.written_folder(folder, True, "mark") as first:
        (first / "mark").write_text("first")
        with files.written_folder(folder, True, "mark") as second:
            (second / "mark").write_text("second")
    assert (folder / "mark").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_concurrent_writers_of_a_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    with files.written(path, force=True) as first:
        first.write(b"first")
        with files.written(path, force=True) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("write", ["file", "folder"])
def test_a_temporary_removed_before_it_is_locked_is_created_again(tmp_path, monkeypatch, write):
    """No descriptor stays open."""
    lock, taken = fcntl.flock, []

    def flock(descriptor, how):
        if not taken:
            (part,) = tmp_path.glob(".it.*.part")
            taken.append(part)
            part.unlink() if write == "file" else part.rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    before = os.listdir("/dev/fd")
    for content in ("old", "new"):
        if write == "file":
            with files.written(tmp_path / "it", force=True) as file:
                file.write(content.encode())
        else:
            with files.written_folder(tmp_path / "it", True, "mark") as new:
                (new / "mark").write_text(content)
        made = tmp_path / "it" if write == "file" else tmp_path / "it" / "mark"
        assert made.read_text() == content
        (tmp_path / ".it.0123abcd.part").touch()  # which the next write checks
    assert len(os.listdir("/dev/fd")) == len(before)
    assert len(taken) == 1


def test_writing_works_on_a_file_system_without_locks_and_folder_sync(tmp_path, monkeypatch):
    """Without locks, no file is considered stale."""
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".file.0123abcd.part").touch()
    with files.written(tmp_path / "file") as file:
        file.write(b"all")
    with files.written_folder(tmp_path / "new" / "folder", False, "mark") as new:
        (new / "mark").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".file.0123abcd.part", "new"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def too_large(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with files.written(path) as file:
            file.write(b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def written(path):
    with files.written(path):
        pass


def written_folder(path):
    with files.written_folder(path, False, "mark"):
        pass


def test_errors_name_the_target_and_not_the_temporary_file(tmp_path, monkeypatch):
    nowhere = Path("/dev/fd/new")  # nobody can create a file there
    for write, path in ((too_large, tmp_path / "file"), (written, nowhere), (written_folder, nowhere)):
        with pytest.raises(OSError, match=r"^\[Errno") as error:
            write(path)
        assert error.value.filename == str(path)
    assert not list(tmp_path.iterdir())

    path = tmp_path / "gone" / "target"
    for block in (files.written(path), files.written_folder(path, False, "mark")):
        with pytest.raises(FileNotFoundError) as error, block:
            shutil.rmtree(path.parent)  # by another program
        assert error.value.filename == str(path)

    def fsync(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error") as error:
        written(tmp_path / "file")
    assert error.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.EFBIG, "full"), errno.EFBIG),
        (RuntimeError("iostream error"), errno.ENOSPC),
    ],
    ids=["full", "limited", "of a library"],
)
def test_the_error_of_a_full_temporary_folder_names_its_place(tmp_path, monkeypatch, error, number):
    """Whatever a library raises when it cannot write."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=0))
    with pytest.raises(OSError, match=r"full|No space left") as raised, files.temporary_folder():
        raise error
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_other_errors_in_a_temporary_folder_stay_as_they_are():
    with pytest.raises(RuntimeError, match=r"^wrong$"), files.temporary_folder():
        raise RuntimeError("wrong")


def test_the_file_is_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    done = []

    def fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        done.append((kind, os.fstat(descriptor).st_size if kind == "file" else (tmp_path / "f").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with files.written(tmp_path / "f") as file:
        file.write(b"four")
    assert done == [("file", 4), ("folder", True)]


def test_the_contents_of_a_folder_are_synced_before_the_rename(tmp_path, monkeypatch):
    folder, done = tmp_path / "folder", []
    monkeypatch.setattr(os, "fsync", lambda d: done.append((os.fstat(d).st_ino, folder.exists())))
    with files.written_folder(folder, False, "mark") as new:
        (new / "deep").mkdir()
        (new / "deep" / "mark").write_text("content")
    for path in (folder, folder / "deep", folder / "deep" / "mark"):
        assert (path.stat().st_ino, False) in done
    assert done[-1] == (tmp_path.stat().st_ino, True)


def test_a_file_has_the_default_permissions(tmp_path):
    (tmp_path / "other").touch()
    with files.written(tmp_path / "file"):
        pass
    assert os.stat(tmp_path / "file").st_mode == os.stat(tmp_path / "other").st_mode


def decomposition(dtype=torch.float32, size=(5, 8), shape=(3, 3, 4)):
    low, high = torch.randn(2, *shape).to(dtype)
    return decomposed.Decomposition(low, high, size, "weights")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_decomposition_is_loaded_as_it_was_saved(tmp_path, dtype):
    made = decomposition(dtype)
    decomposed.save(tmp_path / "a", made._replace(low=made.low.mT.contiguous().mT))  # in any layout
    with pytest.raises(FileExistsError, match="--force"):
        decomposed.save(tmp_path / "a", decomposition())
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
def test_inconsistent_content_is_refused(tmp_path, made, message, monkeypatch):
    """Also when saving: float16 may have overflowed, and then the file could not be loaded."""
    with pytest.raises(decomposed.ContainerError, match=message):
        decomposed.save(tmp_path / "a", made)
    assert not (tmp_path / "a").exists()
    with monkeypatch.context() as unchecked:
        unchecked.setattr(decomposed, "_check", lambda what, image: None)
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
    for more in ({}, {"height": "four", "width": "4", "weights": ""}):
        save_file({"low": torch.zeros(1)}, path, {"format": "wae decomposed image 1", **more})
        with pytest.raises(decomposed.ContainerError, match="cannot be read"):
            decomposed.load(path)


def test_a_fingerprint_changes_with_a_weight():
    model = AutoEncoder()
    before = decomposed.fingerprint(model)
    assert decomposed.fingerprint(model) == before
    with torch.no_grad():
        model.decoder.conv3.bias[0] += 1
    assert decomposed.fingerprint(model) != before
    assert decomposed.fingerprint(model.bfloat16()) != before  # a dtype that numpy does not have
