"""What gridded files of no particular producer have in common: names, units, time stamps, axes and integer codes.

NetCDF, Zarr and GeoTIFF all say what a raster measures by a name and a unit, and how its integers
become values by scale, offset and codes for no data; single frames say when by a stamp in their name.
"""

from __future__ import annotations

import heapq
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyproj import CRS

from nowcast.core.errors import BadInput
from nowcast.readers.items import natural

RAIN, ECHO = "rainfall_rate", "reflectivity"
FLOOR = {RAIN: 0.0, ECHO: -32.0}
"""Value of a pixel that was scanned without echo, where a file has a code for it."""
HIGHEST = {RAIN: 1000.0, ECHO: 95.0}
"""To be reached by a packing."""
MOST_PIXELS = 2**27
"""Of a frame, and of the piece that a file is compressed in; more is a damaged file."""
BLOCK = 2**18
"""Pixels decoded at a time, so that what is needed in between stays small."""


# --- what it measures -----------------------------------------------------------------------------

STANDARD_NAMES = {
    "rainfall_rate": RAIN,
    "lwe_precipitation_rate": RAIN,
    "precipitation_flux": RAIN,
    "rainfall_flux": RAIN,
    "precipitation_rate": RAIN,
    "tprate": RAIN,
    "precipitation_amount": RAIN,
    "rainfall_amount": RAIN,
    "lwe_thickness_of_precipitation_amount": RAIN,
    "thickness_of_rainfall_amount": RAIN,
    "equivalent_reflectivity_factor": ECHO,
    "radar_reflectivity": ECHO,
}
"""Standard names of CF, and some that are none but are in use; what comes first is preferred."""
NAMES = (
    STANDARD_NAMES
    | dict.fromkeys(
        (
            "rain_rate",
            "rainrate",
            "rainfall_intensity",
            "precipitation_intensity",
            "rain_intensity",
            "precip_intensity",
            "precip_rate",
            "preciprate",
            "prate",
            "rate",
            "rr",
            "mmh",
            "sri",
            "mmhr",
            "rrai",
            "rainfall",
            "rain",
            "precipitation",
            "precip",
            "prcp",
            "acrr",
            "precip_accum",
        ),
        RAIN,
    )
    | dict.fromkeys(("dbz", "dbzh", "reflectivity", "refl", "vmi", "rare", "th"), ECHO)
)
"""Names of variables, in small letters, some of which are used as standard names, too."""

LENGTHS = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "in": 25.4}
HOURS = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0, "d": 24.0}
WORDS = {
    "millimeter": "mm",
    "millimeters": "mm",
    "millimetre": "mm",
    "millimetres": "mm",
    "meter": "m",
    "meters": "m",
    "metre": "m",
    "metres": "m",
    "inch": "in",
    "inches": "in",
    "hr": "h",
    "hrs": "h",
    "hour": "h",
    "hours": "h",
    "sec": "s",
    "second": "s",
    "seconds": "s",
    "minute": "min",
    "minutes": "min",
    "day": "d",
    "days": "d",
}
KNOWN_UNITS = "mm h-1, mm/h, mm s-1, m s-1, kg m-2 s-1, kg m-2 h-1, mm, m, kg m-2 or dBZ"
TOKEN = re.compile(r"([a-z]+)(?:\^|\*\*)?([-+]?\d+)?")


def unit(text: str) -> tuple[str, float] | None:
    """Parse a unit: ``rate``, ``amount`` or ``dBZ``, and its factor to mm/h, mm or dBZ; None if unknown.

    Takes the spellings of UDUNITS: ``kg m-2 s-1``, ``kg/m^2/s``, ``mm.hr**-1``, ``0.1 mm``.
    """
    if text.strip().lower() in ("dbz", "db(z)"):
        return "dBZ", 1.0
    number = re.match(r"\s*(\d*\.?\d+(?:e[-+]?\d+)?)\s+", text.lower())
    powers: dict[str, int] = {}
    rest = text.lower()[number.end() if number else 0 :]
    for place, part in enumerate(re.sub(r"[()]", "", rest).replace(" per ", "/").split("/")):
        for token in re.split(r"(?<!\*)\*(?!\*)|[\s.·]+", part.strip()):
            match = TOKEN.fullmatch(token)
            if not match:
                return None
            name = WORDS.get(match[1], match[1])
            powers[name] = powers.get(name, 0) + int(match[2] or 1) * (1 if place == 0 else -1)
    scale = float(number[1]) if number else 1.0
    depth = _depth(powers)
    if depth is None:
        return None
    if not powers:
        return "amount", scale * depth
    if len(powers) == 1 and (time := next(iter(powers))) in HOURS and powers[time] == -1:
        return "rate", scale * depth / HOURS[time]
    return None


