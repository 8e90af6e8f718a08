"""What a store holds, as a Dataset: decoded when somebody asks for it, and in order of time."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from nowcast.core.cadence import HINT, stated_cadence, step_of_frames
from nowcast.core.cube import label_runs
from nowcast.core.units import QUANTITIES
from nowcast.store.packing import Packing


def decode(raw: xr.Dataset, group: zarr.Group) -> xr.Dataset:
    """Decode what a group holds, lazily: CF's packing to float32, tables of levels, times and texts.

    Args:
        raw: The group as xarray opens it without decoding.
        group: The same group, for what CF cannot express.
    """
    tables = {str(name): variable for name, variable in raw.variables.items() if "levels" in variable.attrs}
    for variable in raw.variables.values():
        for key in {"scale_factor", "add_offset"} & set(variable.attrs):  # float64 would decode to float64
            variable.attrs[key] = np.float32(variable.attrs[key])
    dataset = xr.decode_cf(raw.drop_vars(tables), decode_timedelta=True, decode_coords="all")
    for name, variable in tables.items():
        dataset[name] = _by_table(variable, cast(zarr.Array[Any], group[name]))
    for label, variable in dataset.variables.items():
        if variable.dtype.kind == "T":  # numpy's variable-width strings: few libraries take them yet
            dataset[label] = variable.astype(object)
    labels = [name for name in dataset.variables if dataset[name].dims in (("time",), ("run",)) or name == "crs"]
    return dataset.set_coords(labels)


def _by_table(variable: xr.Variable, array: zarr.Array[Any]) -> xr.Variable:
    """Make the lazy variable of an array that is packed by a table."""
    lazy = _ByTable(array)
    attrs = {key: value for key, value in variable.attrs.items() if key not in lazy.packing.attrs}
    mapping = {key: attrs.pop(key) for key in ["grid_mapping"] if key in attrs}  # where decode_cf puts it
    return xr.Variable(variable.dims, indexing.LazilyIndexedArray(lazy), attrs, mapping)


class _ByTable(BackendArray):
    """Values of an array that is packed by a table of levels, which CF cannot express; read when asked for."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array, self.packing = array, cast(Packing, Packing.of(array.dtype, array.attrs))
        self.shape, self.dtype = array.shape, np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        support = indexing.IndexingSupport.OUTER
        values: np.ndarray = indexing.explicit_indexing_adapter(key, self.shape, support, self._values)
        return values

    def _values(self, key: tuple[Any, ...]) -> np.ndarray:
        return self.packing.unpack(np.asarray(self.array.oindex[key]))


def in_order(cube: xr.Dataset) -> xr.Dataset:
    """Sort the frames of a Cube along ``time`` within each sequence, and label the runs of a live feed.

    Coordinate ``position`` says where a frame lies on disk, ``step`` how far apart the frames of a live feed are then.
    """
    stamps, labels = cube["time"].values, cube["sequence"].values
    live = not any(labels)
    order = np.argsort(stamps, kind="stable") if live else _group(labels, stamps)
    if (order[1:] < order[:-1]).any():
        cube = cube.isel(time=order)
    known = list(QUANTITIES)  # a listing of a store has no order of its own
    cube = cube[sorted(map(str, cube.data_vars), key=lambda name: (known.index(name) if name in known else -1, name))]
    cube = cube.assign_coords(position=("time", order, {"long_name": "order of arrival"}))
    return _with_steps(cube) if live and "cadence_seconds" in cube.attrs else cube


def _with_steps(cube: xr.Dataset) -> xr.Dataset:
    """Label the frames of a live feed with their step and run; ``cadence_seconds`` becomes the present step."""
    stated = stated_cadence(cube.attrs)
    steps = step_of_frames(cube["time"].values, **stated)
    runs = label_runs(cube["time"].values, steps, tolerated_gap=int(cube.attrs.get("tolerated_gap", 0)))
    about = {"units": "s", "long_name": "time since the frame before, in an unbroken run"}
    cube = cube.assign_coords(sequence=("time", runs), step=("time", steps, about))
    present = int(steps[-1]) if steps.size else int(stated["override"] or stated["hint"])
    return cube.assign_attrs({"cadence_seconds": present, HINT: int(stated["hint"])})


def _group(labels: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    """Sort so that sequences stay together, in the order of their first appearance."""
    first: dict[str, int] = {}
    rank = np.asarray([first.setdefault(label, len(first)) for label in labels], np.int64)
    return np.lexsort((stamps, rank))
