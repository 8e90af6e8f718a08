"""Shanghai radar, 2015 to 2018: composite reflectivity of the radar in Nanhui as grey PNGs, six minutes apart.

Not Shanghai-2020, which is of the same radar. ``nh_radar_comp_echo/<event>/<frames>.png``, the frames in
the order of their names; times are taken from the names where all names of an event hold one, else
frames count from 1970. A gap in the times begins a new sequence. Also ``shanghai.h5``, the clips of 25
frames that the authors of DiffCast cut from it.

Levels are made dBZ by 90/255 v, by which the literature scores them; the archive itself states no scale.
Nor does it state a grid: it is taken as kilometres around the radar, equidistant from it.

Source: Chen et al. (2020), doi:10.7910/DVN/2GKMQJ; Yu et al. (2024), DiffCast, CVPR.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from PIL import Image

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers.decoding import decoding, grey_png
from nowcast.readers.hdf5 import member, open_hdf5
from nowcast.readers.items import Item, files, natural, part

TITLE = "Shanghai radar composite reflectivity"
LICENCE = "see doi:10.7910/DVN/2GKMQJ"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("*.png", "*.h5")

FORM = "Shanghai radar data"
ARCHIVE = "nh_radar_comp_echo"
LEVELS = (np.arange(256) * (90 / 255)).astype(np.float32)
"""dBZ of every grey level; nothing is ever missing."""
STEP_SECONDS = 360
PIXEL = 1000.0
NANHUI = "+proj=aeqd +lat_0=31.007 +lon_0=121.885 +ellps=WGS84 +units=m"
STAMP = re.compile(r"(?<!\d)(20\d\d)(\d\d)(\d\d)[-_T]?(\d\d)(\d\d)(\d\d)?(?!\d)")
FRAMES = 32
"""Of an event in an item."""
MOST_PIXELS, MOST_FRAMES = 2**20, 64
"""Of a frame, and in a clip: more are a damaged file."""


def recognises(path: Path) -> bool:
    """Whether this is a picture in the archive's folder, or an HDF5 file of clips."""
    if path.suffix.lower() == ".png":
        return ARCHIVE in path.parts
    with h5py.File(path, "r") as file:
        return any(f"{split}/all_len" in file and f"{split}/0" in file for split in ("train", "test"))


def find(source: Path) -> Iterator[Item]:
    """Find the events of a folder in the order of their names, cut into items; else clips; or one picture."""
    paths = files(source, *PATTERNS)
    pictures = [path for path in paths if path.suffix.lower() == ".png"]
    clips = [path for path in paths if path.suffix.lower() == ".h5" and (path == source or _recognised(path))]
    if not pictures and not clips:
        raise BadInput(source, "holds no picture and no clip of this radar", "check the path and the reader")
    if pictures and clips:
        raise BadInput(source, "holds pictures and clips cut from them", "name the files of one")
    if source.is_file() and pictures:
        yield Item(source, "0:1")
    else:
        for folder in sorted({path.parent for path in pictures}, key=lambda folder: natural(str(folder))):
            yield from _pieces(folder)
    for path in clips:
        yield from _clips(path)


def read(item: Item) -> xr.Dataset:
    """Read some frames of an event or one clip: ``reflectivity`` in dBZ, 0 where nothing echoed.

    Raises:
        BadInput: If a picture or a clip is not what it should be.
    """
    with decoding(item.path, FORM):
        if item.path.suffix.lower() == ".png":
            levels, time, labels = _event(item)
            split = None
        else:
            levels, split = _clip(item), item.key.split("/")[0]
            time = np.datetime64(0, "s") + np.arange(len(levels)) * STEP_SECONDS
            labels = [item.key] * len(levels)
        grid = _grid(levels.shape[1:])
    attrs = {"title": TITLE, "source": item.path.name, "licence": LICENCE, "institution": "Shanghai, Nanhui radar"}
    cube = make({"reflectivity": LEVELS[levels]}, time, grid, sequence=labels, split=split, levels=LEVELS, attrs=attrs)
    return check(cube, item)


@lru_cache(maxsize=8)
def _grid(shape: tuple[int, int]) -> Grid:
    half_y, half_x = shape[0] * PIXEL / 2, shape[1] * PIXEL / 2
    return Grid.regular(NANHUI, shape, upper_left=(-half_x, half_y), pixel=(PIXEL, PIXEL))


