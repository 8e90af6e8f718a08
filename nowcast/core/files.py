"""Files and folders that are whole or not there, also after a power cut."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import time

from nowcast.core.errors import DiskError

UNFINISHED = ".new-"
"""Beginning of the names of what is being written, followed by machine and process, then the file's name."""
FORGOTTEN_SECONDS = 86_400
"""A name of another machine, or of a process that lives, is that of a killed writer after so long."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST)
LAST_BYTES = 1 << 16
"""With less space than this a library that fails without a reason has failed for want of it."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a file to write beside ``path``; it takes that place when the block ends and all of it is on the disk."""
    with _beside(path) as aside:
        yield aside
        sync(aside)
        _put(aside, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill beside ``path``; it takes that place when the block ends and all of it is on the disk."""
    with _beside(path) as aside:
        shutil.rmtree(aside, ignore_errors=True)  # of a killed writer: in containers process numbers repeat
        aside.mkdir()
        yield aside
        for file in sorted(aside.rglob("*")):
            sync(file)
        sync(aside)
        _put(aside, path)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a whole file, see ``atomic_file``."""
    with atomic_file(path) as aside:
        aside.write_bytes(content)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a name beside ``path``, under which nothing is left whatever happens.

    Raises:
        DiskError: If the disk is full or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        aside = path.with_name(f"{UNFINISHED}{socket.gethostname()}.{os.getpid()}-{path.name}")
        try:
            yield aside
        finally:
            _remove(aside)
    except Exception as error:
        if (sentence := _unwritable(path, error)) is None:
            raise
        raise DiskError(sentence) from error


def _remove(aside: Path) -> None:
    if aside.is_dir():
        shutil.rmtree(aside)
    aside.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> str | None:
    """Say that a file cannot be written, if an error means that; libraries hide it behind errors of their own."""
    if isinstance(error, DiskError):
        return None
    number = next((number for number in _numbers(error) if number in UNWRITABLE), None)
    if number is None and _free(path) < LAST_BYTES:
        number = errno.ENOSPC
    if number is None:
        return None
    remedy = "free some, or work on another disk" if number in FULL else "make the folder writable, or name another"
    return f"{path}: cannot be written: {os.strerror(number)}; {_free(path) / 2**20:.0f} MiB are free there; {remedy}."


def _numbers(error: BaseException | None) -> Iterator[int | None]:
    """List the error numbers of an error and of those that led to it."""
    while error is not None:
        yield getattr(error, "errno", None)
        error = error.__cause__ or error.__context__


def _free(path: Path) -> int:
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(there).free


@cache
def _sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder, once per process."""
    for path in folder.glob(f"{UNFINISHED}*"):
        try:
            if _left(path):
                _remove(path)
        except OSError:
            continue  # another process removes it too


def _left(path: Path) -> bool:
    """Whether the writer of an unfinished file is dead: known of a process of this machine, else guessed by age."""
    process = path.name.removeprefix(f"{UNFINISHED}{socket.gethostname()}.").partition("-")[0]
    if process.isdecimal() and not _lives(int(process)):
        return True
    return time() - path.stat().st_mtime > FORGOTTEN_SECONDS


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _put(aside: Path, path: Path) -> None:
    aside.replace(path)
    sync(path.parent)  # a rename survives a power cut only with its folder
