"""CF: from the variables of a file to rain rates or reflectivities on a grid, whatever library opened it.

Taken is the variable with the first known standard name, else one without that goes by a known name
(``rasters.NAMES``; rates before amounts before reflectivities). It must have a unit that suits it.
Amounts become rates over their period: their time bounds, else ``accumulation_period``, else the constant
step of the file; they are dated by the end of it. Dims may come in any order; others than time, y and x
must have length 1.

x and y are pixel centres, evenly spaced, in m, km or degrees (without a unit: in that of the projection).
The projection is that of the grid mapping: ``crs_wkt``, ``spatial_ref``, CF's parameters or ``proj4``,
the first that PROJ takes (``proj4`` before parameters that leave out the size of the Earth); longitude and latitude
need none. Rows stay in the order of y.

Where ``is_nodata`` lies beside the values, as in MET Norway's mosaics, it tells what no radar saw: other missing values
are pixels without echo, unless clutter is flagged there.

Seconds between frames: ``time_coverage_resolution``, else the median step of the file (from
``consistent_timestep_start`` on, where stated), else the shortest step between the first files of its
folder, else the period of its one amount if that is short. All are hints, 0 where there is none: the
store knows the stamps of all frames.

Source: Eaton et al., NetCDF Climate and Forecast (CF) Metadata Conventions, version 1.11.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pyproj import CRS
from pyproj.exceptions import ProjError

from nowcast.core.cube import Identity, check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import rasters, stamps
from nowcast.readers.items import ITEM_BYTES, parts
from nowcast.readers.rasters import MOST_PIXELS, NAMES, Codes, metric_crs

MOST_TIMES = 2**24
CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
METRES = {
    "m": 1.0,
    "metre": 1.0,
    "metres": 1.0,
    "meter": 1.0,
    "meters": 1.0,
    "km": 1000.0,
    "kilometre": 1000.0,
    "kilometres": 1000.0,
    "kilometer": 1000.0,
    "kilometers": 1000.0,
}
LATITUDES = ("degrees_north", "degree_north", "degrees_n")
LONGITUDES = ("degrees_east", "degree_east", "degrees_e")
DEGREES = dict.fromkeys(("degrees", "degree", *LATITUDES, *LONGITUDES), 1.0)
PROJ_STRINGS = ("proj4", "proj4_params", "proj4text", "proj4string", "proj_params", "proj_string")
AVERAGED = re.compile(r"\btime:\s*(mean|sum)\b")
LONGEST_STEP = 900
"""Seconds; longer periods are those of amounts that overlap."""
HEIGHTS = ("height", "altitude", "height_above_mean_sea_level")
BLIND = "is_nodata"
CLUTTER = ("is_seaclutter", "is_groundclutter", "is_otherclutter")
"""Variables of MET Norway's mosaics, in which a missing value may be a pixel without echo."""
EARTH = ("semi_major_axis", "semi_minor_axis", "inverse_flattening", "earth_radius", "reference_ellipsoid_name")
"""Parameters of CF that say how large the Earth is; also the name of a datum does."""
LICENCES = ("license", "licence", "License", "Licence")
LEADS = ("forecast_period", "lead_time", "leadtime", "lead", "forecast_hour", "prediction_timedelta")
REFERENCE = "forecast_reference_time"
"""Standard names, and names of variables that have none, of forecasts."""
ROLES = {
    "y": {"projection_y_coordinate", "latitude", "grid_latitude", "y", "lat", "rlat", "yc", "northing"},
    "x": {"projection_x_coordinate", "longitude", "grid_longitude", "x", "lon", "rlon", "xc", "easting"},
}
"""Standard names and names of the variables that place rows and columns."""


