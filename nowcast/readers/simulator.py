"""A radar that does not exist: rain of known motion, made from a file of settings.

``NAME.simulator.yaml`` describes a grid, a motion, convective cells, a layer of widespread rain and the faults of a
radar, see ``weather.Simulator``; one frame of it is one item. Frame k depends on the settings and k alone, so frames
can be made in any order, apart from each other and again. Without growth, noise and faults each one is exactly the
first, carried along the motion, which the attributes ``motion_x`` and ``motion_y`` state in m/s.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.config import load
from nowcast.core.cube import check, make, utc
from nowcast.core.errors import BadInput, ConfigError
from nowcast.core.grid import Grid
from nowcast.core.units import MARSHALL_PALMER
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files
from nowcast.readers.weather import QUANTUM, Simulator, simulate

TITLE = "simulated rain"
LICENCE = "none needed: simulated"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("*.simulator.yaml",)

LARGEST_FILE = 2**16


def recognises(path: Path) -> bool:
    """Whether the name is that of a file of settings."""
    return path.name.endswith(".simulator.yaml")  # a mistake in it is best told by find


def find(source: Path) -> Iterator[Item]:
    """Find the frames of a file of settings, or of the only one in a folder."""
    found = files(source, *PATTERNS)
    if len(found) > 1:
        raise BadInput(source, f"holds {len(found)} simulated radars, {found[0].name} first", "name one of the files")
    settings = _settings(found[0])
    missing = set(settings.gaps)
    yield from (Item(found[0], str(index)) for index in range(settings.frames) if index not in missing)


def read(item: Item) -> xr.Dataset:
    """Read one frame: ``rainfall_rate`` in mm/h.

    Raises:
        BadInput: If a setting is refused or there is no such frame.
    """
    settings = _settings(item.path)
    index = int(item.key) if item.key.isdecimal() else -1
    if not 0 <= index < settings.frames or index in settings.gaps:
        raise BadInput(item.path, f"has no frame {item.key or '(none named)'}", "take items from find")
    values = simulate(settings, index)
    np.rint(values / np.float32(QUANTUM), out=values)
    values *= np.float32(QUANTUM)
    time = utc(settings.start).astype("datetime64[s]") + np.timedelta64(index * settings.cadence_seconds, "s")
    attrs = {
        "title": TITLE,
        "source": item.path.name,
        "licence": LICENCE,
        "motion_x": settings.motion.u,
        "motion_y": settings.motion.v,
        "zr_a": MARSHALL_PALMER[0],
        "zr_b": MARSHALL_PALMER[1],
    }
    cube = make(
        {"rainfall_rate": values[None]},
        [time],
        _grid(settings),
        cadence=settings.cadence_seconds,
        quantum=QUANTUM,
        attrs=attrs,
    )
    return check(cube, item)


def _settings(path: Path) -> Simulator:
    with decoding(path, "a file of settings"):
        stat = path.stat()
        if stat.st_size > LARGEST_FILE:
            raise BadInput(path, f"has {stat.st_size} bytes, too many for settings", "name a simulator's own file")
        return _loaded(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _loaded(path: Path, modified: int, size: int) -> Simulator:
    try:
        return load(Simulator, path)
    except ConfigError as error:
        first, *others = str(error).splitlines()
        more = f" (and {len(others)} more)" if others else ""
        raise BadInput(
            path,
            first.removeprefix(f"{path}: ").rstrip(".") + more,
            "correct it; configs/datasets/radar.simulator.yaml is an example",
        ) from None


@lru_cache(maxsize=8)
def _grid(settings: Simulator) -> Grid:
    width, height = settings.columns * settings.pixel_m, settings.rows * settings.pixel_m
    corner = (settings.centre[0] - width / 2, settings.centre[1] + height / 2)
    return Grid.regular(
        settings.crs, (settings.rows, settings.columns), upper_left=corner, pixel=(settings.pixel_m, settings.pixel_m)
    )
