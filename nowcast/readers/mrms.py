"""MRMS: NOAA's mosaics of the radars of the United States, as GRIB2, plain or gzipped.

Precipitation rate, accumulations (QPE, made a rate over their period), reflectivities and vertically
integrated liquid; which of them a file holds follows from discipline, category and number. One file is
one frame of up to 24.5 million pixels: 98 MB, more than an item of other sources.

-3 and -999 (no coverage) and -1 (missing) are no data. -99 dBZ, "missing" in reflectivities, is a pixel
that was scanned and did not echo: -32 dBZ here.

Decoded here, since MRMS packs all its fields as PNG: in half of eccodes' time and memory, which has no
single precision for this packing, drops the seconds of a time, and ends the process on a damaged message.

Source: NSSL, Operational MRMS GRIB2 tables, version 12.1 (github.com/NOAA-National-Severe-Storms-Laboratory/
mrms-support) and 11 for those since renamed; WMO, Manual on Codes, GRIB edition 2.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr
from PIL import Image

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import by_table
from nowcast.readers import grib2
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files

TITLE = "NOAA MRMS radar mosaic"
LICENCE = "public domain, NOAA National Severe Storms Laboratory (NSSL)"
CADENCE = 120
"""Of rates and reflectivities; every cube carries its own."""
PATTERNS = ("*.grib2", "*.grib2.gz")

FORM = "an MRMS field in GRIB2"
DISCIPLINE = 209


@dataclass(frozen=True)
class Product:
    """What one category and number of MRMS's table stands for."""

    name: str
    quantity: str
    hours: float = 1.0
    """Of an accumulation."""
    cadence: int = CADENCE

    @property
    def sums(self) -> bool:
        """Whether it is an accumulation."""
        return "QPE" in self.name


def _products() -> dict[tuple[int, int], Product]:
    periods = (1, 3, 6, 12, 24, 48, 72)
    families = {
        "RadarOnly_QPE": 2,
        "GaugeCorr_QPE": 9,
        "GaugeOnly_QPE": 16,
        "MountainMapper_QPE": 23,
        "MultiSensor_QPE_Pass1": 30,
        "MultiSensor_QPE_Pass2": 37,
    }
    sums = {
        (6, first + place): Product(f"{family}_{hours:02}H", "rainfall_rate", hours, 3600)
        for family, first in families.items()
        for place, hours in enumerate(periods)
    }
    reflectivities = {
        (3, 52): "Reflectivity_0C",
        (3, 53): "Reflectivity_-5C",
        (3, 54): "Reflectivity_-10C",
        (3, 55): "Reflectivity_-15C",
        (3, 56): "Reflectivity_-20C",
        (3, 57): "ReflectivityAtLowestAltitude",
        (3, 58): "MergedReflectivityAtLowestAltitude",
        (8, 8): "SeamlessHSR",
        (10, 0): "MergedReflectivityQCComposite",
        (10, 2): "LowLevelCompositeReflectivity",
        (10, 4): "LayerCompositeReflectivity_Low",
        (10, 5): "LayerCompositeReflectivity_High",
        (10, 6): "LayerCompositeReflectivity_Super",
        (10, 9): "LayerCompositeReflectivity_ANC",
        (11, 0): "MergedBaseReflectivityQC",
        (11, 1): "MergedReflectivityComposite",
        (11, 2): "MergedReflectivityQComposite",
        (11, 3): "MergedBaseReflectivity",
    }
    return sums | {
        (3, 41): Product("VIL", "vil"),
        (6, 1): Product("PrecipRate", "rainfall_rate"),
        (6, 2): Product("RadarOnly_QPE_01H", "rainfall_rate", 1.0, CADENCE),
        (6, 45): Product("RadarOnly_QPE_15M", "rainfall_rate", 0.25, 900),
        **{key: Product(name, "reflectivity") for key, name in reflectivities.items()},
    }


PRODUCTS = _products()
"""By category and number."""
HIGHEST = {"rainfall_rate": 1000.0, "reflectivity": 95.0, "vil": 150.0}
"""In the unit of the file: 16 bits of its steps must reach it."""
NO_COVERAGE_DBZ, FLOOR_DBZ = -900.0, -32.0
"""Reflectivity below which nothing was scanned, and that of a scanned pixel without echo."""

