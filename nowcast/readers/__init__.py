"""Sources of frames: the table of readers, and which of them takes a file.

One file in this folder and one line in ``READERS`` add a source.

A reader is a module with

- ``TITLE`` and ``LICENCE``: one line each, carried into every store;
- ``CADENCE``: seconds between frames of a live feed, or None where sequences are labelled or where
  each cube says it itself (``cadence_seconds``);
- ``PATTERNS``: globs of the names of its files;
- ``FILE_BY_FILE = False`` where ``find`` needs to see all files of a folder, not only the new ones;
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
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Protocol

import xarray as xr

from nowcast.core.errors import BadInput, MissingExtra, OptionError
from nowcast.readers import forecasts, wrapping
from nowcast.readers.decoding import is_decoder_error
from nowcast.readers.items import Item, files, fits, natural, walk

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


class Door:
    """A reader as others use it: it takes what is wrapped in archives and compressed files, too, and no forecast.

    The files in a wrapping have items of their own, whose ``path`` is the wrapping and whose ``member`` the place in
    it. A module of this folder sees unpacked files alone, but for those wrappings whose names fit its ``PATTERNS``.
    """

    def __init__(self, module: Reader) -> None:
        self.module = module
        self.TITLE, self.LICENCE = module.TITLE, module.LICENCE
        self.CADENCE, self.PATTERNS = module.CADENCE, module.PATTERNS
        self.FILE_BY_FILE = getattr(module, "FILE_BY_FILE", True)
        """Whether ``find`` needs no other files of a folder than the new ones."""

    def recognises(self, path: Path) -> bool:
        """Whether an unpacked file is of this source."""
        return self.module.recognises(path)

    def find(self, source: Path) -> Iterator[Item]:
        """Find the items of a file or folder and of the wrappings in it, in order.

        Raises:
            BadInput: If there are none.
        """
        if source.is_file() and self._wraps(source):
            found = list(self._within(source, set()))
            if not found:
                wanted = " or ".join(self.PATTERNS)
                raise BadInput(source, f"holds no file named {wanted}", "check the path and the reader")
            yield from found
            return
        wrappings = sorted(filter(self._wraps, _wrappings(source)), key=lambda path: (natural(path.name), str(path)))
        if not wrappings:
            yield from self.module.find(source)
            return
        refusal = None
        try:
            found = list(self.module.find(source))
        except BadInput as error:
            found, refusal = [], error
        alike: set[Path] = set()
        found += [item for path in wrappings for item in self._within(path, alike)]
        if refusal and not found:
            raise refusal
        yield from found

    def read(self, item: Item) -> xr.Dataset:
        """Read one item as a Cube in physical units.

        Raises:
            BadInput: If it is not what it says it is, or a forecast.
        """
        forecasts.refuse(item.path, Path(item.member).name if item.member else None)
        if item.member or self._wraps(item.path):
            return self._unwrapped(item)
        try:
            return self.module.read(item)
        except BadInput:
            if not wrapping.is_compressed(item.path):
                raise
            return self._unwrapped(replace(item, member=item.path.name))  # compressed, and the name does not say so

    def _wraps(self, path: Path) -> bool:
        return wrapping.is_wrapping(path.name) and not fits(path.name, self.PATTERNS)

    def _within(self, path: Path, alike: set[Path]) -> Iterator[Item]:
        """Find the items in a wrapping.

        It is unpacked for that, unless one beside it turned out to hold a frame a file: then their names are enough.

        Args:
            path: The wrapping.
            alike: Folders with wrappings that hold a frame a file.
        """
        try:
            places = [place for place in wrapping.names(path) if self._may_hold(Path(place).name)]
            own = [place for place in places if fits(Path(place).name, self.PATTERNS)]
            if not places or (path.parent in alike and own == places):
                yield from (Item(path, member=place) for place in own)
                return
            with wrapping.unwrapped(path, _is_known) as folder:
                found = self._inside(folder)
                items = [replace(one, path=path, member=str(one.path.relative_to(folder))) for one in found]
        except BadInput:
            yield Item(path)  # whose reading says what is wrong
            return
        if [item.member for item in items if not item.key] == sorted(own, key=natural):
            alike.add(path.parent)
        yield from items

    def _inside(self, folder: Path) -> list[Item]:
        """Find the items of an unpacked wrapping, which may hold a single folder; none of another source."""
        entries = list(folder.iterdir())
        for root in (folder, *entries) if len(entries) == 1 and entries[0].is_dir() else (folder,):
            try:
                return list(self.module.find(root))
            except BadInput:
                logger.debug("%s: nothing for %s", root, self.module, exc_info=True)
        return []

    def _may_hold(self, name: str) -> bool:
        known = fits(name, self.PATTERNS) or wrapping.is_wrapping(name)
        return known and not name.startswith(".") and not forecasts.lead(name)

    def _unwrapped(self, item: Item) -> xr.Dataset:
        with wrapping.unwrapped(item.path, _is_known) as folder:
            try:
                return self.module.read(replace(item, path=folder / (item.member or self._only(folder)), member=""))
            except BadInput as error:
                inside = str(folder)
                where, fault = (text.replace(inside, str(item.path)) for text in (error.where, error.fault))
                raise BadInput(where, fault, error.remedy) from error.__cause__

    def _only(self, folder: Path) -> Path:
        """Find the one file of this source in an unpacked wrapping that was named without a member."""
        found = files(folder, *self.PATTERNS)
        if len(found) > 1:
            raise BadInput(folder, f"holds {len(found)} files", "take items from find")
        return found[0]


def get(name: str) -> Reader:
    """Return the reader called ``name``.

    Raises:
        ValueError: If it is unknown; the message lists the known ones.
    """
    if name not in READERS:
        raise OptionError(f"Unknown reader {name!r}; known: {', '.join(READERS)}.")
    return _door(name)


@cache
def _door(name: str) -> Door:
    return Door(import_module(f"nowcast.readers.{READERS[name]}"))


def detect(source: Path) -> str:
    """Find the name of the reader that takes a file, or the first recognised file of a folder or wrapping.

    Raises:
        BadInput: If none does; the message says what was looked for.
    """
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    if source.is_file():
        name = _reader_of(source, damage=True)
    else:
        names = map(_reader_of, islice(_named_alike(source), LOOKED_AT))
        name = next(filter(None, names), None)
    if name is None:
        fault, remedy = "is of no known source", f"name a reader ({', '.join(READERS)}) to see what it misses"
        if (complaint := _complaint(source)) is not None:
            reader, missed = complaint
            fault, remedy = f"{fault}: for the reader {reader} it {missed.fault}", missed.remedy or remedy
        raise BadInput(source, fault, remedy)
    return name


def _complaint(source: Path) -> tuple[str, BadInput] | None:
    """Find what the reader of a convention misses in a file that is sound and of its form."""
    path = source if source.is_file() else next(_named_alike(source), source)
    for name in CONVENTIONS:
        if not fits(path.name, get(name).PATTERNS):
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


def _reader_of(path: Path, *, damage: bool = False) -> str | None:
    """Find the reader that takes a file; a wrapping that is damaged is nobody's, or raises."""
    for name in READERS:
        if _recognised(get(name), path):
            return name
    if not (wrapping.is_wrapping(path.name) or wrapping.is_compressed(path)):
        return None
    try:
        with wrapping.unwrapped(path, _is_known) as folder:
            names = map(_reader_of, islice(_named_alike(folder), LOOKED_AT))
            return next(filter(None, names), None)
    except BadInput:
        logger.debug("%s: not unpacked", path, exc_info=True)
        if damage and not _is_known(path.name):
            raise
        return None


