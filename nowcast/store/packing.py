"""Physical values and the integers that a store keeps in their place.

A source has a quantisation of its own: KNMI counts 0.01 mm, FMI half dBZ in 8 bits, SEVIR 255 uneven
levels. A store keeps exactly those steps, as CF's ``scale_factor`` and ``add_offset`` or as the table
``levels``, so that a value comes out as it went in and costs one or two bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
import xarray as xr

from nowcast.core.encoded import EncodedArray, Table, behind
from nowcast.core.errors import BadInput
from nowcast.core.units import by_table

MISSING_8, MISSING_16 = 255, -32768


@dataclass(frozen=True, eq=False)
class Packing:
    """How one variable is kept: ``value = scale * code + offset``, or ``value = levels[code]``."""

    dtype: np.dtype
    scale: float = 1.0
    offset: float = 0.0
    levels: np.ndarray | None = None
    missing: int | None = None
    """Code of no data; None where the source has none."""

    @classmethod
    def wanted(cls, variable: xr.Variable | xr.DataArray) -> Packing | None:
        """Give the packing that ``cube.make`` noted of the source's quantisation; None: keep the floats."""
        quantum, floor, levels = (variable.encoding.get(key) for key in ("quantum", "floor", "levels"))
        if levels is None and quantum is None:
            return None
        return _wanted(quantum, floor, None if levels is None else np.asarray(levels, np.float32).tobytes())

    @classmethod
    def of(cls, dtype: np.dtype, attrs: Mapping[str, Any]) -> Packing | None:
        """Read back from an array on disk."""
        missing = attrs.get("_FillValue")
        if "levels" in attrs:
            return cls(np.dtype(dtype), levels=np.asarray(attrs["levels"], np.float32), missing=missing)
        if "scale_factor" in attrs:
            return cls(np.dtype(dtype), float(attrs["scale_factor"]), float(attrs.get("add_offset", 0)), None, missing)
        return None

    @property
    def attrs(self) -> dict[str, object]:
        """CF attributes; ``levels`` is ours, for what CF cannot say."""
        scaling: dict[str, object] = {"scale_factor": self.scale}
        if self.levels is not None:
            scaling = {"levels": self.levels.astype(float).tolist()}
        elif self.offset:
            scaling["add_offset"] = self.offset
        return scaling | ({"_FillValue": self.missing} if self.missing is not None else {})

    @cached_property
    def table(self) -> np.ndarray:
        """float32 value of every code, NaN for no data; 16-bit codes count from -32768."""
        limits = np.iinfo(self.dtype)
        codes = np.arange(limits.min, limits.max + 1)
        if self.levels is not None:
            values = np.full(codes.size, np.nan, np.float32)
            values[: self.levels.size] = self.levels
        else:
            values = codes.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
        if self.missing is not None:
            values[self.missing - limits.min] = np.nan
        return values

    def first(self, value: float) -> int:
        """Find the lowest code that stands for ``value`` or more; one beyond all codes if there is none."""
        return _first(self, value)

    def known(self, codes: np.ndarray) -> np.ndarray:
        """Mask the pixels with data, uint8: 255 where there are some, else 0."""
        if self.missing is None:
            return np.full(codes.shape, 255, np.uint8)
        return np.asarray(cv2.compare(codes, float(self.missing), cv2.CMP_NE))  # type: ignore[call-overload]

    def mean(self, codes: np.ndarray, count: int) -> float:
        """Compute the mean value of the ``count`` pixels of (row, column) codes that have data."""
        if self.levels is not None:
            seen = cv2.calcHist([codes], [0], None, [256], [0, 256]).ravel()
            return float(np.dot(seen, np.nan_to_num(self.table))) / count
        absent = (codes.size - count) * (self.missing or 0)
        return (cv2.sumElems(codes)[0] - absent) / count * self.scale + self.offset

    def recode(self, coded: EncodedArray) -> np.ndarray | None:
        """Turn the codes of a source into those of ``pack``, by one look into a table per pixel.

        None where ``pack`` must look at the values themselves.
        """
        table, beyond = _recoding(coded.table, self)
        if table is None:
            return None
        codes = by_table(coded.codes, table)
        rows = codes.reshape(-1, codes.shape[-1])
        if beyond is not None and cv2.countNonZero(cv2.compare(rows, float(beyond), cv2.CMP_EQ)):  # type: ignore[call-overload]
            return None
        return codes

    def unpack(self, codes: np.ndarray) -> np.ndarray:
        """Turn codes into float32 values, NaN = no data."""
        if codes.dtype == np.uint8:
            return by_table(codes, self.table)
        values = codes.astype(np.float32)
        values *= np.float32(self.scale)
        values += np.float32(self.offset)
        np.copyto(values, np.nan, where=codes == self.missing)
        return values

    def pack(self, values: np.ndarray, name: str = "values", *, out: np.ndarray | None = None) -> np.ndarray:
        """Turn values into the nearest codes, put into ``out`` where it is given.

        Raises:
            BadInput: If a value lies beyond them by more than half a step.
        """
        values = np.asarray(values, np.float32)
        steps = self._steps(values)
        low, high = self._range
        if not (
            low <= np.fmin.reduce(steps, axis=None, initial=high)
            and np.fmax.reduce(steps, axis=None, initial=low) <= high
        ):
            raise BadInput(
                name,
                f"values {np.nanmin(values):g} to {np.nanmax(values):g} reach beyond what this store "
                f"can hold, {self._value(low):g} to {self._value(high):g}",
                "mask or clip them (quality settings), or make a new store without packing",
            )
        if steps.size and self.missing is not None:
            cv2.patchNaNs(steps, self.missing)  # a tenth of the time that a mask takes
        elif np.isnan(steps).any():
            raise BadInput(name, "has pixels without data", "this source should have none; fetch it again")
        if out is None:
            return steps.astype(self.dtype)
        np.copyto(out, steps, casting="unsafe")
        return out

    @property
    def _range(self) -> tuple[int, int]:
        """Lowest and highest code that stands for a value."""
        if self.levels is not None:
            return 0, self.levels.size - 1
        limits = np.iinfo(self.dtype)
        return int(limits.min) + (self.missing == limits.min), int(limits.max) - (self.missing == limits.max)

    def _value(self, code: int) -> float:
        return float(self.levels[code]) if self.levels is not None else code * self.scale + self.offset

    def _steps(self, values: np.ndarray) -> np.ndarray:
        """Compute codes as floats, NaN = no data."""
        if self.levels is None:
            steps = values - np.float32(self.offset) if self.offset else values
            steps = steps / np.float32(self.scale)
            np.rint(steps, out=steps)
            return steps
        steps = values * 0  # NaN stays
        steps += _nearest(values, np.asarray(self.levels, np.float32).tobytes())
        slack = (self.levels[-1] - self.levels[0]) / self.levels.size
        steps[values > self.levels[-1] + slack] = self.levels.size
        steps[values < self.levels[0] - slack] = -1
        return steps


