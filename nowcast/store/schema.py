"""How Datasets lie on disk: types, fill values, chunks, shards, and what fits beside what is there.

The time encoding is fixed when an array is made (appending with xarray re-encodes 00:06 relative to each frame), and
``fill_value`` is always set, so that a chunk that does not exist reads as no data and never as zero rain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from nowcast.core.errors import BadInput
from nowcast.store.chunk_io import Compressed
from nowcast.store.packing import Packing

LABELS_PER_CHUNK = 4096
PIXELS_PER_CHUNK = 2**21
CHUNK_BYTES, WHOLE_BYTES = 2**16, 2**18
"""Small frames share a chunk up to the first; an event of up to the second is one chunk."""
SHARD_BYTES = 2**23
"""Chunks of events share an object up to this, before compression."""
EPOCH = {"units": "seconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian"}
COMPRESSOR = ZstdCodec(level=3)


def event_length(cube: xr.Dataset) -> int:
    """Count the frames of the first event of a Cube; 1 for a live feed, which grows frame by frame."""
    if "sequence" not in cube.coords or "cadence_seconds" in cube.attrs:
        return 1
    return int((cube["sequence"].values == cube["sequence"].values[0]).sum())


def create(group: zarr.Group, dataset: xr.Dataset, along: str, event: int) -> dict[str, Any]:
    """Make the arrays of a new store for Datasets like this one, of no length ``along`` yet; the others are filled.

    Args:
        group: Empty.
        dataset: A Cube, forecasts or scores.
        along: The dimension that grows.
        event: Frames of an event, where such come whole, or 1.
    """
    group.attrs.update(plain(dataset.attrs))
    arrays: dict[str, Any] = {}
    for name, variable in dataset.variables.items():
        grows = along in variable.dims
        shape = tuple(0 if dim == along else size for dim, size in zip(variable.dims, variable.shape, strict=True))
        dtype, fill, attrs = _encoding(variable)
        chunks, shards = _chunks(variable, along, np.dtype(dtype).itemsize, event)
        array = group.create_array(
            str(name),
            shape=shape,
            chunks=chunks,
            shards=shards,
            dtype=dtype,
            fill_value=fill,
            dimension_names=[str(dim) for dim in variable.dims],
            attributes=plain(variable.attrs) | attrs,
            compressors=COMPRESSOR,
        )
        if not grows:
            array[...] = pack(variable.values, array, str(name))
        arrays[str(name)] = array
    return arrays


def add_labels(
    group: zarr.Group, arrays: Mapping[str, Any], dataset: xr.Dataset, along: str, names: Sequence[str]
) -> dict[str, Any]:
    """Give a store made by an older version the labels of this one; what is there already has them empty, or 0."""
    there = [name for name in growing_names(dataset, along) if name in arrays]
    new: dict[str, Any] = {}
    for name in set(names) & set(dataset.variables) - set(arrays):
        dtype, fill, attrs = _encoding(dataset.variables[name])
        new[name] = group.create_array(
            name,
            shape=arrays[there[0]].shape[:1],
            chunks=(LABELS_PER_CHUNK,),
            dtype=dtype,
            fill_value=fill,
            dimension_names=[along],
            attributes=plain(attrs),
            compressors=COMPRESSOR,
        )
    return new


def _encoding(variable: xr.Variable) -> tuple[Any, Any, dict[str, object]]:
    """Choose the on-disk type, fill value and CF attributes of a variable."""
    kind = variable.dtype.kind
    if kind == "M":
        return "int64", np.iinfo(np.int64).min, dict(EPOCH)
    if kind == "m":
        return "int64", np.iinfo(np.int64).min, {"units": "seconds", "dtype": "timedelta64[ns]"}
    if kind in "OUST":
        return str, "", {}
    if kind == "f" and (packing := Packing.wanted(variable)):
        return packing.dtype, packing.missing or 0, packing.attrs
    if kind == "f":
        return variable.dtype, math.nan, {}
    return variable.dtype, np.zeros((), variable.dtype).item(), {}


def _chunks(
    variable: xr.Variable, along: str, itemsize: int, event: int
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Choose the chunks, and the shards (objects) that hold several of them, or None.

    One frame per chunk, cut into bands of rows where it is very large; labels by thousands.
    """
    if variable.ndim == 1:
        return (LABELS_PER_CHUNK if variable.dims[0] == along else max(variable.size, 1),), None
    if along not in variable.dims or variable.ndim < 3:
        return tuple(
            max(size, 1) if dim != along else LABELS_PER_CHUNK
            for dim, size in zip(variable.dims, variable.shape, strict=True)
        ), None
    if variable.dims[-2:] != ("y", "x"):
        return (LABELS_PER_CHUNK // 16, *variable.shape[1:]), None
    rows, columns = variable.shape[-2:]
    height = _height(rows, columns)
    if variable.dims[0] != "time" or event < 2:
        return (*[1] * (variable.ndim - 2), height, columns), None
    steps, length = _steps(event, rows * columns * itemsize)
    return (steps, height, columns), (length, height * math.ceil(rows / height), columns)


def _height(rows: int, columns: int) -> int:
    """Choose the rows of the bands that a very large frame is cut into."""
    return math.ceil(rows / math.ceil(rows * columns / PIXELS_PER_CHUNK))


def compressed(codes: np.ndarray, packing: Packing | None) -> Compressed:
    """Compress (frame, row, column) values of a live feed as a new store keeps them, while they are in memory."""
    fill = math.nan if packing is None else packing.missing or 0
    return Compressed.of(codes, height=_height(*codes.shape[1:]), fill=fill, level=COMPRESSOR.level)


def _steps(length: int, size: int) -> tuple[int, int]:
    """Choose how many frames of ``size`` bytes share a chunk and a shard, where events of ``length`` come whole.

    A window reads few bytes and starts with a chunk, an event lies in one object, and a small one in an object with
    others.
    """
    most = length if length * size <= WHOLE_BYTES else max(1, CHUNK_BYTES // size)
    steps = max(part for part in range(1, length + 1) if length % part == 0 and part <= most)
    if length * size <= SHARD_BYTES:
        return steps, length * (SHARD_BYTES // (length * size))
    return steps, steps * max(1, SHARD_BYTES // (steps * size))


def pack(values: np.ndarray, array: zarr.Array[Any], name: str) -> np.ndarray:
    """Convert values to what an array on disk keeps.

    Raises:
        BadInput: If they do not fit into its codes.
    """
    if values.dtype.kind in "Mm":
        unit = "datetime64[s]" if values.dtype.kind == "M" else "timedelta64[s]"
        return values.astype(unit).astype(np.int64)
    if values.dtype.kind in "OUS":
        return values.astype(np.dtypes.StringDType())
    packing = Packing.of(array.dtype, array.attrs)
    return packing.pack(values, name) if packing else values.astype(array.dtype, copy=False)


def check_same(
    arrays: Mapping[str, Any], dataset: xr.Dataset, along: str, path: object, *, whole: bool = False
) -> None:
    """Refuse what would not fit: other axes, other projection, unknown or (of a whole step) missing variables.

    Raises:
        BadInput: One sentence that names the first misfit.
    """
    given, variables = growing_names(dataset, along), dataset.variables
    if extra := sorted(set(given) - set(arrays)):
        raise BadInput(path, f"has no {', '.join(extra)}", "use another store for another kind of data")
    grown = {name for name, array in arrays.items() if (array.metadata.dimension_names or [""])[0] == along}
    if whole and (absent := sorted(grown - set(given))):
        raise BadInput(path, f"holds {', '.join(absent)} too", "use another store for another kind of data")
    for name in map(str, variables):
        if name in given or name not in arrays:
            continue
        old, new = np.asarray(arrays[name][...]), pack(variables[name].values, arrays[name], name)
        if old.shape != new.shape or not (old == new).all():
            raise BadInput(
                path,
                f"is on another {name} ({old.shape} there, {new.shape} here)",
                "ingest every grid into a store of its own",
            )
    if "crs" in dataset.coords and arrays["crs"].attrs["crs_wkt"] != variables["crs"].attrs["crs_wkt"]:
        raise BadInput(path, "is on another projection", "ingest every grid into a store of its own")
    for name in given:
        if arrays[name].shape[1:] != variables[name].shape[1:]:
            raise BadInput(path, f"{name} has shape {arrays[name].shape[1:]} per step, not {variables[name].shape[1:]}")


def growing_names(dataset: xr.Dataset, along: str) -> list[str]:
    """List the variables and labels that get longer with every step."""
    return [str(name) for name, variable in dataset.variables.items() if along in variable.dims]


def plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Turn attributes into JSON values: numpy scalars and arrays become Python's."""
    values: dict[str, Any] = json.loads(json.dumps(dict(attrs), default=lambda value: np.asarray(value).tolist()))
    return values
