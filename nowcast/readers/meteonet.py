"""MeteoNet: rain and reflectivity over two quarters of France, 2016 to 2018, five minutes apart.

``rainfall_<zone>_<year>_<month>.<1, 2 or 3>.npz``, a third of a month each, of zone NW or SE, and
likewise ``reflectivity_old_...`` (in use to October 2018, whole dBZ from 8 on) and
``reflectivity_new_...`` (from February 2018, half dBZ from -9 on). Zones and products differ in grid or
kind, old and new ones overlap in time: each goes into a store of its own, so that a source is one file
or a folder of one zone and product. Also ``meteo_radar.h5``, the clips of 25 frames that the authors of
DiffCast cut from the old reflectivities, whose dates they dropped.

The dates are pickled. Nothing of them is run: opcodes and names are compared with the few that an array
of dates needs, and everything but ``datetime`` itself is read into a box that does nothing.

Source: https://meteofrance.github.io/meteonet/english/data/rain-radar; Yu et al. (2024), DiffCast, CVPR.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.lib import format as npy_format

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import MARSHALL_PALMER
from nowcast.readers import arrays
from nowcast.readers.decoding import decoding
from nowcast.readers.hdf5 import member, open_hdf5
from nowcast.readers.items import Item, files, natural, part, parts

TITLE = "MeteoNet radar data of Meteo-France"
LICENCE = "Etalab Open Licence 2.0, Meteo-France"
CADENCE = 300
FILE_BY_FILE = False
PATTERNS = ("rainfall_[NS][WE]_*.npz", "reflectivity_*_[NS][WE]_*.npz", "*.h5")

FORM = "a MeteoNet file"
NAME = re.compile(r"(rainfall|reflectivity_old|reflectivity_new)_(NW|SE)_\d{4}_\d{2}\.[123]\.(?i:npz)")
PRODUCTS: dict[str, tuple[str, float, float | None]] = {
    "rainfall": ("rainfall_rate", 0.12, None),
    "reflectivity_old": ("reflectivity", 1.0, 0.0),
    "reflectivity_new": ("reflectivity", 0.1, None),
    "clips": ("reflectivity", 1.0, 0.0),
}
"""Product -> Cube variable, its step and its lowest value where 8 bits hold it; rain is 0.01 mm in 5 minutes."""
MISSING_NEW, MISSING_OLD = -200, 255
CORNERS = {"NW": (-5.837, 51.891, (565, 784)), "SE": (2.005, 46.245, (515, 784))}
"""Zone -> longitude and latitude of the centre of its first pixel, rows and columns."""
PIXEL = 0.01
COORDINATE_BYTES = 2**26
DATE_BYTES = 2**22
HARMLESS = {
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "GLOBAL",
    "STACK_GLOBAL",
    "REDUCE",
    "BUILD",
    "MEMOIZE",
    "BINPUT",
    "LONG_BINPUT",
    "BINGET",
    "LONG_BINGET",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "SHORT_BINBYTES",
    "BINBYTES",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "EMPTY_LIST",
    "APPEND",
    "APPENDS",
}
"""Opcodes of a pickled array of dates; others can allocate what they like."""
ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
CLIP_FRAMES = 64
"""More than any clip has."""


def recognises(path: Path) -> bool:
    """Whether an archive holds data and dates, or an HDF5 file holds clips of a split."""
    if path.suffix.lower() == ".npz":
        return NAME.fullmatch(path.name) is not None and {"data", "dates"} <= arrays.names(path)
    with h5py.File(path, "r") as file:
        return "train_len" in file and any(f"{split}/0" in file for split in ("train", "test"))


def find(source: Path) -> Iterator[Item]:
    """Find the frames of a file, or of a folder of one zone and product, in time order.

    Raises:
        BadInput: Besides the usual, if a folder holds several of them.
    """
    paths = files(source, *PATTERNS)
    if source.is_dir():
        paths = [
            path for path in paths if (path.suffix.lower() == ".npz" and NAME.fullmatch(path.name)) or _is_clips(path)
        ]
    kinds = sorted({" ".join(_kind(path)).strip() for path in paths})
    if not kinds:
        raise BadInput(source, "holds no file of MeteoNet", "check the path and the reader")
    if len(kinds) > 1:
        raise BadInput(
            source,
            f"holds {', '.join(kinds)}, which need a store each",
            "name the files of one, such as rainfall_NW_*.npz",
        )
    for path in paths:
        try:
            items = _clips(path) if _kind(path)[0] == "clips" else _frames(path)
        except BadInput:  # of one bad file in a folder of good ones its item will tell
            if path == source:
                raise
            items = [Item(path)]
        yield from items


def read(item: Item) -> xr.Dataset:
    """Read some frames of a file or one clip: ``rainfall_rate``, or ``reflectivity`` in dBZ.

    Echoes too weak to be seen are 0 dBZ in the old product and -10 dBZ in the new one.

    Raises:
        BadInput: If the file is not what its name says.
    """
    product, zone = _kind(item.path)
    name, step, floor = PRODUCTS[product]
    attrs = {
        "title": TITLE,
        "source": item.path.name,
        "licence": LICENCE,
        "institution": "Meteo-France",
        "zr_a": MARSHALL_PALMER[0],
        "zr_b": MARSHALL_PALMER[1],
    }
    with decoding(item.path, FORM):
        if product == "clips":
            raw = _clip(item)
            time = np.datetime64(0, "s") + np.arange(len(raw)) * CADENCE
        else:
            raw, time = _dated(item)
        grid = _grid(item.path, zone, raw.shape[1:])
        values = np.multiply(raw, np.float32(step), dtype=np.float32)
        values[_absent(raw, product)] = np.nan
    clip = item.key if product == "clips" else ""
    cube = make(
        {name: values},
        time,
        grid,
        sequence=clip,
        split=clip.split("/")[0] if clip else None,
        cadence=None if clip else CADENCE,
        quantum=step,
        floor=floor,
        product=f"{product} {zone}".strip(),
        accumulation=CADENCE if name == "rainfall_rate" else 0,
        attrs=attrs,
    )
    return check(cube, item)


def _kind(path: Path) -> tuple[str, str]:
    """Product and zone by the name of a file; clips carry no zone."""
    if path.suffix.lower() == ".h5":
        return "clips", ""
    if match := NAME.fullmatch(path.name):
        return match[1], match[2]
    raise BadInput(path, "carries no product and zone", "keep names such as rainfall_NW_2016_08.3.npz")


def _absent(raw: np.ndarray, product: str) -> np.ndarray:
    if product == "rainfall":
        return raw < 0
    return raw <= MISSING_NEW if product == "reflectivity_new" else raw == MISSING_OLD


# --- dated frames ---------------------------------------------------------------------------------


def _frames(path: Path) -> list[Item]:
    with decoding(path, FORM):
        shape = _data(path).shape
    return [Item(path, key) for key in parts(shape[0], shape[1:])]


def _data(path: Path) -> arrays.Array:
    (data,) = arrays.npz(path, ["data"])
    if len(data.shape) != 3 or min(data.shape[1:]) < 2 or data.dtype.kind not in "iu":
        raise BadInput(path, f"holds {data.dtype} of {data.shape} as data", "fetch it again")
    return data


def _dated(item: Item) -> tuple[np.ndarray, np.ndarray]:
    """Levels (time, y, x) and times of the frames of an item, in order of time."""
    data, window, stat = _data(item.path), part(item), item.path.stat()
    dates = _dates(item.path, stat.st_size, stat.st_mtime_ns)
    if dates.size != data.shape[0]:
        raise BadInput(item.path, f"holds {data.shape[0]} frames and {dates.size} dates", "fetch it again")
    count, size = window.stop - window.start, int(np.prod(data.shape[1:]))
    raw = arrays.read(data, window.start * size, count * size).reshape(count, *data.shape[1:])
    order = _order(dates)
    order = order[(order >= window.start) & (order < window.stop)]
    kept = order - window.start
    return (raw if kept.size == count and (np.diff(kept) > 0).all() else raw[kept]), dates[order]


def _order(dates: np.ndarray) -> np.ndarray:
    """Positions of the frames by time; of frames with one date, which occur, the last."""
    order = np.argsort(dates, kind="stable")
    return np.asarray(order[np.append(np.diff(dates[order]) > np.timedelta64(0), True)])


@lru_cache(maxsize=16)
def _dates(path: Path, size: int, modified: int) -> np.ndarray:
    """Read the times of all frames, of one version of a file."""
    if "dates" not in arrays.names(path):
        raise BadInput(path, "has no array dates", "choose the reader for this file")
    with zipfile.ZipFile(path) as archive, archive.open("dates.npy") as stream:
        content = io.BytesIO(stream.read(DATE_BYTES))
        if stream.read(1):
            raise BadInput(path, "holds more dates than a month has", "fetch it again")
    with decoding(path, FORM, *arrays.ODD):
        npy_format.read_magic(content)
        npy_format.read_array_header_1_0(content)
    dates = _unpickled(path, content.read())
    if not all(type(date) is datetime for date in dates):
        raise BadInput(path, "holds dates that are none", "fetch it again")
    return np.array(dates, "datetime64[s]")


class _Placeholder:
    """A placeholder for the parts of a pickled array: does nothing and keeps its state."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _unpickled(path: Path, pickled: bytes) -> list[Any]:
    """Read the elements of a pickled array of objects.

    Raises:
        BadInput: If it holds anything but dates; nothing of it is run.
    """
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in HARMLESS or (opcode.name.startswith("LONG_") and not 0 <= argument <= len(pickled)):
            raise BadInput(path, f"holds {opcode.name} among its dates", "do not open it; fetch it again")

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type:
            if (module, name) == ("datetime", "datetime"):
                return datetime
            if (module, name) in ARRAY_PARTS:
                return _Placeholder
            raise BadInput(path, f"names {module}.{name} among its dates", "do not open it; fetch it again")

    with decoding(path, FORM, pickle.UnpicklingError, AttributeError, IndexError, KeyError, TypeError):
        return list(Unpickler(io.BytesIO(pickled)).load().state[4])