@dataclass(frozen=True)
class Array:
    """A variable as it is on disk; nothing is read or decoded yet."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attrs: Mapping[str, object]
    read: Callable[[tuple[Any, ...]], np.ndarray]
    chunks: tuple[int, ...] | None = None
    """None where it lies in one piece, any part of which can be read."""

    def text(self, name: str) -> str:
        """Return an attribute in small letters; empty where there is none."""
        return str(self.attrs.get(name, "")).strip().lower()


Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Field:
    """A known quantity on a known grid, of which frames can be read."""

    path: Path
    identity: Identity
    array: Array
    places: tuple[int | None, int, int]
    """Of time, y and x among the dims; time may have none."""
    codes: Codes
    grid: Grid
    time: np.ndarray
    """datetime64[s] of every frame."""
    hours: np.ndarray | None
    """Periods of amounts."""
    cadence: int
    attrs: Mapping[str, object]
    blind: Array | None = None
    """1 where no radar saw; where it is there, other missing values are pixels without echo."""
    clutter: tuple[Array, ...] = ()
    """1 where an echo is none of rain, so that its missing value says nothing."""

    @property
    def bytes(self) -> int:
        """Of all frames, decoded."""
        return 4 * self.time.size * math.prod(self.grid.shape)

    def cube(self, frames: slice, *, title: str, licence: str) -> xr.Dataset:
        """Read some frames as a Cube.

        Raises:
            BadInput: If there are no such frames.
        """
        if not 0 <= frames.start < frames.stop <= self.time.size:
            raise BadInput(
                self.path, f"has {self.time.size} frames, not {frames.start} to {frames.stop}", "take items from find"
            )
        raw = self._read(self.array, frames)
        self.codes.check(self.path, raw)
        values = self.codes.decode(raw)
        packing = self.codes.packing
        if self.blind is not None:
            values, packing = self._without_echo(values, frames), {}
        if self.hours is not None and np.ptp(self.hours):  # of all frames, for all to be packed alike
            values, packing = values / self.hours[frames, None, None].astype(np.float32), {}
        attrs = {"title": title, "licence": licence} | dict(self.attrs)
        cube = make(
            {self.codes.name: values},
            self.time[frames],
            self.grid,
            cadence=self.cadence,
            quantum=packing.get("quantum"),
            floor=packing.get("floor"),
            product=self.identity.product,
            accumulation=self.identity.accumulation,
            level=self.identity.level,
            attrs=attrs,
        )
        return check(cube, self.path)

    def _read(self, array: Array, frames: slice) -> np.ndarray:
        """(time, y, x) as it is on disk, of a variable with the dims of the field's."""
        key: list[slice | int] = [0] * len(array.dims)
        time, *space = self.places
        for place in space:
            key[place] = slice(None)
        if time is not None:
            key[time] = frames
        raw = array.read(tuple(key))
        left = [place for place in range(len(key)) if not isinstance(key[place], int)]
        raw = raw.transpose([left.index(place) for place in self.places if place is not None])
        return raw if time is not None else raw[None]

    def _without_echo(self, values: np.ndarray, frames: slice) -> np.ndarray:
        """Tell missing values that were scanned, which are dry, from what no radar saw or clutter hides."""
        values = values if values.flags.writeable else values.copy()
        dry = np.isnan(values)
        for flag in self.clutter:
            dry &= self._read(flag, frames) == 0
        values[dry] = rasters.FLOOR[self.codes.name]
        if self.blind is not None:
            values[self._read(self.blind, frames) != 0] = np.nan
        return values


