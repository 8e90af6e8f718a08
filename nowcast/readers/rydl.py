"""RYDL: the training data of RainNet, DWD's RY composites of 2006 to 2017 in one HDF5 file.

A data set of 900x900 pixels for every five minutes, named by its time in UTC (``200605010005``), of rainfall in mm
within these five minutes. NaN and negative values are no data. Rows begin in the south, as in the composites
that they were made from.

Source: Ayzel, RYDL: a radar-based precipitation data set for deep learning (doi:10.5281/zenodo.3629951), as read
by RainNet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.readers import radolan
from nowcast.readers.hdf5 import member, numbers, open_hdf5
from nowcast.readers.items import Item, files

TITLE = "RYDL, DWD radar composites (RY) of RainNet"
LICENCE = "CC BY 4.0, Georgy Ayzel after Deutscher Wetterdienst"
CADENCE = 300
PATTERNS = ("RYDL*.hdf5", "RYDL*.h5", "rydl*.hdf5", "rydl*.h5")

FORM = "the HDF5 file of RYDL"
SHAPE = (900, 900)
NAME = re.compile(r"\d{12}")
PER_HOUR = 3600 / CADENCE


def recognises(path: Path) -> bool:
    """Whether data sets are named by their times."""
    with open_hdf5(path, FORM) as file:
        return any(NAME.fullmatch(name) for name in file)


def find(source: Path) -> Iterator[Item]:
    """Find the hours of a file, or of the files of a folder, from the names of data sets."""
    for path in files(source, *PATTERNS):
        with open_hdf5(path, FORM) as file:
            hours = sorted({name[:10] for name in file if NAME.fullmatch(name)})
        if not hours:
            raise BadInput(path, "has no data set named by its time", "give RYDL.hdf5 or choose another reader")
        yield from (Item(path, hour) for hour in hours)


def read(item: Item) -> xr.Dataset:
    """Read the frames of an hour: ``rainfall_rate`` at the ends of their five minutes.

    Raises:
        BadInput: If the file is no RYDL or does not have that hour.
    """
    with open_hdf5(item.path, FORM) as file:
        names = [name for minute in range(0, 60, CADENCE // 60) if (name := f"{item.key}{minute:02}") in file]
        if not names or not NAME.fullmatch(names[0]):
            raise BadInput(item.path, f"has no hour {item.key or '(none named)'}", "take items from find")
        rate = np.stack([_rate(member(file, name), item.path) for name in names])
        times = [np.datetime64(f"{name[:4]}-{name[4:6]}-{name[6:8]}T{name[8:10]}:{name[10:]}", "s") for name in names]
    attrs = {
        "title": TITLE,
        "source": str(item),
        "licence": LICENCE,
        "institution": "DWD",
    }
    grid = radolan.national_grid(False, *SHAPE)
    cube = make({"rainfall_rate": rate}, times, grid, cadence=CADENCE, product="RY", accumulation=CADENCE, attrs=attrs)
    return check(cube, item.path)


def _rate(frame: h5py.Group | h5py.Dataset, path: Path) -> np.ndarray:
    """(row, column) float32 in mm/h from the north."""
    if not isinstance(frame, h5py.Dataset) or frame.shape != SHAPE or frame.dtype.kind not in "iuf":
        raise BadInput(path, f"holds no {SHAPE[0]}x{SHAPE[1]} numbers in {frame.name}", "choose the reader for it")
    values = numbers(frame)[::-1].astype(np.float32) * np.float32(PER_HOUR)
    values[~(values >= 0)] = np.nan
    return values