# --- clips ----------------------------------------------------------------------------------------


def _is_clips(path: Path) -> bool:
    with suppress(BadInput), decoding(path, FORM):  # a damaged file is nobody's
        return path.suffix.lower() == ".h5" and recognises(path)
    return False


def _clips(path: Path) -> list[Item]:
    with open_hdf5(path, FORM) as file:
        keys = [
            f"{split}/{key}"
            for split in ("train", "test")
            if split in file
            for key in sorted(file[split], key=natural)
            if key.isdecimal()
        ]
    if not keys:
        raise BadInput(path, "holds no clips in train and test", "choose the reader for this file")
    return [Item(path, key) for key in keys]


def _clip(item: Item) -> np.ndarray:
    if not re.fullmatch(r"(train|test)/\d+", item.key):
        raise BadInput(item.path, f"has no clip {item.key or '(none named)'}", "take items from find")
    with open_hdf5(item.path, FORM) as file:
        clip = member(file, item.key)
        if clip.ndim != 3 or clip.dtype != np.uint8 or not 0 < clip.shape[0] <= CLIP_FRAMES:
            raise BadInput(item.path, f"holds {item.key} as {clip.dtype} of {clip.shape}", "choose another reader")
        if clip.shape[1:] not in [corner[2] for corner in CORNERS.values()]:
            raise BadInput(
                item.path,
                f"has frames of {clip.shape[1]}x{clip.shape[2]} pixels, which is no zone",
                "give the clips in full size",
            )
        return np.asarray(clip[()])


