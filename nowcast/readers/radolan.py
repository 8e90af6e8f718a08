"""RADOLAN: DWD's composites of the German weather radars in its own binary format.

Sums over minutes, hours or days (RW, RY, YW, SF, RV and others) become rates over their interval; RX, WX,
EX and WN are reflectivities. Files are plain, gzipped or bzipped, or members of a tar archive. One
composite is one frame; of a forecast (RV, WN and others) only the analysis, lead 0, is read: ``find``
leaves the leads out and ``read`` refuses them. So it does with RE and HG, which tell snow from rain but no amount.

The stamp of the header is the end of a sum: RW of 01:50 holds the hour from 00:50, as Germany's gauges
report it, and so do the five-minute sums of 00:55 to 01:50 together.

Pixels flagged as not measured or as negative, which no sum is, are no data. Clutter is no data in
reflectivities. In sums it is data: there DWD has put an amount in its place that follows the pixels
around it. Pixels flagged as secondary, filled from another source, are data.

Decoded here rather than by wradlib, which takes a second and 100 MB to import in every worker, leaves most
flags to its caller and does not bound what it reads.

Source: DWD, RADOLAN/RADVOR Kompositformat; DWD, Radarkomposits - Projektionen und Gitter, version 1.01
(5 April 2022), as quoted in wradlib.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import stamps
from nowcast.readers.archives import head, is_archive, unpacked
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files

TITLE = "DWD radar composite of Germany (RADOLAN)"
LICENCE = "DWD open data (CC BY 4.0), Deutscher Wetterdienst"
CADENCE = None
"""Differs by product: every cube carries its own, see ``CADENCES``."""
MONTH = "[0-9]" * 6
PATTERNS = (
    "raa01-*-dwd---bin",
    "raa01-*-dwd---bin.gz",
    "raa01-*-dwd---bin.bz2",
    "DE1200_*",
    f"R[QSVW]{MONTH}*",
    f"SF{MONTH}*",
    f"WN{MONTH}*",
    f"RE{MONTH}*",
    f"HG{MONTH}*",
)

FORM = "a RADOLAN composite"
CADENCES = (
    dict.fromkeys(("RY", "RZ", "RV", "YW", "EY", "EZ", "RH", "RS", "RX", "WX", "EX", "WN"), 300)
    | {"RQ": 900}
    | dict.fromkeys(("RW", "RB", "RL", "RU", "EB", "EH", "EW", "SQ", "SH", "SF"), 3600)
    | dict.fromkeys(("W1", "W2", "W3", "W4"), 86400)
)
"""Seconds between the composites of every product that is read."""
REFLECTIVITIES = ("RX", "WX", "EX", "WN")
NO_AMOUNTS = {"RE": "the share of precipitation that is solid", "HG": "the type of precipitation"}
"""Products that have the form of the others but hold neither rain nor reflectivity."""
BYTES = {"RX": 1, "WX": 1, "EX": 1}
"""Of a pixel, where not two."""
FLOOR_DBZ = -32.5
"""Of level 0, RVP6 units: two of them are one dB."""
LEVELS_8 = 249
"""Levels of one byte that are values; 249 is clutter, 250 was not measured."""
VALUE, NOT_MEASURED, NEGATIVE, CLUTTER = 0x0FFF, 0x2000, 0x4000, 0x8000
"""Bits of two bytes; 0x1000 is secondary."""
CLUTTER_16 = 2490
"""Value under the flag for clutter that nothing has replaced: RVP6 units of clutter in tenths."""

NEWER = 5
"""Version of the format from which the Earth is the WGS84 ellipsoid; before, a sphere of 6370.04 km."""
EARTH = {True: "+a=6378137 +b=6356752.3142451802", False: "+a=6370040 +b=6370040"}
ORIGINS = {
    (True, 900, 900): ("523196.83521777776", "3772588.861931134"),
    (True, 1100, 900): ("443196.83521777776", "3672588.861931134"),
    (True, 1200, 1100): ("543196.83521776402", "3622588.8619310018"),
    (True, 1500, 1400): ("673196.83521777776", "3522588.861931134"),
    (False, 900, 900): ("522962.16692185635", "3759144.724265574"),
    (False, 1100, 900): ("442962.16692185635", "3659144.724265574"),
    (False, 1200, 1100): ("542962.166921856585", "3609144.7242655745"),
    (False, 1500, 1400): ("672962.16692185635", "3509144.724265574"),
}
"""From the centre of the upper left pixel to the North Pole, in metres, by ellipsoid, rows and columns."""
KILOMETRE = 1000.0

HEADER = re.compile(
    rb"(?P<product>[A-Z][A-Z0-9])(?P<day>\d\d)(?P<hour>\d\d)(?P<minute>\d\d)10000(?P<month>\d\d)(?P<year>\d\d)"
    rb"BY *\d+VS *(?P<version>\d{1,2})SW.{1,12}?PR +E(?P<exponent>[-+]0\d)INT *(?P<interval>\d{1,5})"
    rb"(?:U(?P<unit>\d))?GP *(?P<rows>\d+)x *(?P<columns>\d+)(?:VV *(?P<lead>\d{1,4}))?[^\x03]*\x03"
)
HEADER_BYTES = 1024
LARGEST = HEADER_BYTES + 2 * 1500 * 1400
"""Bytes of a composite at most, unpacked."""
LARGEST_ARCHIVE = 2**27
"""Of an archive; 25 leads of RV are 66 MB."""
NO_AMOUNT = re.compile(r"(?:raa01-|DE1200_)?(?:RE|HG)[\d_-].*", re.IGNORECASE)
MEMBER = re.compile(r"(?:.*/)?(?:(?:DE1200_)?[A-Z]{2}\d{10}_(?P<lead>\d{3})|raa01-[^/]*-dwd---bin)(?:\.gz|\.bz2)?")


@dataclass(frozen=True)
class Header:
    """What the text before the pixels says."""

    product: str
    time: np.datetime64
    version: int
    precision: float
    seconds: int
    shape: tuple[int, int]
    lead: int


def recognises(path: Path) -> bool:
    """Whether this is a composite, or an archive that holds one, by its header."""
    return bool(HEADER.match(head(path, HEADER_BYTES))) or (
        is_archive(path) and next(_analyses(path), None) is not None
    )


def find(source: Path) -> Iterator[Item]:
    """Find the composites of a file, folder or archive, in the order of their names; forecasts are left out."""
    found = False
    for path in files(source, *PATTERNS):
        if path != source and NO_AMOUNT.fullmatch(path.name):
            continue
        for item in _archived(path) if is_archive(path) else (Item(path),):
            found = True
            yield item
    if not found:
        raise BadInput(source, "holds no observed composite", "give analyses, of lead 000")


def read(item: Item) -> xr.Dataset:
    """Read one composite: ``rainfall_rate`` at the end of its interval, or ``reflectivity``, -32.5 dBZ without echo.

    Raises:
        BadInput: If the file is no such composite, or a forecast.
    """
    with decoding(item.path, FORM):
        data = _content(item)
        match = HEADER.match(data)
        if not match:
            raise BadInput(item.path, "does not begin like a RADOLAN composite", "choose the reader for its format")
        header = _header(match)
        _check_header(header, item.path)
        values = _values(data[match.end() :], header, item.path)
        grid = national_grid(header.version >= NEWER, *header.shape)
    name, step, floor = _scale(header)
    attrs = {
        "title": TITLE,
        "source": item.path.name,
        "licence": LICENCE,
        "institution": "DWD",
    }
    cube = make(
        {name: values},
        [header.time],
        grid,
        cadence=CADENCES[header.product],
        quantum=step,
        floor=floor if header.product in BYTES else None,
        product=header.product,
        accumulation=0 if header.product in REFLECTIVITIES else header.seconds,
        attrs=attrs,
    )
    return check(cube, item.path)


# --- files and archives ---------------------------------------------------------------------------


class _Limited(io.RawIOBase):
    """The first bytes of an archive, in pieces no longer than a composite; one that holds more ends there."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2 * LARGEST:
            raise ValueError(f"a piece of {size} bytes")
        return self.stream.read(min(size, max(LARGEST_ARCHIVE - self.stream.tell(), 0)))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(min(offset, LARGEST_ARCHIVE), whence)

    def tell(self) -> int:
        return self.stream.tell()


