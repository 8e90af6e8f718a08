"""JMA: rain intensity and analysed rainfall over Japan, as GRIB2 with runs of levels, alone or in a tar archive.

The composite of the radars (Prr10lv, Prr05lv) is an intensity; the analysis of radars and gauges (Prr60lv) is the
amount of the hour that ends at its time, which becomes a rate. A file is one frame of 2560x3360 pixels of about
1 km; an archive also holds echo tops, which are left out, and so are forecasts (FH). Times are UTC.

A pixel is a level, which a list in the message gives a value: level 0 was not measured, and the first of the
others is 0 mm/h.

Decoded here: eccodes knows the packing but not the template of the product, and takes float64 for every pixel.

Source: JMA, format of the distributed files (product template 4.50008, data template 5.200 and 7.200); WMO, Manual
on Codes, GRIB edition 2, data template 5.200.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import grib2
from nowcast.readers.archives import archived, content, head, holds, is_archive
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files

TITLE = "JMA radar composite and analysed rainfall of Japan"
LICENCE = "Japan Meteorological Agency, Public Data License 1.0 (attribution)"
CADENCE = None
"""Differs by product: every cube carries its own."""
PATTERNS = ("Z__C_RJTD_*grib2.bin", "Z__C_RJTD_*grib2.bin.gz", "Z__C_RJTD_*.tar", "Z__C_RJTD_*.tar.gz")

FORM = "a field of JMA in GRIB2"
MEMBER = re.compile(r"(?:.*/)?Z__C_RJTD_\d+_.*_Prr(?P<minutes>\d\d)lv_ANAL_grib2\.bin(?:\.gz)?")
DISCIPLINE, CENTRE = 0, 34
AMOUNT, INTENSITY = (1, 200), (1, 201)
"""Category and number, of JMA's own table: mm in an hour, and mm/h."""
PRODUCTS = {AMOUNT: "analysed rainfall", INTENSITY: "rain intensity"}
"""An amount fell in an hour, an intensity is one per hour: their numbers are rates alike."""
CADENCES = {AMOUNT: 1800, INTENSITY: 600}
"""Seconds, unless the name of the file says otherwise."""
HOUR = 3600
TEMPLATES = (8, 50008)
"""Of a product over an interval; the second appends which radars took part."""
RUNS = 200
"""Template of the packing."""
MOST_PIXELS = 2**24
MOST_BYTES = MOST_PIXELS + 2**17


def recognises(path: Path) -> bool:
    """Whether this is GRIB2 of the Japan Meteorological Agency, or an archive of its analyses."""
    if is_archive(path):
        return holds(path, MEMBER)
    start = head(path, grib2.HEAD_BYTES + 7)
    return start[:4] == b"GRIB" and start[6:8] == bytes([DISCIPLINE, 2]) and start[21:23] == bytes([0, CENTRE])


def find(source: Path) -> Iterator[Item]:
    """Find the analyses of a file, folder or archive, in the order of their names; forecasts are left out."""
    found = False
    for path in files(source, *PATTERNS):
        if path != source and not is_archive(path) and not MEMBER.fullmatch(path.name):
            continue
        found = True
        yield from archived(path, MEMBER) if is_archive(path) else (Item(path),)
    if not found:
        raise BadInput(source, "holds no analysis of rain", "give files named ..._Prr10lv_ANAL_grib2.bin")


def read(item: Item) -> xr.Dataset:
    """Read one field: ``rainfall_rate`` at the end of its interval.

    Raises:
        BadInput: If the file is no such field, or a forecast.
    """
    with decoding(item.path, FORM):
        sections = grib2.sections(_message(item), item.path)
        product, time = _product(sections[4], item.path), _time(sections, item.path)
        grid = _grid(sections[3], item.path)
        levels, step = _levels(sections[5], item.path)
        rate = EncodedArray(_pixels(sections, grid.shape, item.path), _table(levels, step))
    attrs = {
        "title": TITLE,
        "source": item.key.rpartition("/")[2] or item.path.name,
        "licence": LICENCE,
        "institution": "Japan Meteorological Agency",
    }
    quantum = step if max(levels) <= np.iinfo(np.int16).max else None
    cube = make(
        {"rainfall_rate": rate},
        [time],
        grid,
        cadence=_cadence(item, product),
        quantum=quantum,
        product=PRODUCTS[product],
        accumulation=HOUR if product == AMOUNT else 0,
        attrs=attrs,
    )
    return check(cube, item.path)


# --- the message ----------------------------------------------------------------------------------


def _message(item: Item) -> bytes:
    data = content(item, MOST_BYTES)
    if len(data) < grib2.HEAD_BYTES or data[:4] != b"GRIB" or data[7] != 2:
        raise BadInput(item.path, "is not a GRIB file of edition 2", "choose the reader for its format")
    (stated,) = struct.unpack_from(">Q", data, 8)
    if stated != len(data) or data[-4:] != b"7777":
        raise BadInput(item.path, f"does not hold one message of {stated} bytes", "fetch it again, one field a file")
    if data[6] != DISCIPLINE or data[21:23] != bytes([0, CENTRE]):
        raise BadInput(item.path, "is not of the Japan Meteorological Agency", "choose the reader for its source")
    return data


