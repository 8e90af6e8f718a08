"""Coastlines and borders of the world, shipped as data so that maps need no network.

``countries-10m.json.gz`` is Natural Earth (public domain) as TopoJSON: line pieces, called arcs, that the
countries share. An arc of one country is coast, an arc of two is a border.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import cv2
import numpy as np

from nowcast.core.grid import Grid

COAST, BORDER = "coast", "border"
LATTICE = 33
"""Points per side at which the corners and the inside of a grid are located."""
PRECISION = 0.004
"""Accuracy of the outlines in degrees; finer steps gain nothing."""
TURNS = (-360.0, 0.0, 360.0)
"""Offsets in degrees at which a longitude repeats."""


@dataclass(frozen=True)
class Line:
    """A piece of coast or border in the coordinates of a grid."""

    kind: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class World:
    """Arcs as (points, 2) longitudes and latitudes in degrees, their kinds, and the outlines of all land."""

    arcs: list[np.ndarray]
    kinds: list[str]
    rings: list[np.ndarray]


_lines: dict[str, list[Line]] = {}
"""Digest of a grid -> its boundaries."""


def boundaries(grid: Grid) -> list[Line]:
    """Project the coasts and borders that cross a grid, cut a little outside its edge; computed once per grid."""
    if grid.digest not in _lines:
        _lines[grid.digest] = list(_project(world(), grid))
    return _lines[grid.digest]


def land(lon: np.ndarray, lat: np.ndarray, *, resolution: int = 2048) -> np.ndarray:
    """Compute the share of land, 0 to 1, at longitudes and latitudes in degrees; 0 where they are not finite.

    The outlines are filled in an image in longitude and latitude of up to ``resolution`` pixels a side, which is
    then sampled: this works for any projection.
    """
    lon, lat = (np.where(np.isfinite(values), values, np.nan) for values in (lon, lat))
    west, east, south, north = _window(lon, lat)
    pixels = min(resolution / max(east - west, north - south), 40 / PRECISION)
    image = np.zeros((round((north - south) * pixels) + 1, round((east - west) * pixels) + 1), np.uint8)
    shapes = [
        np.round((ring - [west - turn, south]) * pixels * 16).astype(np.int32)
        for ring in world().rings
        for turn in TURNS
        if _overlaps(ring, turn, (west, east, south, north))
    ]
    cv2.fillPoly(image, shapes, 255, cv2.LINE_AA, shift=4)
    places = ((_wrapped(lon, (west + east) / 2) - west) * pixels, (lat - south) * pixels)
    beyond = -9.0  # pixels, outside the image: there cv2 reads zero
    across, up = (np.nan_to_num(place, nan=beyond).astype(np.float32) for place in places)
    return cv2.remap(image, across, up, cv2.INTER_LINEAR) / np.float32(255)


@cache
def world() -> World:
    """Decode the data file, once per process (half a second)."""
    packed = files(__name__).joinpath("countries-10m.json.gz").read_bytes()
    topology = json.loads(gzip.decompress(packed))
    arcs = _decode(topology["arcs"], topology["transform"])
    countries = [index for ring in _rings(topology["objects"]["countries"]["geometries"]) for index in ring]
    uses = np.bincount([_arc(index) for index in countries], minlength=len(arcs))
    outlines = [_outline(ring, arcs) for ring in _rings(topology["objects"]["land"]["geometries"])]
    return World(arcs, [COAST if count == 1 else BORDER for count in uses], outlines)


def _decode(arcs: list[list[list[int]]], transform: dict[str, list[float]]) -> list[np.ndarray]:
    """Decode TopoJSON arcs, which are steps on an integer lattice, the first one from its origin."""
    lengths = [len(arc) for arc in arcs]
    starts = np.cumsum([0, *lengths[:-1]])
    steps = np.asarray([step for arc in arcs for step in arc], np.int64)
    walked = steps.cumsum(axis=0)
    places: np.ndarray = walked - np.repeat(walked[starts] - steps[starts], lengths, axis=0)
    return np.split(places * transform["scale"] + transform["translate"], starts[1:])


def _rings(geometries: Iterable[dict[str, Any]]) -> Iterator[list[int]]:
    for geometry in geometries:
        polygons = geometry["arcs"] if geometry["type"] == "MultiPolygon" else [geometry["arcs"]]
        for polygon in polygons:
            yield from polygon


def _arc(index: int) -> int:
    """Return the arc of an index; a negative one means the arc ``~index``, reversed."""
    return index if index >= 0 else ~index


def _outline(ring: list[int], arcs: list[np.ndarray]) -> np.ndarray:
    """Join arcs to a closed line whose longitudes do not jump at the date line."""
    line = np.concatenate([arcs[_arc(index)][:: 1 if index >= 0 else -1] for index in ring])
    line[:, 0] = np.unwrap(line[:, 0], period=360)
    if abs(line[-1, 0] - line[0, 0]) > 180:  # Antarctica runs around the pole: close it there.
        line = np.concatenate([line, [[line[-1, 0], -90], [line[0, 0], -90]]])
    return line


def _project(earth: World, grid: Grid) -> Iterator[Line]:
    window = _window(*grid.lonlat(*_lattice(grid)))
    chosen = [i for i, arc in enumerate(earth.arcs) if any(_overlaps(arc, turn, window) for turn in TURNS)]
    if not chosen:
        return
    spacing = max((window[1] - window[0]) / 200, (window[3] - window[2]) / 200, PRECISION)
    lonlat, owner = _densify([earth.arcs[i] for i in chosen], spacing)
    x, y = grid.project(*lonlat.T)
    if grid.crs.is_geographic:
        x = _wrapped(x, (grid.x[0] + grid.x[-1]) / 2)
    inside = _inside(x, grid.x) & _inside(y, grid.y)
    # A step is drawn when one of its ends is inside and it does not jump across the map.
    with np.errstate(invalid="ignore"):
        short = (abs(np.diff(x)) < np.ptp(grid.x) / 2 + 1) & (abs(np.diff(y)) < np.ptp(grid.y) / 2 + 1)
    drawn = (owner[1:] == owner[:-1]) & (inside[1:] | inside[:-1]) & short
    for piece in np.split(np.arange(owner.size), np.flatnonzero(~drawn) + 1):
        if piece.size > 1:
            yield Line(earth.kinds[chosen[owner[piece[0]]]], x[piece], y[piece])


def _lattice(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(*(np.linspace(axis[0], axis[-1], LATTICE) for axis in (grid.x, grid.y)))
    return x, y


def _window(lon: np.ndarray, lat: np.ndarray) -> tuple[float, float, float, float]:
    """Bound the points by west, east, south, north, widened by their largest spacing to include an enclosed pole."""
    lon, lat = (np.where(np.isfinite(values), values, np.nan) for values in (lon, lat))
    lon = _wrapped(lon, lon[lon.shape[0] // 2, lon.shape[1] // 2])
    margin = [max(np.nanmax(abs(np.diff(values, axis=axis)), initial=0) for axis in (0, 1)) for values in (lon, lat)]
    west, east = np.nanmin(lon) - margin[0], np.nanmax(lon) + margin[0]
    return west, east, max(np.nanmin(lat) - margin[1], -90), min(np.nanmax(lat) + margin[1], 90)


def _wrapped(lon: np.ndarray, centre: float) -> np.ndarray:
    """Shift longitudes by full turns to within 180 degrees of ``centre``."""
    return np.asarray((lon - centre + 180) % 360 - 180 + centre)


def _overlaps(points: np.ndarray, turn: float, window: tuple[float, float, float, float]) -> bool:
    west, east, south, north = window
    (left, low), (right, high) = points.min(axis=0), points.max(axis=0)
    return bool(left + turn < east and right + turn > west and low < north and high > south)


def _densify(arcs: list[np.ndarray], spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Add points so that no step is longer than ``spacing`` degrees: a border along a parallel must bend.

    Returns:
        Points (n, 2) of all arcs in a row, and the arc of each (n).
    """
    points = np.concatenate(arcs)
    owner = np.repeat(np.arange(len(arcs)), [len(arc) for arc in arcs])
    steps = np.diff(points, axis=0, append=points[-1:])
    steps[:, 0] = _wrapped(steps[:, 0], 0)
    steps[np.append(owner[1:] != owner[:-1], True)] = 0
    parts = np.maximum(np.ceil(abs(steps).max(axis=1) / spacing), 1).astype(int)
    source = np.repeat(np.arange(parts.size), parts)
    share = (np.arange(source.size) - np.repeat(parts.cumsum() - parts, parts)) / parts[source]
    return points[source] + share[:, None] * steps[source], owner[source]


def _inside(values: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Tell which values are within the axis, or less than a fiftieth of its length away."""
    margin = np.ptp(axis) / 50 + abs(axis[1] - axis[0])
    return np.asarray((values > axis.min() - margin) & (values < axis.max() + margin))