@contextmanager
def _members(path: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]]:
    """Open an archive; gives its composites one after the other."""
    with (
        decoding(path, "an archive of RADOLAN composites"),
        path.open("rb") as stream,
        tarfile.open(fileobj=cast("BinaryIO", _Limited(unpacked(stream))), mode="r:") as archive,
    ):
        yield ((member, archive) for member in archive if member.isreg() and MEMBER.fullmatch(member.name))


def _archived(path: Path) -> Iterator[Item]:
    """Find the analyses of an archive; a damaged one is itself an item, whose reading says what is wrong."""
    try:
        yield from [Item(path, name) for name in _analyses(path)]
    except BadInput:
        yield Item(path)


def _analyses(path: Path) -> Iterator[str]:
    """Names of the members that are no forecast; what follows the analysis of a forecast is not unpacked."""
    with _members(path) as members:
        for member, _ in members:
            match = MEMBER.fullmatch(member.name)
            lead = match["lead"] if match else None
            if lead is None or int(lead) == 0:
                yield member.name
            if lead is not None and int(lead) == 0:
                return


def _content(item: Item) -> bytes:
    """Header and pixels; a byte more than the largest where there are more."""
    if not item.key:
        return head(item.path, LARGEST + 1)
    with _members(item.path) as members:
        for member, archive in members:
            if member.name == item.key and (packed := archive.extractfile(member)):
                return unpacked(io.BytesIO(packed.read(LARGEST + 1))).read(LARGEST + 1)
    raise BadInput(item.path, f"holds no {item.key}", "take items from find")


