"""ODIM_H5: Cartesian composites of the European weather services.

Rain rate (RATE), accumulation (ACRR, made a rate over its period) and reflectivity (DBZH, TH) of
``COMP`` and ``IMAGE`` objects: OPERA's ODYSSEY, CIRRUS and NIMBUS, RMI, DWD, MeteoSwiss and others.
One file is one frame; of a file with several quantities the first that is known here is taken.

Source: Michelson et al. (2021), OPERA weather radar information model for HDF5, version 2.4. Producers
differ from it and from each other, so ``what``, ``where`` and ``how`` are looked up from the data group
upwards, and every grid is measured by its four corners.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from pyproj import CRS

from nowcast.core.cube import Identity, check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import by_table, get_quantity
from nowcast.readers import rasters, stamps
from nowcast.readers.hdf5 import attribute, numbers, open_hdf5
from nowcast.readers.items import Item, files, natural
from nowcast.readers.rasters import metric_crs

TITLE = "Radar composite in ODIM_H5"
LICENCE = "as stated by the producer; see the attribute institution"
PATTERNS = ("*.h5", "*.hdf", "*.hdf5", "*-hd5", "*.hd5")
CADENCE = None
"""Differs by product: every cube carries its own, see ``_cadence``."""

FORM = "an ODIM_H5 composite"
QUANTITIES = {"RATE": "rainfall_rate", "ACRR": "rainfall_rate", "DBZH": "reflectivity", "TH": "reflectivity"}
FLOOR_DBZ = -32.0
"""Reflectivity of a scanned pixel without echo (undetect); the lowest that most producers can encode."""
LOWEST_DBZ = get_quantity("reflectivity").possible[0]
MISSING_8 = 255
MOST_PIXELS = 2**26
"""More are a damaged file."""
HIGHEST = {"rainfall_rate": 1000.0, "reflectivity": 95.0}
STEPS = (
    (r"T_PABV21_C_EUOC|OPERA@.*@DBZH", 300),
    (r"T_PA[ABS]H2\d_C_EUOC|OPERA@.*@(RATE|ACRR)", 900),
    (r"\d{12}_ODIM_ng_radar_rainrate_composite", 900),
    (r"composite_(hx|dmax|rv|rs|wn|pg)_|[RA]ZC\d{9}", 300),
)
"""Seconds between the files of OPERA, the Met Office, DWD and MeteoSwiss, by their names; hints, see ``_cadence``."""
LONGEST_STEP = 900
"""Longer periods are those of sums that overlap."""
CODE = re.compile(r"(?!.*\d{6})[A-Za-z][\w.-]{0,31}")
"""A producer's name of a product that is a code such as ``HX_top_view``, not words or a date."""
NAMED = re.compile(r"composite_([a-z]\w*?)_\d{8}_\d{4}|([A-Z]{3})\d{9}")
"""Names of DWD and MeteoSwiss, which have their codes of products in them."""
ON_LEVELS = {"PPI": "degrees", "CAPPI": "m", "PCAPPI": "m"}
"""Kinds of product of which ``prodpar`` is the elevation or height."""
CENTRED = 0.25
"""Pixels by which corners may miss the centres of theirs; those of edges are rounded more coarsely."""
FITTING = 0.6
"""Pixels by which corners fit a grid that was made from them: half of one where they are its centres."""
TOLERANCE = np.timedelta64(60, "s")
"""Between a nominal time and the period that it should lie in, whose ends may be those of scans."""
CORNERS = ("LL", "UL", "UR", "LR")

Lookup = Callable[[str, str], object]
"""(``what`` | ``where`` | ``how``, attribute) -> value, or None."""


def recognises(path: Path) -> bool:
    """Whether an HDF5 file is laid out as ODIM demands."""
    with h5py.File(path, "r") as file:
        return "dataset1" in file and (b"ODIM" in bytes(np.bytes_(file.attrs.get("Conventions", ""))) or "what" in file)


