"""Writes files safely: no accidental overwriting, no half-written files, no loss when the machine stops."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_LITTLE = 1 << 16  # bytes that a failed write may leave free on a full disk
_NAME = 30  # characters of a file's name that its temporary file's name, whose length is limited, repeats


@contextmanager
def written(path: Path, force: bool = False, tidy: bool = True) -> Iterator[IO[bytes]]:
    """``with written(path) as file: ...`` writes ``path`` completely or not at all.

    The bytes first go to a temporary file in the same folder (``.NAME.xxxxxxxx.part``), which replaces
    ``path`` once they are on the disk. The folder is made if it is missing.

    Args:
        path: the file to write.
        force: replace a regular file that is there.
        tidy: call :func:`remove_parts`, which takes longer the more files are in the folder.

    Raises:
        FileExistsError: see :func:`refuse_existing`.
        OSError: the file cannot be written; its ``filename`` names the file or folder.
    """
    refuse_existing(path, force)
    make_folder(path.parent)
    if tidy:
        remove_parts(path)
    temporary, raw = _part(path)
    try:
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            with _named(path):
                os.fsync(file.fileno())
            refuse_existing(path, force)
            with _named(path):
                os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes | str, force: bool = False) -> None:
    """Write ``content``, of which text becomes UTF-8, to ``path``: see :func:`written`."""
    with written(path, force) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_parts(path: Path) -> None:
    """Remove the temporary files that killed processes left behind for ``path``; those in use stay."""
    for stale in _stale(path, os.O_RDWR):
        with contextlib.suppress(OSError):
            stale.unlink()


def refuse_existing(path: Path, force: bool = False) -> None:
    """Raise FileExistsError if something is at ``path`` that may not be replaced.

    ``force`` allows replacing a regular file. Links, even dangling ones, devices, pipes and sockets are never
    replaced. Also raises OSError if nothing can be written there, so that a command fails before its work.
    """
    _refuse_unwritable(path)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder")
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "no regular file"
        raise FileExistsError(f"{path} is {kind}, which is never replaced")
    if not force:
        raise FileExistsError(f"{path} exists; --force replaces it")


def _refuse_unwritable(path: Path) -> None:
    """Raise OSError if the folder of ``path``, or the nearest one that exists, takes no new files."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
    if not os.access(folder, os.W_OK | os.X_OK):
        why = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(why, os.strerror(why), str(path))


def no_file(path: Path) -> str | None:
    """Why ``path`` is not a file that can be read, for an error; None if it is a regular file."""
    try:
        if path.is_file():
            return None
        if path.is_dir():
            return "this is a folder"
        return "this is not a regular file" if path.exists() else "there is no such file"
    except OSError as error:  # a name that is too long, or a folder that may not be searched
        return f"{error.strerror}"


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError, or ValueError if it is no JSON or nested too deeply."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents if they are missing. Raises OSError, whose ``filename`` says which."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def refuse_within(folder: Path, files: Mapping[str, Path]) -> None:
    """Raise FileExistsError if one of ``files``, given by the options that name them, is in ``folder``."""
    for option, path in files.items():
        if folder.resolve() in path.resolve().parents:
            raise FileExistsError(f"{option} {path} is in {folder}, whose files are replaced")


