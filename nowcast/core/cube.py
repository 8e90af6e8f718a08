"""The Cube: radar frames as one xarray Dataset, the same for every source.

One variable per channel with dims exactly (time, y, x); NaN = no data, 0 (or the floor in dBZ) =
measured dry; ``time`` in UTC, strictly increasing within each ``sequence``, the label of an unbroken
run of frames; CF units and grid mapping. Plain Datasets: ``make`` builds one, ``check`` holds it to
the promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from xarray.indexes import PandasIndex
from xxhash import xxh3_64

from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import get_quantity, possible

IMPOSSIBLE = "impossible_values"
"""In the encoding of a Cube."""


def make(
    fields: Mapping[str, np.ndarray | EncodedArray],
    time: Sequence[np.datetime64] | np.ndarray,
    grid: Grid,
    *,
    sequence: str | Sequence[str] = "",
    split: str | Sequence[str] | None = None,
    cadence: int | None = None,
    quantum: float | None = None,
    floor: float | None = None,
    levels: np.ndarray | None = None,
    product: str = "",
    accumulation: int = 0,
    level: str = "",
    attrs: Mapping[str, object] | None = None,
) -> xr.Dataset:
    """Build a Cube from arrays. Values that cannot be become no data, see ``Quantity.possible`` and ``impossible``.

    How the store packs it follows from the source's own quantisation, so that nothing is lost:
    ``quantum`` alone packs to 16 bits, with ``floor`` to 8 bits, ``levels`` to 8 bits by a table, none
    of them keeps float32.

    Args:
        fields: Quantity name -> (time, y, x) values in the unit of ``units.QUANTITIES``, NaN = no data; or
            the codes of the source, which are decoded when somebody looks.
        time: UTC stamps, one per frame.
        grid: Where the pixels are.
        sequence: Label(s) of unbroken runs; "" for a live feed, whose runs are found from ``cadence``.
        split: Label(s) ``train``, ``valid`` or ``test`` where the source itself divides its data.
        cadence: Seconds between frames of a live feed as far as the source hints at them, 0 where it does not;
            None where sequences are labelled.
        quantum: Step of the source's quantisation in the variable's unit.
        floor: Lowest value of a source of 8 bits: all values are ``floor + n * quantum``, n in 0..254.
        levels: The values that an uneven source of 8 bits can take, ascending, without NaN. 255 of them
            at most, or all 256 where nothing is ever missing.
        product: The producer's name of the product, see ``Identity``; "" where there is none.
        accumulation: Seconds in which an amount fell, whether it was made a rate or not; 0 for what was measured at
            one time.
        level: Height or elevation that was measured; "" where there is none.
        attrs: Title, source, licence and whatever else the source says about itself.
    """
    stamps = np.asarray(time, "datetime64[ns]")
    labels = {"sequence": sequence} | ({"split": split} if split is not None else {})
    frames = {
        key: _label(value if isinstance(value, str) else tuple(value), stamps.size) for key, value in labels.items()
    }
    packing = {"quantum": quantum, "floor": floor, "levels": levels}
    encoding = {key: value for key, value in packing.items() if value is not None}
    clean = {name: _possible(name, values) for name, values in fields.items()}
    variables = {name: _variable(name, values, encoding) for name, (values, _) in clean.items()}
    moments = PandasIndex(stamps, "time")
    axis = moments.create_variables()
    axis["time"].attrs = {"standard_name": "time", "axis": "T"}
    place, indexes = _place(grid)
    coords = xr.Coordinates(axis | frames | place, {"time": moments} | indexes)
    head = dict(attrs or {}) | {"product": product, "accumulation_seconds": int(accumulation), "level": level}
    if cadence is not None:
        head["cadence_seconds"] = int(cadence)
    made = xr.Dataset(variables, coords=coords, attrs=head)
    made.encoding[IMPOSSIBLE] = sum(count for _, count in clean.values())
    return made


def impossible(cube: xr.Dataset) -> np.ndarray:
    """Count the values of every frame that the source gave and that cannot be, which are no data in the Cube."""
    count = np.asarray(cube.encoding.get(IMPOSSIBLE, 0))
    known = count.shape == (cube.sizes["time"],)
    return count if known else np.zeros(cube.sizes["time"], np.int64)


def _possible(name: str, values: np.ndarray | EncodedArray) -> tuple[np.ndarray | EncodedArray, np.ndarray]:
    """Make values that cannot be no data, and count them: the one door that all frames come through."""
    if not isinstance(values, EncodedArray):
        return possible(np.asarray(values, np.float32), name)
    if _all_possible(values.table, name):
        return values, np.zeros(values.shape[0], np.int64)
    return possible(values.decoded(), name)


@lru_cache(maxsize=64)
def _all_possible(table: Table, name: str) -> bool:
    known = table.values[~np.isnan(table.values)]
    return not known.size or not possible(known[None, None], name)[1].any()


@dataclass(frozen=True)
class Identity:
    """Which product frames are of: two that differ in it may share grid and times, and are no versions of each other.

    Only what stays the same for one product over years belongs here: no file name, institution or free text.
    """

    product: str
    quantities: tuple[str, ...]
    """Names of the channels."""
    accumulation: int
    """Seconds in which an amount fell; 0 for what was measured at one time."""
    level: str

    def __str__(self) -> str:
        period = f"sum of {_duration(self.accumulation)}" if self.accumulation else ""
        words = dict.fromkeys((self.product, *self.quantities, period, self.level))  # each once
        return ", ".join(filter(None, words)) or "unnamed"

    def fits(self, choice: str) -> bool:
        """Tell whether a choice means this product: any of the words of ``str``, between commas; "" means all."""
        return _words(choice) <= _words(str(self))

    def ordered(self) -> Identity:
        """Sort the channels: their order on disk means nothing."""
        return replace(self, quantities=tuple(sorted(self.quantities)))


def identity(about: xr.Dataset | Mapping[str, object], names: Sequence[str] | None = None) -> Identity:
    """Read which product a Cube or store holds, from itself or from its attributes.

    Args:
        about: The Cube, or its attributes. Without ``accumulation_seconds`` they are older than identities, and their
            ``product`` is not one.
        names: Of its channels; None: those of the Cube.
    """
    attrs: Mapping[Any, object] = about.attrs if isinstance(about, xr.Dataset) else about
    if isinstance(about, xr.Dataset):
        names = names or channels(about)
    stated = attrs if "accumulation_seconds" in attrs else {}
    return Identity(
        product=str(stated.get("product", "")),
        quantities=tuple(names or ()),
        accumulation=int(float(str(stated.get("accumulation_seconds", 0)))),
        level=str(stated.get("level", "")),
    )


def _duration(seconds: int) -> str:
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"


def _words(text: str) -> set[str]:
    return {word for part in text.lower().split(",") if (word := " ".join(part.split()))}


@lru_cache(maxsize=64)
def _label(words: str | tuple[str, ...], count: int) -> xr.Variable:
    """Make the labels of all frames, kept: xarray takes long to check arrays of objects."""
    variable = xr.Variable("time", np.broadcast_to(np.asarray(words, object), (count,)))
    variable.values.setflags(write=False)
    return variable


@lru_cache(maxsize=8)
def _place(grid: Grid) -> tuple[dict[str, xr.Variable], dict[str, xr.Index]]:
    """Make the coordinates of a grid with their indexes, which take longer than to decode a frame."""
    coords = xr.Dataset(coords=grid.coordinates()).coords
    return {str(name): coord.variable for name, coord in coords.items()}, dict(coords.xindexes)


def _variable(name: str, values: np.ndarray | EncodedArray, encoding: Mapping[str, object]) -> xr.Variable:
    meta = get_quantity(name)
    attrs = {"units": meta.unit, "long_name": meta.long_name, "grid_mapping": "crs"}
    if meta.standard_name:
        attrs["standard_name"] = meta.standard_name
    data = values.lazy() if isinstance(values, EncodedArray) else np.asarray(values, np.float32)
    return xr.Variable(("time", "y", "x"), data, attrs, dict(encoding))


def channels(cube: xr.Dataset) -> list[str]:
    """List the names of the channels of a Cube (or of a Forecast), in order."""
    return [str(name) for name, variable in cube.data_vars.items() if variable.dims[-2:] == ("y", "x")]


def check(cube: xr.Dataset, where: object = "cube") -> xr.Dataset:
    """Return the Cube unchanged if it keeps the promise.

    Raises:
        BadInput: One sentence naming the first broken promise.
    """
    names, variables = channels(cube), cube.variables  # a variable of a Dataset is made anew at every look
    if not names or any(variables[name].dims != ("time", "y", "x") for name in names):
        raise BadInput(where, "data must have dims (time, y, x)", f"found {dict(cube.sizes)}")
    if cube.sizes["time"] == 0:
        raise BadInput(where, "no frames")
    for name in names:
        want, unit = get_quantity(name).unit, variables[name].attrs.get("units")
        if unit != want:
            raise BadInput(where, f"{name} is in {unit!r}", f"convert it to {want!r}")
    stamps = variables["time"] if "time" in variables else cube["time"]
    if stamps.dtype.kind != "M":
        raise BadInput(where, f"time is {stamps.dtype}", "use datetime64 in UTC")
    if "crs" not in cube.coords or "crs_wkt" not in variables["crs"].attrs:
        raise BadInput(where, "no grid mapping", "put Grid.coordinates() on it")
    if "sequence" not in cube.coords:
        raise BadInput(where, "no sequence(time) label")
    _check_axes(cube, where)
    _check_order(cube, where)
    return cube


def _check_axes(cube: xr.Dataset, where: object) -> None:
    for axis in ("y", "x"):
        steps = np.diff(cube.variables[axis].values) if axis in cube.coords else np.zeros(1)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise BadInput(where, f"{axis} is missing or does not run one way", "put Grid.coordinates() on it")


def _check_order(cube: xr.Dataset, where: object) -> None:
    labels, stamps = cube.variables["sequence"].values, cube.variables["time"].values
    if np.isnat(stamps).any():
        raise BadInput(where, "a frame has no time")
    same = labels[1:] == labels[:-1]
    if (same & (np.diff(stamps) <= np.timedelta64(0))).any():
        raise BadInput(where, "time does not increase within a sequence", "sort the frames")


def label_runs(time: np.ndarray, cadence: int | np.ndarray, *, tolerated_gap: int = 0) -> np.ndarray:
    """Label the unbroken runs of a live feed by the time of their first frame.

    Args:
        time: Sorted datetime64 stamps.
        cadence: Seconds between frames, or those of every frame: another step begins another run.
        tolerated_gap: Missing frames in a row that do not break a run.

    Returns:
        Object array of labels such as ``2010-08-26T00:00``.
    """
    stamps = np.asarray(time, "datetime64[s]")
    if not stamps.size:
        return np.empty(0, object)
    steps = np.broadcast_to(np.asarray(cadence), stamps.shape)
    limits = (steps[1:] * (tolerated_gap + 1.5)).astype("timedelta64[s]")
    breaks = (np.diff(stamps) > limits) | (steps[1:] != steps[:-1])
    starts = np.flatnonzero(np.concatenate([[True], breaks]))
    first = np.searchsorted(starts, np.arange(stamps.size), side="right") - 1
    names = np.asarray([str(stamps[start])[:16] for start in starts], dtype=object)
    return names[first]


def event_labels(cube: xr.Dataset) -> np.ndarray:
    """Give the sequence of every frame where sequences are events that may share times; "" in a live feed."""
    labels = cube["sequence"].values
    return np.full(labels.shape, "", object) if "cadence_seconds" in cube.attrs else labels


def utc(time: datetime | np.datetime64) -> np.datetime64:
    """Convert a time to datetime64[ns] in UTC; without a zone it is UTC already."""
    if isinstance(time, datetime) and time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    exact: np.datetime64 = np.datetime64(time).astype("datetime64[ns]")
    return exact


def to_datetime(time: np.datetime64 | xr.DataArray) -> datetime:
    """Convert a time to a datetime in UTC, whole seconds."""
    naive: datetime = np.asarray(time).astype("datetime64[s]").item()
    return naive.replace(tzinfo=UTC)


def digest(*channels: np.ndarray) -> str:
    """Compute a fingerprint of one frame's values in all channels: equal content, equal digest (XXH3, 64 bits)."""
    fingerprint = xxh3_64()
    for values in channels:
        plain = np.ascontiguousarray(values, np.float32 if values.dtype.kind == "f" else values.dtype)
        fingerprint.update(plain.data)
    return fingerprint.hexdigest()