def find(source: Path) -> Iterator[Item]:
    """Find the composites of a file or folder, in time order."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one composite: ``rainfall_rate`` or ``reflectivity``.

    Undetect is 0 mm/h or -32 dBZ, nodata is NaN. ``time`` is the nominal time, or the end of an
    accumulation that does not hold it.

    Raises:
        BadInput: If the file is no composite, holds no known quantity, or contradicts itself.
    """
    with open_hdf5(item.path, FORM) as file:
        data = _main(file, item)
        lookup = _lookup(data)
        seconds = _seconds(lookup, item.path)
        kind = str(lookup("what", "quantity"))
        known = _identity(lookup, item.path)
        if kind == "ACRR" and seconds <= 0:
            raise BadInput(item.path, "is an accumulation over no time", "give one with start and end time")
        factor = 3600 / seconds if kind == "ACRR" else 1.0
        values, step, floor = _values(data["data"], lookup, QUANTITIES[kind])
        grid, outvoted = _grid(lookup, values.shape, item.path)
        time, attrs = _time(lookup, kind, item.path), _attrs(lookup, kind, item.path)
    name = QUANTITIES[kind]
    if outvoted:
        attrs["outvoted"] = outvoted
    if factor != 1:
        values *= np.float32(factor)
    quantum, floor = _packing(name, step * factor, floor)
    cube = make(
        {name: values[None]},
        [time],
        grid,
        cadence=_cadence(item.path.name, kind, seconds),
        quantum=quantum,
        floor=floor,
        product=known.product,
        accumulation=known.accumulation,
        level=known.level,
        attrs=attrs,
    )
    return check(cube, item.path)


# --- finding one's way in the file ----------------------------------------------------------------


def _main(file: h5py.File, item: Item) -> h5py.Group:
    """Find the data group of the product that is asked for, else the first of a known quantity."""
    lookup, path, seen = _lookup(file), item.path, []
    known: list[h5py.Group] = []
    model = str(lookup("what", "object") or "COMP")
    if model not in ("COMP", "IMAGE"):
        raise BadInput(path, f"holds a {model}", "give a Cartesian composite (COMP or IMAGE)")
    for dataset in _numbered(file, "dataset"):
        for data in _numbered(dataset, "data"):
            seen.append(str(_lookup(data)("what", "quantity") or "data without quantity"))
            if seen[-1] in QUANTITIES and "data" in data:
                known.append(data)
    if known:
        return next((data for data in known if _identity(_lookup(data), path).fits(item.product)), known[0])
    raise BadInput(path, f"holds {', '.join(seen) or 'no dataset1/data1'}", f"give one of {', '.join(QUANTITIES)}")


def _identity(lookup: Lookup, path: Path) -> Identity:
    """Name a product by its quantity, its kind (``MAX``, ``CAPPI``) and the producer's code for it, if one is stated.

    DWD and MeteoSwiss have such codes in the names of their files.
    """
    kind = str(lookup("what", "quantity"))
    sort, code = str(lookup("what", "product") or ""), str(lookup("what", "prodname") or "")
    named = NAMED.match(path.name)
    words = [kind, sort, code if CODE.fullmatch(code) else "", (named[1] or named[2]).upper() if named else ""]
    level = lookup("what", "prodpar") if sort in ON_LEVELS else None
    return Identity(
        product=" ".join(dict.fromkeys(filter(None, words))),
        quantities=(QUANTITIES[kind],),
        accumulation=round(_seconds(lookup, path)) if kind == "ACRR" else 0,
        level="" if level is None else f"{level:g} {ON_LEVELS[sort]}" if isinstance(level, float) else str(level),
    )


def _numbered(group: h5py.Group, word: str) -> list[h5py.Group]:
    return [group[name] for name in sorted(group, key=natural) if re.fullmatch(word + r"\d+", name)]


def _lookup(group: h5py.Group) -> Lookup:
    """Read an attribute from the nearest level that has it: data group, dataset, root.

    DMI has the quantity at the data group itself, not in its ``what``.
    """
    levels = [group]
    while levels[-1].name != "/":
        levels.append(levels[-1].parent)

    def lookup(part: str, name: str) -> object:
        for level in levels:
            for place in filter(None, (level.get(part), level)):
                if name in place.attrs:
                    return attribute(place, name)
        return None

    return lookup


def _number(lookup: Lookup, part: str, name: str, default: float) -> float:
    value = lookup(part, name)
    return default if value is None else float(value)  # type: ignore[arg-type]


