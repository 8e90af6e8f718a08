"""The Cube: radar frames as one xarray Dataset, the same for every source.

One variable per channel with dims exactly (time, y, x); NaN = no data, 0 (or the floor in dBZ) =
measured dry; ``time`` in UTC, strictly increasing within each ``sequence``, the label of an unbroken
run of frames; CF units and grid mapping. Plain Datasets: ``make`` builds one, ``check`` holds it to
the promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b

import numpy as np
import xarray as xr

from nowcast.grid import Grid
from nowcast.units import quantity


class BadInput(ValueError):
    """An input that cannot be taken. One sentence: where, what is wrong, what to do."""

    def __init__(self, where: object, fault: str, remedy: str = "") -> None:
        self.where, self.fault, self.remedy = str(where), fault, remedy
        super().__init__(f"{where}: {fault}" + (f"; {remedy}" if remedy else "") + ".")

    def __reduce__(self) -> tuple:
        return BadInput, (self.where, self.fault, self.remedy)


def make(fields: Mapping[str, np.ndarray], time: Sequence[np.datetime64] | np.ndarray, grid: Grid, *,
         sequence: str | Sequence[str] = "", cadence: int | None = None, quantum: float | None = None,
         attrs: Mapping[str, object] | None = None) -> xr.Dataset:  # fmt: skip
    """Builds a Cube from arrays.

    Args:
        fields: Quantity name -> (time, y, x) values in the unit of ``units.QUANTITIES``, NaN = no data.
        time: UTC stamps, one per frame.
        grid: Where the pixels are.
        sequence: Label(s) of unbroken runs; "" for a live feed, whose runs are found from ``cadence``.
        cadence: Seconds between frames of a live feed.
        quantum: Step of the source's own quantisation in the variable's unit. The store packs to
            integers of this step; None keeps float32.
        attrs: Title, source, licence and whatever else the source says about itself.
    """
    stamps = np.asarray(time, "datetime64[ns]")
    labels = np.broadcast_to(np.asarray(sequence, dtype=object), stamps.shape)
    variables = {name: _variable(name, values, quantum) for name, values in fields.items()}
    coords = {"time": ("time", stamps), "sequence": ("time", labels)} | grid.coordinates()
    head = dict(attrs or {}) | ({"cadence_seconds": int(cadence)} if cadence else {})
    cube = xr.Dataset(variables, coords=coords, attrs=head)
    cube["time"].attrs.update(standard_name="time", axis="T")
    return cube


def _variable(name: str, values: np.ndarray, quantum: float | None) -> xr.Variable:
    meta = quantity(name)
    attrs = {"units": meta.unit, "long_name": meta.long_name, "grid_mapping": "crs"}
    if meta.standard_name:
        attrs["standard_name"] = meta.standard_name
    encoding = {"quantum": float(quantum)} if quantum else {}
    return xr.Variable(("time", "y", "x"), np.asarray(values, np.float32), attrs, encoding)


def channels(cube: xr.Dataset) -> list[str]:
    """Names of the data channels of a Cube (or of a Forecast), in order."""
    return [str(name) for name, variable in cube.data_vars.items() if variable.dims[-2:] == ("y", "x")]


def check(cube: xr.Dataset, where: object = "cube") -> xr.Dataset:
    """Returns the Cube unchanged if it keeps the promise.

    Raises:
        BadInput: One sentence naming the first broken promise.
    """
    names = channels(cube)
    if not names or any(cube[name].dims != ("time", "y", "x") for name in names):
        raise BadInput(where, "data must have dims (time, y, x)", f"found {dict(cube.sizes)}")
    if cube.sizes["time"] == 0:
        raise BadInput(where, "no frames")
    for name in names:
        want, unit = quantity(name).unit, cube[name].attrs.get("units")
        if unit != want:
            raise BadInput(where, f"{name} is in {unit!r}", f"convert it to {want!r}")
    if cube["time"].dtype.kind != "M":
        raise BadInput(where, f"time is {cube['time'].dtype}", "use datetime64 in UTC")
    if "crs" not in cube.coords or "crs_wkt" not in cube["crs"].attrs:
        raise BadInput(where, "no grid mapping", "put Grid.coordinates() on it")
    if "sequence" not in cube.coords:
        raise BadInput(where, "no sequence(time) label")
    _check_axes(cube, where)
    _check_order(cube, where)
    return cube


def _check_axes(cube: xr.Dataset, where: object) -> None:
    for axis in ("y", "x"):
        steps = np.diff(cube[axis].values) if axis in cube.coords else np.zeros(1)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise BadInput(where, f"{axis} is missing or does not run one way", "put Grid.coordinates() on it")


def _check_order(cube: xr.Dataset, where: object) -> None:
    labels, stamps = cube["sequence"].values, cube["time"].values
    if np.isnat(stamps).any():
        raise BadInput(where, "a frame has no time")
    same = labels[1:] == labels[:-1]
    if (same & (np.diff(stamps) <= np.timedelta64(0))).any():
        raise BadInput(where, "time does not increase within a sequence", "sort the frames")


def label_runs(time: np.ndarray, cadence: int, *, tolerated_gap: int = 0) -> np.ndarray:
    """Labels the unbroken runs of a live feed by the time of their first frame.

    Args:
        time: Sorted datetime64 stamps.
        cadence: Nominal seconds between frames.
        tolerated_gap: Missing frames in a row that do not break a run.

    Returns:
        Object array of labels such as ``2010-08-26T00:00``.
    """
    stamps = np.asarray(time, "datetime64[s]")
    limit = np.timedelta64(int(cadence * (tolerated_gap + 1.5)), "s")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(stamps) > limit])[: stamps.size])
    first = np.searchsorted(starts, np.arange(stamps.size), side="right") - 1
    names = np.asarray([str(stamps[start])[:16] for start in starts], dtype=object)
    return names[first] if stamps.size else np.empty(0, object)


def event_labels(cube: xr.Dataset) -> np.ndarray:
    """The sequence of every frame where sequences are events that may share times; "" in a live feed."""
    labels = cube["sequence"].values
    return np.full(labels.shape, "", object) if "cadence_seconds" in cube.attrs else labels


def utc(time: datetime | np.datetime64) -> np.datetime64:
    """Any time as datetime64[ns] in UTC; without a zone it is UTC already."""
    if isinstance(time, datetime) and time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(time).astype("datetime64[ns]")


def digest(frame: np.ndarray) -> str:
    """Fingerprint of one frame's values: equal content, equal digest."""
    return blake2b(np.ascontiguousarray(frame, np.float32).tobytes(), digest_size=8).hexdigest()
