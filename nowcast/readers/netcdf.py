"""NetCDF by the CF conventions, classic (3) and HDF5 (4): rain rates, amounts and reflectivities on a grid.

What is taken from a file, and what it must say, is told in ``cf``. A file may hold many frames, which
become items along its chunks, or one, with a time dimension, a scalar time or yyyymmddHHMM in its name.
Of a folder the first file tells whether its files hold one frame each; then the others are not opened to
find their items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from nowcast.core.errors import BadInput
from nowcast.core.libraries import exclusive
from nowcast.readers import cf, netcdf3
from nowcast.readers.decoding import decoding
from nowcast.readers.items import ITEM_BYTES, Item, files, part

TITLE = "Gridded rain or reflectivity in CF NetCDF"
LICENCE = "as stated by the producer; see the attribute institution"
PATTERNS = ("*.nc", "*.nc4", "*.cdf", "*.netcdf")
CADENCE = None
"""Differs by source: every cube carries its own, see ``cf``."""

FORM = "a CF NetCDF file"
ODD = (AttributeError, KeyError, IndexError, TypeError)
"""What the NetCDF library raises on damaged metadata beside errors of its own."""
HDF5 = b"\x89HDF\r\n\x1a\n"
LARGEST = 4 * ITEM_BYTES
"""Of a file that is taken whole, since the first of its folder holds one frame."""


def recognises(path: Path) -> bool:
    """Whether a variable of a NetCDF file is of a known quantity."""
    with _opened(path) as (arrays, _):
        return cf.knows(arrays)


def find(source: Path) -> Iterator[Item]:
    """Find the frames of a file or folder, in time order if the names are."""
    single: set[Path] = set()
    for path in files(source, *PATTERNS):
        keys = [""] if path.parent in single else _keys(path)
        if keys == [""]:
            single.add(path.parent)
        yield from (Item(path, key) for key in keys or [""])


def read(item: Item) -> xr.Dataset:
    """Read some frames, or the only one, of ``rainfall_rate`` or ``reflectivity``.

    Raises:
        BadInput: If the file does not say clearly what it holds, where and when.
    """
    with _opened(item.path) as (arrays, attrs):
        field = cf.field(item.path, arrays, attrs, source=item.path.name, product=item.product, when=_when)
        if not item.key and field.time.size > 1 and field.bytes > LARGEST:
            raise BadInput(
                item.path, f"holds {field.time.size} frames, unlike the first file of its folder", "take it by itself"
            )
        frames = part(item) if item.key else slice(0, field.time.size)
        return field.cube(frames, title=TITLE, licence=LICENCE)


def _keys(path: Path) -> list[str]:
    """List the keys of the items of a file; none of a bad one, which ``read`` is to refuse."""
    with suppress(BadInput), _opened(path) as (arrays, _):
        return list(cf.items(path, arrays))
    return []


def _when(path: Path) -> np.datetime64:
    with _opened(path) as (arrays, _):
        first: np.datetime64 = cf.times(path, arrays)[0]
        return first


@contextmanager
def _opened(path: Path) -> Iterator[tuple[cf.Arrays, Mapping[str, object]]]:
    with decoding(path, FORM):
        with path.open("rb") as stream:
            head = stream.read(8)
        if head[:4] in netcdf3.MAGIC:
            arrays, attrs = netcdf3.opened(path)
            yield {name: _filled(array) for name, array in arrays.items()}, attrs
            return
        if head != HDF5:
            raise BadInput(path, "is not a NetCDF file", "fetch it again or choose another reader")
        with decoding(path, FORM, *ODD), exclusive():
            library = netCDF4.Dataset(path, "r")
        try:
            with exclusive():
                library.set_auto_maskandscale(False)
                arrays = {name: _array(variable) for name, variable in library.variables.items()}
                attrs = dict(library.__dict__)
            yield {name: _filled(array) for name, array in arrays.items()}, attrs
        finally:
            with exclusive():
                library.close()


def _array(variable: netCDF4.Variable[Any]) -> cf.Array:
    def read(key: tuple[Any, ...]) -> np.ndarray:
        with exclusive():
            return np.asarray(variable[key])

    pieces = variable.chunking()
    dtype = variable.dtype if isinstance(variable.dtype, np.dtype) else np.dtype(object)  # text, or a type of its own
    chunks = tuple(pieces) if isinstance(pieces, list) else None
    return cf.Array(variable.dimensions, variable.shape, dtype, dict(variable.__dict__), read, chunks)


def _filled(array: cf.Array) -> cf.Array:
    """Add the missing value that NetCDF fills with, unless another one is stated; bytes have none."""
    usual = netCDF4.default_fillvals.get(f"{array.dtype.kind}{array.dtype.itemsize}")
    if array.dtype.itemsize == 1 or array.dtype.kind not in "iuf" or "_FillValue" in array.attrs:
        return array
    return replace(array, attrs={"_FillValue": usual} | dict(array.attrs))