def packed(variable: xr.Variable, name: str) -> tuple[np.ndarray, Packing | None]:
    """Pack a variable of a Cube as a store keeps it: codes and what they mean, or floats and None.

    Raises:
        BadInput: If a value lies beyond the codes.
    """
    packing = Packing.wanted(variable)
    if packing is None:
        return variable.values, None
    coded = behind(variable)
    codes = packing.recode(coded) if coded is not None else None
    if codes is None:
        codes = np.empty(variable.shape, packing.dtype)
        for frame, place in zip(variable.values, codes, strict=True):
            packing.pack(frame, name, out=place)
    return codes, packing


@lru_cache(maxsize=32)
def _wanted(quantum: float | None, floor: float | None, levels: bytes | None) -> Packing:
    """Make one object for many frames, so that its tables are made once."""
    if levels is not None:
        values = np.frombuffer(levels, np.float32)
        return Packing(np.dtype(np.uint8), levels=values, missing=MISSING_8 if values.size < 256 else None)
    assert quantum is not None
    if floor is not None:
        return Packing(np.dtype(np.uint8), float(quantum), float(floor), missing=MISSING_8)
    return Packing(np.dtype(np.int16), float(quantum), missing=MISSING_16)


@lru_cache(maxsize=64)
def _first(packing: Packing, value: float) -> int:
    short = value - 1e-6 * abs(value)  # 10 steps of 0.01 are a little less than 0.1 in float32
    reached = np.flatnonzero(packing.table >= np.float32(short))
    return int(np.iinfo(packing.dtype).min) + (int(reached[0]) if reached.size else packing.table.size)


@lru_cache(maxsize=32)
def _recoding(table: Table, packing: Packing) -> tuple[np.ndarray | None, int | None]:
    """Compute the packed code of every code of a source, and the one that stands for all that cannot be packed.

    No such code: all can be packed. No table: some cannot, and no code is left to stand for them.
    """
    steps, (low, high) = packing._steps(table.values), packing._range
    absent = np.isnan(steps)
    wrong = (steps < low) | (steps > high) | (absent & (packing.missing is None))
    fine = ~(wrong | absent)
    codes = np.full(steps.shape, packing.missing or 0, packing.dtype)
    codes[fine] = steps[fine].astype(packing.dtype)
    if not wrong.any():
        return codes, None
    free = np.setdiff1d(np.arange(low, high + 1), codes)
    if not free.size:
        return None, None
    codes[wrong] = free[0]
    return codes, int(free[0])


BITS = 12
"""Of a float32, those that do not tell buckets apart: neighbours differ by 0.05 %."""


def _nearest(values: np.ndarray, levels: bytes) -> np.ndarray:
    """Find the index of the level next to each value; the lower one half-way, anything where a value is NaN."""
    first, middles, narrow = _buckets(levels)
    if not narrow:
        return np.searchsorted(middles[:-1], values)
    index = first.take(values.view(np.uint32) >> BITS)
    index += middles.take(index) < values
    return index


@lru_cache(maxsize=16)
def _buckets(levels: bytes) -> tuple[np.ndarray, np.ndarray, bool]:
    """Sort levels into buckets by the first bits of a value.

    To search 255 levels for every pixel takes longer than to decode it. A value's first bits leave at most two of
    them to choose from.

    Returns:
        Index of the lower one by those bits; the middles between levels; whether no bucket holds more than one
        middle.
    """
    values = np.frombuffer(levels, np.float32)
    middles = np.append((values[1:] + values[:-1]) / 2, np.float32(np.inf))
    bits = np.arange(2 ** (32 - BITS), dtype=np.uint32) << BITS
    ends = np.stack([bits, bits | (2**BITS - 1)]).view(np.float32)
    first, last = np.searchsorted(middles[:-1], np.sort(ends, axis=0))  # NaN comes last
    known = np.isfinite(ends).all(axis=0)
    return first.astype(np.uint8), middles, bool((last - first)[known].max() <= 1)