ABOVE_SEA = 102
"""Kind of surface: a height in metres above the mean sea level."""
MOST_PIXELS = 2**25
MOST_BYTES = 2**26
"""Of a message; those of MRMS are a few MB."""
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Packing:
    """value = (reference + 2 ** binary * code) / 10 ** decimal."""

    reference: float
    binary: int
    decimal: int
    bits: int


def recognises(path: Path) -> bool:
    """Whether this is GRIB2 of MRMS's discipline, compressed or not."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else path.open("rb") as stream:
        head = stream.read(8)
    return head[:4] == b"GRIB" and head[6:8] == bytes([DISCIPLINE, 2])


def find(source: Path) -> Iterator[Item]:
    """Find the fields of a file or folder, in the order of their names."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one field: ``rainfall_rate``, ``reflectivity`` (-32 dBZ without echo) or ``vil`` at its time.

    Raises:
        BadInput: If the file is no MRMS field of a product that is known here.
    """
    with decoding(item.path, FORM):
        found = grib2.sections(_message(item.path), item.path)
        product, time = _product(found[4], item.path), grib2.time(found[1], 12, item.path)
        grid, packing = _grid(found[3], item.path), _packing(found, item.path)
        values, step = _values(found[7], packing, grid.shape, product)
    attrs = {
        "title": TITLE,
        "source": item.path.name,
        "licence": LICENCE,
        "institution": "NOAA NSSL",
    }
    cube = make(
        {product.quantity: values[None]},
        [time],
        grid,
        cadence=product.cadence,
        quantum=step,
        product=product.name,
        accumulation=round(3600 * product.hours) if product.sums else 0,
        level=_level(found[4]),
        attrs=attrs,
    )
    return check(cube, item.path)


# --- the message ----------------------------------------------------------------------------------


def _message(path: Path) -> bytes:
    """Read all of a file; no more of it is unpacked than its head states."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if packed else file
        head = stream.read(grib2.HEAD_BYTES)
        if len(head) < grib2.HEAD_BYTES or head[:4] != b"GRIB" or head[7] != 2:
            raise BadInput(path, "is not a GRIB file of edition 2", "choose the reader for its format")
        if head[6] != DISCIPLINE:
            raise BadInput(path, f"is of discipline {head[6]}, not MRMS's {DISCIPLINE}", "give a file of MRMS")
        (stated,) = struct.unpack_from(">Q", head, 8)
        if stated > MOST_BYTES:
            raise BadInput(path, f"states a message of {stated} bytes", "fetch it again")
        data = head + stream.read(max(stated - grib2.HEAD_BYTES, 0) + 1)
    if stated != len(data) or data[-4:] != b"7777":
        raise BadInput(path, f"does not hold one message of {stated} bytes", "fetch it again, one field a file")
    return data


def _product(section: memoryview, path: Path) -> Product:
    template, category, number = struct.unpack_from(">HBB", section, 7)
    if (category, number) not in PRODUCTS:
        raise BadInput(
            path,
            f"holds the product {DISCIPLINE}-{category}-{number}",
            "give a precipitation rate, QPE, reflectivity or VIL",
        )
    (ahead,) = struct.unpack_from(">I", section, 18)
    if ahead:
        raise BadInput(path, "is no analysis of one time but a forecast", "give MRMS's own files")
    if template != 0:
        raise BadInput(path, "is no analysis of one time", "give MRMS's own files")
    return PRODUCTS[category, number]


def _level(section: memoryview) -> str:
    """Read the height as the file names have it; "" for what belongs to none."""
    kind, scale, value = struct.unpack_from(">BBI", section, 22)
    if kind != ABOVE_SEA or value in (0, 0xFFFFFFFF):
        return ""
    return f"{value * 10.0 ** -(scale if scale < 128 else 128 - scale) / 1000:05.2f} km"


