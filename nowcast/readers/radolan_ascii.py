"""RADOLAN as text: DWD's hourly and daily sums as ESRI grids, single or as the archive of a day or month.

``RW_20221015-0050.asc`` is the sum of the hour until 00:50 UTC, ``SF`` that of a day. What is negative was not
measured. The recent archives count tenths of mm and say so by -1 for no data; RADKLIM, the reprocessed climatology,
writes mm and -9999.0.

Source: wradlib, documentation and decoder of DWD's ASCII composites; DWD, Climate Data Center, descriptions of the
data sets grids_germany/hourly/radolan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import radolan
from nowcast.readers.archives import archived, content, head, holds, is_archive
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files

TITLE = "DWD radar composite of Germany (RADOLAN, text)"
LICENCE = radolan.LICENCE
CADENCE = None
"""Differs by product: every cube carries its own."""
SECONDS = {"RW": 3600, "SF": 86400}
"""Of a sum."""
DAY = "[0-9]" * 6
PATTERNS = (
    *(f"{product}_{DAY}*.asc{end}" for product in SECONDS for end in ("", ".gz")),
    *(f"{product}-{DAY}*.tar{end}" for product in SECONDS for end in ("", ".gz")),
    *(f"{product}*_asc.tar{end}" for product in SECONDS for end in ("", ".gz")),
)

FORM = "a RADOLAN grid as text"
MEMBER = re.compile(r"(?:.*/)?(?P<product>RW|SF)_(?P<day>\d{8})-(?P<time>\d{4})\.asc(?:\.gz)?")
HEADER = re.compile(
    rb"ncols\s+(?P<columns>\d{1,5})\s+nrows\s+(?P<rows>\d{1,5})\s+xllcorner\s+(?P<west>-?\d{1,8})(?:\.\d*)?\s+"
    rb"yllcorner\s+(?P<south>-?\d{1,8})(?:\.\d*)?\s+cellsize\s+1000(?:\.0*)?\s+nodata_value\s+(?P<missing>-?\d+)(?:\.0*)?\s",
    re.IGNORECASE,
)
HEADER_BYTES = 512
UNITS = {-1: 0.1, -9999: 1.0}
"""Value for no data -> mm of a 1."""
LARGEST = HEADER_BYTES + 1200 * 1100 * 12
"""Bytes of a grid at most, unpacked."""


@dataclass(frozen=True)
class Header:
    """What the six lines before the pixels say."""

    shape: tuple[int, int]
    lower_left: tuple[int, int]
    missing: int


def recognises(path: Path) -> bool:
    """Whether this is a grid of one of DWD's composites, or an archive of them, by names and head."""
    if is_archive(path):
        return holds(path, MEMBER)
    return bool(MEMBER.fullmatch(path.name) and HEADER.match(head(path, HEADER_BYTES)))


def find(source: Path) -> Iterator[Item]:
    """Find the grids of a file, folder or archive, in the order of their names."""
    for path in sorted(files(source, *PATTERNS), key=lambda path: path.name.replace("-", "_")):  # RW_ and RW- alike
        yield from archived(path, MEMBER) if is_archive(path) else (Item(path),)


def read(item: Item) -> xr.Dataset:
    """Read one grid: ``rainfall_rate`` at the end of its sum.

    Raises:
        BadInput: If it is no grid of DWD's, or its name does not say what and when it is.
    """
    with decoding(item.path, FORM):
        data = content(item, LARGEST)
        match = HEADER.match(data)
        if not match:
            raise BadInput(item.path, "does not begin like a grid of 1 km in text", "choose the reader for its format")
        product, time = _named(item)
        header = _header(match)
        if header.missing not in UNITS:
            raise BadInput(item.path, f"has {header.missing} for no data", "give grids with -1 (0.1 mm) or -9999 (mm)")
        grid = _grid(header, item.path)
        factor = UNITS[header.missing] * 3600 / SECONDS[product]
        rate = _numbers(data[match.end() :], header.shape, item.path) * np.float32(factor)
    attrs = {
        "title": TITLE,
        "source": item.key.rpartition("/")[2] or item.path.name,
        "licence": LICENCE,
        "institution": "DWD",
    }
    quantum = round(factor, 9) if header.missing == -1 else None
    cube = make(
        {"rainfall_rate": rate[None]},
        [time],
        grid,
        cadence=radolan.CADENCES[product],
        quantum=quantum,
        product=product,
        accumulation=SECONDS[product],
        attrs=attrs,
    )
    return check(cube, item.path)


def _named(item: Item) -> tuple[str, np.datetime64]:
    """Read product and time from the name, the only place that has them."""
    match = MEMBER.fullmatch(item.key or item.path.name)
    if not match:
        raise BadInput(item.path, "does not say by its name what it is", "name it as DWD does, RW_20221015-0050.asc")
    day, time = match["day"], match["time"]
    return match["product"], np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:]}T{time[:2]}:{time[2:]}", "s")


def _header(match: re.Match[bytes]) -> Header:
    stated = {name: int(text) for name, text in match.groupdict().items()}
    return Header((stated["rows"], stated["columns"]), (stated["west"], stated["south"]), stated["missing"])


def _grid(header: Header, path: Path) -> Grid:
    """Find the one of DWD's grids that has this size and, to a metre, this corner."""
    half = radolan.KILOMETRE / 2
    for (ellipsoid, rows, columns), (x, y) in radolan.ORIGINS.items():
        corner = np.array([-float(x) - half, -float(y) + half - rows * radolan.KILOMETRE])
        if (rows, columns) == header.shape and np.abs(corner - header.lower_left).max() <= 1:
            return radolan.national_grid(ellipsoid, rows, columns)
    (rows, columns), (west, south) = header.shape, header.lower_left
    raise BadInput(path, f"has {rows}x{columns} pixels from {west}, {south}", "give a composite of Germany")


def _numbers(text: bytes, shape: tuple[int, int], path: Path) -> np.ndarray:
    """(row, column) float32, NaN = no data; the first row lies in the north, as in every grid of ESRI."""
    values = np.array(text.split(), np.float32)
    if values.size != shape[0] * shape[1]:
        raise BadInput(path, f"holds {values.size} of {shape[0]}x{shape[1]} pixels", "fetch it again")
    values[values < 0] = np.nan
    return values.reshape(shape)
