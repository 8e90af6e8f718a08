"""FMI: the Finnish composite of lowest reflectivities as PGM pictures, plain or gzipped.

A PGM of type P5 whose comments tell time and projection; one file is one frame. Source: the comments
of the files themselves; the radius of the sphere, which they leave out, follows from their corners and
pixel sizes to the last digit.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from pyproj import CRS, Proj

from nowcast.core.cube import check, make
from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import stamps
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files

TITLE = "FMI radar composite of Finland, lowest reflectivity"
LICENCE = "CC BY 4.0, Finnish Meteorological Institute (FMI)"
CADENCE = 300
PATTERNS = ("*.pgm", "*.pgm.gz")

FORM = "an FMI radar composite in PGM"
NOTES = (
    "type",
    "obstime",
    "centrallatitude",
    "centrallongitude",
    "truelatitude",
    "bottomleft",
    "topright",
    "metersperpixel_x",
    "metersperpixel_y",
)
"""Comments without which a picture has no place or time."""
EARTH_RADIUS = 6_371_288.0
STEP, FLOOR = 0.5, -32.0
"""dBZ per level, and of level 0: scanned, no echo."""
MISSING = 255
TABLE = Table(np.append(np.arange(MISSING) * STEP + FLOOR, np.nan).astype(np.float32))


def recognises(path: Path) -> bool:
    """Whether the comments of a PGM state FMI's time and projection."""
    notes, _ = _split(path)
    return {"obstime", "projection_name"} <= set(notes)


def find(source: Path) -> Iterator[Item]:
    """Find the composites of a file or folder, in time order."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one composite: ``reflectivity`` in dBZ, -32 where nothing echoed.

    Raises:
        BadInput: If the file is not such a picture.
    """
    with decoding(item.path, FORM):
        notes, levels = _split(item.path)
        grid = _grid(item.path, notes, levels.shape)
        time = stamps.told(notes["obstime"], item.path)
        if time is None:
            raise ValueError(f"no time: {notes['obstime']}")
    attrs = {
        "title": TITLE,
        "source": item.path.name,
        "licence": LICENCE,
        "institution": "FMI",
    }
    cube = make(
        {"reflectivity": EncodedArray(levels[None], TABLE)},
        [time],
        grid,
        cadence=CADENCE,
        quantum=STEP,
        floor=FLOOR,
        product=f"{notes.get('producttype', '')} {notes.get('productname', '')}".strip(),
        attrs=attrs,
    )
    return check(cube, item.path)


def _split(path: Path) -> tuple[dict[str, str], np.ndarray]:
    """Read the comments as key -> rest of line, and the (row, column) uint8 levels, row 0 north."""
    data = path.read_bytes()
    stream = io.BytesIO(gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data)
    if stream.readline().strip() != b"P5":
        raise BadInput(path, "is not a PGM picture of type P5", "choose the reader for its format")
    notes: dict[str, str] = {}
    numbers: list[int] = []
    while len(numbers) < 3 and (line := stream.readline()):
        if line.startswith(b"#"):
            key, _, rest = line[1:].decode().strip().partition(" ")
            notes[key] = rest
        else:
            numbers += map(int, line.split())
    columns, rows, largest = numbers
    raster = np.frombuffer(stream.read(), np.uint8)
    if largest != MISSING or min(rows, columns) < 2 or raster.size < rows * columns:
        raise BadInput(path, f"holds {raster.size} of {rows}x{columns} pixels of 8 bit", "fetch it again")
    return notes, raster[: rows * columns].reshape(rows, columns)


def _grid(path: Path, notes: Mapping[str, str], shape: tuple[int, ...]) -> Grid:
    """Lay out the grid from the outer corners in degrees; the stated pixel size must lead to them, to a pixel."""
    if lacking := [name for name in NOTES if name not in notes]:
        raise BadInput(path, f"does not state {', '.join(lacking)}", "fetch it again or choose another reader")
    if notes["type"] != "stereographic":
        raise BadInput(path, f"is on a {notes['type']} projection", "give a composite on the stereographic one")
    crs = CRS.from_dict(
        {
            "proj": "stere",
            "lat_0": float(notes["centrallatitude"]),
            "lon_0": float(notes["centrallongitude"]),
            "lat_ts": float(notes["truelatitude"]),
            "R": EARTH_RADIUS,
            "units": "m",
        }
    )
    rows, columns = shape
    (west, south), (east, north) = (tuple(map(float, notes[name].split())) for name in ("bottomleft", "topright"))
    (left, right), (bottom, top) = Proj(crs)((west, east), (south, north))
    pixel = ((right - left) / columns, (top - bottom) / rows)
    stated = float(notes["metersperpixel_x"]), float(notes["metersperpixel_y"])
    if max(abs(pixel[0] / stated[0] - 1) * columns, abs(pixel[1] / stated[1] - 1) * rows) > 1:
        raise BadInput(path, "states corners that do not fit its pixel size", "report it to FMI")
    return Grid.regular(crs, (rows, columns), upper_left=(left, top), pixel=pixel)
