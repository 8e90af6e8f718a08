"""SEVIR: storm events over the United States, 384 km square and four hours each, five kinds of image.

``CATALOG.csv`` beside ``data/<kind>/<year>/SEVIR_....h5``. A source may be the root or the catalogue
(vertically integrated liquid, ``vil``), a folder such as ``data/vis`` (that kind), or one HDF5 file.
One event and kind is one sequence. Its ``y``, ``x`` are local metres from the lower left corner; on the
event's projection they lie at ``origin_x + x``, ``origin_y + y``. Rows run north.

Events that the catalogue lists twice for a kind are left out, as in the reference loaders. Events carry
the split of the benchmark that Earthformer set up, by their time. SEVIR-LR, of every second frame and the
largest of 3 x 3 pixels, has the same layout.

Without catalogue: ``nowcast_training.h5``, ``nowcast_testing.h5`` and the numbered ones of the SEVIR
challenges, clips of 13 + 12 frames cut from events. A clip is a sequence named by its file and row, its
frames count from 1970, and its place is not known. Other kinds than ``vil`` are taken where that is not
in the file.

Source: Veillette et al. (2020), SEVIR: a storm event imagery dataset, NeurIPS; Gao et al. (2022),
Earthformer, NeurIPS.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from sys import intern
from typing import Any

import h5py
import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import VIL_LEVELS, vil_from_level
from nowcast.readers import stamps
from nowcast.readers.decoding import decoding
from nowcast.readers.hdf5 import member, numbers, open_hdf5
from nowcast.readers.items import Item, natural, part, parts, walk
from nowcast.readers.rasters import metric_crs

TITLE = "SEVIR storm events"
LICENCE = "open data, MIT Lincoln Laboratory (registry.opendata.aws/sevir)"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("CATALOG.csv", "SEVIR_*.h5", "nowcast_training*.h5", "nowcast_testing*.h5")

CATALOG = "CATALOG.csv"
FORM = "a SEVIR event file"
KINDS = {
    "vil": ("vil", None),
    "vis": ("visible_reflectance", 1e-4),
    "ir069": ("brightness_temperature_069", 1e-2),
    "ir107": ("brightness_temperature_107", 1e-2),
    "lght": ("lightning_flashes", 1.0),
}
"""Kind -> Cube variable and the step of its quantisation; the levels of vil are uneven."""
MISSING = np.iinfo(np.int16).min
VIL = Table(vil_from_level(np.arange(256)))
FLASH_CELLS = 48
FIVE_MINUTES = 300
OFFSETS = ":".join(str(minute) for minute in range(-120, 121, 5))
"""Of lightning, for which the catalogue states none."""
TRAIN_UNTIL, VALID_UNTIL = np.datetime64("2019-01-01"), np.datetime64("2019-06-01")
"""Last moments of the benchmark's splits, which belong to them."""
CLIPS = re.compile(r"nowcast_(training|testing)\w*\.h5")
PROJECTION, SIDE = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere", 384_000.0
"""Of all events: their own are local to it."""
BLOCK_BYTES = 2**28
"""Events kept at most of a file whose chunks hold many events, which must be unpacked together."""
MOST_VALUES = 2**26
"""Of an event; more are a damaged file."""


@dataclass(frozen=True, slots=True)
class Event:
    """The row of the catalogue for one event and kind, as text."""

    id: str
    file_name: str
    file_index: str
    img_type: str
    time_utc: str
    minute_offsets: str
    llcrnrlon: str
    llcrnrlat: str
    proj: str
    height_m: str
    width_m: str
    pct_missing: str


def recognises(path: Path) -> bool:
    """Whether this is a file of clips, or lies beside a catalog that names events."""
    if CLIPS.fullmatch(path.name):
        with h5py.File(path, "r") as file:
            return _clip_kind(file) is not None
    return bool(_events_of(_catalog_of(path), _catalog_of(path).stat().st_mtime_ns))


def find(source: Path) -> Iterator[Item]:
    """Find the events whose files are there, in order of time; those of a file of large chunks in its order."""
    source = source.absolute()
    if clips := _clip_files(source):
        yield from (item for path in clips for item in _clip_items(path, alone=path == source))
        return
    catalog = _catalog_of(source)
    listed = _events_of(catalog, catalog.stat().st_mtime_ns).values()
    events = [event for by_id in listed for event in by_id.values()]
    if source.is_file() and source != catalog:
        places = {event.file_name: source for event in events if _base(event.file_name) == source.name}
    else:
        folder = catalog.parent if source == catalog else source
        kind = next((part for part in folder.relative_to(catalog.parent).parts if part in KINDS), "vil")
        places = _present({event.file_name for event in events if event.img_type == kind}, folder, catalog)
    if not places:
        raise BadInput(source, f"holds no event that {CATALOG} lists", "name the root, data/<kind> or a file of SEVIR")
    for event in _in_order([event for event in events if event.file_name in places], places):
        yield Item(places[event.file_name], event.id)