# --- events ---------------------------------------------------------------------------------------


def _siblings(folder: Path) -> list[Path]:
    """Find the frames of an event, in order."""
    return sorted(
        (path for path in folder.glob("*.png") if not path.name.startswith(".")), key=lambda path: natural(path.name)
    )


def _pieces(folder: Path) -> Iterator[Item]:
    """Items named by their first frame, which counts, and their places when they were found."""
    frames = _siblings(folder)
    for start in range(0, len(frames), FRAMES):
        yield Item(frames[start], f"{start}:{min(start + FRAMES, len(frames))}")


def _event(item: Item) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Levels (time, y, x), times and labels of some frames of an event."""
    window, frames = part(item), _siblings(item.path.parent)
    if item.path not in frames:
        raise BadInput(item.path, "does not exist", "check the path")
    time = _times(frames)
    place = frames.index(item.path)  # frames may have come or gone since it was found
    window = slice(place, place + min(window.stop - window.start, FRAMES))
    shape = _shape(item.path)
    levels = np.stack([grey_png(frame, shape) for frame in frames[window]])
    return levels, time[window], _labels(frames, time)[window]


def _times(frames: list[Path]) -> np.ndarray:
    """Read the times of all frames of an event from their names, if all hold one and they ascend; else count steps."""
    with suppress(AttributeError, ValueError):
        stamps = [STAMP.search(frame.stem).groups() for frame in frames]  # type: ignore[union-attr]
        time = np.array(
            [
                f"{year}-{month}-{day}T{hour}:{minute}:{second or '00'}"
                for year, month, day, hour, minute, second in stamps
            ],
            "datetime64[s]",
        )
        if (np.diff(time) > np.timedelta64(0)).all():
            return time
    return np.datetime64(0, "s") + np.arange(len(frames)) * STEP_SECONDS


def _labels(frames: list[Path], time: np.ndarray) -> list[str]:
    """Name the event of each frame, and after a gap the frame behind it."""
    folder = frames[0].parent
    below = folder.parts[folder.parts.index(ARCHIVE) + 1 :] if ARCHIVE in folder.parts else ()
    event = "/".join(below) or folder.name
    starts = np.append(0, 1 + np.flatnonzero(np.diff(time) > np.timedelta64(STEP_SECONDS * 3 // 2, "s")))
    names = [event, *(f"{event}/{frames[start].stem}" for start in starts[1:])]
    return [names[run] for run in np.searchsorted(starts, np.arange(len(frames)), side="right") - 1]


def _shape(path: Path) -> tuple[int, int]:
    with decoding(path, "a PNG image"), Image.open(path, formats=["PNG"]) as image:
        columns, rows = image.size
    if min(rows, columns) < 2 or rows * columns > MOST_PIXELS:
        raise BadInput(path, f"has {rows}x{columns} pixels", "fetch it again")
    return rows, columns


# --- clips of HDF5 --------------------------------------------------------------------------------


def _recognised(path: Path) -> bool:
    with suppress(BadInput), decoding(path, FORM):  # a damaged file is nobody's
        return recognises(path)
    return False


def _clips(path: Path) -> Iterator[Item]:
    with open_hdf5(path, FORM) as file:
        keys = [
            f"{split}/{key}"
            for split in ("train", "test")
            if split in file
            for key in sorted(file[split], key=natural)
            if key.isdecimal()
        ]
    if not keys:
        raise BadInput(path, "holds no clips in train and test", "choose the reader for this file")
    yield from (Item(path, key) for key in keys)


def _clip(item: Item) -> np.ndarray:
    if not re.fullmatch(r"(train|test)/\d+", item.key):
        raise BadInput(item.path, f"has no clip {item.key or '(none named)'}", "take items from find")
    with open_hdf5(item.path, FORM) as file:
        clip = member(file, item.key)
        if (
            clip.dtype != np.uint8
            or clip.ndim != 3
            or not 0 < clip.shape[0] <= MOST_FRAMES
            or min(clip.shape[1:]) < 2
            or clip.shape[1] * clip.shape[2] > MOST_PIXELS
        ):
            raise BadInput(item.path, f"holds {item.key} as {clip.dtype} of {clip.shape}", "choose another reader")
        return np.asarray(clip[()])