# --- values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Coding:
    """How numbers stand for values."""

    gain: float
    offset: float
    nodata: float
    undetect: float
    floor: float
    """Value of no echo, and the lowest one."""

    def values(self, raw: np.ndarray) -> np.ndarray:
        """float32, NaN = no data."""
        plain = self.gain == 1 and self.offset == 0
        values = (raw if plain else raw * self.gain + self.offset).astype(np.float32)
        if self.floor < 0:  # reflectivity: fainter than the floor is as good as no echo, unless it cannot be at all
            faint = (values >= LOWEST_DBZ) | np.isneginf(values)
            np.maximum(values, np.float32(self.floor), out=values, where=faint)
        for code, meaning in ((self.undetect, self.floor), (self.nodata, np.nan)):
            if not np.isnan(code):
                values[raw == code] = meaning
        return values


def _values(data: h5py.Dataset, lookup: Lookup, name: str) -> tuple[np.ndarray, float, float | None]:
    """Decode a data group.

    Returns:
        (row, column) float32 in the file's unit; the step of its quantisation, 0 where it is float; and the lowest of
        its values where they fit 8 bits, else None.
    """
    if data.ndim != 2 or data.size > MOST_PIXELS:
        raise BadInput(data.file.filename, f"holds {name} of {data.shape}", "give a composite")
    floor = FLOOR_DBZ if name == "reflectivity" else 0.0
    coding = _Coding(
        _number(lookup, "what", "gain", 1.0),
        _number(lookup, "what", "offset", 0.0),
        _number(lookup, "what", "nodata", np.nan),
        _number(lookup, "what", "undetect", np.nan),
        floor,
    )
    raw = numbers(data)
    stated = any(lookup("what", word) is not None for word in ("gain", "offset"))
    if raw.dtype.kind in "iu" and raw.dtype.itemsize <= 2 and not stated:
        raise BadInput(data.file.filename, f"holds {raw.dtype} without gain or offset", "ask the producer for them")
    rasters.check_scaling(data.file.filename, coding.gain, coding.offset, raw, (coding.nodata, coding.undetect))
    if raw.dtype.kind not in "iu" or coding.gain == 0:
        return coding.values(raw), 0.0, None
    if raw.dtype.itemsize > 2:
        values = coding.values(raw)
    else:  # by a table of all codes: no large floats in between
        limits = np.iinfo(raw.dtype)
        table = coding.values(np.arange(limits.min, limits.max + 1))
        values = by_table(raw.astype(np.int32) - limits.min if limits.min else raw, table)
    if coding.offset % coding.gain or not (floor / coding.gain).is_integer():
        return values, 0.0, None
    whole = raw.dtype == np.uint8 and coding.offset == floor and coding.nodata == MISSING_8
    return values, coding.gain, floor if whole else None


def _packing(name: str, step: float, floor: float | None) -> tuple[float | None, float | None]:
    """``quantum`` and ``floor`` for the store; None where 16 bits would not reach the highest value to expect."""
    reaches = floor is not None or step * np.iinfo(np.int16).max >= HIGHEST[name]
    return (round(step, 9), floor) if reaches else (None, None)


def _attrs(lookup: Lookup, kind: str, path: Path) -> dict[str, object]:
    attrs = {
        "title": TITLE,
        "source": path.name,
        "licence": LICENCE,
        "institution": lookup("what", "source"),
        "odim_quantity": kind,
        "zr_a": lookup("how", "zr_a"),
        "zr_b": lookup("how", "zr_b"),
    }
    return {key: value for key, value in attrs.items() if value is not None}


# --- time -----------------------------------------------------------------------------------------


def _stamp(lookup: Lookup, prefix: str, path: Path) -> np.datetime64:
    """``date`` and ``time`` of ``what``, or those of ``start`` and ``end``; NaT where not stated."""
    day, clock = lookup("what", prefix + "date"), lookup("what", prefix + "time")
    if day is None or clock is None:
        return np.datetime64("NaT", "s")
    digits = f"{clock:06.0f}" if isinstance(clock, int | float) else str(clock)  # a number has lost its zeros in front
    text = f"{day:.0f} {digits}" if isinstance(day, int | float) else f"{day} {digits}"
    moment = stamps.told(f"{text:0<15}" if text.replace(" ", "").isdigit() else text, path)
    if moment is None:
        raise BadInput(path, f"states the time {text!r}", "report it to the producer")
    return moment