def _grid(section: memoryview, path: Path) -> Grid:
    """Lay out the grid from the first pixel and the steps; the last pixel must lie where they lead, to half a step."""
    (template,) = struct.unpack_from(">H", section, 12)
    columns, rows = struct.unpack_from(">II", section, 30)
    if template != 0 or section[71] != 0:
        raise BadInput(path, "is not on a regular grid of degrees from north to south", "give MRMS's own files")
    if min(rows, columns) < 2 or rows * columns > MOST_PIXELS:
        raise BadInput(path, f"states {rows}x{columns} pixels", "fetch it again")
    north, west = grib2.degrees(section, 46)
    south, east = grib2.degrees(section, 55)
    width, height = (step * grib2.MICRODEGREES for step in struct.unpack_from(">II", section, 63))
    if not (
        abs(north - (rows - 1) * height - south) < height / 2 and abs(west + (columns - 1) * width - east) < width / 2
    ):
        raise BadInput(path, "states corners that do not fit its pixel size", "fetch it again")
    return _regular((rows, columns), (west - width / 2, north + height / 2), (width, height))


@lru_cache(maxsize=4)
def _regular(shape: tuple[int, int], upper_left: tuple[float, float], pixel: tuple[float, float]) -> Grid:
    """Lay out a grid without the rounding errors of microdegrees."""
    left, top = (round(edge, 6) for edge in upper_left)
    grid = Grid.regular("EPSG:4326", shape, upper_left=(left, top), pixel=(round(pixel[0], 6), round(pixel[1], 6)))
    return Grid(grid.crs, np.round(grid.y, 7), np.round(grid.x, 7))


# --- values ---------------------------------------------------------------------------------------


def _packing(sections: dict[int, memoryview], path: Path) -> Packing:
    (template,) = struct.unpack_from(">H", sections[5], 9)
    if template not in (41, 40010) or sections[6][5] != 255:
        raise BadInput(path, f"packs its field by template {template} or with a bitmap", "give MRMS's own PNG packing")
    reference, binary, decimal, bits = struct.unpack_from(">fHHB", sections[5], 11)
    binary, decimal = (-(scale & 0x7FFF) if scale & 0x8000 else scale for scale in (binary, decimal))
    if bits not in (0, 8, 16) or not np.isfinite(reference) or abs(binary) > 30 or abs(decimal) > 10:
        raise BadInput(path, f"packs its field in {bits} bits", "give MRMS's own files")
    return Packing(reference, binary, decimal, bits)


def _values(
    section: memoryview, packing: Packing, shape: tuple[int, int], product: Product
) -> tuple[np.ndarray, float | None]:
    """(row, column) float32 in the unit of the variable, NaN = no data, and the step for the store."""
    table = _table(packing, product)
    values = np.empty(shape, np.float32)
    if packing.bits == 0:  # one value everywhere, and no picture
        values[:] = table[0]
    else:
        codes = _codes(section[5:], packing.bits, shape)
        for row in range(0, shape[0], ROWS_AT_ONCE):  # the index of a whole mosaic would be 200 MB
            values[row : row + ROWS_AT_ONCE] = by_table(codes[row : row + ROWS_AT_ONCE], table)
    step = 10.0**-packing.decimal
    regular = packing.binary == 0 and packing.reference.is_integer()
    fits = regular and step * np.iinfo(np.int16).max >= HIGHEST[product.quantity]
    return values, round(step / product.hours, 9) if fits else None


def _table(packing: Packing, product: Product) -> np.ndarray:
    """Compute the value of every code."""
    stated = (packing.reference + np.arange(1 << packing.bits) * 2.0**packing.binary) / 10.0**packing.decimal
    if product.quantity == "reflectivity":
        values = np.where(stated < NO_COVERAGE_DBZ, np.nan, np.maximum(stated, FLOOR_DBZ))
    else:
        values = np.where(stated < 0, np.nan, stated / product.hours)
    return values.astype(np.float32)


def _codes(png: memoryview, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """Pixels of a grey PNG, whose size is looked at before it is unpacked."""
    kind = {8: "L", 16: "I;16"}[bits]
    if bytes(png[:8]) != b"\x89PNG\r\n\x1a\n" or struct.unpack_from(">II", png, 16) != shape[::-1]:
        raise ValueError("not the picture of its grid")
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        if image.mode != kind:
            raise ValueError(f"a picture of mode {image.mode} for {bits} bits")
        return np.asarray(image)
