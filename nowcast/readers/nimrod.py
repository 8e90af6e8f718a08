"""Nimrod: the Met Office's composites of the radars of the United Kingdom, as archived at CEDA.

Rain rates on a 1 km (or 5 km) grid of the British National Grid, one field a file, gzipped or plain, or a day of
them in a tar archive. A field is 16-bit integers in 32nds of mm/h; whatever is negative, which the header's
missing value is, was not covered by a radar, 0 is dry. Times are UTC, those that the field is valid at.

Forecasts and accumulations, which have the same form, are refused.

Source: Met Office, Nimrod File Format Specification 2.6-4 (2008), at CEDA with the archive.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
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

TITLE = "Met Office Nimrod radar composite of the United Kingdom"
LICENCE = "Met Office, by the terms of its CEDA archive (NIMROD radar data)"
CADENCE = 300
PATTERNS = (
    "metoffice-*radar*composite.dat",
    "metoffice-*radar*composite.dat.gz",
    "metoffice-*radar*composite*.tar",
    "*_nimrod_ng_radar_rainrate_composite_*",
)

FORM = "a Nimrod field"
MEMBER = re.compile(r".*radar.*composite.*\.dat(?:\.gz)?", re.DOTALL)
HEAD_BYTES = 512
PLACE = 8 + HEAD_BYTES
"""Of the length of the pixels: the header lies between two lengths of its own."""
MOST_PIXELS = 2**24
LARGEST = PLACE + 8 + 2 * MOST_PIXELS
UNIT = re.compile(r"mm/hr?\*(\d{1,4})")
"""Rain rate as whole parts of mm/h."""
RATES = 213
"""Code of the field."""


@dataclass(frozen=True)
class Header:
    """What the 512 bytes before the pixels say."""

    valid: np.datetime64
    of: np.datetime64 | None
    """Time of the data, earlier than ``valid`` in a forecast."""
    kind: tuple[int, int]
    """Type (1: integers) and bytes of a pixel."""
    grid: int
    """0: the British National Grid."""
    shape: tuple[int, int]
    field: int
    origin: int
    """0: from the upper left corner."""
    missing: int
    minutes: int
    """That the field is summed or averaged over; 0 or missing in a rate."""
    upper_left: tuple[float, float]
    """Centre of the first pixel, x and y."""
    pixel: tuple[float, float]
    unit: str


def recognises(path: Path) -> bool:
    """Whether the file begins as a field does, or is an archive of such files."""
    if is_archive(path):
        return holds(path, MEMBER)
    start = head(path, PLACE)
    return len(start) == PLACE and _framed(start)


def find(source: Path) -> Iterator[Item]:
    """Find the fields of a file, folder or archive, in the order of their names."""
    for path in sorted(files(source, *PATTERNS), key=lambda path: path.name):  # a day lies before its times
        yield from archived(path, MEMBER) if is_archive(path) else (Item(path),)


def read(item: Item) -> xr.Dataset:
    """Read one field: ``rainfall_rate`` at the time that it is valid at.

    Raises:
        BadInput: If the file is no observed rain rate on the National Grid.
    """
    with decoding(item.path, FORM):
        data = content(item, LARGEST)
        if len(data) < PLACE + 4 or not _framed(data):
            raise BadInput(item.path, "does not begin like a Nimrod field", "choose the reader for its format")
        header = _header(data)
        parts = _check_header(header, item)
        rate = EncodedArray(_codes(data, header, item.path), _table(parts, header.missing))
        grid = _grid(header.shape, header.upper_left, header.pixel)
    attrs = {
        "title": TITLE,
        "source": item.key.rpartition("/")[2] or item.path.name,
        "licence": LICENCE,
        "institution": "Met Office",
    }
    cube = make(
        {"rainfall_rate": rate},
        [header.valid],
        grid,
        cadence=CADENCE,
        quantum=1 / parts,
        product="rain rate",
        attrs=attrs,
    )
    return check(cube, item.path)


# --- one field ------------------------------------------------------------------------------------


def _framed(data: bytes) -> bool:
    """Whether the header's length stands before and after it."""
    return struct.unpack_from(">i", data) == struct.unpack_from(">i", data, PLACE - 4) == (HEAD_BYTES,)