def _seconds(lookup: Lookup, path: Path) -> float:
    """Length of the period that the file covers; 0 where not stated."""
    span = _stamp(lookup, "end", path) - _stamp(lookup, "start", path)
    return 0.0 if np.isnat(span) else float(rasters.period(span / np.timedelta64(1, "s")))


def _time(lookup: Lookup, kind: str, path: Path) -> np.datetime64:
    nominal, start, end = (_stamp(lookup, prefix, path) for prefix in ("", "start", "end"))
    if nominal < start - TOLERANCE:
        raise BadInput(path, f"is a forecast: made at {nominal}Z for {start}Z to {end}Z", "give the analysis")
    if nominal > end + TOLERANCE:
        raise BadInput(path, f"is of {nominal}Z but covers {start}Z to {end}Z", "report it to the producer")
    if str(end).endswith(":59"):  # the last second of the period
        end += np.timedelta64(1, "s")
    if np.isnat(nominal) or (kind == "ACRR" and not start < nominal <= end):
        return end
    return nominal


def _cadence(name: str, kind: str, seconds: float) -> int:
    """Seconds to the next file as a hint: of a product known by its name, else the period of a sum, else 0, unknown.

    The period of what is no sum is that of its scans, which may overlap the next file's.
    """
    for pattern, cadence in STEPS:
        if re.match(pattern, name):
            return cadence
    return int(seconds) if kind == "ACRR" and 60 <= seconds <= LONGEST_STEP else 0


# --- grid -----------------------------------------------------------------------------------------


def _grid(lookup: Lookup, shape: tuple[int, ...], path: Path) -> tuple[Grid, str]:
    """Lay out the north-up grid, and name the stated number that all others outvote, if there is one.

    ODIM states it three times: by four corners in degrees, by the size of a pixel and their number, and in newer
    files by the upper left corner in metres. What most of them say is taken; of four corners, one may be wrong.
    """
    rows, columns = shape
    stated = _number(lookup, "where", "ysize", rows), _number(lookup, "where", "xsize", columns)
    if min(shape) < 2:
        raise BadInput(path, f"has {rows}x{columns} pixels", "fetch it again")
    if lookup("where", "projdef") is None:
        raise BadInput(path, "names no projection (where/projdef)", "ask the producer")
    crs = metric_crs(str(lookup("where", "projdef")))
    lon, lat = (
        np.array([_number(lookup, "where", f"{corner}_{axis}", np.nan) for corner in CORNERS])
        for axis in ("lon", "lat")
    )
    pixel = _number(lookup, "where", "xscale", np.nan), _number(lookup, "where", "yscale", np.nan)
    first = _by_corner(lookup, crs, (rows, columns), pixel)
    grid, off = _best(first, _by_corners(crs, lon, lat, (rows, columns), pixel), lon, lat, path)
    wrong = [CORNERS[place] for place in np.flatnonzero(off > 1)]
    if stated != (rows, columns) and (wrong or not np.isfinite(lon + lat).all()):
        raise BadInput(path, f"has {rows}x{columns} pixels but states {stated[0]:g}x{stated[1]:g}", "fetch it again")
    if len(wrong) > 1 or (wrong and not np.isfinite(lon + lat).all()):
        raise BadInput(path, "states corners that do not fit its pixel size", "report it to the producer")
    size = abs(grid.x[1] - grid.x[0]), abs(grid.y[1] - grid.y[0])
    doubts = {
        f"the {''.join(wrong)} corner": bool(wrong),
        f"{stated[0]:g}x{stated[1]:g} pixels": stated != (rows, columns),
        "the size of a pixel": np.isfinite(pixel).all()
        and not any(np.allclose(np.multiply(pixel, unit), size, rtol=0.01) for unit in (1, 1000)),
        "the upper left corner in metres": first is not None and grid is not first,
    }
    return grid, next((words for words, wrong in doubts.items() if wrong), "")


