"""Quantities, their units, and every conversion between them and the [0, 1] of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from nowcast.core.errors import OptionError

UNIT_SIGNS = {"mm h-1": "mm/h", "kg m-2": "kg/m²", "degC": "°C", "1": ""}
"""CF units as people read them; others are shown as they are."""


@dataclass(frozen=True)
class Quantity:
    """What a Cube variable measures. ``name`` is the variable name everywhere."""

    name: str
    unit: str
    long_name: str
    standard_name: str | None
    thresholds: tuple[float, ...]
    """Event limits scored by default, in ``unit``; an event is a value at or above one."""
    scaling: Scaling
    """How a network sees it unless a recipe says otherwise."""
    resolution: float
    """Step to which forecasts are stored; 32,767 steps must reach any forecast value."""
    possible: tuple[float, float] = (-math.inf, math.inf)
    """Lowest and highest value that it can have. What lies beyond is no bad weather but no measurement: codes of no
    data that a file does not declare, such as -9999 or 1e20."""


@dataclass(frozen=True)
class Scaling:
    """Maps a physical field to [0, 1] and back.

    ``linear``: (value - low) / (high - low). ``decibel``: the same on a logarithmic axis,
    with everything below ``low`` at 0, which stands for dry.
    """

    kind: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "decibel"):
            raise OptionError(f"Unknown scaling {self.kind!r}; choose linear or decibel.")
        if not self.low < self.high or (self.kind == "decibel" and self.low <= 0):
            raise OptionError(f"Scaling {self.kind} needs low < high (and low > 0 for decibel).")

    def encode(self, values: np.ndarray, *, clip: bool = True) -> np.ndarray:
        """Scale physical values to float32 in [0, 1]; NaN stays NaN.

        Without ``clip`` values beyond the limits lie beyond [0, 1] and can be decoded again.
        """
        values = np.asarray(values, np.float32)
        if self.kind == "decibel":
            safe = np.maximum(values, np.float32(self.low))
            scaled = np.log(safe / np.float32(self.low)) / np.float32(np.log(self.high / self.low))
        else:
            scaled = (values - np.float32(self.low)) / np.float32(self.high - self.low)
        limited: np.ndarray = np.clip(scaled, 0, 1) if clip else scaled
        return limited.astype(np.float32, copy=False)

    def decode(self, scaled: np.ndarray, *, clip: bool = True) -> np.ndarray:
        """Turn [0, 1] back into physical values, float32; ``decibel`` returns exactly 0 for 0 (dry)."""
        scaled = np.clip(scaled, 0, 1) if clip else np.asarray(scaled)
        scaled = scaled.astype(np.float32, copy=False)
        if self.kind == "linear":
            return scaled * np.float32(self.high - self.low) + np.float32(self.low)
        ratio = np.float32(np.log(self.high / self.low))
        values = np.float32(self.low) * np.exp(scaled * ratio)
        return np.where(scaled <= 0, np.float32(0), values)


def _vil_table() -> np.ndarray:
    level = np.arange(256, dtype=np.float64)
    linear, exponential = (level - 2) / 90.66, np.exp((level - 83.9) / 38.9)
    table = np.where(level <= 5, 0, np.where(level <= 18, linear, exponential)).astype(np.float32)
    table[255] = np.nan
    return table


_VIL_OF_LEVEL = _vil_table()
VIL_LEVELS = np.unique(_VIL_OF_LEVEL[:255])
"""Every value that SEVIR's levels stand for, kg m-2, ascending; the lowest six levels are all 0."""


def _vil_of_levels(*levels: int) -> tuple[float, ...]:
    """Give thresholds for SEVIR levels: exactly the float32 that a pixel of that level holds, so that it counts."""
    return tuple(_VIL_OF_LEVEL[list(levels)].tolist())


COLOURS = ("red", "green", "blue")
"""Channels of a colour video."""
PICTURES = ("intensity", *COLOURS, "inflow", "outflow")
"""Quantities of pictures: every pixel of a frame is known, and [0, 1] is black to white."""

QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            "rainfall_rate",
            "mm h-1",
            "rain rate",
            "rainfall_rate",
            (0.1, 1.0, 5.0, 10.0),
            Scaling("decibel", 0.1, 300.0),
            0.01,
            (0.0, 1e6),
        ),
        Quantity(
            "reflectivity",
            "dBZ",
            "radar reflectivity",
            "equivalent_reflectivity_factor",
            (10.0, 20.0, 30.0, 40.0),
            Scaling("linear", -10.0, 60.0),
            0.01,
            (-100.0, 200.0),
        ),
        Quantity(
            "vil",
            "kg m-2",
            "vertically integrated liquid",
            None,
            # this step keeps all levels apart and no threshold level falls below its threshold
            _vil_of_levels(16, 74, 133, 160, 181, 219),
            Scaling("linear", 0.0, 80.0),
            0.00262,
            (0.0, 1e4),
        ),
        Quantity(
            "visible_reflectance",
            "1",
            "visible reflectance",
            "toa_bidirectional_reflectance",
            (),
            Scaling("linear", 0.0, 1.2),
            1e-4,
        ),
        Quantity(
            "brightness_temperature_069",
            "degC",
            "6.9 micron brightness temperature",
            "toa_brightness_temperature",
            (),
            Scaling("linear", -90.0, 30.0),
            0.01,
            (-273.15, 1e3),
        ),
        Quantity(
            "brightness_temperature_107",
            "degC",
            "10.7 micron brightness temperature",
            "toa_brightness_temperature",
            (),
            Scaling("linear", -90.0, 50.0),
            0.01,
            (-273.15, 1e3),
        ),
        Quantity(
            "lightning_flashes",
            "1",
            "lightning flashes per cell and step",
            None,
            (1.0,),
            Scaling("linear", 0.0, 50.0),
            0.01,
        ),
        Quantity(
            "intensity", "1", "grey level of a video, black to white", None, (), Scaling("linear", 0.0, 1.0), 1 / 255
        ),
        *(
            Quantity(colour, "1", f"{colour} level of a video", None, (), Scaling("linear", 0.0, 1.0), 1 / 255)
            for colour in COLOURS
        ),
        *(
            Quantity(
                way, "1", f"crowd {way}, scaled to [-1, 1] by its source", None, (), Scaling("linear", -1.0, 1.0), 1e-4
            )
            for way in ("inflow", "outflow")
        ),
    )
}