def _depth(powers: dict[str, int]) -> float | None:
    """Take the depth of water out of a product of powers; mm of it."""
    if powers.get("kg") == 1 and powers.get("m") == -2:
        del powers["kg"], powers["m"]
        return 1.0
    for name, length in LENGTHS.items():
        if powers.get(name) == 1:
            del powers[name]
            return length
    return None


def measured(where: object, label: str, name: str, units: object) -> tuple[str, float]:
    """Parse a unit that must suit what ``name`` is: ``rate``, ``amount`` or ``dBZ``, and its factor.

    Raises:
        BadInput: If the unit is not known, or belongs to something else.
    """
    known = unit(str(units)) if units is not None else None
    if known is None:
        stated = "no unit" if units is None else f"the unit {units!r}"
        raise BadInput(where, f"states {stated} for {label}", f"give it one of {KNOWN_UNITS}")
    if (known[0] == "dBZ") != (name == ECHO):
        raise BadInput(where, f"calls {label} a {name} in {units!r}", "correct its name or its unit")
    return known


# --- when -----------------------------------------------------------------------------------------

PERIOD = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")
NEIGHBOURS = 12
"""Files of a folder that tell the step of its source."""
LONGEST = 86400


def duration(text: object) -> int:
    """Parse an ISO 8601 duration such as ``PT5M``, in seconds; 0 for anything else."""
    match = PERIOD.fullmatch(str(text).strip())
    if not match:
        return 0
    days, hours, minutes, seconds = (float(number or 0) for number in match.groups())
    return round(days * 86400 + hours * 3600 + minutes * 60 + seconds)


def period(seconds: float) -> int:
    """Round the length of a period to what is meant: ends that are its last second make it a second short."""
    whole = 60 * round(seconds / 60)
    return whole if whole and abs(seconds - whole) <= 1 else round(seconds)


def step(path: Path, when: Callable[[Path], np.datetime64] | None) -> int:
    """Find a hint of the seconds between the files of the source that one file of a single frame belongs to.

    The shortest time between the first files of its folder, so that it is one for all of them and a
    missing file does not make it longer. Looked up once for a folder.

    Args:
        path: The file.
        when: Time of a file; None: there are no neighbours.

    Returns:
        Seconds; 0 where no neighbour tells.
    """
    try:
        return _step(path.parent, path.suffix, when) if when else 0
    except LookupError:
        return 0


@lru_cache(maxsize=64)
def _step(folder: Path, suffix: str, when: Callable[[Path], np.datetime64]) -> int:
    names = (path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith("."))
    times = set()
    for path in heapq.nsmallest(NEIGHBOURS, names, key=lambda path: natural(path.name)):
        try:
            times.add(when(path))
        except BadInput:
            continue
    steps = np.diff(np.array(sorted(times), "datetime64[s]")).astype(int)
    if not steps.size or steps.min() > LONGEST:
        raise LookupError  # not kept: the next file may be on its way
    return int(steps.min())


# --- where ----------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def metric_crs(definition: str) -> CRS:
    """Parse a projection in metres from a PROJ string, which some services write with radii and offsets in km.

    Raises:
        pyproj.exceptions.CRSError: If PROJ does not know it.
    """
    terms = dict(re.findall(r"(\w+)=(\S+)", definition))
    if float(terms.get("a") or terms.get("R") or 1e7) > 1e4:
        return CRS.from_user_input(definition)
    lengths = {name: float(terms[name]) * 1000 for name in ("a", "b", "R", "x_0", "y_0") if name in terms}
    return CRS.from_dict(terms | lengths | {"units": "m"})


def in_metres(crs: CRS) -> tuple[CRS, float]:
    """Convert a projection to metres; also the factor that makes its coordinates metres. Degrees stay degrees."""
    if crs.is_geographic:
        return crs, 1.0
    factor = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    if factor == 1.0 and not _in_km(crs):
        return crs, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a PROJ string keeps no names
        terms = crs.to_dict()
    if not _in_km(crs):
        return CRS.from_dict(terms | {"units": "m"}), factor
    lengths = {name: terms[name] * 1000 for name in ("a", "b", "R", "x_0", "y_0") if name in terms}
    return CRS.from_dict(terms | lengths | {"units": "m"}), 1000.0


def _in_km(crs: CRS) -> bool:
    """Whether the radii of the Earth are in km, as some services write them."""
    return crs.ellipsoid is not None and crs.ellipsoid.semi_major_metre < 1e4


