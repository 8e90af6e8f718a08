"""Fields as 8-bit grey images: level 0 is no data, 1 below the lowest value, 2 to 255 are values.

The page colours the levels itself, so one image serves every colour table and the value at the cursor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from nowcast.core.grid import NORTH_UP, Grid
from nowcast.core.units import Quantity, get_quantity
from nowcast.plotting.maps import boundaries, table_for

LONGEST_SIDE = 1600
"""Pixels; larger grids are reduced, because a browser keeps some fifty frames in memory."""

LATTICE = 33
"""Nodes per side of the longitude/latitude lattice in which the page interpolates."""
DETAIL = 0.2
"""Largest error of a simplified boundary, in pixels."""


@dataclass(frozen=True)
class Picture:
    """Meaning of the levels of a quantity, and position of its grid in the image."""

    quantity: Quantity
    logarithmic: bool
    low: float
    high: float
    flip: tuple[bool, bool]
    """Whether rows and columns are flipped, so that the first pixel is in the north-west."""
    reduction: int
    """Grid pixels per image pixel and side; the largest value is kept."""

    @classmethod
    def of(cls, name: str, grid: Grid) -> Picture:
        """Choose the levels and the size that suit a quantity's colour tables and a grid."""
        breaks = np.concatenate([table_for(name, safe=safe).breaks for safe in (False, True)])
        logarithmic = get_quantity(name).scaling.kind == "decibel"
        low, top = float(breaks.min()), float(breaks.max())
        high = 2 * top if logarithmic else top + (top - low) / 10
        flip = (grid.orientation != NORTH_UP, bool(grid.x[0] > grid.x[-1]))
        return cls(get_quantity(name), logarithmic, low, high, flip, math.ceil(max(grid.shape) / LONGEST_SIDE))

    @property
    def table(self) -> np.ndarray:
        """Physical values of levels 2 to 255."""
        spaced = np.geomspace if self.logarithmic else np.linspace
        return np.asarray(spaced(self.low, self.high, 254))

    def levels(self, field_YX: np.ndarray) -> np.ndarray:
        """Convert a field in physical units, NaN = no data, to uint8 levels, north-west first."""
        low, high = np.float32(self.low), np.float32(self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.log(field_YX / low) / np.log(high / low) if self.logarithmic else (field_YX - low) / (high - low)
            level = np.rint(share * np.float32(253)) + 2
        np.minimum(level, 255, out=level)
        level[~(field_YX >= low)] = 1
        level[np.isnan(field_YX)] = 0
        rows, columns = (-1 if turned else 1 for turned in self.flip)
        return self._reduced(level.astype(np.uint8)[::rows, ::columns])

    def _reduced(self, level: np.ndarray) -> np.ndarray:
        """Keep the largest level of every block: levels rise with the value, so no storm core is lost."""
        if self.reduction == 1:
            return np.ascontiguousarray(level)
        side = self.reduction
        padded: np.ndarray = np.pad(level, [(0, -size % side) for size in level.shape])
        rows, columns = (size // side for size in padded.shape)
        return np.asarray(padded.reshape(rows, side, columns, side).max(axis=(1, 3)))

    def png(self, field_YX: np.ndarray) -> bytes:
        """Encode the levels as PNG; run-length deflate is both the fastest and the smallest on rain."""
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
        return cv2.imencode(".png", self.levels(field_YX), options)[1].tobytes()

    @property
    def meaning(self) -> str:
        """Text that identifies what the levels mean, for digests of image files."""
        return json.dumps([self.quantity.name, self.logarithmic, self.low, self.high, self.flip, self.reduction])

    def manifest(self) -> dict[str, object]:
        """Describe the levels for the manifest: the table of values and its scale."""
        return {
            "below": self.low,
            "table": [float(f"{value:.5g}") for value in self.table],
            "logarithmic": self.logarithmic,
            "reduction": self.reduction,
        }


def geography(grid: Grid, picture: Picture) -> dict[str, object]:
    """Describe the background of a grid in image pixels: boundaries, graticule, longitudes and latitudes.

    Returns:
        JSON values: ``width`` and ``height`` in pixels; ``aspect``, height of a pixel by its width on the
        ground; ``lines``, kind -> flat x, y lists; ``lattice`` of longitudes and latitudes, corner to corner.
    """
    rows, columns = (math.ceil(size / picture.reduction) for size in grid.shape)
    y, x = (axis[::-1] if turned else axis for axis, turned in zip((grid.y, grid.x), picture.flip, strict=True))
    row_step, column_step = ((axis[-1] - axis[0]) / (axis.size - 1) * picture.reduction for axis in (y, x))
    left, top = x[0] - column_step / picture.reduction / 2, y[0] - row_step / picture.reduction / 2
    node_x, node_y = np.meshgrid(
        np.linspace(left, left + columns * column_step, LATTICE), np.linspace(top, top + rows * row_step, LATTICE)
    )
    lon, lat = (np.where(np.isfinite(values), values, np.nan) for values in grid.lonlat(node_x, node_y))
    lon = (lon - lon[LATTICE // 2, LATTICE // 2] + 180) % 360 - 180 + lon[LATTICE // 2, LATTICE // 2]
    lines: dict[str, list[list[float]]] = {}
    for kind, x, y in [*_graticule(grid, lon, lat), *((line.kind, line.x, line.y) for line in boundaries(grid))]:
        points = np.stack([(x - left) / column_step, (y - top) / row_step], axis=1).astype(np.float32)
        shown = cv2.approxPolyDP(points, DETAIL, closed=False).ravel().astype(float)
        lines.setdefault(kind, []).append(np.round(shown, 1).tolist())
    squeeze = math.cos(math.radians(float(grid.y.mean()))) if grid.crs.is_geographic else 1.0
    return {
        "width": columns,
        "height": rows,
        "aspect": round(abs(row_step / column_step) / squeeze, 5),
        "lines": lines,
        "lattice": {"nodes": LATTICE, "lon": _degrees(lon), "lat": _degrees(lat)},
    }


def _degrees(values: np.ndarray) -> list[float | None]:
    return [round(value, 4) if math.isfinite(value) else None for value in values.ravel().tolist()]


def _graticule(grid: Grid, lon: np.ndarray, lat: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Iterate over the meridians and parallels at round degrees that cross the grid."""
    spans = [(np.nanmin(values), np.nanmax(values)) for values in (lon, lat)]
    step = next((step for step in (0.5, 1, 2, 5, 10) if max(high - low for low, high in spans) / step <= 12), 30)
    for fixed, (low, high) in enumerate(spans):
        along = np.linspace(*spans[1 - fixed], 200)
        for degrees in np.arange(math.ceil(low / step), high / step) * step:
            x, y = grid.project(*(along, np.full(200, degrees))[:: 1 if fixed else -1])
            over = np.flatnonzero(_within(x, grid.x) & _within(y, grid.y))
            if over.size > 1:
                yield "graticule", x[over[0] : over[-1] + 1], y[over[0] : over[-1] + 1]


def _within(values: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return np.asarray((values >= axis.min()) & (values <= axis.max()))