def _product(section: memoryview, path: Path) -> tuple[int, int]:
    template, category, number = struct.unpack_from(">HBB", section, 7)
    if (category, number) not in PRODUCTS or template not in TEMPLATES:
        fault = f"holds the product {DISCIPLINE}-{category}-{number} of template {template}"
        raise BadInput(path, fault, "give a rain intensity (Prr10lv, Prr05lv) or analysed rainfall (Prr60lv)")
    return category, number


def _time(sections: dict[int, memoryview], path: Path) -> np.datetime64:
    """Read the end of the interval, which a forecast has after the time of the message."""
    of, end = grib2.time(sections[1], 12, path), grib2.time(sections[4], 34, path)
    if end > of:
        raise BadInput(path, f"is a forecast of {str(of)[:16]} for {str(end)[:16]}", "give an analysis (ANAL)")
    return end


def _cadence(item: Item, product: tuple[int, int]) -> int:
    """Tell seconds between frames from the name: of intensities it states the minutes of their interval."""
    match = MEMBER.fullmatch(item.key or item.path.name)
    stated = 60 * int(match["minutes"]) if match and product == INTENSITY else 0
    return stated or CADENCES[product]


def _grid(section: memoryview, path: Path) -> Grid:
    """Lay out the grid between the first and the last pixel: steps are rounded to microdegrees, 8333 for 1/120."""
    (template,) = struct.unpack_from(">H", section, 12)
    columns, rows = struct.unpack_from(">II", section, 30)
    if template != 0 or section[71] != 0:
        raise BadInput(path, "is not on a regular grid of degrees from north to south", "give JMA's own files")
    if min(rows, columns) < 2 or rows * columns > MOST_PIXELS:
        raise BadInput(path, f"states {rows}x{columns} pixels", f"give a grid of at most {MOST_PIXELS} pixels")
    (north, west), (south, east) = grib2.degrees(section, 46), grib2.degrees(section, 55)
    width, height = (step * grib2.MICRODEGREES for step in struct.unpack_from(">II", section, 63))
    even = (east - west) / (columns - 1), (north - south) / (rows - 1)
    if not (abs(even[0] - width) < width / 100 and abs(even[1] - height) < height / 100):
        raise BadInput(path, "states corners that do not fit its pixel size", "fetch it again")
    edges = (west - width / 2, north + height / 2, east + width / 2, south - height / 2)
    return _between((rows, columns), edges)


@lru_cache(maxsize=4)
def _between(shape: tuple[int, int], edges: tuple[float, float, float, float]) -> Grid:
    """Lay out a grid between its outer edges, without the rounding errors of microdegrees."""
    west, north, east, south = (round(edge, 5) for edge in edges)
    pixel = (east - west) / shape[1], (north - south) / shape[0]
    return Grid.regular("EPSG:4326", shape, upper_left=(west, north), pixel=pixel)


# --- values ---------------------------------------------------------------------------------------


def _levels(section: memoryview, path: Path) -> tuple[tuple[int, ...], float]:
    """Read the whole numbers of the levels from 1 on, and the step in mm or mm/h that they count."""
    template, bits, used, count, scale = struct.unpack_from(">HBHHB", section, 9)
    if template != RUNS or bits != 8:
        raise BadInput(path, f"packs its field by template {template} in {bits} bits", "give runs of levels of 8 bits")
    scale = -(scale & 0x7F) if scale & 0x80 else scale
    if not 1 <= used <= count < 2**8 or abs(scale) > 4 or len(section) < 17 + 2 * count:
        raise BadInput(path, f"states {used} of {count} levels", "fetch it again")
    return struct.unpack_from(f">{count}H", section, 17), 10.0**-scale


@lru_cache(maxsize=8)
def _table(levels: tuple[int, ...], step: float) -> Table:
    """Compute the value of every level; 0 was not measured."""
    values = np.full(2**8, np.nan, np.float32)
    values[1 : 1 + len(levels)] = np.asarray(levels) * step
    return Table(values)


def _pixels(sections: dict[int, memoryview], shape: tuple[int, int], path: Path) -> np.ndarray:
    """Expand the runs to (1, row, column) uint8 levels."""
    if sections[6][5] != 255:
        raise BadInput(path, "has a bitmap", "give JMA's own files")
    (used,) = struct.unpack_from(">H", sections[5], 12)
    levels, lengths = _runs(np.frombuffer(sections[7], np.uint8, offset=5), used)
    if lengths.sum() != shape[0] * shape[1]:
        raise BadInput(path, f"does not hold its {shape[0]}x{shape[1]} pixels", "fetch it again")
    return np.repeat(levels, lengths.astype(np.int64)).reshape(1, *shape)


def _runs(data: np.ndarray, used: int) -> tuple[np.ndarray, np.ndarray]:
    """Find levels and the lengths of their runs.

    A byte up to ``used`` is a level, and a pixel; the bytes above it that follow are the digits, the lowest first, of
    how many more there are, to the base of ``255 - used``.
    """
    starts = np.flatnonzero(data <= used)
    if not starts.size or starts[0]:
        raise ValueError("runs of no level")
    counts = np.diff(np.append(starts, data.size))
    place = np.arange(data.size) - np.repeat(starts, counts) - 1
    digits = np.maximum(data.astype(np.float64) - used - 1, 0)
    if (place[digits > 0] > 32).any():
        raise ValueError("a run beyond all grids")
    more = digits * float(255 - used) ** np.clip(place, 0, 32)
    return data[starts], 1 + np.add.reduceat(more, starts)
