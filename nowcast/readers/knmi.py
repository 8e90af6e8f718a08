"""KNMI: composites of the Dutch radars in KNMI's own HDF5 format.

Accumulations (``RAD_NL25_RAP_5min``, ``RAD_NL25_RAC_...``) become rain rates, reflectivity composites
(``RAD_NL25_PCP_NA``) stay dBZ. One file is one frame.

Source: Roozekrans and Holleman (2003), KNMI HDF5 Data Format Specification v3.5, KNMI IR-2003-05.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from pyproj.exceptions import ProjError

from nowcast.core.cube import check, make
from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import MARSHALL_PALMER
from nowcast.readers import rasters, stamps
from nowcast.readers.hdf5 import attribute, member, numbers, open_hdf5
from nowcast.readers.items import Item, files
from nowcast.readers.rasters import metric_crs

TITLE = "KNMI radar composite of the Netherlands"
LICENCE = "CC BY 4.0, Royal Netherlands Meteorological Institute (KNMI)"
CADENCE = 300
PATTERNS = ("*.h5",)

FORM = "a KNMI radar composite"
PROJECTION = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
"""Of the standard grid, in km; used where the file's own string contradicts its corners."""

NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
FORMULA = re.compile(rf"GEO=({NUMBER})\*PV(?:\+?({NUMBER}))?")
METRES = {"KM": 1000.0, "M": 1.0}


def recognises(path: Path) -> bool:
    """Whether an HDF5 file has KNMI's groups."""
    with h5py.File(path, "r") as file:
        return "overview" in file and "image1/image_data" in file and "geographic" in file


def find(source: Path) -> Iterator[Item]:
    """Find the composites of a file or folder, in time order."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one composite: ``rainfall_rate`` at the end of its accumulation, or ``reflectivity`` at its nominal time.

    Raises:
        BadInput: If the file is not a KNMI composite of one observed image.
    """
    with open_hdf5(item.path, FORM) as file:
        if attribute(file, "overview/number_image_groups") != 1:
            raise BadInput(item.path, "holds a forecast of several images", "give the observed composite")
        start, end = (
            _time(attribute(file, f"overview/product_datetime_{edge}"), item.path) for edge in ("start", "end")
        )
        name, factor = _quantity(file, rasters.period((end - start) / np.timedelta64(1, "s")))
        values, step = _values(file, name, factor)
        attrs = {
            "title": TITLE,
            "source": item.path.name,
            "licence": LICENCE,
            "institution": "KNMI",
            "zr_a": MARSHALL_PALMER[0],
            "zr_b": MARSHALL_PALMER[1],
        }
        product = str(attribute(file, "image1/image_product_name"))
        grid = _grid(file, values.shape[1:])
    # KNMI names a reflectivity composite after the start of its lowest scan
    moment, period = (
        (start, CADENCE) if name == "reflectivity" else (end, rasters.period((end - start) / np.timedelta64(1, "s")))
    )
    cube = make(
        {name: values},
        [moment],
        grid,
        cadence=period,
        quantum=round(step, 9) or None,
        product=product,
        accumulation=period if name == "rainfall_rate" else 0,
        attrs=attrs,
    )
    return check(cube, item.path)


def _quantity(file: h5py.File, seconds: float) -> tuple[str, float]:
    """Cube variable, and the factor that makes the image's unit the variable's."""
    kind = str(attribute(file, "image1/image_geo_parameter"))
    if kind.endswith("[DBZ]"):
        return "reflectivity", 1.0
    if not kind.endswith("[MM]"):
        raise BadInput(file.filename, f"holds {kind}", "give an accumulation in MM or a reflectivity in DBZ")
    if seconds <= 0:
        raise BadInput(file.filename, "is an accumulation over no time", "fetch it again")
    return "rainfall_rate", 3600 / seconds


