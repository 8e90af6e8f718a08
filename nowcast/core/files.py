"""Files and folders that are whole or not there, also after a power cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".new-"
"""Beginning of the names of what is being written; what a killed writer left may be removed."""


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
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield aside
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def _put(aside: Path, path: Path) -> None:
    aside.replace(path)
    sync(path.parent)  # a rename survives a power cut only with its folder