def axis(values: np.ndarray, factor: float, where: object, label: str) -> np.ndarray:
    """Compute pixel centres, free of the noise of single precision, checked to be evenly spaced.

    Raises:
        BadInput: If they are not.
    """
    single = values.dtype == np.float32
    first, last = (float(str(value)) if single else float(value) for value in (values[0], values[-1]))
    even = np.linspace(first, last, values.size)
    pixel = abs(even[1] - even[0])
    if not (pixel > 0 and np.abs(values - even).max() <= 0.01 * pixel):
        raise BadInput(where, f"has {label} that are not evenly spaced", "regrid it to a regular grid")
    return (even if single else np.asarray(values, np.float64)) * factor


def longitudes(where: object, x: np.ndarray) -> np.ndarray:
    """Convert longitudes to -180..180.

    Raises:
        BadInput: If they lie on both sides of 180.
    """
    if x[-1] <= 180:
        return x
    if x[0] < 180:
        raise BadInput(where, "crosses the 180th meridian", "give one side of it")
    return np.round(x - 360, 9)


# --- integers on disk -----------------------------------------------------------------------------


def number(value: object) -> float:
    """Read a stated number as it was meant: single precision to its own digits."""
    exact = float(np.ravel(np.asarray(value))[0])
    with np.errstate(over="ignore"):
        single = np.float32(exact)
    return float(str(single)) if float(single) == exact else exact


def check_scaling(where: object, gain: float, offset: float, codes: np.ndarray, apart: Iterable[Any]) -> None:
    """Refuse numbers that a gain or an offset turns into nonsense.

    A gain of 0 is what some packers write of a frame that is the same everywhere: then all its pixels are the offset.

    Args:
        where: The file.
        gain: Of its numbers.
        offset: Of its numbers.
        codes: The numbers.
        apart: Those that stand for something else, such as no data.

    Raises:
        BadInput: If gain or offset is not finite, or the gain is 0 and the numbers differ.
    """
    if not np.isfinite([gain, offset]).all():
        raise BadInput(
            where, f"states a gain of {gain:g} and an offset of {offset:g}", "ask its producer for the values"
        )
    if gain == 0:
        found = np.unique(codes[np.isfinite(codes)] if codes.dtype.kind == "f" else codes)
        if (count := int((~np.isin(found, list(apart))).sum())) > 1:
            raise BadInput(
                where, f"states a gain of 0 for {count} different numbers", "ask its producer for the right gain"
            )


def short(value: float) -> bool:
    """Whether a number has few digits: one that was chosen, not one that fits the range of one file's values."""
    return float(f"{value:.6g}") == value


@dataclass(frozen=True)
class Codes:
    """How what is on disk becomes values: ``(scale * code + offset) * factor``."""

    dtype: np.dtype
    name: str
    """Quantity."""
    scale: float = 1.0
    offset: float = 0.0
    factor: float = 1.0
    """From the file's unit to the quantity's."""
    missing: frozenset[float] = frozenset()
    """Codes of no data."""
    lowest: float = -np.inf
    highest: float = np.inf
    """Codes beyond them are no data."""
    undetect: float | None = None
    """Code of a pixel without echo."""

    def check(self, where: object, raw: np.ndarray) -> None:
        """Refuse codes that scale and offset turn into nonsense, see ``check_scaling``."""
        apart = self.missing if self.undetect is None else {*self.missing, self.undetect}
        check_scaling(where, self.scale, self.offset, raw, apart)

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Decode (time, y, x) codes to float32 values, NaN = no data."""
        if raw.dtype == np.float32 and self._plain:
            return self._echoing(raw)
        values = np.empty(raw.shape, np.float32)
        rows = max(1, BLOCK // max(1, raw.shape[-1]))
        for frame, target in zip(raw, values, strict=True):
            for first in range(0, frame.shape[0], rows):
                target[first : first + rows] = self._block(frame[first : first + rows])
        return self._echoing(values)

    @property
    def _plain(self) -> bool:
        limits = self.lowest == -np.inf and self.highest == np.inf and self.undetect is None
        return limits and not self.missing and self.scale * self.factor == 1 and self.offset == 0

    def _block(self, raw: np.ndarray) -> np.ndarray:
        if self.dtype.kind in "iu" and self.dtype.itemsize == 1:
            return cv2.LUT(np.ascontiguousarray(raw).view(np.uint8), self.table)
        if self.dtype.kind == "u":  # where the type on disk has no unsigned numbers
            raw = raw.view(raw.dtype.str.replace("i", "u"))
        exact = self.dtype.itemsize <= (4 if self.dtype.kind == "f" else 2)
        return self.values(raw.astype(np.float32 if exact else np.float64))

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Compute the values of codes, both as floats."""
        values: np.ndarray = codes * codes.dtype.type(self.scale * self.factor)
        if self.offset:
            values += codes.dtype.type(self.offset * self.factor)
        if self.undetect is not None:
            values[codes == self.undetect] = FLOOR[self.name]
        for code in self.missing:
            values[codes == code] = np.nan
        if self.lowest > -np.inf:
            values[codes < self.lowest] = np.nan
        if self.highest < np.inf:
            values[codes > self.highest] = np.nan
        return values

    def _echoing(self, values: np.ndarray) -> np.ndarray:
        """Replace the decibels of nothing, -inf, which some producers write where nothing echoed."""
        if self.name == ECHO and self.dtype.kind == "f" and np.fmin.reduce(values, axis=None) == -np.inf:
            return np.where(np.isneginf(values), np.float32(FLOOR[ECHO]), values)
        return values

    @property
    def table(self) -> np.ndarray:
        """float32 value of every code of 8 bits, in the order of its bits as an unsigned number."""
        return _table(self)

    @property
    def packing(self) -> dict[str, float]:
        """``quantum`` and ``floor`` for ``cube.make``; empty where floats must be kept.

        Only for steps of a few digits: others fit one file's range of values, and the next file has its own.
        """
        return _packing(self)