def _best(
    first: Grid | None, others: Iterator[Grid], lon: np.ndarray, lat: np.ndarray, path: Path
) -> tuple[Grid, np.ndarray]:
    """Choose the first grid that all corners fit, else the one that three of them fit best.

    Returns:
        The grid, and how far every stated corner lies from its own, in pixels.
    """
    found: list[tuple[Grid, np.ndarray]] = []
    for grid, most in chain([(first, 1.0)], ((other, FITTING) for other in others)):
        if grid is not None:
            found.append((grid, np.nan_to_num(grid.misfits(lon, lat))))
            if found[-1][1].max() <= most:
                return found[-1]
    if not found:
        raise BadInput(path, "states neither four corners nor one and the size of a pixel", "ask the producer")
    return min(found, key=lambda one: ((one[1] > 1).sum(), np.sort(one[1])[2]))


def _by_corner(lookup: Lookup, crs: CRS, shape: tuple[int, int], pixel: tuple[float, float]) -> Grid | None:
    """Lay out the grid from its upper left corner in metres."""
    upper_left = _number(lookup, "where", "UL_x", np.nan), _number(lookup, "where", "UL_y", np.nan)
    return _regular(crs, shape, upper_left, pixel) if np.isfinite([*upper_left, *pixel]).all() else None


def _by_corners(
    crs: CRS, lon: np.ndarray, lat: np.ndarray, shape: tuple[int, int], pixel: tuple[float, float]
) -> Iterator[Grid]:
    """Lay out the grid from corners in degrees: from all four, and without each of them.

    They are outer corners, as ODIM demands, unless the pixels fit between the centres of those in the corners.
    """
    x, y = Grid(crs, np.zeros(1), np.zeros(1)).project(lon, lat)
    lacking = np.flatnonzero(~np.isfinite(x + y)).tolist()
    if len(lacking) > 1:
        yield from _by_some(crs, x, y, shape, pixel)
        return
    for left_out in lacking or (None, 0, 1, 2, 3):
        sides = [[place for place in pair if place != left_out] for pair in ((0, 1), (2, 3), (0, 3), (1, 2))]
        left, right, bottom, top = (part[side].mean() for part, side in zip((x, x, y, y), sides, strict=True))
        extent = right - left, top - bottom
        if min(extent) <= 0:
            continue
        size, centred = _agreeing(pixel, extent, shape)
        if left_out is not None and size is None:
            continue  # three corners alone are not enough to outvote the fourth
        width, height = size or (extent[0] / shape[1], extent[1] / shape[0])
        yield _regular(crs, shape, (left - centred * width / 2, top + centred * height / 2), (width, height))


def _by_some(
    crs: CRS, x: np.ndarray, y: np.ndarray, shape: tuple[int, int], pixel: tuple[float, float]
) -> Iterator[Grid]:
    """Lay out the grid from one or two corners and the size of a pixel in metres, which then decides."""
    stated, (width, height) = np.isfinite(x + y), pixel
    if stated.any() and width > 0 and height > 0:
        left = x - np.array([0, 0, 1, 1]) * shape[1] * width
        top = y + np.array([1, 0, 0, 1]) * shape[0] * height
        yield _regular(crs, shape, (float(left[stated].mean()), float(top[stated].mean())), pixel)


def _regular(crs: CRS, shape: tuple[int, int], upper_left: tuple[float, float], pixel: tuple[float, float]) -> Grid:
    # corners in degrees carry rounding noise, which must not make two grids of one
    left, top = (round(edge, 2) + 0.0 for edge in upper_left)
    return Grid.regular(crs, shape, upper_left=(left, top), pixel=pixel)


def _agreeing(
    stated: tuple[float, float], extent: tuple[float, float], shape: tuple[int, int]
) -> tuple[tuple[float, float] | None, bool]:
    """Find the stated pixel size, in metres or MeteoSwiss's km, if the corners confirm it.

    Returns:
        The size or None, and whether the corners are the centres of pixels: then one fits less often between them.
    """
    columns, rows = shape[::-1]
    for unit in (1, 1000):
        size = stated[0] * unit, stated[1] * unit
        if not np.isfinite(size).all() or min(size) <= 0:
            continue
        across, down = extent[0] / size[0], extent[1] / size[1]
        if max(abs(across - columns + 1), abs(down - rows + 1)) < CENTRED:
            return size, True
        if max(abs(across - columns), abs(down - rows)) < 1:
            return size, False
    return None, False