# --- grid -----------------------------------------------------------------------------------------


def _grid(path: Path, zone: str, shape: tuple[int, ...]) -> Grid:
    """Lay out the grid by the file of coordinates beside or above, else as documented."""
    zone = zone or next(name for name, corner in CORNERS.items() if corner[2] == shape)
    for folder in path.absolute().parents:
        coordinates = folder / f"radar_coords_{zone}.npz"
        coordinates = coordinates if coordinates.is_file() else coordinates.with_suffix(".NPZ")
        if coordinates.is_file():
            corner = _stated(coordinates, coordinates.stat().st_mtime_ns)
            break
    else:
        corner = CORNERS[zone]
    if corner[2] != shape:
        raise BadInput(
            path,
            f"has {shape[0]}x{shape[1]} pixels, not the {corner[2][0]}x{corner[2][1]} of zone {zone}",
            f"put its radar_coords_{zone}.npz beside it",
        )
    return _laid_out(*corner)


@lru_cache(maxsize=4)
def _laid_out(lon: float, lat: float, shape: tuple[int, int]) -> Grid:
    return Grid.regular("EPSG:4326", shape, upper_left=(lon - PIXEL / 2, lat + PIXEL / 2), pixel=(PIXEL, PIXEL))


@lru_cache(maxsize=4)
def _stated(path: Path, modified: int) -> tuple[float, float, tuple[int, int]]:
    """Centre of the first pixel, rows and columns by a file of coordinates."""
    with decoding(path, "MeteoNet's file of coordinates"):
        lats, lons = arrays.npz(path, ["lats", "lons"])
        if lats.shape != lons.shape or len(lats.shape) != 2 or 16 * np.prod(lats.shape) > COORDINATE_BYTES:
            raise BadInput(path, f"holds latitudes in {lats.shape} and longitudes in {lons.shape}", "fetch it again")
        lat, lon = (arrays.read(array, 0, int(np.prod(array.shape))).reshape(array.shape) for array in (lats, lons))
        first = round(float(lon[0, 0]), 3), round(float(lat[0, 0]), 3)
        west_east, north_south = np.arange(lat.shape[1]) * PIXEL, np.arange(lat.shape[0])[:, None] * PIXEL
        off = np.max([abs(lon - first[0] - west_east).max(), abs(lat - first[1] + north_south).max()])
        if not off < PIXEL / 10:
            raise BadInput(path, "is no grid of 0.01 degrees from the north-west", "fetch it again")
        return *first, (lat.shape[0], lat.shape[1])