def read(item: Item) -> xr.Dataset:
    """Read one event: ``vil`` (kg m-2), a reflectance, a brightness temperature (degC) or lightning counts.

    A lightning frame counts the flashes of the five minutes that end at its time.

    Raises:
        BadInput: If the file does not hold the event as the catalogue says.
    """
    if CLIPS.fullmatch(item.path.name):
        return _clips(item)
    event = _event(item)
    with open_hdf5(item.path, FORM) as file:
        minutes = np.array([float(minute) for minute in _offsets(event).split(":")])
        values = _flashes(file, event, minutes) if event.img_type == "lght" else _images(file, event)
        minutes = _thinned(minutes, values.shape[0], item.path)
        grid, origin = _grid(event, values.shape[1:])
        moment = stamps.told(event.time_utc, item.path)
        if moment is None:
            raise ValueError(f"no time: {event.time_utc}")
        missing = float(event.pct_missing or 0)
    split = "train" if moment <= TRAIN_UNTIL else "valid" if moment <= VALID_UNTIL else "test"
    time = moment + (minutes * 60).astype("timedelta64[s]")
    cube = _cube(event.img_type, values, time, grid, item, sequence=event.id, split=split)
    labels = {"origin_x": origin[0], "origin_y": origin[1], "pct_missing": missing}
    cube = cube.assign_coords({key: ("time", np.full(len(time), value)) for key, value in labels.items()})
    return check(cube, item)


def _cube(
    kind: str,
    values: np.ndarray | EncodedArray,
    time: np.ndarray,
    grid: Grid,
    item: Item,
    *,
    sequence: str | list[str],
    split: str,
) -> xr.Dataset:
    name, step = KINDS[kind]
    attrs = {"title": TITLE, "source": item.path.name, "licence": LICENCE, "institution": "MIT Lincoln Laboratory"}
    return make(
        {name: values},
        time,
        grid,
        sequence=sequence,
        split=split,
        quantum=step,
        levels=VIL_LEVELS if step is None else None,
        attrs=attrs,
    )


# --- the catalogue --------------------------------------------------------------------------------


def _catalog_of(source: Path) -> Path:
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    if source.name == CATALOG:
        return source
    for folder in (source, *source.parents):
        if (folder / CATALOG).is_file():
            return folder / CATALOG
    raise BadInput(source, f"has no {CATALOG} in it or above it", f"download s3://sevir/{CATALOG} into the root")


@lru_cache(maxsize=2)
def _events_of(catalog: Path, modified: int) -> dict[str, dict[str, Event]]:
    """Events by name of file and id; read once for every version of the catalogue."""
    fields = Event.__slots__
    with decoding(catalog, "SEVIR's catalogue", csv.Error), catalog.open(newline="") as stream:
        rows = csv.DictReader(stream)
        if absent := set(fields) - set(rows.fieldnames or ()):
            raise BadInput(catalog, f"has no column {', '.join(sorted(absent))}", f"download s3://sevir/{CATALOG}")
        events = [Event(*(intern(row[field] or "") for field in fields)) for row in rows]
    count = Counter((event.id, event.img_type) for event in events)
    listed: dict[str, dict[str, Event]] = {}
    for event in events:
        if count[event.id, event.img_type] == 1 and event.img_type in KINDS:
            listed.setdefault(_base(event.file_name), {})[event.id] = event
    return listed


def _event(item: Item) -> Event:
    catalog = _catalog_of(item.path)
    events = _events_of(catalog, catalog.stat().st_mtime_ns).get(item.path.name, {})
    if item.key not in events:
        raise BadInput(
            item.path, f"holds no event {item.key or '(none named)'} that {CATALOG} lists once", "take items from find"
        )
    return events[item.key]


def _present(names: set[str], folder: Path, catalog: Path) -> dict[str, Path]:
    """Find those of the named files that lie in ``folder``."""
    places = {}
    for name in names:
        for path in (catalog.parent / "data" / name, catalog.parent / name):
            if path.is_relative_to(folder) and path.is_file():
                places[name] = path
    return places


def _base(file_name: str) -> str:
    return PurePosixPath(file_name).name