# --- one composite --------------------------------------------------------------------------------


def _header(match: re.Match[bytes]) -> Header:
    text = {name: (value or b"0").decode() for name, value in match.groupdict().items()}
    number = {name: int(text[name]) for name in ("year", "month", "day", "hour", "minute")}
    minutes = int(text["interval"]) * (1440 if text["unit"] == "1" else 1)
    return Header(
        product=text["product"],
        time=stamps.moment(2000 + number["year"], *(number[name] for name in ("month", "day", "hour", "minute"))),
        version=int(text["version"]),
        precision=10.0 ** int(text["exponent"]),
        seconds=60 * minutes,
        shape=(int(text["rows"]), int(text["columns"])),
        lead=int(text["lead"]),
    )


def _check_header(header: Header, path: Path) -> None:
    if header.product in NO_AMOUNTS:
        fault = f"is the product {header.product}, {NO_AMOUNTS[header.product]}, not its amount"
        raise BadInput(path, fault, "give sums (RW, RY, RV) or reflectivities (RX, WN) of the same time")
    if header.product not in CADENCES:
        raise BadInput(path, f"is the product {header.product}", f"give one of {', '.join(CADENCES)}")
    if header.lead:
        raise BadInput(path, f"is a forecast for {header.lead} minutes ahead", "give the analysis, of lead 000")
    if header.seconds == 0 and header.product not in REFLECTIVITIES:
        raise BadInput(path, "is a sum over no time", "fetch it again")
    if (True, *header.shape) not in ORIGINS:
        grids = ", ".join(f"{rows}x{columns}" for newer, rows, columns in ORIGINS if newer)
        raise BadInput(path, f"has {header.shape[0]}x{header.shape[1]} pixels", f"give a composite of {grids}")


def _scale(header: Header) -> tuple[str, float, float]:
    """Cube variable, its step from level to level, and the value of level 0."""
    if header.product in REFLECTIVITIES:
        return "reflectivity", header.precision / 2, FLOOR_DBZ
    return "rainfall_rate", round(header.precision * 3600 / header.seconds, 9), 0.0


def _values(pixels: bytes, header: Header, path: Path) -> EncodedArray:
    """(1, row, column) float32, NaN = no data; the file begins in the south."""
    kind = np.dtype(np.uint8 if header.product in BYTES else "<u2")
    rows, columns = header.shape
    if len(pixels) < rows * columns * kind.itemsize:
        raise BadInput(path, f"ends after {len(pixels) // kind.itemsize} of {rows}x{columns} pixels", "fetch it again")
    _, step, floor = _scale(header)
    levels = np.frombuffer(pixels, kind, rows * columns).reshape(rows, columns)
    return EncodedArray(levels[None, ::-1], _table(kind.itemsize, step, floor))


@lru_cache(maxsize=8)
def _table(width: int, step: float, floor: float) -> Table:
    """Compute the value of everything that ``width`` bytes can hold."""
    levels = np.arange(1 << 8 * width)
    values = ((levels & VALUE) * step + floor).astype(np.float32)
    if width == 1:
        values[LEVELS_8:] = np.nan
        return Table(values)
    clutter = levels & CLUTTER != 0
    if floor == 0:
        clutter &= levels & VALUE == CLUTTER_16
    values[clutter | (levels & (NOT_MEASURED | NEGATIVE) != 0)] = np.nan
    return Table(values)


@lru_cache(maxsize=8)
def national_grid(ellipsoid: bool, rows: int, columns: int) -> Grid:
    """Lay out one of DWD's grids, from the centre of its upper left pixel."""
    x, y = ORIGINS[ellipsoid, rows, columns]
    crs = f"+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 {EARTH[ellipsoid]} +no_defs +x_0={x} +y_0={y}"
    half = KILOMETRE / 2
    return Grid.regular(crs, (rows, columns), upper_left=(-half, half), pixel=(KILOMETRE, KILOMETRE))
