"""What a file is: which reader takes it, what would be stored, and a picture of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import xarray as xr
from numcodecs.zstd import Zstd

from nowcast.config import QualitySettings
from nowcast.core.cube import channels, identity, impossible
from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.core.units import COLOURS, get_quantity
from nowcast.ingestion import quality
from nowcast.plotting.maps import Caption, MapPainter
from nowcast.readers import Item, detect, get
from nowcast.store.packing import Packing

SIDE, TILES, ABREAST, GAP = 256, 10, 5, 4
"""Of a contact sheet: pixels of a frame's longer side, frames at most, frames in a row, pixels between them."""
LISTED = 3
"""Sequences that are named, of many."""


@dataclass(frozen=True)
class Inspection:
    """What a source holds, judged by its first item."""

    reader: str
    facts: dict[str, str]
    """Words for people."""
    cube: xr.Dataset = field(repr=False)
    """The first item, read."""
    wettest: int = 0
    """Its frame with the most rain."""


def inspect(source: Path, *, reader: str | None = None, settings: QualitySettings | None = None) -> Inspection:
    """Look at a file or folder as ``ingest`` would, and store nothing.

    Args:
        source: File or folder.
        reader: Name of the reader; None: found.
        settings: Quality control.

    Raises:
        BadInput: If no reader takes it, or the one that should cannot read it; one sentence.
        OptionError: If the reader is unknown.
    """
    name = reader or detect(source)
    items = list(get(name).find(source))
    if not items:
        raise BadInput(source, "holds nothing that this reader knows", "check the path and the reader")
    cube = get(name).read(items[0])
    settings = settings or QualitySettings()
    clipped = quality.clip(cube, settings)
    labels = quality.measure(cube, settings, where=items[0])
    labels["status"] |= clipped
    wet = labels["mean_value" if np.isnan(labels["wet_share"]).all() else "wet_share"]
    wettest = int(np.nan_to_num(wet, nan=-np.inf).argmax())
    return Inspection(name, _facts(name, items, cube, labels), cube, wettest)


def quick_look(inspection: Inspection) -> bytes:
    """Draw the wettest frame as a map, PNG; of what lies nowhere on Earth, the first frames of a sequence."""
    cube = inspection.cube
    grid, name = Grid.of(cube), channels(cube)[0]
    if not grid.on_earth:
        return _contact_sheet(cube)
    frame = cube[name][inspection.wettest]
    painter = MapPainter(grid, name, source=str(cube.attrs.get("licence", "")))
    return painter.png(frame.values, caption=Caption.of(frame))


def _facts(name: str, items: list[Item], cube: xr.Dataset, labels: dict[str, np.ndarray]) -> dict[str, str]:
    grid, stamps = Grid.of(cube), cube["time"].values.astype("datetime64[s]")
    facts = {
        "reader": name,
        "title": get(name).TITLE,
        "items": f"{len(items)}: {items[0]}" + (f" to {items[-1]}" if len(items) > 1 else ""),
        "frames": f"{stamps.size} in the first item, {stamps.min()}Z to {stamps.max()}Z",
        "sequences": _sequences(cube),
        "split": ", ".join(sorted({str(label) for label in cube["split"].values})) if "split" in cube.coords else "",
        "product": str(identity(cube)),
        "grid": str(grid),
        "corners": _corners(grid),
    }
    facts |= {channel: _channel(cube[channel]) for channel in channels(cube)}
    facts["quality"] = "; ".join(sorted({quality.describe(int(status)) for status in labels["status"]}))
    if count := int(impossible(cube).sum()):
        facts["quality"] += f"; {count} values cannot be, such as negative rain, and are no data"
    facts["licence"] = str(cube.attrs.get("licence", ""))
    return {key: value for key, value in facts.items() if value}


def _sequences(cube: xr.Dataset) -> str:
    """List the first few, in the order of the source."""
    if "cadence_seconds" in cube.attrs:
        step = cube.attrs["cadence_seconds"]
        return f"live feed, a frame every {step} s" if step else "live feed, whose step two frames will tell"
    labels = list(dict.fromkeys(map(str, cube["sequence"].values)))
    return ", ".join(labels[:LISTED]) + (f" and {len(labels) - LISTED} more" if len(labels) > LISTED else "")


def _corners(grid: Grid) -> str:
    """Find the centres of the upper left and the lower right pixel in degrees."""
    if not grid.on_earth:
        return ""
    rows = (0, -1) if grid.orientation == NORTH_UP else (-1, 0)
    lon, lat = grid.lonlat(grid.x[[0, -1]], grid.y[list(rows)])
    places = [
        f"{abs(north):.3f} {'NS'[int(north < 0)]} {abs(east):.3f} {'EW'[int(east < 0)]}"
        for north, east in zip(lat, lon, strict=True)
    ]
    return f"upper left {places[0]}, lower right {places[1]}"


def _channel(variable: xr.DataArray) -> str:
    """Describe range, missing share and cost of a channel."""
    values, packing = variable.values, Packing.wanted(variable)
    kept = values[:1] if packing is None else packing.pack(values[:1])
    size = len(Zstd(3).encode(np.ascontiguousarray(kept))) / 1024
    unit = get_quantity(str(variable.name)).unit
    extent = f"{np.nanmin(values):.4g} to {np.nanmax(values):.4g}{'' if unit == '1' else f' {unit}'}"
    return (
        f"{extent}, {np.isnan(values).mean():.1%} without data, stored as {_form(packing)}, "
        f"{size:.{int(size < 10)}f} KiB a frame"
    )


def _form(packing: Packing | None) -> str:
    if packing is None:
        return "float32"
    if packing.levels is not None:
        return f"{packing.dtype} by a table of {packing.levels.size} levels"
    return f"{packing.dtype} in steps of {packing.scale:g}"


def _contact_sheet(cube: xr.Dataset) -> bytes:
    """Draw the first frames of the first sequence, row by row, in their own colours or in grey; white is no data."""
    names, labels = channels(cube), cube["sequence"].values
    colour = list(COLOURS) if set(COLOURS) <= set(names) else names[:1]
    first = np.flatnonzero(labels == labels[0])[:TILES]
    scaling = get_quantity(colour[0]).scaling
    fields = np.stack([scaling.encode(cube[name].values[first]) for name in colour[::-1]], axis=-1)  # OpenCV: BGR
    tiles = [_tile(np.rint(255 * np.nan_to_num(frame, nan=1)).astype(np.uint8)) for frame in fields]
    rows, columns = tiles[0].shape[:2]
    abreast = min(ABREAST, len(tiles))
    sheet = np.full(
        (-(-len(tiles) // abreast) * (rows + GAP) - GAP, abreast * (columns + GAP) - GAP, len(colour)), 255, np.uint8
    )
    for index, tile in enumerate(tiles):
        top, left = index // abreast * (rows + GAP), index % abreast * (columns + GAP)
        sheet[top : top + rows, left : left + columns] = tile
    return cv2.imencode(".png", sheet)[1].tobytes()


def _tile(frame: np.ndarray) -> np.ndarray:
    """Resize a frame to about a tile: small ones are enlarged a whole number of times, so that pixels stay sharp."""
    longer = max(frame.shape[:2])
    if longer > SIDE:
        size = [max(1, round(side * SIDE / longer)) for side in frame.shape[1::-1]]
        return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    return frame.repeat(SIDE // longer, axis=0).repeat(SIDE // longer, axis=1)
