"""KMA: composites of the radars of South Korea on a grid of 500 m, as the binary files of the open API.

``RDR_CMP_HSR_PUB_202407180300.bin.gz`` is the reflectivity of the hybrid surface, ``RDR_CMP_HSP_PUB_...`` the rain
rate of it, both in hundredths. The header does not tell them apart, so the name must. Times in name and header are
Korean (UTC+9, no summer time).

-30000 is beyond the range of all radars. -25000 (no echo) and -20000 (below the least value) were scanned and are dry,
whatever else is below -20000 is no data.

Source: Korea Meteorological Administration, API hub, format of radar composites (RDR_CMP_HEAD) and their grid HB;
what -25000 stands for: users of the files, by comparison with rain gauges.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make, utc
from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers.archives import archived, content, head, holds, is_archive
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files
from nowcast.readers.rasters import FLOOR

TITLE = "KMA radar composite of South Korea"
LICENCE = "Korea Meteorological Administration, KOGL type 1 (attribution)"
CADENCE = 300
PATTERNS = ("RDR_CMP_HS[RP]_*.bin", "RDR_CMP_HS[RP]_*.bin.gz", "RDR_CMP_*.tar", "RDR_CMP_*.tar.gz")

FORM = "a radar composite of KMA"
MEMBER = re.compile(r"(?:.*/)?RDR_CMP_(?P<product>HSR|HSP)_\w+_\d{12}\.bin(?:\.gz)?")
QUANTITIES = {"HSR": "reflectivity", "HSP": "rainfall_rate"}
HEAD_BYTES = 1024
"""Of the composite and 48 radars; the pixels follow."""
ACCUMULATION = 10
"""Kind of composite whose header has another layout."""
MAP = 1
"""Code of the grid HB."""
ROWS, COLUMNS, METRES = 2881, 2305, 500
"""Of the whole grid; rows count from the south."""
CENTRE = (1120, 1680)
"""Column and row of the pixel whose centre is the origin of the projection."""
CRS = "+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=126 +ellps=WGS84 +units=m +no_defs"
LARGEST = HEAD_BYTES + 3 * 2 * ROWS * COLUMNS
"""Bytes of a composite at most, with all of the quantities that its header can list."""
STEP = 0.01
NO_ECHO, LEAST = -25000, -20000
KOREA = timezone(timedelta(hours=9))


@dataclass(frozen=True)
class Header:
    """What the first bytes say."""

    kind: int
    time: np.datetime64
    map: int
    shape: tuple[int, int]
    heights: int
    metres: int


def recognises(path: Path) -> bool:
    """Whether name and header are those of a composite on KMA's grid, or it is an archive of such files."""
    if is_archive(path):
        return holds(path, MEMBER)
    start = head(path, HEAD_BYTES)
    return bool(MEMBER.fullmatch(path.name)) and len(start) == HEAD_BYTES and _header(start).metres == METRES


def find(source: Path) -> Iterator[Item]:
    """Find the composites of a file, folder or archive, in the order of their names."""
    for path in files(source, *PATTERNS):
        yield from archived(path, MEMBER) if is_archive(path) else (Item(path),)


def read(item: Item) -> xr.Dataset:
    """Read one composite: ``reflectivity`` (-32 dBZ without echo) or ``rainfall_rate``, its time in UTC.

    Raises:
        BadInput: If the file is no composite of KMA, or its name does not say what it measures.
    """
    with decoding(item.path, FORM):
        data = content(item, LARGEST)
        if len(data) < HEAD_BYTES:
            raise BadInput(item.path, f"ends after {len(data)} of {HEAD_BYTES} bytes of header", "fetch it again")
        header = _header(data)
        _check_header(header, item.path)
        product = _product(item)
        name = QUANTITIES[product]
        field = EncodedArray(_codes(data, header, item.path), _table(name))
    attrs = {
        "title": TITLE,
        "source": item.key.rpartition("/")[2] or item.path.name,
        "licence": LICENCE,
        "institution": "Korea Meteorological Administration",
    }
    cube = make({name: field}, [header.time], _grid(), cadence=CADENCE, quantum=STEP, product=product, attrs=attrs)
    return check(cube, item.path)


def _product(item: Item) -> str:
    match = MEMBER.fullmatch(item.key or item.path.name)
    if not match:
        fault = "does not say by its name whether it holds reflectivity or rain"
        raise BadInput(item.path, fault, "name it as KMA does, RDR_CMP_HSR_PUB_202407180300.bin.gz")
    return match["product"]


def _header(data: bytes) -> Header:
    (kind,) = struct.unpack_from("<h", data, 1)
    year, month, day, hour, minute, second = struct.unpack_from("<h5B", data, 3)
    columns, rows, heights, metres = struct.unpack_from("<4h", data, 20)
    if not 1980 <= year <= 2200:  # beyond that nanoseconds would end
        raise ValueError(f"the year {year}")
    time = utc(datetime(year, month, day, hour, minute, second, tzinfo=KOREA))
    return Header(kind, time, data[18], (rows, columns), heights, metres)


def _check_header(header: Header, path: Path) -> None:
    if header.kind == ACCUMULATION:
        raise BadInput(path, "is an accumulation", "give composites of one time (HSR, HSP)")
    if (header.map, header.metres, header.shape) != (MAP, METRES, (ROWS, COLUMNS)):
        rows, columns = header.shape
        fault = f"has {rows}x{columns} pixels of {header.metres} m on map {header.map}"
        raise BadInput(path, fault, f"give the composite of {ROWS}x{COLUMNS} pixels of {METRES} m on map {MAP}")
    if header.heights != 1:
        raise BadInput(path, f"has {header.heights} heights", "give a composite of the surface")


def _codes(data: bytes, header: Header, path: Path) -> np.ndarray:
    """(1, row, column) uint16 from the north, the bits of the file's integers."""
    rows, columns = header.shape
    if len(data) < HEAD_BYTES + 2 * rows * columns:
        raise BadInput(path, f"does not hold its {rows}x{columns} pixels", "fetch it again")
    if len(data) > HEAD_BYTES + 2 * rows * columns:
        raise BadInput(path, "holds more than one field", "give the files of one field that KMA publishes")
    codes = np.frombuffer(data, "<u2", rows * columns, HEAD_BYTES)
    return codes.reshape(1, rows, columns)[:, ::-1]


@lru_cache(maxsize=2)
def _table(name: str) -> Table:
    """Compute the value of every code."""
    codes = np.arange(2**16, dtype=np.uint16).view(np.int16)
    values = np.maximum(codes.astype(np.float32) * np.float32(STEP), np.float32(FLOOR[name]))
    values[(codes < LEAST) & (codes != NO_ECHO)] = np.nan
    return Table(values)


@lru_cache(maxsize=1)
def _grid() -> Grid:
    """Lay out the grid HB around the pixel at 38 N, 126 E."""
    column, row = CENTRE
    upper_left = (-(column + 0.5) * METRES, (ROWS - row - 0.5) * METRES)
    return Grid.regular(CRS, (ROWS, COLUMNS), upper_left=upper_left, pixel=(METRES, METRES))