def get_quantity(name: str) -> Quantity:
    """Look a quantity up by its Cube variable name.

    Raises:
        OptionError: If it is unknown; the message lists the known ones.
    """
    if name not in QUANTITIES:
        raise OptionError(f"Unknown quantity {name!r}; known: {', '.join(QUANTITIES)}.")
    return QUANTITIES[name]


ROUNDING = 1e-3
"""By which a measured value may lie below the lowest possible one: what interpolation and packing leave of a zero."""


def possible(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Take out what a quantity cannot be: not finite, or beyond ``Quantity.possible``.

    Args:
        values: float32 (frame, row, column), NaN = no data; not altered.
        name: Of the quantity.

    Returns:
        The values, NaN in place of the impossible and the lowest possible value in place of what rounding put below
        it; and the number of impossible ones in every frame. The same array where there is nothing to do.
    """
    low, high = get_quantity(name).possible
    lowest, highest = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    count = np.zeros(len(values), np.int64)
    if not (lowest < low or highest > high or np.isinf(lowest) or np.isinf(highest)):
        return values, count
    wrong = (values < low - ROUNDING) | (values > high) | np.isinf(values)
    count = np.count_nonzero(wrong, axis=(1, 2))
    values = np.where(wrong, np.float32(np.nan), np.maximum(values, np.float32(low)))
    return values.astype(np.float32, copy=False), count


MARSHALL_PALMER = (200.0, 1.6)
"""a, b of Z = a R^b (Marshall and Palmer, 1948, doi:10.1175/1520-0469(1948)005<0165:TDORWS>2.0.CO;2)."""


def rate_from_reflectivity(dbz: np.ndarray, *, zr: tuple[float, float] = MARSHALL_PALMER) -> np.ndarray:
    """Convert dBZ to mm/h by Z = a R^b."""
    a, b = zr
    rate: np.ndarray = 10 ** ((np.asarray(dbz, np.float32) - 10 * np.log10(a)) / (10 * b))
    return rate.astype(np.float32)


def reflectivity_from_rate(
    rate: np.ndarray, *, zr: tuple[float, float] = MARSHALL_PALMER, floor: float = -32.0
) -> np.ndarray:
    """Convert mm/h to dBZ by Z = a R^b; dry (0 mm/h) becomes ``floor``."""
    a, b = zr
    rate = np.asarray(rate, np.float32)
    with np.errstate(divide="ignore"):
        dbz = 10 * np.log10(a) + 10 * b * np.log10(rate)
    limited: np.ndarray = np.maximum(dbz, np.float32(floor))
    return limited.astype(np.float32)


def convert(values: np.ndarray, source: str, target: str, *, zr: tuple[float, float] = MARSHALL_PALMER) -> np.ndarray:
    """Convert a field between quantities; only rain rate and reflectivity have a formula.

    Raises:
        OptionError: If no formula links ``source`` and ``target``.
    """
    if source == target:
        return values
    if (source, target) == ("reflectivity", "rainfall_rate"):
        return rate_from_reflectivity(values, zr=zr)
    if (source, target) == ("rainfall_rate", "reflectivity"):
        return reflectivity_from_rate(values, zr=zr)
    raise OptionError(f"No formula turns {source} into {target}; use data that holds {target}.")


def vil_from_level(level: np.ndarray) -> np.ndarray:
    """Convert SEVIR's 8-bit VIL level to kg m-2, float32; 255 (missing) becomes NaN.

    Source: SEVIR data description (Veillette et al., NeurIPS 2020).
    """
    return by_table(np.asarray(level), _VIL_OF_LEVEL)


def by_table(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look up the float32 value of every code; in a table of all codes of 8 or 16 bits in a fifth of numpy's time."""
    whole = codes.dtype in (np.uint8, np.uint16) and len(table) == 256**codes.dtype.itemsize
    if not whole or not codes.size or not codes.ndim:
        return np.asarray(table[codes])
    rows = np.ascontiguousarray(codes).reshape(-1, codes.shape[-1])
    return np.asarray(cv2.LUT(rows, table)).reshape(codes.shape)


def level_from_vil(vil: np.ndarray) -> np.ndarray:
    """Convert kg m-2 to SEVIR's VIL level, float32, unrounded and never falling; NaN stays NaN, dry is 0."""
    vil = np.asarray(vil, np.float32)
    linear = np.minimum(vil * 90.66 + 2, 18.5)  # the two branches leave a gap between levels 18 and 19
    exponential = 38.9 * np.log(np.maximum(vil, np.finfo(np.float32).tiny)) + 83.9
    return np.where(vil <= 0, 0, np.maximum(linear, exponential)).astype(np.float32)
