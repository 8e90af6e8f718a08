"""HKO-7: reflectivity at 2 km around Hong Kong, 2009 to 2015, one grey PNG every six minutes.

``radarPNG/YYYY/MM/DD/RADyymmddHHMM00.png`` with masks of usable pixels in ``radarPNG_mask``. Where those
are not there but ``mask_dat.npz`` is, the benchmark's rule makes them: neither excluded pixels nor echoes
weaker than 9.6 dBZ. A source may be the root, any folder in it, one picture, or a day list of the
benchmark (lines ``YYYYMMDD, rain_mm`` or more numbers). Where the benchmark's three day lists lie in the
root, above it or in ``hko_data``, frames carry the split of their day.

Two things are not documented. The stamps in the names are taken as UTC. The domain is taken as 512 km
square around the radar on Tai Mo Shan, equidistant from it: good to a few kilometres on a map, and of
no consequence for scores.

Source: Shi et al. (2017), Deep learning for precipitation nowcasting: a benchmark and a new model,
NeurIPS (arXiv:1706.03458).
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import stamps
from nowcast.readers.decoding import decoding, grey_png
from nowcast.readers.items import Item, files

TITLE = "HKO-7 radar reflectivity around Hong Kong"
LICENCE = "research use under an undertaking to the Hong Kong Observatory"
CADENCE = 360
FILE_BY_FILE = False
PATTERNS = ("RAD*.png",)

SHAPE = (480, 480)
SIDE = 512_000.0
TAI_MO_SHAN = "+proj=aeqd +lat_0=22.4117 +lon_0=114.1242 +ellps=WGS84 +units=m"
ZR = (58.53, 1.56)
"""a, b of Z = a R^b, fitted by the Observatory for this data set."""
QUANTUM = 2 / 51
"""dBZ; divides both the step of a grey level (70/255) and the offset of -10."""
DBZ = (7 * np.arange(256) - 255).astype(np.float32) * np.float32(QUANTUM)
"""Of every grey level p: 70 p / 255 - 10."""
WEAK = 71
"""The benchmark's masks bar grey levels from 1 to below this: 0.28 of 255."""
SPLITS = ("train", "valid", "test")
TOLERATED_GAP = 2
"""Missing frames in a row that the benchmark accepts inside a clip."""


def recognises(path: Path) -> bool:
    """Whether the name is that of a radar picture."""
    return re.fullmatch(r"RAD\d{12}\.png", path.name) is not None


def find(source: Path) -> Iterator[Item]:
    """Find the pictures of a folder, file or day list, in time order."""
    if source.suffix.lower() == ".txt" and source.is_file():
        yield from map(Item, _listed(source))
    else:
        yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one picture: ``reflectivity`` in dBZ, -10 where nothing echoed, NaN where the mask bars it.

    Raises:
        BadInput: If it is not a picture of this data set.
    """
    stamp = re.match(r"RAD(\d{10})", item.path.name)
    if not stamp:
        raise BadInput(item.path, "carries no time", "keep names such as RAD150510030000.png")
    with decoding(item.path, "an HKO-7 picture"):
        year, *others = map(int, re.findall("..", stamp[1]))
        time = stamps.moment(2000 + year, *others)
    levels = grey_png(item.path, SHAPE)
    usable, kind = _usable(item.path, levels)
    values = np.where(usable, DBZ[levels], np.float32(np.nan))
    attrs = {
        "title": TITLE,
        "source": item.path.name,
        "licence": LICENCE,
        "institution": "Hong Kong Observatory",
        "zr_a": ZR[0],
        "zr_b": ZR[1],
        "tolerated_gap": TOLERATED_GAP,
        "mask": kind,
    }
    cube = make(
        {"reflectivity": values[None]},
        [time],
        _grid(),
        split=_split(item.path, f"20{stamp[1][:6]}"),
        cadence=CADENCE,
        quantum=QUANTUM,
        attrs=attrs,
    )
    return check(cube, item.path)


@lru_cache(maxsize=1)
def _grid() -> Grid:
    return Grid.regular(TAI_MO_SHAN, SHAPE, upper_left=(-SIDE / 2, SIDE / 2), pixel=(SIDE / SHAPE[1], SIDE / SHAPE[0]))


# --- days -----------------------------------------------------------------------------------------


def _listed(path: Path) -> Iterator[Path]:
    """Pictures of the days in a list, which is in no order."""
    days = sorted(_days(path, path.stat().st_mtime_ns))
    root = next((parent / "radarPNG" for parent in path.resolve().parents if (parent / "radarPNG").is_dir()), None)
    if root is None:
        raise BadInput(path, "has no folder radarPNG beside or above it", "put it there")
    pictures = [picture for day in days for picture in sorted((root / day[:4] / day[4:6] / day[6:]).glob("RAD*.png"))]
    if not pictures:
        raise BadInput(path, f"lists no day that is in {root}", "get the days of this list")
    yield from pictures


@lru_cache(maxsize=8)
def _days(path: Path, modified: int) -> frozenset[str]:
    with decoding(path, "a list of days"):
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not lines or not all(re.match(r"\d{8}(\D|$)", line) for line in lines):
        raise BadInput(path, "is not a list of days", "give lines such as 20150107, 0.1")
    return frozenset(line[:8] for line in lines)


def _split(path: Path, day: str) -> str | None:
    """Find the split whose list names the day, "" if none does; None where there are no lists."""
    for parent in path.absolute().parents:
        for folder in (parent, parent / "hko_data"):
            lists = {split: folder / f"hko7_rainy_{split}_days.txt" for split in SPLITS}
            present = {split: found for split, found in lists.items() if found.is_file()}
            if present:
                named = (split for split, found in present.items() if day in _days(found, found.stat().st_mtime_ns))
                return next(named, "")
    return None


# --- masks ----------------------------------------------------------------------------------------


def _usable(path: Path, levels: np.ndarray) -> tuple[np.ndarray, str]:
    """(row, column) pixels that may be used, and where that is known from."""
    mask = Path(*("radarPNG_mask" if part == "radarPNG" else part for part in path.parts)).with_suffix(".mask")
    if mask.is_file():
        return _unpacked(mask), "of the frame"
    for parent in path.absolute().parents:
        for shared in (parent / "mask_dat.npz", parent / "hko_data" / "mask_dat.npz"):
            if shared.is_file():
                weak = (levels > 0) & (levels < WEAK)
                return ~(_excluded(shared, shared.stat().st_mtime_ns) | weak), "by the rule, with mask_dat.npz"
    return np.ones(SHAPE, bool), "none"


def _unpacked(path: Path) -> np.ndarray:
    with decoding(path, "an HKO-7 mask"):
        flags = zlib.decompressobj().decompress(path.read_bytes(), SHAPE[0] * SHAPE[1] + 1)
        return np.frombuffer(flags, np.uint8).reshape(SHAPE).astype(bool)


@lru_cache(maxsize=4)
def _excluded(path: Path, modified: int) -> np.ndarray:
    with decoding(path, "HKO-7's mask_dat.npz"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "created on Python 2"
        with np.load(path) as masks:
            return np.asarray(masks["exclude_mask"].reshape(SHAPE) != 0)
