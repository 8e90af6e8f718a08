"""Sources of frames: the table of readers, and which of them takes a file.

One file in this folder and one line in ``READERS`` add a source.

A reader is a module with

- ``TITLE`` and ``LICENCE``: one line each, carried into every store;
- ``CADENCE``: seconds between frames of a live feed, or None where sequences are labelled or where
  each cube says it itself (``cadence_seconds``);
- ``PATTERNS``: globs of the names of its files;
- ``recognises(path) -> bool``: whether a file of such a name is really its own, from the names of its
  folders and a look at its head; may raise on a damaged file, which counts as no;
- ``find(source) -> Iterator[Item]``: the readable items of a file or folder, in time order or in that
  of the source, from names and headers alone, so that a folder of a year costs no decoding;
- ``read(item) -> Cube``: one item decoded, checked, in physical units; ``BadInput`` where it is not
  what it says it is. An item is small (``items.ITEM_BYTES``): a large file is many items, see
  ``items.parts``.

What several readers need lies beside them: ``items`` finds files and their parts, ``decoding`` and
``hdf5`` open them and say what is wrong with them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Protocol

import xarray as xr

from nowcast.core.errors import BadInput, MissingExtra, OptionError
from nowcast.readers.decoding import is_decoder_error
from nowcast.readers.items import Item

__all__ = ["READERS", "Item", "Reader", "detect", "get"]

logger = logging.getLogger(__name__)

READERS = {
    # radar benchmarks
    "hko7": "hko7",
    "sevir": "sevir",
    "shanghai2020": "shanghai2020",
    "shanghai-radar": "shanghai_radar",
    "meteonet": "meteonet",
    "cikm2017": "cikm2017",
    # composites of the weather services
    "rydl": "rydl",
    "odim": "odim",
    "knmi": "knmi",
    "fmi-pgm": "fmi_pgm",
    "fmi-geotiff": "fmi_geotiff",
    "radolan": "radolan",
    "radolan-ascii": "radolan_ascii",
    "mch-gif": "mch_gif",
    "bom": "bom",
    "mrms": "mrms",
    "nimrod": "nimrod",
    "jma": "jma",
    "kma": "kma",
    # video benchmarks
    "moving-mnist": "moving_mnist",
    "kth": "kth",
    "bair": "bair",
    "human": "human",
    "kitticaltech": "kitticaltech",
    "taxibj": "taxibj",
    "gs2pm": "gs2pm",
    # made up
    "simulator": "simulator",
    # whatever follows a convention; last, so that ``detect`` asks the others first
    "netcdf": "netcdf",
    "zarr": "zarr_cf",
    "geotiff": "geotiff",
}
"""Name -> module."""

CONVENTIONS = ("odim", "netcdf", "geotiff")
"""Readers of files of many producers: what they say of a file helps where no reader takes it."""
LOOKED_AT = 200
"""Files of a folder that are looked at to find out what it is."""


class Reader(Protocol):
    """What a module in this folder offers."""

    TITLE: str
    LICENCE: str
    CADENCE: int | None
    PATTERNS: tuple[str, ...]

    def recognises(self, path: Path) -> bool:
        """Whether a file whose name fits ``PATTERNS`` is really of this source."""

    def find(self, source: Path) -> Iterator[Item]:
        """Find the items of a file or folder from names and headers alone, in order."""

    def read(self, item: Item) -> xr.Dataset:
        """Read one item as a Cube in physical units."""


def get(name: str) -> Reader:
    """Return the reader called ``name``.

    Raises:
        ValueError: If it is unknown; the message lists the known ones.
    """
    if name not in READERS:
        raise OptionError(f"Unknown reader {name!r}; known: {', '.join(READERS)}.")
    return import_module(f"nowcast.readers.{READERS[name]}")


def detect(source: Path) -> str:
    """Find the name of the reader that takes a file, or the first recognised file of a folder.

    Raises:
        BadInput: If none does; the message says what was looked for.
    """
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    for path in [source] if source.is_file() else islice(_named_alike(source), LOOKED_AT):
        for name in READERS:
            if _recognised(get(name), path):
                return name
    fault, remedy = "is of no known source", f"name a reader ({', '.join(READERS)}) to see what it misses"
    if (complaint := _complaint(source)) is not None:
        name, missed = complaint
        fault, remedy = f"{fault}: for the reader {name} it {missed.fault}", missed.remedy or remedy
    raise BadInput(source, fault, remedy)


def _complaint(source: Path) -> tuple[str, BadInput] | None:
    """Find what the reader of a convention misses in a file that is sound and of its form."""
    path = source if source.is_file() else next(_named_alike(source), source)
    for name in CONVENTIONS:
        if not _named(get(name), path):
            continue
        try:
            for item in islice(get(name).find(path), 1):
                get(name).read(item)
        except BadInput as error:
            if not error.fault.startswith(("is damaged", "is not", "has no ")):
                return name, error
        except (MissingExtra, OSError):
            logger.debug("%s: not looked at by %s", path, name, exc_info=True)
    return None


def _named_alike(folder: Path) -> Iterator[Path]:
    """Find files whose names some reader knows, folder by folder: the whole of a large archive is never listed."""
    patterns = {pattern for name in READERS for pattern in get(name).PATTERNS}
    for place, folders, names in os.walk(folder):
        folders.sort()
        known = (name for name in sorted(names) if not name.startswith(".") or name in patterns)
        yield from (Path(place, name) for name in known if any(fnmatch(name, pattern) for pattern in patterns))


def _named(reader: Reader, path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in reader.PATTERNS)


def _recognised(reader: Reader, path: Path) -> bool:
    if not _named(reader, path):
        return False
    try:
        return reader.recognises(path)
    except Exception as error:
        if not is_decoder_error(error):
            raise
        # a damaged file is nobody's
        logger.debug("%s: not recognised by %s", path, reader, exc_info=True)
        return False
