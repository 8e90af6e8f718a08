"""Where the pixels are: a projection and two axes in metres, written and read as CF."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np
import xarray as xr
from pyproj import CRS, Transformer

NORTH_UP, SOUTH_UP = "north-up", "south-up"
PICTURE = (
    'ENGCRS["picture",EDATUM["lower left corner"],CS[Cartesian,2],AXIS["x",east,ORDER[1]],'
    'AXIS["y",north,ORDER[2]],LENGTHUNIT["pixel",1]]'
)
"""Of videos: pixels that lie nowhere on Earth."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Pixel centres ``y`` and ``x`` in metres (or degrees where ``crs`` is geographic) on ``crs``.

    Two grids are the same where their ``digest`` is.
    """

    crs: CRS
    y: np.ndarray
    x: np.ndarray

    @classmethod
    def regular(
        cls, crs: CRS | str, shape: tuple[int, int], *, upper_left: tuple[float, float], pixel: tuple[float, float]
    ) -> Grid:
        """Lay out a north-up grid from the outer corner of its upper left pixel.

        Args:
            crs: Anything pyproj understands.
            shape: Rows, columns.
            upper_left: x, y of the outer corner of the first pixel.
            pixel: Width, height, both positive.
        """
        (rows, columns), (left, top), (width, height) = shape, upper_left, pixel
        y = top - height * (np.arange(rows) + 0.5)
        x = left + width * (np.arange(columns) + 0.5)
        return cls(CRS.from_user_input(crs), y, x)

    @classmethod
    def picture(cls, shape: tuple[int, int]) -> Grid:
        """Make the grid of a video, in pixels from its lower left corner; row 0 on top."""
        return cls.regular(PICTURE, shape, upper_left=(0, shape[0]), pixel=(1, 1))

    @classmethod
    def of(cls, dataset: xr.Dataset) -> Grid:
        """Read the grid of a Cube or Forecast from its CF grid mapping."""
        return cls(CRS.from_wkt(dataset["crs"].attrs["crs_wkt"]), dataset["y"].values, dataset["x"].values)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.y.size, self.x.size

    @property
    def on_earth(self) -> bool:
        """Whether the pixels lie on Earth; those of a video do not."""
        return not self.crs.is_engineering

    @property
    def orientation(self) -> str:
        """``NORTH_UP`` or ``SOUTH_UP``: where row 0 lies."""
        return NORTH_UP if self.y[0] > self.y[-1] else SOUTH_UP

    def __str__(self) -> str:
        rows, columns = self.shape
        step, unit = abs(self.x[1] - self.x[0]), "degrees" if self.crs.is_geographic else "m"
        if not self.on_earth:
            return f"{rows} x {columns} pixels of a picture"
        name = self.crs.name
        if name == "unknown":  # it came as a string
            name = getattr(self.crs.coordinate_operation, "method_name", name)
        projection = self._axes["crs"].attrs.get("grid_mapping_name", name)
        return f"{rows} x {columns} pixels of {step:g} {unit}, {self.orientation}, {projection}"

    @cached_property
    def digest(self) -> str:
        """Equal for equal grids; centimetre differences do not count."""
        axes = np.concatenate([np.round(self.y, 2), np.round(self.x, 2)]) + 0.0  # -0.0 is 0.0
        words = CRS.from_wkt(self.crs.to_wkt()).to_wkt()  # PROJ rewords some projections when they come from a file
        return blake2b(axes.tobytes() + words.encode(), digest_size=8).hexdigest()

    def coordinates(self) -> dict[str, xr.DataArray]:
        """Make CF coordinates ``y``, ``x`` and the grid mapping ``crs``, to be put on a Dataset."""
        return {name: axis.copy(deep=False) for name, axis in self._axes.items()}

    @cached_property
    def _axes(self) -> dict[str, xr.DataArray]:
        geographic = self.crs.is_geographic
        axes = {}
        for name, values in (("y", self.y), ("x", self.x)):
            word = {"y": "latitude", "x": "longitude"}[name] if geographic else f"projection_{name}_coordinate"
            unit = {"y": "degrees_north", "x": "degrees_east"}[name] if geographic else "m"
            attrs = {"standard_name": word, "units": unit, "axis": name.upper()}
            if not self.on_earth:
                attrs = {"long_name": f"{name} of the pixel centre", "units": "1", "axis": name.upper()}
            axes[name] = xr.DataArray(np.asarray(values, np.float64), dims=name, attrs=attrs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what CF's parameters cannot say, crs_wkt does
            mapping = {key: value for key, value in self.crs.to_cf().items() if value is not None}
        if mapping.get("grid_mapping_name") == "polar_stereographic":  # CF wants the pole, which pyproj may leave out
            pole = np.copysign(90.0, mapping.get("standard_parallel", 90.0))
            mapping.setdefault("latitude_of_projection_origin", float(pole))
        axes["crs"] = xr.DataArray(np.int32(0), attrs=mapping | {"spatial_ref": mapping["crs_wkt"]})
        return axes

    def lonlat(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert projected coordinates to longitude, latitude in degrees (WGS84)."""
        return _from_lonlat(self.crs).transform(x, y, direction="INVERSE")

    def project(self, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert longitude, latitude in degrees to projected x, y; inf where the projection has no image."""
        return _from_lonlat(self.crs).transform(lon, lat)

    def misfit(self, lon: np.ndarray, lat: np.ndarray) -> float:
        """Measure how far the outer corners that a file states lie from the grid's at most, in pixels.

        Args:
            lon: Of the lower left corner, then clockwise; NaN where one is not stated.
            lat: Likewise.
        """
        return float(np.nanmax(self.misfits(lon, lat)))

    def misfits(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Measure how far every corner lies from the grid's, see ``misfit``; NaN where it is not stated."""
        x, y = self.project(lon, lat)
        width, height = self.x[1] - self.x[0], self.y[1] - self.y[0]
        left, right = self.x[0] - width / 2, self.x[-1] + width / 2
        first, last = self.y[0] - height / 2, self.y[-1] + height / 2
        bottom, top = min(first, last), max(first, last)
        off_x = (np.asarray(x) - [left, left, right, right]) / width
        off_y = (np.asarray(y) - [bottom, top, top, bottom]) / height
        off: np.ndarray = np.maximum(np.abs(off_x), np.abs(off_y))
        return off


@lru_cache(maxsize=16)
def _from_lonlat(crs: CRS) -> Transformer:
    return Transformer.from_crs(4326, crs, always_xy=True)
