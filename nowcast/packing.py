"""Physical values and the integers that a store keeps in their place.

A source has a quantisation of its own: KNMI counts 0.01 mm, FMI half dBZ in 8 bits, SEVIR 255 uneven
levels. A store keeps exactly those steps, as CF's ``scale_factor`` and ``add_offset`` or as the table
``levels``, so that a value comes out as it went in and costs one or two bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from nowcast.cube import BadInput

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
        """What ``cube.make`` noted of the source's quantisation; None: keep the floats."""
        quantum, floor, levels = (variable.encoding.get(key) for key in ("quantum", "floor", "levels"))
        if levels is not None:
            values = np.asarray(levels, np.float32)
            return cls(np.dtype(np.uint8), levels=values, missing=MISSING_8 if values.size < 256 else None)
        if quantum is None:
            return None
        if floor is not None:
            return cls(np.dtype(np.uint8), float(quantum), float(floor), missing=MISSING_8)
        return cls(np.dtype(np.int16), float(quantum), missing=MISSING_16)

    @classmethod
    def of(cls, dtype: np.dtype, attrs: Mapping) -> Packing | None:
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

    def unpack(self, codes: np.ndarray) -> np.ndarray:
        """float32 values, NaN = no data."""
        if codes.dtype == np.uint8:
            return self.table[codes]
        return self.table[codes.astype(np.int32) - np.iinfo(self.dtype).min]

    def pack(self, values: np.ndarray, name: str = "values") -> np.ndarray:
        """The nearest codes.

        Raises:
            BadInput: If a value lies beyond them by more than half a step.
        """
        values = np.asarray(values, np.float32)
        steps = self._steps(values)
        low, high = self._range
        if not (low <= np.fmin.reduce(steps, axis=None, initial=high) and
                np.fmax.reduce(steps, axis=None, initial=low) <= high):  # fmt: skip
            raise BadInput(name, f"values {np.nanmin(values):g} to {np.nanmax(values):g} reach beyond what this store "
                           f"can hold, {self._value(low):g} to {self._value(high):g}",
                           "mask or clip them (quality settings), or make a new store without packing")  # fmt: skip
        absent = np.isnan(steps)
        if absent.any():
            if self.missing is None:
                raise BadInput(name, "has pixels without data", "this source should have none; fetch it again")
            steps[absent] = self.missing
        return steps.astype(self.dtype)

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
        """Float codes, NaN = no data."""
        if self.levels is None:
            steps = values - np.float32(self.offset) if self.offset else values
            return np.rint(steps / np.float32(self.scale))
        steps = np.searchsorted((self.levels[1:] + self.levels[:-1]) / 2, values).astype(np.float32)
        steps[np.isnan(values)] = np.nan
        slack = (self.levels[-1] - self.levels[0]) / self.levels.size
        steps[values > self.levels[-1] + slack] = self.levels.size
        steps[values < self.levels[0] - slack] = -1
        return steps
