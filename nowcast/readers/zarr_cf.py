"""Zarr by the CF conventions, version 2 or 3, consolidated or not: the layout of the MLCast data sets.

A store is a folder with arrays in its root group; a source may be the store, a folder of stores, or
``zarr.json``, ``.zgroup`` or ``.zmetadata`` in one. What must be in it is told in ``cf``; of MLCast's
attributes that is the variable's ``standard_name`` (or a known name), ``units`` and ``grid_mapping`` with
``crs_wkt`` or ``spatial_ref``. Used where present: ``license``, ``institution``, ``time_coverage_resolution``,
``consistent_timestep_start``, and ``last_valid_timestep``, beyond which a store laid out for years to come
is empty; without it frames later than now are not there yet.

A chunk that was never written is no data, never dry, whatever ``fill_value`` says. Zarr leaves out chunks
that equal it: of a store of rain whose ``fill_value`` is 0, a chunk without any rain is no data, too. Write
it with NaN, as MLCast asks. In version 2 ``fill_value`` is a missing value as well, as xarray reads it, but
for floats where it is 0.

An item is known by the store, the times and the marker file: frames that are rewritten in place are read
again only if that file changes.

Source: MLCast specification of radar precipitation sources, version 0.2 (github.com/mlcast-community/
mlcast-dataset-validator); Zarr specifications, versions 2 and 3.
"""

from __future__ import annotations

import base64
import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from nowcast.core.errors import BadInput
from nowcast.readers import cf, stamps
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, part, walk
from nowcast.readers.rasters import MOST_PIXELS

TITLE = "Gridded rain or reflectivity in CF Zarr"
LICENCE = "as stated by the producer; see the attribute institution"
FILE_BY_FILE = False
PATTERNS = ("zarr.json", ".zmetadata", ".zgroup")
CADENCE = None
"""Differs by source: every cube carries its own, see ``cf``."""

FORM = "a Zarr store"
ODD = (AttributeError, KeyError, IndexError, TypeError)
"""What zarr raises on damaged metadata beside errors of its own."""
WHOLE = "0:1"


def recognises(path: Path) -> bool:
    """Whether a variable of a Zarr store is of a known quantity."""
    with _opened(_store(path)) as (arrays, _):
        return cf.knows(arrays)


def find(source: Path) -> Iterator[Item]:
    """Find the items of a store, or of the stores in a folder in the order of their names."""
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    stores = list(_stores(source))
    if not stores:
        raise BadInput(source, f"holds no Zarr store ({' or '.join(PATTERNS)})", "check the path and the reader")
    for store in stores:
        for key in _keys(store):
            yield Item(_marker(store) or store, f"{store.name} {key}")


def read(item: Item) -> xr.Dataset:
    """Read some frames of ``rainfall_rate`` or ``reflectivity``.

    Raises:
        BadInput: If the store does not say clearly what it holds, where and when.
    """
    store = item.path.parent
    key = Item(item.path, item.key.rpartition(" ")[2])
    with _opened(store) as (arrays, attrs):
        field = cf.field(item.path, arrays, attrs, source=store.name, product=item.product)
        return field.cube(part(key), title=TITLE, licence=LICENCE)


# --- finding stores -------------------------------------------------------------------------------


def _store(path: Path) -> Path:
    """Find the store that a marker belongs to: arrays of version 3 have one of their own."""
    store = path.parent
    return store.parent if _marker(store.parent) and path.name == "zarr.json" else store


def _stores(source: Path) -> Iterator[Path]:
    """Folders with a marker; what is below them is theirs."""
    if source.name in PATTERNS and source.is_file():
        yield _store(source)
    for root, folders, names in walk(source):
        if set(PATTERNS) & set(names):
            folders.clear()
            yield root
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _marker(store: Path) -> Path | None:
    return next((store / name for name in PATTERNS if (store / name).is_file()), None)


def _keys(store: Path) -> list[str]:
    """List the keys of the items of a store; of a bad one a single one, for ``read`` to refuse."""
    with suppress(BadInput), _opened(store) as (arrays, attrs):
        last = stamps.told(str(attrs.get("last_valid_timestep", "")), store) or np.datetime64("now", "s")
        count = int((cf.times(store, arrays) <= last).sum())
        return [key or WHOLE for key in cf.items(store, arrays, count=count)]
    return [WHOLE]


# --- opening them ---------------------------------------------------------------------------------


@contextmanager
def _opened(store: Path) -> Iterator[tuple[cf.Arrays, Mapping[str, object]]]:
    marker = _marker(store) or store / PATTERNS[0]
    with decoding(marker, FORM), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about types and codecs that zarr has yet to settle
        marker.open("rb").close()
        with decoding(marker, FORM, *ODD):
            group = zarr.open_group(store, mode="r", use_consolidated=False)
            members, attrs = list(group.arrays()), group.attrs.asdict()
        yield {name: _array(marker, array) for name, array in members}, attrs


def _array(where: Path, array: zarr.Array[Any]) -> cf.Array:
    attrs: dict[str, Any] = dict(array.attrs)
    dims = getattr(array.metadata, "dimension_names", None) or attrs.get("_ARRAY_DIMENSIONS") or ()
    if "_FillValue" in attrs:
        attrs["_FillValue"] = _number(attrs["_FillValue"], array.dtype)
    elif array.ndim > 1 and array.metadata.zarr_format == 2 and (array.dtype.kind in "iu" or array.fill_value):
        attrs["_FillValue"] = array.fill_value
    attrs = {key: value for key, value in attrs.items() if value is not None}

    def read(key: tuple[Any, ...]) -> np.ndarray:
        return _read(where, array, attrs, key)

    return cf.Array(tuple(map(str, dims)), array.shape, array.dtype, attrs, read, array.chunks)


def _number(stated: object, dtype: np.dtype) -> object:
    """Decode a missing value as xarray writes it in version 3: floats as the bytes of a double in base 64."""
    if not isinstance(stated, str) or dtype.kind not in "iuf":
        return stated
    with suppress(ValueError):
        return float(stated)
    return struct.unpack("<d", base64.b64decode(stated, validate=True))[0]


def _read(where: Path, array: zarr.Array[Any], attrs: Mapping[str, object], key: tuple[Any, ...]) -> np.ndarray:
    """Part of an array; what was never written is missing."""
    about = array.metadata.to_dict()
    if math.prod(array.chunks) > MOST_PIXELS:
        raise BadInput(where, f"keeps {array.basename} in chunks of {'x'.join(map(str, array.chunks))}", "rechunk it")
    if array.ndim < 2 or array.dtype.kind not in "iuf":
        return np.asarray(array[key])
    if array.dtype.kind == "f":
        return np.asarray(_filled(array, about, "NaN")[key])
    missing = np.ravel(np.asarray(attrs.get("_FillValue", attrs.get("missing_value", []))))
    if missing.size:
        return np.asarray(_filled(array, about, int(missing[0]))[key])
    first, second = (np.asarray(_filled(array, about, code)[key]) for code in (0, 1))
    if (first != second).any():
        raise BadInput(where, f"lacks chunks of {array.basename}, which has no missing value", "add a _FillValue to it")
    return first


def _filled(array: zarr.Array[Any], about: Mapping[str, Any], code: object) -> zarr.Array[Any]:
    """Open the array with another value in place of chunks that were never written."""
    return zarr.Array.from_dict(array.store_path, dict(about) | {"fill_value": code})
