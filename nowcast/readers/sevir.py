"""SEVIR: storm events over the United States, 384 km square and four hours each, five kinds of image.

``CATALOG.csv`` beside ``data/<kind>/<year>/SEVIR_....h5``. A source may be the root or the catalogue
(vertically integrated liquid, ``vil``), a folder such as ``data/vis`` (that kind), or one HDF5 file.
One event and kind is one sequence. Its ``y``, ``x`` are local metres from the lower left corner; on the
event's projection they lie at ``origin_x + x``, ``origin_y + y``. Rows run north.

Events that the catalogue lists twice for a kind are left out, as in the reference loaders.

Source: Veillette et al. (2020), SEVIR: a storm event imagery dataset, NeurIPS.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from sys import intern

import h5py
import numpy as np
import xarray as xr

from nowcast.cube import BadInput, check, make
from nowcast.grid import Grid
from nowcast.readers import Item, decoding, member, metric_crs, open_hdf5
from nowcast.units import quantity, vil_from_level

TITLE = "SEVIR storm events"
LICENCE = "open data, MIT Lincoln Laboratory (registry.opendata.aws/sevir)"
CADENCE = None

CATALOG = "CATALOG.csv"
FORM = "a SEVIR event file"
KINDS = {
    "vil": ("vil", quantity("vil").resolution),
    "vis": ("visible_reflectance", 1e-4),
    "ir069": ("brightness_temperature_069", 1e-2),
    "ir107": ("brightness_temperature_107", 1e-2),
    "lght": ("lightning_flashes", 1.0),
}
"""Kind -> Cube variable, and the step of its quantisation (of vil: one that keeps its uneven levels apart)."""
MISSING = np.iinfo(np.int16).min
FLASH_CELLS = 48
FIVE_MINUTES = 300
OFFSETS = ":".join(str(minute) for minute in range(-120, 121, 5))
"""Of lightning, for which the catalogue states none."""


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


def find(source: Path) -> Iterator[Item]:
    """The events whose files are there, in order of time."""
    source = source.absolute()
    catalog = _catalog_of(source)
    events = [event for book in _books(catalog, catalog.stat().st_mtime_ns).values() for event in book.values()]
    if source.is_file() and source != catalog:
        places = {event.file_name: source for event in events if _base(event.file_name) == source.name}
    else:
        folder = catalog.parent if source == catalog else source
        kind = next((part for part in folder.relative_to(catalog.parent).parts if part in KINDS), "vil")
        places = _present({event.file_name for event in events if event.img_type == kind}, folder, catalog)
    if not places:
        raise BadInput(source, f"holds no event that {CATALOG} lists", "name the root, data/<kind> or a file of SEVIR")
    for event in sorted(events, key=lambda event: (event.time_utc, event.id)):
        if event.file_name in places:
            yield Item(places[event.file_name], event.id)


def read(item: Item) -> xr.Dataset:
    """One event: ``vil`` (kg m-2), a reflectance, a brightness temperature (degC) or lightning counts.

    A lightning frame counts the flashes of the five minutes that end at its time.

    Raises:
        BadInput: If the file does not hold the event as the catalogue says.
    """
    event = _event(item)
    name, step = KINDS[event.img_type]
    with open_hdf5(item.path, FORM) as file:
        minutes = np.array([float(minute) for minute in _offsets(event).split(":")])
        values = _flashes(file, event, minutes) if event.img_type == "lght" else _images(file, event)
        minutes = _thinned(minutes, values.shape[0], item.path)
        grid, origin = _grid(event, values.shape[1:])
        time = np.datetime64(event.time_utc.replace(" ", "T"), "s") + (minutes * 60).astype("timedelta64[s]")
        missing = float(event.pct_missing or 0)
    attrs = {"title": TITLE, "source": item.path.name, "licence": LICENCE, "institution": "MIT Lincoln Laboratory"}
    cube = make({name: values}, time, grid, sequence=event.id, quantum=step, attrs=attrs)
    labels = {"origin_x": origin[0], "origin_y": origin[1], "pct_missing": missing}
    cube = cube.assign_coords({key: ("time", np.full(len(time), value)) for key, value in labels.items()})
    return check(cube, item)


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
def _books(catalog: Path, modified: int) -> dict[str, dict[str, Event]]:
    """Events by name of file and id; read once for every version of the catalogue."""
    fields = Event.__slots__
    with decoding(catalog, "SEVIR's catalogue"), catalog.open(newline="") as stream:
        rows = csv.DictReader(stream)
        if absent := set(fields) - set(rows.fieldnames or ()):
            raise BadInput(catalog, f"has no column {', '.join(sorted(absent))}", f"download s3://sevir/{CATALOG}")
        events = [Event(*(intern(row[field]) for field in fields)) for row in rows]
    count = Counter((event.id, event.img_type) for event in events)
    books: dict[str, dict[str, Event]] = {}
    for event in events:
        if count[event.id, event.img_type] == 1 and event.img_type in KINDS:
            books.setdefault(_base(event.file_name), {})[event.id] = event
    return books


def _event(item: Item) -> Event:
    catalog = _catalog_of(item.path)
    book = _books(catalog, catalog.stat().st_mtime_ns).get(item.path.name, {})
    if item.key not in book:
        raise BadInput(item.path, f"holds no event {item.key or '(none named)'} that {CATALOG} lists once",
                       "take items from find")  # fmt: skip
    return book[item.key]


def _present(names: set[str], folder: Path, catalog: Path) -> dict[str, Path]:
    """Where those of the named files are that lie in ``folder``."""
    places = {}
    for name in names:
        for path in (catalog.parent / "data" / name, catalog.parent / name):
            if path.is_relative_to(folder) and path.is_file():
                places[name] = path
    return places


def _base(file_name: str) -> str:
    return PurePosixPath(file_name).name


# --- one event ------------------------------------------------------------------------------------


def _images(file: h5py.File, event: Event) -> np.ndarray:
    """(time, y, x) float32 in physical units, NaN = missing; one event only is read."""
    stack, row = member(file, event.img_type), int(event.file_index)
    if stack.ndim != 4 or not 0 <= row < stack.shape[0]:
        raise BadInput(file.filename, f"has no event in row {row} of {stack.shape}", "download it again")
    if "id" in file and (found := file["id"][row].decode().strip()) != event.id:  # SEVIR-LR keeps no ids
        raise BadInput(file.filename, f"holds {found} in row {row}, not {event.id}", "get its own catalogue")
    raw = np.ascontiguousarray(np.moveaxis(stack[row], -1, 0))
    if event.img_type == "vil":
        return vil_from_level(raw)
    values = raw * np.float32(KINDS[event.img_type][1])
    values[raw == MISSING] = np.nan  # colder than absolute zero: can only stand for no data
    return values


def _flashes(file: h5py.File, event: Event, minutes: np.ndarray) -> np.ndarray:
    """Counts (time, y, x) of a table of flashes: seconds from the event's time, lat, lon, x and y in cells of 8 km."""
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
    height, width = float(event.height_m) / shape[0], float(event.width_m) / shape[1]
    y, x = (np.arange(shape[0]) + 0.5) * height, (np.arange(shape[1]) + 0.5) * width
    grid = Grid(metric_crs(event.proj.strip()), y, x)
    left, bottom = grid.project(np.array(float(event.llcrnrlon)), np.array(float(event.llcrnrlat)))
    return grid, (float(left), float(bottom))
