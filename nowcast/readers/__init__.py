"""Sources of radar frames. One file and one line below add a source.

A reader is a module with

- ``TITLE`` and ``LICENCE``: one line each, carried into every store;
- ``CADENCE``: seconds between frames of a live feed, or None where sequences are labelled;
- ``find(source) -> Iterator[Item]``: the readable items of a file or folder, in time order, found
  from names alone, so that a folder of a year costs no decoding;
- ``read(item) -> Cube``: one item decoded, checked, in physical units; ``BadInput`` where it is not
  what it says it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import xarray as xr

from nowcast.cube import BadInput

READERS = {
    "knmi": "knmi",
    "fmi-pgm": "fmi_pgm",
    "odim": "odim",
    "hko7": "hko7",
    "sevir": "sevir",
    "shanghai2020": "shanghai2020",
}


@dataclass(frozen=True)
class Item:
    """One thing to read: a file, or the part of it that ``key`` names."""

    path: Path
    key: str = ""

    @property
    def signature(self) -> str:
        """Changes when the file does: name, part, size and time of modification."""
        stat = self.path.stat()
        return f"{self}|{stat.st_size}|{stat.st_mtime_ns}"

    def __str__(self) -> str:
        return self.path.name + (f"[{self.key}]" if self.key else "")


class Reader(Protocol):
    """What a module in this folder offers."""

    TITLE: str
    LICENCE: str
    CADENCE: int | None

    def find(self, source: Path) -> Iterator[Item]: ...

    def read(self, item: Item) -> xr.Dataset: ...


def get(name: str) -> Reader:
    """The reader called ``name``.

    Raises:
        ValueError: If it is unknown; the message lists the known ones.
    """
    if name not in READERS:
        raise ValueError(f"Unknown reader {name!r}; known: {', '.join(READERS)}.")
    return import_module(f"nowcast.readers.{READERS[name]}")  # type: ignore[return-value]


def files(source: Path, *patterns: str) -> list[Path]:
    """Files under ``source`` (or itself) that match one of the glob patterns, in natural order.

    Raises:
        BadInput: If ``source`` does not exist.
    """
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    if source.is_file():
        return [source]
    found = {path for pattern in patterns for path in source.rglob(pattern) if path.is_file()}
    return sorted(found, key=lambda path: natural(str(path)))


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key under which ``sample2`` comes before ``sample10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