def _header(data: bytes) -> Header:
    whole, real = struct.unpack_from(">31h", data, 4), struct.unpack_from(">28f", data, 66)
    return Header(
        valid=_time(*whole[:6]),
        of=_time(*whole[6:11]) if whole[6] > 0 else None,
        kind=(whole[11], whole[12]),
        grid=whole[14],
        shape=(whole[15], whole[16]),
        field=whole[18],
        origin=whole[23],
        missing=whole[24],
        minutes=whole[25],
        upper_left=(real[4], real[2]),
        pixel=(real[5], real[3]),
        unit=data[358:366].decode("ascii", "replace").strip("\0 ").lower(),
    )


def _time(year: int, month: int, day: int, hour: int, minute: int, second: int = 0) -> np.datetime64:
    if not 1980 <= year <= 2200:  # beyond that nanoseconds would end
        raise ValueError(f"the year {year}")
    return utc(datetime(year, month, day, hour, minute, max(second, 0), tzinfo=UTC))  # some leave seconds out


def _check_header(header: Header, item: Item) -> int:
    """Refuse what is no observed rate; returns the parts of a mm/h that the pixels count."""
    path, unit = item.path, UNIT.fullmatch(header.unit)
    if header.field != RATES or not unit or int(unit[1]) == 0:
        fault = f"holds field {header.field} in {header.unit or 'no unit'!r}"
        raise BadInput(path, fault, f"give rain rates, field {RATES} in mm/h*32")
    if header.kind != (1, 2):
        raise BadInput(path, f"has pixels of type {header.kind[0]}, {header.kind[1]} bytes", "give 16-bit integers")
    if header.minutes > 0:
        raise BadInput(path, f"is a sum or mean over {header.minutes} minutes", "give rain rates of one time")
    if header.of is not None and header.valid > header.of and "composite" not in (item.key or path.name):
        raise BadInput(
            path, f"is a forecast of {str(header.of)[:16]} for {str(header.valid)[:16]}", "give observed composites"
        )
    if header.grid != 0 or header.origin != 0:
        raise BadInput(path, "is not on the National Grid from its upper left corner", "give the UK composite")
    return int(unit[1])


def _codes(data: bytes, header: Header, path: Path) -> np.ndarray:
    """(1, row, column) uint16, the bits of the file's integers."""
    rows, columns = header.shape
    if min(rows, columns) < 2 or rows * columns > MOST_PIXELS:
        raise BadInput(path, f"states {rows}x{columns} pixels", "fetch it again")
    if struct.unpack_from(">i", data, PLACE) != (2 * rows * columns,) or len(data) < PLACE + 4 + 2 * rows * columns:
        raise BadInput(path, f"does not hold its {rows}x{columns} pixels", "fetch it again")
    pixels = np.frombuffer(data, ">u2", rows * columns, PLACE + 4)
    return pixels.astype(np.uint16).reshape(1, rows, columns)


@lru_cache(maxsize=4)
def _table(parts: int, missing: int) -> Table:
    """Compute the rate of every code."""
    codes = np.arange(2**16, dtype=np.uint16).view(np.int16)
    values = codes.astype(np.float32) / parts
    values[(codes < 0) | (codes == missing)] = np.nan
    return Table(values)


@lru_cache(maxsize=4)
def _grid(shape: tuple[int, int], upper_left: tuple[float, float], pixel: tuple[float, float]) -> Grid:
    """Lay out the grid around the centre of its first pixel."""
    (x, y), (width, height) = upper_left, pixel
    if not (0 < width < 1e5 and 0 < height < 1e5 and max(abs(x), abs(y)) < 1e7):
        raise ValueError("no pixels on the National Grid")
    return Grid.regular("EPSG:27700", shape, upper_left=(x - width / 2, y + height / 2), pixel=pixel)