def _in_order(events: list[Event], places: dict[str, Path]) -> list[Event]:
    """Sort events by time; those of a file whose chunks hold many stay in its order, from the first one's time."""
    banded = {name for name, path in places.items() if _is_banded(path)}
    first: dict[str, str] = {}
    for event in events:
        if event.file_name in banded:
            first[event.file_name] = min(event.time_utc, first.get(event.file_name, event.time_utc))

    def order(event: Event) -> tuple[Any, ...]:
        if event.file_name in banded:
            return first[event.file_name], event.file_name, natural(event.file_index), event.id
        return event.time_utc, "", [], event.id

    return sorted(events, key=order)


def _is_banded(path: Path) -> bool:
    with suppress(BadInput), open_hdf5(path, FORM) as file:  # what is wrong with the file, reading tells
        return any(_band(file[kind]) > 1 for kind in KINDS if kind in file)
    return False


# --- one event ------------------------------------------------------------------------------------


def _images(file: h5py.File, event: Event) -> np.ndarray | EncodedArray:
    """(time, y, x) float32 in physical units, NaN = missing; one event only is read."""
    stack, row = member(file, event.img_type), int(event.file_index)
    _check_stack(stack, row)
    if "id" in file and (found := _id(file, row)) != event.id:  # SEVIR-LR keeps no ids
        raise BadInput(file.filename, f"holds {found} in row {row}, not {event.id}", "get its own catalogue")
    return _decoded(np.ascontiguousarray(np.moveaxis(_row(stack, row), -1, 0)), event.img_type, file.filename)


def _id(file: h5py.File, row: int) -> str:
    ids = member(file, "id")
    text = ids[row] if isinstance(ids, h5py.Dataset) and ids.ndim == 1 and row < ids.shape[0] else None
    if not isinstance(text, bytes):
        raise BadInput(file.filename, f"has no id in row {row}", "download it again")
    return text.decode().strip()


def _check_stack(stack: h5py.Dataset, row: int) -> None:
    if stack.ndim != 4 or not 0 <= row < stack.shape[0] or not 0 < math.prod(stack.shape[1:]) <= MOST_VALUES:
        raise BadInput(stack.file.filename, f"has no event in row {row} of {stack.shape}", "download it again")


def _decoded(raw: np.ndarray, kind: str, where: object) -> np.ndarray | EncodedArray:
    """Convert stored numbers to float32 in physical units, NaN = missing."""
    if kind == "vil":
        if raw.dtype != np.uint8:  # clips are often kept as floats
            with np.errstate(invalid="ignore"):
                levels = raw.astype(np.uint8)
            if (levels != raw).any():
                raise BadInput(where, "holds vil that is no level from 0 to 255", "give unscaled data")
            raw = levels
        return EncodedArray(raw, VIL)
    values: np.ndarray = np.multiply(raw, np.float32(KINDS[kind][1] or 1), dtype=np.float32)
    values[raw == MISSING] = np.nan  # colder than absolute zero: can only stand for no data
    return values


_kept: dict[tuple[object, ...], np.ndarray] = {}
"""Blocks of events of banded files; see ``_row``."""


def _band(stack: h5py.Dataset) -> int:
    """Events that lie in one chunk together."""
    return stack.chunks[0] if stack.chunks else 1