@contextmanager
def written_folder(folder: Path, force: bool, mark: str) -> Iterator[Path]:
    """``with written_folder(folder, ...) as new: ...`` makes ``folder`` completely or not at all.

    The files first go into ``new``, in a temporary folder beside ``folder`` (``.NAME.xxxxxxxx.part``). Once
    they are on the disk, ``new`` replaces ``folder``. Temporary folders that killed processes left behind are
    removed; a folder that such a process was replacing is restored first.

    Args:
        folder: the folder to make; its parents are made too.
        force: replace a folder that is there, if it is no link and holds a file that matches ``mark``.
        mark: a pattern of file names that identifies such a folder.

    Raises:
        FileExistsError: something is at ``folder`` that may not be replaced.
        OSError: the folder cannot be written.
    """
    make_folder(folder.parent)
    for stale in _stale(folder, os.O_RDONLY | os.O_DIRECTORY):
        if Path(stale, "old").exists() and not os.path.lexists(folder):
            with contextlib.suppress(OSError):
                Path(stale, "old").rename(folder)
        shutil.rmtree(stale, ignore_errors=True)
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link, which is never replaced")
    if os.path.lexists(folder) and not (force and next(folder.glob(mark), None)):
        raise FileExistsError(f"{folder} is there already" + (f": it has no {mark}" if force else ""))
    with _part_folder(folder) as beside:
        new, old = beside / "new", beside / "old"
        new.mkdir()
        yield new
        _sync_all(new)
        try:
            with _named(folder):
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
        except BaseException:  # also an interruption: the old folder must not go with the temporary one
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        _sync(folder.parent)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder, which is removed after the block; see :func:`full_disk_named`."""
    with tempfile.TemporaryDirectory() as name, full_disk_named(Path(name)):
        yield Path(name)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """In this block, which writes to the temporary ``folder``, the error of a full disk names where that is.

    Libraries in C++ raise errors of any kind that do not say why they could not write.
    """
    try:
        yield
    except Exception as error:
        if full := full_disk(error):
            full.filename = full.filename or str(folder.parent)
        elif shutil.disk_usage(folder).free < _LITTLE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent)) from error
        raise


def full_disk(error: BaseException | None) -> OSError | None:
    """The OSError of a full disk, or one too full for this file, among the causes of ``error``; or None.

    A quota, and the limit of a file's size that a file system or ``ulimit -f`` has, count too.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


class _Raw(io.FileIO):
    """A temporary file whose errors, such as a full disk, name the file that it is for."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "wb")
        self._path = path

    def write(self, data: Any) -> int:
        """See io.FileIO."""
        with _named(self._path):
            return super().write(data)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:_NAME]}.{secrets.token_hex(4)}.part")


def _lock(descriptor: int, path: Path) -> bool:
    """Lock a new temporary file or folder while it is open, so that other processes know it is in use.

    Returns False if another process took it for stale before the lock, and removed it.
    """
    with contextlib.suppress(OSError):  # without locks in the file system nothing is ever taken for stale
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path.exists()


def _part(path: Path) -> tuple[Path, _Raw]:
    """A new temporary file for ``path``, locked."""
    while True:
        temporary = _temporary(path)
        with _named(path):
            raw = _Raw(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), path)
        if _lock(raw.fileno(), temporary):
            return temporary, raw
        raw.close()


@contextmanager
def _part_folder(path: Path) -> Iterator[Path]:
    """A new temporary folder for ``path``, locked; it is removed after the block."""
    while True:
        temporary = _temporary(path)
        with _named(path):
            temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
        if _lock(descriptor, temporary):
            break
        os.close(descriptor)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def _stale(path: Path, flags: int) -> Iterator[Path]:
    """The temporary files or folders (``flags`` opens one kind) for ``path`` that no process has open."""
    pattern = re.compile(rf"\.{re.escape(path.name[:_NAME])}\.[0-9a-f]{{8}}\.part")
    for name in os.listdir(path.parent):
        if pattern.fullmatch(name):
            stale = path.with_name(name)
            with contextlib.suppress(OSError):  # it is gone, not ours, or locked because a process writes it
                descriptor = os.open(stale, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield stale
                finally:
                    os.close(descriptor)


def _sync(path: Path) -> None:
    """Flush a file's content, or the entries of a folder, to the disk."""
    with contextlib.suppress(OSError):  # not every file system supports it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_all(folder: Path) -> None:
    """:func:`_sync` a folder and everything in it."""
    for path in (folder, *folder.rglob("*")):
        _sync(path)