def items(path: Path, arrays: Arrays, *, count: int | None = None) -> Iterator[str]:
    """Keys that cut a file into items along its chunks; one empty key if it holds a single frame.

    Args:
        path: The file.
        arrays: What is in it.
        count: Frames to take at most; None: all.

    Raises:
        BadInput: If it holds nothing known.
    """
    _, array, places = _choose(path, arrays, next(_named(arrays), None))
    frames = 1 if places[0] is None else array.shape[places[0]]
    if places[0] is None or frames == 1:
        yield ""
        return
    shape = array.shape[places[1]], array.shape[places[2]]
    most = max(1, ITEM_BYTES // (4 * math.prod(shape)))
    chunk = array.chunks[places[0]] if array.chunks else 1
    most -= most % chunk if chunk <= most else 0
    yield from parts(frames if count is None else min(frames, count), shape, most=most)


def knows(arrays: Arrays) -> bool:
    """Whether there is a known quantity among the variables."""
    return any(True for _ in _named(arrays))


def times(path: Path, arrays: Arrays) -> np.ndarray:
    """Read the times of the frames as they are stated, datetime64[s].

    Raises:
        BadInput: If there are none.
    """
    _, array, places = _choose(path, arrays, next(_named(arrays), None))
    return _times(path, arrays, array, places[0])[0]


def field(
    path: Path,
    arrays: Arrays,
    attrs: Mapping[str, object],
    *,
    source: str,
    product: str = "",
    when: Callable[[Path], np.datetime64] | None = None,
) -> Field:
    """Find out what a file holds.

    Args:
        path: The file, for sentences, its stamp and its neighbours.
        arrays: What is in it.
        attrs: Its global attributes.
        source: What to call it.
        product: Which of several variables to take, see ``cube.Identity.fits``; where none is, the preferred one.
        when: Time of a neighbour of a single frame; None: it has no neighbours.

    Raises:
        BadInput: If that is nothing known, or it is not said clearly enough.
    """
    read = partial(_field, path, arrays, attrs, source=source, when=when)
    if product:
        for label in _named(arrays):
            with suppress(BadInput):  # of a variable that nobody asked for
                if (found := read(label)).identity.fits(product):
                    return found
    return read(next(_named(arrays), None))


def _field(
    path: Path,
    arrays: Arrays,
    attrs: Mapping[str, object],
    wanted: str | None,
    *,
    source: str,
    when: Callable[[Path], np.datetime64] | None,
) -> Field:
    label, array, places = _choose(path, arrays, wanted)
    name = NAMES[array.text("standard_name").replace(" ", "_") or label.lower()]
    kind, factor = rasters.measured(path, label, name, array.attrs.get("units"))
    time, bounds = _times(path, arrays, array, places[0])
    _refuse_forecast(path, arrays, time)
    hours = None
    if kind == "amount":
        seconds, time = _periods(path, label, array, time, bounds)
        hours = seconds / 3600
        factor = factor if np.ptp(hours) else factor / float(hours[0])
    about = {
        "source": source,
        "description": array.attrs.get("long_name"),
        "institution": attrs.get("institution") or attrs.get("institute"),
        "licence": next((attrs[key] for key in LICENCES if key in attrs), None),
    }
    return Field(
        path=path,
        identity=Identity(label, (name,), _accumulation(array, hours, bounds), _level(arrays, array)),
        array=array,
        places=places,
        codes=rasters.codes(array.attrs, array.dtype, name, factor),
        grid=_grid(path, arrays, array, places),
        time=time,
        hours=hours,
        cadence=_cadence(path, attrs, time, hours, when),
        attrs={key: str(value) for key, value in about.items() if value is not None},
        blind=next(_flags(arrays, array, (BLIND,)), None),
        clutter=tuple(_flags(arrays, array, CLUTTER)),
    )


def _accumulation(array: Array, hours: np.ndarray | None, bounds: np.ndarray | None) -> int:
    """Seconds in which amounts fell or over which rates are means; 0 where it is none or they differ."""
    if hours is None and bounds is not None and AVERAGED.search(array.text("cell_methods")):
        hours = (bounds[:, 1] - bounds[:, 0]) / np.timedelta64(1, "h")
    return 0 if hours is None or np.ptp(hours) else rasters.period(3600 * float(hours[0]))


def _level(arrays: Arrays, array: Array) -> str:
    """Read the one height of a variable that has a vertical axis of length 1, or a scalar one."""
    scalars = str(array.attrs.get("coordinates", "")).split()
    for name, other in arrays.items():
        along = other.dims and set(other.dims) <= set(array.dims) and math.prod(other.shape) == 1
        vertical = other.text("standard_name") in HEIGHTS or other.text("axis") == "z"
        if vertical and other.dtype.kind in "iuf" and (along or (name in scalars and math.prod(other.shape) == 1)):
            value = float(np.ravel(other.read((slice(None),) * len(other.dims)))[0])
            return f"{value:g} {other.attrs.get('units', '')}".strip()
    return ""


# --- the variable ---------------------------------------------------------------------------------


def _named(arrays: Arrays) -> Iterator[str]:
    """Variables with at least two dims that go by a known name, the preferred one first."""
    fit = {label: array for label, array in arrays.items() if len(array.dims) > 1 and array.dtype.kind in "iuf"}
    words = {label: array.text("standard_name").replace(" ", "_") for label, array in fit.items()}
    for known in NAMES:
        yield from (label for label, word in words.items() if word == known)
    for known in NAMES:
        yield from (label for label, word in words.items() if not word and label.lower() == known)


def _choose(path: Path, arrays: Arrays, label: str | None) -> tuple[str, Array, tuple[int | None, int, int]]:
    """Look at the variable to read: its name, itself, and the places of time, y and x among its dims."""
    if label is None:
        raise BadInput(
            path,
            f"holds no rain or reflectivity on a grid ({', '.join(arrays) or 'no variable'})",
            "give its variable a standard_name such as rainfall_rate",
        )
    array = arrays[label]
    _refuse_leads(path, arrays, array)
    roles = {dim: _axis(arrays, dim)[0] for dim in array.dims}
    found = {role: place for place, role in enumerate(roles.values()) if role}
    if not {"y", "x"} <= set(found):
        _refuse_curved(path, arrays, array)
        raise BadInput(path, f"has no coordinates of {label} along {' and '.join(array.dims)}", "add 1-D x and y")
    for dim, size in zip(array.dims, array.shape, strict=True):
        role = roles[dim]
        if size != 1 and (role is None or array.dims[found[role]] != dim):
            raise BadInput(path, f"has {size} {dim} of {label}", "give one of them only")
    places = found.get("time"), found["y"], found["x"]
    _bounded(path, label, array, places)
    return label, array, places


def _flags(arrays: Arrays, array: Array, names: tuple[str, ...]) -> Iterator[Array]:
    """Find the variables called so that have a number for every value of another."""
    for name in names:
        other = arrays.get(name)
        if other is None or (other.dims, other.shape) != (array.dims, array.shape) or other.dtype.kind not in "iuf":
            continue
        if math.prod(other.chunks or ()) <= MOST_PIXELS:
            yield other


def _axis(arrays: Arrays, dim: str) -> tuple[str | None, str]:
    """``time``, ``y`` or ``x``, and the variable that makes a dim that: its own, or another along it alone."""
    along = sorted((name for name, array in arrays.items() if array.dims == (dim,)), key=lambda name: name != dim)
    for name in along:
        if _is_time(arrays[name]):
            return "time", name
        for role, words in ROLES.items():
            if arrays[name].text("standard_name") in words or arrays[name].text("axis") == role:
                return role, name
    return next(((role, name) for name in along for role, words in ROLES.items() if name.lower() in words), (None, ""))


def _is_time(array: Array) -> bool:
    word = array.text("standard_name")
    stated = array.dtype.kind == "M" or " since " in array.text("units")
    return stated and word in ("time", "")


def _refuse_curved(path: Path, arrays: Arrays, array: Array) -> None:
    for name, other in arrays.items():
        flat = len(other.dims) == 2 and set(other.dims) <= set(array.dims)
        if flat and (other.text("standard_name") or name.lower()) in ("latitude", "longitude", "lat", "lon"):
            raise BadInput(
                path,
                f"places its pixels by the 2-D {name} only",
                "regrid it, or add the 1-D x and y of its projection and a grid_mapping",
            )


def _refuse_leads(path: Path, arrays: Arrays, array: Array) -> None:
    """Refuse frames at lead times after the start of a forecast; lead 0 is an analysis."""
    for name, other in arrays.items():
        ours = set(other.dims) <= set(array.dims) and math.prod(other.shape) <= MOST_TIMES
        if ours and other.dtype.kind in "iufm" and (other.text("standard_name") or name.lower()) in LEADS:
            leads = other.read((slice(None),) * len(other.dims))
            if (leads != leads.dtype.type(0)).any():
                raise BadInput(path, f"is a forecast: it has a {name}", "give an analysis")


def _refuse_forecast(path: Path, arrays: Arrays, time: np.ndarray) -> None:
    """Refuse frames that are later than when they were made."""
    for name, other in arrays.items():
        size = math.prod(other.shape)
        if (other.text("standard_name") or name.lower()) == REFERENCE and size in (1, time.size):
            made = _dates(path, name, other.read((slice(None),) * len(other.dims)), other.attrs, other.dtype)
            if (time > made).any():
                raise BadInput(path, f"is a forecast made at {made[0]}Z, as {name} says", "give an analysis")


def _bounded(path: Path, label: str, array: Array, places: tuple[int | None, int, int]) -> None:
    """Refuse what a damaged file may state, before anything of that size is made."""
    time, y, x = places
    rows, columns, frames = array.shape[y], array.shape[x], 1 if time is None else array.shape[time]
    if min(rows, columns) < 2 or rows * columns > MOST_PIXELS or not 0 < frames <= MOST_TIMES:
        raise BadInput(path, f"states {frames} frames of {rows}x{columns} pixels", "fetch it again")
    if array.chunks and math.prod(array.chunks) > MOST_PIXELS:
        raise BadInput(path, f"keeps {label} in pieces of {'x'.join(map(str, array.chunks))}", "rechunk it to frames")


# --- time -----------------------------------------------------------------------------------------


def _times(path: Path, arrays: Arrays, array: Array, place: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the times of the frames, and the two bounds of each where stated: datetime64[s]."""
    dims = () if place is None else (array.dims[place],)
    named = [name for name, other in arrays.items() if _is_time(other) and math.prod(other.shape) == 1]
    if place is not None:
        named = [name for name, other in arrays.items() if other.dims == dims and _is_time(other)]
    if not named:
        moment = stamps.in_name(path.name, path)
        if moment is None or place is not None:
            raise BadInput(path, "does not say when it was measured", "add a time, or yyyymmddHHMM to its name")
        return np.array([moment], "datetime64[s]"), None
    order = ("time", *dims, "valid_time")
    label = min(named, key=lambda name: order.index(name) if name in order else len(order))
    time = arrays[label]
    dates = _dates(path, label, time.read((slice(None),) * len(time.dims)), time.attrs, time.dtype)
    edges = arrays.get(str(time.attrs.get("bounds")))
    if edges is None or math.prod(edges.shape) != 2 * dates.size:
        return dates, None
    raw = edges.read((slice(None),) * len(edges.dims))
    return dates, _dates(path, label, raw, {**time.attrs, **edges.attrs}, edges.dtype).reshape(-1, 2)


def _dates(path: Path, label: str, raw: np.ndarray, attrs: Mapping[str, object], dtype: np.dtype) -> np.ndarray:
    calendar = str(attrs.get("calendar", CALENDARS[0])).lower()
    if calendar not in CALENDARS:
        raise BadInput(path, f"counts {label} in the calendar {calendar!r}", f"convert it to {CALENDARS[0]!r}")
    if dtype.kind == "M":
        return np.ravel(raw).astype("datetime64[s]")
    kept = ("units", "calendar", "_FillValue", "scale_factor", "add_offset")
    stated = {key: attrs[key] for key in kept if key in attrs}
    stated["units"] = _in_utc(path, str(attrs.get("units", "")))
    variable = xr.Variable("time", np.ravel(raw).astype(raw.dtype.newbyteorder("=")), stated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coder = xr.coders.CFDatetimeCoder(use_cftime=False)
        dates = xr.decode_cf(xr.Dataset({"moment": variable}), decode_times=coder)["moment"].values
    half = np.timedelta64(500, "ms")  # days as floats miss the second by a little
    return (dates.astype("datetime64[ms]") + half).astype("datetime64[s]")


def _in_utc(path: Path, units: str) -> str:
    """Move the moment that times are counted from to UTC: xarray takes ``UTC+2`` for two hours behind it."""
    unit, since, moment = units.partition(" since ")
    found = stamps.told(moment, path) if since else None
    return units if found is None else f"{unit} since {found}"


def _periods(
    path: Path, label: str, array: Array, time: np.ndarray, bounds: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the seconds that each amount fell in, and when they end."""
    if bounds is not None:
        stated, time = (bounds[:, 1] - bounds[:, 0]) / np.timedelta64(1, "s"), bounds[:, 1]
        seconds = np.array([float(rasters.period(span)) for span in stated])
    elif stated := rasters.duration(array.attrs.get("accumulation_period")):
        seconds = np.full(time.size, float(stated))
    else:
        steps = np.diff(time).astype(int)
        usual = steps.min(initial=rasters.LONGEST)
        even = steps.size and usual > 0 and not (steps % usual).any()
        seconds = np.full(time.size, float(usual if even else 0))
    if not (seconds > 0).all():
        raise BadInput(path, f"does not say how long {label} fell", "add time bounds to it")
    return seconds, time


def _cadence(
    path: Path,
    attrs: Mapping[str, object],
    time: np.ndarray,
    hours: np.ndarray | None,
    when: Callable[[Path], np.datetime64] | None,
) -> int:
    if stated := rasters.duration(attrs.get("time_coverage_resolution")):
        return stated
    if regular := stamps.told(str(attrs.get("consistent_timestep_start", "")), path):
        time = time[time >= regular] if (time >= regular).sum() > 1 else time
    if time.size > 1:
        usual = int(np.median(np.diff(time).astype(int)))
        if usual <= 0:
            raise BadInput(path, "has times that do not increase", "sort its frames")
        return usual
    period = 0 if hours is None else rasters.period(3600 * float(hours[0]))
    return rasters.step(path, when) or (period if period <= LONGEST_STEP else 0)


# --- grid -----------------------------------------------------------------------------------------


def _grid(path: Path, arrays: Arrays, array: Array, places: tuple[int | None, int, int]) -> Grid:
    names = [_axis(arrays, array.dims[place])[1] for place in places[1:]]
    crs, natural = rasters.in_metres(_projection(path, arrays, array, names))
    units = DEGREES if crs.is_geographic else METRES
    axes = []
    for name in names:
        line = arrays[name]
        stated = line.text("units")
        if stated and stated not in units:
            _refuse_curved(path, arrays, array)
            wanted = "degrees" if crs.is_geographic else "m or km"
            raise BadInput(path, f"gives {name} in {stated!r}", f"give it in {wanted}, as its projection is")
        axes.append(rasters.axis(_numbers(line), units.get(stated, natural), path, name))
    y, x = axes
    if x[0] > x[-1]:
        raise BadInput(path, "has columns that run westward", "reverse its x")
    return Grid(crs, y, rasters.longitudes(path, x) if crs.is_geographic else x)


def _numbers(line: Array) -> np.ndarray:
    """Read the numbers of a coordinate, in single precision where they are written so."""
    raw = line.read((slice(None),))
    if not {"scale_factor", "add_offset"} & set(line.attrs):
        return raw if raw.dtype == np.float32 else raw.astype(np.float64)
    scale, offset = (
        rasters.number(line.attrs.get(key, 1 - place)) for place, key in enumerate(("scale_factor", "add_offset"))
    )
    return np.round(raw * scale + offset, 9)


def _projection(path: Path, arrays: Arrays, array: Array, names: list[str]) -> CRS:
    """Read the projection of the grid mapping; longitude and latitude need none."""
    label = str(array.attrs.get("grid_mapping", "")).partition(":")[0].strip()
    others = (name for name, other in arrays.items() if "grid_mapping_name" in other.attrs or name == "spatial_ref")
    label = label if label in arrays else next(others, label)
    if label in arrays:
        crs = projection(tuple((key, _plain(value)) for key, value in sorted(arrays[label].attrs.items())))
        if crs is None or not (crs.is_projected or crs.is_geographic) or (crs.is_geographic and crs.is_derived):
            raise BadInput(path, f"has a grid mapping, {label}, that cannot be used", "add its crs_wkt in m or degrees")
        return crs
    if all(_is_angle(name, arrays[name]) for name in names):
        return CRS.from_epsg(4326)
    raise BadInput(path, "names no projection", "add a grid_mapping to its variable")


def _is_angle(name: str, line: Array) -> bool:
    """Whether a coordinate is latitude or longitude, as its unit says or its name."""
    units, word = line.text("units"), line.text("standard_name") or name.lower()
    return units in (*LATITUDES, *LONGITUDES) or (units in DEGREES and word in ("latitude", "longitude", "lat", "lon"))


def _plain(value: object) -> str | float | tuple[Any, ...]:
    values = np.ravel(np.asarray(value)).tolist()
    return values[0] if len(values) == 1 else tuple(values)


@lru_cache(maxsize=16)
def projection(mapping: tuple[tuple[str, str | float | tuple[Any, ...]], ...]) -> CRS | None:
    """Parse the projection that the attributes of a grid mapping describe; None if PROJ takes none of them."""
    attrs = {key: list(value) if isinstance(value, tuple) else value for key, value in mapping}
    parameters = {key: value for key, value in attrs.items() if key not in ("crs_wkt", "spatial_ref")}
    ways: list[Callable[[], CRS]] = [
        partial(CRS.from_wkt, str(attrs[key])) for key in ("crs_wkt", "spatial_ref") if key in attrs
    ]
    strings: list[Callable[[], CRS]] = [partial(metric_crs, str(attrs[key])) for key in PROJ_STRINGS if key in attrs]
    sized = any(key in parameters for key in (*EARTH, "horizontal_datum_name", "geographic_crs_name"))
    by_parameters = [partial(CRS.from_cf, parameters)]
    ways += [*by_parameters, *strings] if sized else [*strings, *by_parameters]  # a string has its own sphere
    for way in ways:
        with suppress(ProjError, KeyError, ValueError):
            crs = way()
            crs.to_cf()  # stores keep it so, which fails where parameters are absurd
            return crs
    return None