@lru_cache(maxsize=16)
def _table(codes: Codes) -> np.ndarray:
    return _all(codes).astype(np.float32)


def _all(codes: Codes) -> np.ndarray:
    unsigned = np.arange(256**codes.dtype.itemsize, dtype=f"u{codes.dtype.itemsize}")
    return codes.values(unsigned.view(codes.dtype.newbyteorder("=")).astype(np.float64))


@lru_cache(maxsize=16)
def _packing(codes: Codes) -> dict[str, float]:
    quantum = round(codes.scale * codes.factor, 9)
    if codes.dtype.kind not in "iu" or quantum <= 0 or not (short(codes.scale) and short(codes.offset)):
        return {}
    values = np.array([codes.offset * codes.factor])
    if codes.dtype.itemsize <= 2:
        values = np.unique(_all(codes))
        values = values[~np.isnan(values)]
    if codes.dtype.itemsize == 1 and values.size and _on_raster((values - values[0]) / quantum, 254):
        return {"quantum": quantum, "floor": round(float(values[0]), 9)}
    enough = quantum * np.iinfo(np.int16).max >= HIGHEST[codes.name]
    return {"quantum": quantum} if _on_raster(values / quantum, np.inf if enough else 2**15) else {}


def _on_raster(steps: np.ndarray, most: float) -> bool:
    """Whether values are whole steps from 0, and not too many of them."""
    return bool(steps.size and np.abs(steps - np.rint(steps)).max() < 0.01 and np.abs(steps).max() <= most)


def codes(attrs: Mapping[str, object], dtype: np.dtype, name: str, factor: float) -> Codes:
    """Read what codes mean from the attributes of CF: scale, offset, missing values and valid range."""
    if str(attrs.get("_Unsigned", "")).lower() == "true" and dtype.kind == "i":
        dtype = np.dtype(f"u{dtype.itemsize}")
    scale, offset = number(attrs.get("scale_factor", 1.0)), number(attrs.get("add_offset", 0.0))
    missing = _listed(attrs.get("_FillValue"), dtype) + _listed(attrs.get("missing_value"), dtype)

    def limits(key: str) -> list[float]:
        stated = attrs.get(key)
        if not scale:
            return []
        if dtype.kind in "iu" and np.asarray(stated).dtype.kind == "f":  # CF: of another type, it is of the values
            return [(value - offset) / scale for value in _listed(stated, np.dtype(np.float64))]
        return _listed(stated, dtype)

    low, high = limits("valid_range") if len(limits("valid_range")) == 2 else (-np.inf, np.inf)
    low, high = (limits("valid_min") or [low])[0], (limits("valid_max") or [high])[0]
    return Codes(dtype, name, scale, offset, factor, frozenset(missing), low, high)


def _listed(stated: object, dtype: np.dtype) -> list[float]:
    """Read the numbers of an attribute as the data hold them: a negative one of an unsigned type is its bits."""
    if stated is None or isinstance(stated, str):
        return []
    values = [float(value) for value in np.ravel(np.asarray(stated)) if not np.isnan(value)]
    if dtype.kind == "u":
        return [value + 256**dtype.itemsize if value < 0 else value for value in values]
    return [float(dtype.type(value)) for value in values] if dtype.kind == "f" else values
