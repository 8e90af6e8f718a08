"""What a file is: which reader takes it, what would be stored, and a picture of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import xarray as xr
from numcodecs.zstd import Zstd

from nowcast import quality
from nowcast.config import QualitySettings
from nowcast.cube import channels
from nowcast.grid import Grid
from nowcast.maps import Caption, MapPainter
from nowcast.packing import Packing
from nowcast.readers import Item, detect, get
from nowcast.units import COLOURS, quantity

SIDE, TILES = 256, 10
"""Of a contact sheet: pixels of a frame's longer side, and frames at most."""


@dataclass(frozen=True)
class Inspection:
    """What a source holds, judged by its first item."""

    reader: str
    facts: dict[str, str]
    """Words for people."""
    cube: xr.Dataset = field(repr=False)
    """The first item, read."""


def inspect(source: Path, *, reader: str | None = None, settings: QualitySettings | None = None) -> Inspection:
    """Looks at a file or folder as ``ingest`` would, and stores nothing.

    Args:
        source: File or folder.
        reader: Name of the reader; None: found.
        settings: Quality control.

    Raises:
        BadInput: If no reader takes it, or the one that should cannot read it; one sentence.
        ValueError: If the reader is unknown.
    """
    name = reader or detect(source)
    items = list(get(name).find(source))
    cube = get(name).read(items[0])
    labels = quality.measure(cube, settings or QualitySettings(), where=items[0])
    return Inspection(name, _facts(name, items, cube, labels), cube)


def quick_look(inspection: Inspection) -> bytes:
    """PNG of the wettest frame as a map; of what lies nowhere on Earth, its first frames side by side."""
    cube = inspection.cube
    grid, names = Grid.of(cube), channels(cube)
    if not grid.on_earth:
        return _contact_sheet(cube)
    fields = cube[names[0]]
    best = int(np.nan_to_num(fields.mean(("y", "x")).values, nan=-np.inf).argmax())
    painter = MapPainter(grid, names[0], source=str(cube.attrs.get("licence", "")))
    return painter.png(fields.values[best], caption=Caption.of(fields[best]))


def _facts(name: str, items: list[Item], cube: xr.Dataset, labels: dict[str, np.ndarray]) -> dict[str, str]:
    grid, stamps = Grid.of(cube), cube["time"].values.astype("datetime64[s]")
    sequences = sorted({str(label) for label in cube["sequence"].values} - {""})
    cadence = cube.attrs.get("cadence_seconds")
    facts = {
        "reader": f"{name} ({get(name).TITLE})",
        "items": f"{len(items)}: {items[0]}" + (f" to {items[-1]}" if len(items) > 1 else ""),
        "frames": f"{stamps.size} in the first item, {stamps[0]}Z to {stamps[-1]}Z",
        "sequences": ", ".join(sequences[:3]) + (" ..." if len(sequences) > 3 else "") if sequences
        else f"live feed, a frame every {cadence} s",
        "split": ", ".join(sorted({str(label) for label in cube["split"].values})) if "split" in cube.coords else "",
        "grid": str(grid),
        "corners": _corners(grid),
    }  # fmt: skip
    for channel in channels(cube):
        facts[channel] = _channel(cube[channel])
    facts["quality"] = "; ".join(sorted({quality.describe(int(status)) for status in labels["status"]}))
    facts["licence"] = str(cube.attrs.get("licence", ""))
    return {key: value for key, value in facts.items() if value}


def _corners(grid: Grid) -> str:
    """Centres of the corner pixels in degrees: upper left, lower right."""
    if not grid.on_earth:
        return ""
    rows = (0, -1) if grid.y[0] > grid.y[-1] else (-1, 0)
    lon, lat = grid.lonlat(grid.x[[0, -1]], grid.y[list(rows)])
    return ", ".join(f"{abs(north):.3f} {'NS'[int(north < 0)]} {abs(east):.3f} {'EW'[int(east < 0)]}"
                     for north, east in zip(lat, lon, strict=True))  # fmt: skip


def _channel(variable: xr.DataArray) -> str:
    """Range, missing share and cost of a channel."""
    values, packing = variable.values, Packing.wanted(variable)
    kept = values if packing is None else packing.pack(values[:1])
    size = len(Zstd(3).encode(np.ascontiguousarray(kept[:1]))) / 1024
    how = (
        "float32"
        if packing is None
        else f"{kept.dtype} "
        + (
            f"by a table of {packing.levels.size} levels"
            if packing.levels is not None
            else f"in steps of {packing.scale:g}"
        )
    )
    unit = quantity(str(variable.name)).unit
    return (f"{np.nanmin(values):.4g} to {np.nanmax(values):.4g} {unit}, {np.isnan(values).mean():.1%} without data, "
            f"stored as {how}, {size:.0f} KiB a frame")  # fmt: skip


def _contact_sheet(cube: xr.Dataset) -> bytes:
    names = channels(cube)
    colour = list(COLOURS) if set(COLOURS) <= set(names) else [names[0]] * 3
    scaling = quantity(names[0]).scaling
    frames = np.stack([scaling.encode(cube[name].values[:TILES]) for name in colour[::-1]], axis=-1)  # OpenCV: BGR
    if Grid.of(cube).orientation == "south-up":
        frames = frames[:, ::-1]
    scale = max(1, SIDE // max(frames.shape[1:3]))
    tiles = [np.kron(np.nan_to_num(frame * 255).astype(np.uint8), np.ones((scale, scale, 1), np.uint8))
             for frame in frames]  # fmt: skip
    gap = np.full((tiles[0].shape[0], 4, 3), 255, np.uint8)
    return cv2.imencode(".png", np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1))[
        1
    ].tobytes()