@cache
def _patterns() -> tuple[str, ...]:
    return tuple({pattern: None for name in READERS for pattern in get(name).PATTERNS})


def _is_known(name: str) -> bool:
    """Whether some reader takes files of such a name as they are."""
    return fits(name, _patterns())


def _named_alike(folder: Path) -> Iterator[Path]:
    """Find files whose names some reader knows, and wrappings, folder by folder: a large archive is never listed."""
    for place, _, names in walk(folder):
        known = (name for name in sorted(names) if not name.startswith(".") or name in _patterns())
        yield from (place / name for name in known if _is_known(name) or wrapping.is_wrapping(name))


def _wrappings(source: Path) -> Iterator[Path]:
    """Find the wrappings under a folder; the pieces of a Zarr store are none."""
    for place, folders, names in walk(source):
        if not {"zarr.json", ".zgroup", ".zarray"}.isdisjoint(names):
            folders.clear()
        yield from (
            place / name
            for name in names
            if wrapping.is_wrapping(name) and not name.startswith(".") and (place / name).is_file()
        )


def _recognised(reader: Reader, path: Path) -> bool:
    if not fits(path.name, reader.PATTERNS):
        return False
    try:
        return reader.recognises(path)
    except Exception as error:
        if not is_decoder_error(error):
            raise
        # a damaged file is nobody's
        logger.debug("%s: not recognised by %s", path, reader, exc_info=True)
        return False
