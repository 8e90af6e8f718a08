"""BoM: rainfall of the Bureau of Meteorology's Rainfields 3, one radar of Australia, NetCDF 4.

``66_20201031_001000.prcp-c10.nc`` holds what fell in 10 minutes, ``2_....prcp-cscn.nc`` in 6, around radar
66 or 2; the time in the name is the end. One file is one frame. x and y are in km. Negative numbers are no
data: -1 or -32768, as the file says, and -2, which is found beside -1 in a few pixels of real files.
Source: the attributes of the files themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import cf, rasters
from nowcast.readers.hdf5 import attribute, member, open_hdf5
from nowcast.readers.items import Item, files
from nowcast.readers.rasters import MOST_PIXELS, RAIN, Codes

TITLE = "Bureau of Meteorology Rainfields, rainfall around a radar of Australia"
LICENCE = "Commonwealth of Australia, Bureau of Meteorology, see http://www.bom.gov.au/other/copyright.shtml"
PATTERNS = ("*.prcp-*.nc",)
CADENCE = None
"""The period of the product, 6 or 10 minutes: every cube carries its own."""

FORM = "a Rainfields accumulation"
NAMES = {"precipitation", "proj", "x", "y", "start_time", "valid_time"}
PRODUCT = re.compile(r"\.(prcp-\w+)\.nc")
"""In the name, such as ``prcp-c10``, corrected sums of 10 minutes: the title in the file is free text."""
EPOCH = "seconds since 1970-01-01 00:00:00 UTC"
UNITS = {"km": 1000.0, "m": 1.0}
LONGEST = 86400
"""Period of an accumulation, seconds."""


def recognises(path: Path) -> bool:
    """Whether an HDF5 file holds the variables of an accumulation."""
    with h5py.File(path, "r") as file:
        return set(file) >= NAMES


def find(source: Path) -> Iterator[Item]:
    """Find the accumulations of a file or folder, in time order."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one accumulation as ``rainfall_rate`` at its end.

    Raises:
        BadInput: If the file is no such accumulation.
    """
    with open_hdf5(item.path, FORM) as file:
        start, end = (_time(file, name) for name in ("start_time", "valid_time"))
        seconds = rasters.period(end - start)
        if not 0 < seconds <= LONGEST:
            raise BadInput(item.path, "is an accumulation over no time", "fetch it again")
        rain = member(file, "precipitation")
        grid = _grid(file, rain.shape)
        how = _codes(rain, 3600 / seconds)
        raw = rain[()][None]
        how.check(item.path, raw)
        values = how.decode(raw)
        attrs = {"title": TITLE, "source": item.path.name, "institution": "Bureau of Meteorology", "licence": LICENCE}
        for key, name in (("licence", "licence"), ("station", "station_name")):
            if name in file.attrs:
                attrs[key] = str(attribute(file, name))
    cube = make(
        {how.name: values},
        [np.datetime64(end, "s")],
        grid,
        cadence=seconds,
        quantum=how.packing.get("quantum"),
        product=named[1] if (named := PRODUCT.search(item.path.name)) else "",
        accumulation=seconds,
        attrs=attrs,
    )
    return check(cube, item.path)


def _time(file: h5py.File, name: str) -> int:
    """Seconds since 1970."""
    if attribute(member(file, name), "units") != EPOCH:
        raise BadInput(file.filename, f"does not count {name} in {EPOCH}", "use the reader netcdf")
    return int(member(file, name)[()])


def _codes(rain: h5py.Dataset, per_hour: float) -> Codes:
    """How its integers become mm/h: a kilogram of water on a square metre is a millimetre."""
    if rain.dtype != np.int16 or attribute(rain, "units") != "kg m-2":
        raise BadInput(rain.file.filename, f"holds {rain.dtype} in {attribute(rain, 'units')}", "use the reader netcdf")
    scale, offset = (float(attribute(rain, name)) for name in ("scale_factor", "add_offset"))  # type: ignore[arg-type]
    missing = frozenset({float(attribute(rain, "_FillValue"))})  # type: ignore[arg-type]
    return Codes(rain.dtype, RAIN, scale, offset, per_hour, missing, lowest=0)


def _grid(file: h5py.File, shape: tuple[int, ...]) -> Grid:
    mapping = member(file, "proj")
    named = {name: attribute(mapping, name) for name in sorted(mapping.attrs)}
    crs = cf.projection(tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in named.items()))
    lines = [member(file, name) for name in ("y", "x")]
    sizes = tuple(line.shape for line in lines)
    if crs is None or sizes != tuple((size,) for size in shape) or min(shape) < 2 or math.prod(shape) > MOST_PIXELS:
        raise BadInput(file.filename, f"has pixels of {shape} on axes of {sizes}", "fetch it again")
    y, x = (rasters.axis(line[()], UNITS[str(attribute(line, "units"))], file.filename, line.name) for line in lines)
    return Grid(crs, y, x)
