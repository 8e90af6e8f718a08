"""Shanghai-2020: reflectivity of the Pudong radar as grey PNGs, in examples of 10 + 10 frames.

``train/examples/<id>/<id>-inputs-train.txt`` and ``...-targets-train.txt`` name pictures in
``train/data``, and likewise ``test``. The step doubles where the targets begin. A source may be the root,
a part of it, one example, a published list of examples (Windows paths), or a folder of pictures alone,
which is then read like a live feed. The published lists ``Shanghai_2020_{train,valid,test}_examples.txt``
divide the examples of ``train`` into three: an example carries the split of the list that names it, where
the lists are the source or lie in the root or beside it; without lists it carries that of its folder.

The grid is not documented: it is taken as 460 km square around radar Z9210, equidistant from it.

Source: doi:10.5281/zenodo.7251972.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PureWindowsPath

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import stamps
from nowcast.readers.decoding import decoding, grey_png
from nowcast.readers.items import Item, files, fits, natural, walk

TITLE = "Shanghai-2020 radar reflectivity"
LICENCE = "see doi:10.5281/zenodo.7251972"
FILE_BY_FILE = False
PATTERNS = ("Z_RADR*.png",)
CADENCE = 345
"""Of the pictures alone: a volume scan takes 5 min 45 s; examples are labelled sequences."""

SHAPE = (460, 460)
PIXEL = 1000.0
PUDONG = "+proj=aeqd +lat_0=31.007 +lon_0=121.885 +ellps=WGS84 +units=m"
LEVELS = (np.arange(256) * (70 / 255)).astype(np.float32)
"""dBZ of every grey level; level 0 is no echo, and nothing is ever missing."""
SPLITS = ("train", "valid", "test")


def recognises(path: Path) -> bool:
    """Whether the name is that of a picture of the radar Z9210."""
    return re.search(r"_Z9210_\d{14}_", path.name) is not None


def find(source: Path) -> Iterator[Item]:
    """Find the examples of a folder or list by their names, else the pictures in time order."""
    if source.suffix.lower() == ".txt" and source.is_file():
        split = next((split for split in SPLITS if f"_{split}_" in source.name), "")
        yield from (Item(folder, split) for folder in _listed(source))
    elif examples := {
        place for place, _, names in walk(source) if any(fits(name, ("*-inputs-*.txt",)) for name in names)
    }:
        yield from map(Item, sorted(examples, key=lambda path: (natural(path.name), str(path))))
    else:
        yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one example as a sequence of its own, or one picture: ``reflectivity`` in dBZ, 0 where nothing echoed.

    Raises:
        BadInput: If a list or a picture is missing or is not what it should be.
    """
    example = item.path.is_dir()
    pictures = _pictures(item.path) if example else [item.path]
    values = LEVELS[np.stack([grey_png(picture, SHAPE) for picture in pictures])]
    attrs = {"title": TITLE, "source": item.path.name, "licence": LICENCE, "institution": "Z9210 Shanghai Pudong"}
    folder = item.path.parents[1].name if example else ""
    cube = make(
        {"reflectivity": values},
        [_time(picture) for picture in pictures],
        _grid(),
        levels=LEVELS,
        attrs=attrs,
        sequence=f"{folder}/{item.path.name}" if example else "",  # train and test number alike
        split=item.key or _split(item.path) if example else None,
        cadence=None if example else CADENCE,
    )
    return check(cube, item.path)


@lru_cache(maxsize=1)
def _grid() -> Grid:
    half_y, half_x = SHAPE[0] * PIXEL / 2, SHAPE[1] * PIXEL / 2
    return Grid.regular(PUDONG, SHAPE, upper_left=(-half_x, half_y), pixel=(PIXEL, PIXEL))


def _pictures(example: Path) -> list[Path]:
    """Pictures of an example in the order of its lists: inputs, then targets."""
    pictures = []
    for part in ("inputs", "targets"):
        lists = sorted(example.glob(f"*-{part}-*.txt"))
        if len(lists) != 1:
            raise BadInput(example, f"has {len(lists)} lists of {part}", f"keep one <id>-{part}-<train or test>.txt")
        with decoding(lists[0], "a list of pictures"):
            pictures += [example.parent.parent / "data" / name for name in lists[0].read_text().split()]
    if not pictures:
        raise BadInput(example, "lists no pictures", "fetch it again")
    return pictures


def _time(picture: Path) -> np.datetime64:
    stamp = re.search(r"_(\d{14})_", picture.name)
    with decoding(picture, "a picture named Z_RADR_I_Z9210_YYYYMMDDHHMMSS_O_DOR_SA_CAP.png"):
        parts = re.fullmatch(r"(\d{4})" + r"(\d\d)" * 5, stamp[1]).groups()  # type: ignore
        return stamps.moment(*map(int, parts))


def _listed(path: Path) -> Iterator[Path]:
    """Folders of the examples in a published list, whose paths are those of its author's Windows disk."""
    tails = _tails(path, path.stat().st_mtime_ns)
    first = Path(*next(iter(tails)))
    root = next((parent for parent in path.resolve().parents if (parent / first.parent).is_dir()), None)
    if root is None:
        raise BadInput(path, f"has no folder {first.parent} beside or above it", "put it into the root")
    yield from (root.joinpath(*tail) for tail in tails)


@lru_cache(maxsize=8)
def _tails(path: Path, modified: int) -> dict[tuple[str, ...], None]:
    """``(train, examples, <id>)`` of the examples in a list, in its order."""
    with decoding(path, "a list of examples"):
        lines = [PureWindowsPath(line.strip()) for line in path.read_text().splitlines() if line.strip()]
    if not lines or not all(line.parent.name == "examples" for line in lines):
        raise BadInput(path, "is not a list of examples", r"give lines such as train\examples\1")
    return {line.parts[-3:]: None for line in lines}


def _split(example: Path) -> str:
    """Of the list that names the example, "" if none does; of its folder where there are no lists."""
    example = example.absolute()
    for folder in example.parents[2:4]:
        lists = {split: folder / f"Shanghai_2020_{split}_examples.txt" for split in SPLITS}
        present = {split: path for split, path in lists.items() if path.is_file()}
        if present:
            named = (
                split for split, path in present.items() if example.parts[-3:] in _tails(path, path.stat().st_mtime_ns)
            )
            return next(named, "")
    return example.parents[1].name if example.parents[1].name in SPLITS else ""
