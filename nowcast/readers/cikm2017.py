"""CIKM AnalytiCup 2017: radar reflectivity around sites in Shenzhen, clips of 15 frames six minutes apart.

The contest's ``train.txt``, ``testA.txt`` and ``testB.txt`` hold a sample a line: its name, the rain that
followed, then 15 times 4 heights times 101 x 101 grey levels, -1 where there is none. Of the heights the
topmost, 3.5 km, is taken, as the literature does. The train file has 17 GB: items are blocks of bytes, an
item holds the lines that begin in its block. Also ``cikm.h5``, the division of these samples by the
authors of DiffCast into 8000, 2000 and 4000.

Levels are made dBZ by 95/255 v - 10, as the contest's papers do. Papers that follow DiffCast score
90/255 v instead: their 20, 30, 35 and 40 dBZ are 11.1, 21.7, 26.9 and 32.2 dBZ here. Time, place and
orientation are not published: frames count from 1970, and a pixel is a square kilometre somewhere.

Source: http://cikmconference.org/CIKM2017/CIKM_AnalytiCup_task1.html; Yu et al. (2024), DiffCast, CVPR.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers.decoding import decoding
from nowcast.readers.hdf5 import member, open_hdf5
from nowcast.readers.items import Item, files, part

TITLE = "CIKM AnalytiCup 2017 radar reflectivity of Shenzhen"
LICENCE = "competition and research use, Shenzhen Meteorological Bureau and Alibaba Group"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("train.txt", "test[AB].txt", "test[AB]", "*.h5")

FORM = "a CIKM 2017 file"
LINE = re.compile(rb"\w+_\d+,\s*[-+.\deE]*,(\s*-?\d+[ ,])+")
FRAMES, HEIGHTS, SHAPE = 15, 4, (101, 101)
HEIGHT = 3
"""Of 0.5, 1.5, 2.5 and 3.5 km."""
STEP_SECONDS = 360
GAIN, OFFSET = 19, -510
QUANTUM = 1 / 51
"""dBZ; 19 of them are 95/255, the step of a level, and 510 are 10 dBZ."""
MISSING = 255
"""In 8 bits: -1 that wrapped, for no echo has 85 dBZ."""
BLOCK, LONGEST = 2**24, 2**22
"""Bytes of text in an item, and in a line at most."""
CLIPS = 64
SPLITS = ("train", "valid", "test")


def recognises(path: Path) -> bool:
    """Whether a text begins with a line of a sample, or an HDF5 file holds samples of a split."""
    if path.suffix.lower() != ".h5":
        with path.open("rb") as stream:
            return LINE.match(stream.read(256)) is not None
    with h5py.File(path, "r") as file:
        return any(f"{split}/sample_1" in file for split in SPLITS)


def find(source: Path) -> Iterator[Item]:
    """Find the samples of the files in a folder, or of one file, in the order of the files."""
    paths = files(source, *PATTERNS)
    if source.is_dir():
        paths = [path for path in paths if _recognised(path)]
    if not paths:
        raise BadInput(source, "holds no file of CIKM 2017", "check the path and the reader")
    if len({path.suffix.lower() == ".h5" for path in paths}) > 1:
        raise BadInput(source, "holds the contest's text and a division of it in HDF5", "name the files of one")
    for path in paths:
        keys = _numbers(path) if path.suffix.lower() == ".h5" else _blocks(path.stat().st_size)
        yield from (Item(path, key) for key in keys)


def read(item: Item) -> xr.Dataset:
    """Read some samples, each a sequence: ``reflectivity`` in dBZ from -10 on, NaN where there is none.

    Raises:
        BadInput: If a line or a clip is not a sample.
    """
    with decoding(item.path, FORM):
        if item.path.suffix.lower() == ".h5":
            split, samples = item.key.split("/")[0], dict(_clips(item))
        else:
            split = "train" if item.path.stem == "train" else "test"
            samples = dict(_lines(item))
        if not samples:
            raise BadInput(item, "holds no sample", "take items from find")
        values = np.concatenate([_dbz()[levels] for levels in samples.values()])
    time = np.tile(np.datetime64(0, "s") + np.arange(FRAMES) * STEP_SECONDS, len(samples))
    attrs = {
        "title": TITLE,
        "source": item.path.name,
        "licence": LICENCE,
        "institution": "Shenzhen Meteorological Bureau",
    }
    cube = make(
        {"reflectivity": values},
        time,
        _grid(),
        sequence=[name for name in samples for _ in range(FRAMES)],
        split=split,
        quantum=QUANTUM,
        attrs=attrs,
    )
    return check(cube, item)


@lru_cache(maxsize=1)
def _dbz() -> np.ndarray:
    """Value of every level; the last, which is level -1 too, stands for no data."""
    return np.append((GAIN * np.arange(256) + OFFSET).astype(np.float32) * np.float32(QUANTUM), np.float32(np.nan))


@lru_cache(maxsize=1)
def _grid() -> Grid:
    return Grid.picture(SHAPE)


# --- lines of text --------------------------------------------------------------------------------


def _blocks(size: int) -> Iterator[str]:
    """Cut a file into blocks in each of which a line begins."""
    starts = [start for start in range(0, max(size, 1), BLOCK) if start == 0 or size - start > LONGEST]
    for start, stop in zip(starts, [*starts[1:], size], strict=True):
        yield f"{start}:{stop}"


def _lines(item: Item) -> Iterator[tuple[str, np.ndarray]]:
    """Names and levels (time, y, x) of the samples whose lines begin in a block."""
    block = part(item)
    with item.path.open("rb") as stream:
        if block.start:
            stream.seek(block.start - 1)
            _line(stream, item.path)
        while stream.tell() < block.stop and (line := _line(stream, item.path)):
            if line.strip():
                yield _sample(line, item.path)


def _line(stream: BinaryIO, path: Path) -> bytes:
    line = stream.readline(LONGEST + 1)
    if len(line) > LONGEST:
        raise BadInput(path, "holds a line longer than any sample", "choose the reader for this file")
    return line


def _sample(line: bytes, path: Path) -> tuple[str, np.ndarray]:
    if not LINE.match(line[:256]):
        raise BadInput(path, f"holds the line {line[:20].decode(errors='replace')!r}", "fetch it again")
    name, _, text = line.split(b",", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # at what is no number
        levels = np.fromstring(text.replace(b",", b" "), np.int32, sep=" ")
    sample = name.decode().strip()
    if levels.size != FRAMES * HEIGHTS * SHAPE[0] * SHAPE[1]:
        raise BadInput(path, f"holds {levels.size} levels of {sample}", "fetch it again")
    levels = levels.reshape(FRAMES, HEIGHTS, *SHAPE)[:, HEIGHT]
    if levels.min() < -1 or levels.max() > 255:
        raise BadInput(path, f"holds levels {levels.min()} to {levels.max()} of {sample}", "fetch it again")
    return f"{path.stem}/{sample}", levels


# --- clips of HDF5 --------------------------------------------------------------------------------


def _recognised(path: Path) -> bool:
    with suppress(BadInput), decoding(path, FORM):  # a damaged file is nobody's
        return recognises(path)
    return False


def _numbers(path: Path) -> Iterator[str]:
    """Keys ``train/1:65``: the samples of a group whose numbers lie in a range."""
    with open_hdf5(path, FORM) as file:
        found = {
            split: [int(key[7:]) for key in file[split] if re.fullmatch(r"sample_\d{1,9}", key)]
            for split in SPLITS
            if split in file
        }
    if not any(found.values()):
        raise BadInput(path, "holds no samples in train, valid and test", "choose the reader for this file")
    for split, numbers in found.items():
        for start in sorted({number - (number - 1) % CLIPS for number in numbers}):
            yield f"{split}/{start}:{start + CLIPS}"


def _clips(item: Item) -> Iterator[tuple[str, np.ndarray]]:
    match = re.fullmatch(r"(train|valid|test)/(\d+):\d+", item.key)
    if not match:
        raise BadInput(item.path, f"has no part {item.key or '(none named)'}", "take items from find")
    with open_hdf5(item.path, FORM) as file:
        group = member(file, match[1])
        for number in range(int(match[2]), int(match[2]) + CLIPS):
            if (key := f"sample_{number}") in group:
                yield f"{match[1]}/{key}", _levels(group[key], item.path)


def _levels(clip: h5py.Dataset, path: Path) -> np.ndarray:
    if clip.shape != (FRAMES, *SHAPE):
        raise BadInput(path, f"holds {clip.name} of {clip.shape}", "choose the reader for this file")
    values: np.ndarray = clip[()]
    with np.errstate(invalid="ignore"):
        levels = values.astype(np.int16)
    if (levels != values).any() or levels.min() < -1 or levels.max() > 255:
        raise BadInput(path, f"holds {clip.name}, which is no grey level", "choose the reader for this file")
    levels[levels == MISSING] = -1
    return levels