def _row(stack: h5py.Dataset, row: int, *, shared: int = 1) -> np.ndarray:
    """One event as stored. Where chunks hold many, as many as memory allows are read and kept for the next calls.

    Args:
        stack: (event, y, x, time).
        row: Of the event.
        shared: Stacks of one file that are read in turn.
    """
    band = _band(stack)
    if band == 1:
        return numbers(stack, row)
    size = stack.dtype.itemsize * math.prod(stack.shape[1:])
    most = max(1, BLOCK_BYTES // shared // size)
    first = row - row % band
    first += (row - first) // most * most
    last = min(first + most, row - row % band + band, stack.shape[0])
    stat = Path(stack.file.filename).stat()
    key = (stack.file.filename, stat.st_size, stat.st_mtime_ns, stack.name, first)
    block = _kept.get(key)
    if block is None:
        for old in list(_kept)[: max(0, len(_kept) + 1 - shared)]:
            _kept.pop(old, None)
        block = _kept[key] = stack[first:last]
    return np.asarray(block[row - first])


def _flashes(file: h5py.File, event: Event, minutes: np.ndarray) -> np.ndarray:
    """Count flashes (time, y, x) from a table: seconds from the event's time, lat, lon, x and y in cells of 8 km."""
    table = np.reshape(member(file, event.id)[()], (-1, 5))
    frame = np.searchsorted(minutes * 60, table[:, 0], side="left")
    column, row = np.floor(table[:, 3]), np.floor(table[:, 4])
    inside = (frame < len(minutes)) & (table[:, 0] > minutes[0] * 60 - FIVE_MINUTES)
    inside &= (column >= 0) & (column < FLASH_CELLS) & (row >= 0) & (row < FLASH_CELLS)
    counts = np.zeros((len(minutes), FLASH_CELLS, FLASH_CELLS), np.float32)
    np.add.at(counts, (frame[inside], row[inside].astype(int), column[inside].astype(int)), 1)
    return counts


def _offsets(event: Event) -> str:
    return event.minute_offsets if event.minute_offsets.lower() not in ("", "nan") else OFFSETS


def _thinned(minutes: np.ndarray, frames: int, path: Path) -> np.ndarray:
    """Offsets of the frames that the file holds: all, or every n-th (SEVIR-LR keeps every second)."""
    step = (minutes.size - 1) // max(frames - 1, 1)
    kept = minutes[:: max(step, 1)]
    if kept.size != frames:
        raise BadInput(path, f"holds {frames} frames for {minutes.size} offsets", "get its own catalogue")
    return kept


def _grid(event: Event, shape: tuple[int, ...]) -> tuple[Grid, tuple[float, float]]:
    """South-up local grid of pixel centres, and its lower left corner on the projection."""
    grid = _local(event.proj.strip(), shape, (float(event.height_m), float(event.width_m)))
    left, bottom = grid.project(np.array(float(event.llcrnrlon)), np.array(float(event.llcrnrlat)))
    return grid, (float(left), float(bottom))


@lru_cache(maxsize=8)
def _local(projection: str, shape: tuple[int, ...], extent: tuple[float, float]) -> Grid:
    y, x = ((np.arange(count) + 0.5) * (length / count) for count, length in zip(shape, extent, strict=True))
    return Grid(metric_crs(projection), y, x)


# --- clips without catalogue ----------------------------------------------------------------------


def _clip_files(source: Path) -> list[Path]:
    """Find the files of clips of a source that is not the root of SEVIR itself."""
    if source.is_file():
        return [source] if CLIPS.fullmatch(source.name) else []
    if not source.is_dir() or (source / CATALOG).is_file():
        return []
    return sorted(
        (place / name for place, _, names in walk(source) for name in names if CLIPS.fullmatch(name)),
        key=lambda path: natural(path.name),
    )


def _clip_kind(file: h5py.File) -> tuple[str, list[str]] | None:
    """Kind of image, and its datasets in order of time."""
    for kind, ending in (("vil", ""), *((kind, f"_{kind}") for kind in KINDS)):
        if f"IN{ending}" in file:
            return kind, [name for name in (f"IN{ending}", f"OUT{ending}") if name in file]
    return None


def _clip_stacks(file: h5py.File) -> tuple[str, list[h5py.Dataset]]:
    found = _clip_kind(file)
    if found is None:
        raise BadInput(file.filename, "has no IN, IN_vil or the like", "choose the reader for this file")
    stacks = [file[name] for name in found[1]]
    for stack in stacks:
        _check_stack(stack, 0)
        if stack.shape[:3] != stacks[0].shape[:3]:
            raise BadInput(file.filename, f"has IN of {stacks[0].shape} and OUT of {stack.shape}", "make it again")
    return found[0], stacks


def _clip_items(path: Path, *, alone: bool) -> list[Item]:
    try:
        with open_hdf5(path, FORM) as file:
            _, stacks = _clip_stacks(file)
            frames = sum(stack.shape[3] for stack in stacks)
            return [Item(path, key) for key in parts(stacks[0].shape[0], (frames, *stacks[0].shape[1:3]))]
    except BadInput:  # of one bad file in a folder its item will tell
        if alone:
            raise
        return [Item(path)]


def _clips(item: Item) -> xr.Dataset:
    with open_hdf5(item.path, FORM) as file:
        kind, stacks = _clip_stacks(file)
        rows = range(stacks[0].shape[0])[part(item)]
        if not rows:
            raise BadInput(item.path, f"has no clips {item.key}", "take items from find")
        raw = np.stack(
            [np.concatenate([_row(stack, row, shared=len(stacks)) for stack in stacks], axis=-1) for row in rows]
        )
        frames = raw.shape[-1]
        raw = np.moveaxis(raw, -1, 1).reshape(-1, *raw.shape[1:3])
        values = _decoded(raw, kind, item)
        grid = _local(PROJECTION, values.shape[1:], (SIDE, SIDE))
    time = np.tile(np.datetime64(0, "s") + np.arange(frames) * FIVE_MINUTES, len(rows))
    split = "train" if item.path.name.startswith("nowcast_training") else "test"
    names = [f"{item.path.stem}/{row}" for row in rows for _ in range(frames)]
    return check(_cube(kind, values, time, grid, item, sequence=names, split=split), item)