def _values(file: h5py.File, name: str, factor: float) -> tuple[EncodedArray, float]:
    """(1, row, column) image, its own unit times ``factor``, NaN = no data, and the step of its quantisation."""
    formula = str(attribute(file, "image1/calibration/calibration_formulas"))
    match = FORMULA.fullmatch(formula.replace(" ", ""))
    if not match:
        raise BadInput(file.filename, f"has the formula {formula!r}", "give one of the form GEO=a*PV+b")
    gain, offset = float(match[1]), float(match[2] or 0)
    absent = {attribute(file, f"image1/calibration/calibration_{word}") for word in ("missing_data", "out_of_image")}
    if name == "reflectivity":
        absent -= {0}  # there KNMI calls a scanned pixel without echo "missing"
    raw = numbers(member(file, "image1/image_data"))
    if raw.dtype.kind != "u" or raw.dtype.itemsize > 2:
        raise BadInput(file.filename, f"holds an image of {raw.dtype}", "give one of 8 or 16 bits")
    rasters.check_scaling(file.filename, gain, offset, raw, absent)
    return EncodedArray(raw[None], _table(gain * factor, offset * factor, frozenset(absent), raw.dtype)), gain * factor


@lru_cache(maxsize=8)
def _table(gain: float, offset: float, absent: frozenset[float], dtype: np.dtype) -> Table:
    codes = np.arange(256**dtype.itemsize)
    values = codes.astype(np.float32) * np.float32(gain) + np.float32(offset)
    values[np.isin(codes, list(absent))] = np.nan
    return Table(values)


def _time(text: object, path: Path) -> np.datetime64:
    """Read a time such as ``26-AUG-2010;00:05:00.000``."""
    moment = stamps.told(str(text), path)
    if moment is None:
        raise BadInput(path, f"states the time {text!r}", "report it to KNMI")
    return moment


def _grid(file: h5py.File, shape: tuple[int, ...]) -> Grid:
    rows, columns, *offsets = (
        float(attribute(file, f"geographic/geo_{name}"))  # type: ignore[arg-type]
        for name in ("number_rows", "number_columns", "row_offset", "column_offset", "pixel_size_x", "pixel_size_y")
    )
    if shape != (rows, columns) or offsets[3] >= 0:
        raise BadInput(file.filename, f"has an image of {shape} on a grid of {(rows, columns)}", "fetch it again")
    unit = METRES[str(attribute(file, "geographic/geo_dim_pixel")).split(",")[0].upper()]
    own = str(attribute(file, "geographic/map_projection/projection_proj4_params"))
    corners: Any = ()
    with suppress(BadInput):  # of old files
        corners = attribute(file, "geographic/geo_product_corners")
    off, grid = _placed(own, shape, tuple(offsets), unit, tuple(corners))
    if sum(misfit > 1 for misfit in off) > 1:  # three corners outvote the fourth
        raise BadInput(file.filename, "states corners that lie elsewhere than its grid", "report it to KNMI")
    return grid


@lru_cache(maxsize=8)
def _placed(
    own: str, shape: tuple[int, int], numbers: tuple[float, ...], unit: float, corners: tuple[float, ...]
) -> tuple[list[float], Grid]:
    """Lay out the grid on the file's own projection or on KNMI's usual one, whichever puts the stated corners in place.

    Returns:
        How far every stated corner lies from the grid's, in pixels, and the grid.
    """
    row, column, width, height = numbers[0], numbers[1], numbers[2] * unit, numbers[3] * unit
    grids: list[tuple[list[float], Grid]] = []
    for definition in (own, PROJECTION):
        with suppress(ProjError, ValueError):
            grid = Grid.regular(
                metric_crs(definition), shape, upper_left=(column * width, row * height), pixel=(width, -height)
            )
            lon, lat = np.reshape(corners, (-1, 2)).T
            grids.append((sorted(grid.misfits(lon, lat).tolist()) if corners else [0.0], grid))
    return min(grids, key=lambda fit: fit[0][-2:])
