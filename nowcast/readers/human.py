"""Human3.6M as OpenSTL and STRPM use it: people filmed by four cameras, colour pictures at their own size.

``human/images/S1_Directions.54138969_000226.jpg`` with the lists ``train.txt`` and ``test.txt``. A line
``images/S1_Directions.54138969_,226,296`` is a clip: every fifth frame from 226 to 296.

The clips overlap many times. Each picture is kept once, in sequences of every fifth frame of one video that together
hold exactly the frames of the listed clips, so that each clip is a window of one sequence. Time is the number of the
frame in seconds, five from one picture to the next. The label ends in the first frame:
``train/S1_Directions.54138969/226``.

Source: Ionescu et al. (2014), Human3.6M, IEEE TPAMI 36, 1325-1339; Chang et al. (2022), STRPM, CVPR, for the lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from PIL import Image

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.units import COLOURS
from nowcast.readers import pixels, stills
from nowcast.readers.decoding import decoding
from nowcast.readers.items import ITEM_BYTES, Item, natural

TITLE = "Human3.6M pictures"
LICENCE = "academic use under the licence of Human3.6M (vision.imar.ro/human3.6m)"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("S*.jpg", "train.txt", "test.txt")

LISTS = ("train", "test")
STEP = 5
"""Frames of the video from one picture of a clip to the next."""
VIDEO = r"S\d{1,3}_[\w -]+\.\d+"
PICTURE = re.compile(rf"({VIDEO})_(\d{{6}})\.jpg")
LINE = re.compile(rf"((?:[\w-]+/)*)({VIDEO})_,\s*(\d{{1,6}}),\s*(\d{{1,6}})")
KEY = re.compile(r"(train|test):(\d{1,6}):(\d{1,6})-(\d{1,6})")
LONGEST = 1000
"""Pictures in a listed clip."""
NATIVE = (1002, 1000)
"""Rows, columns of the largest of the four cameras."""

Frames = dict[tuple[str, str], np.ndarray]
"""(folder, video) -> sorted numbers of the frames that its clips use."""


def recognises(path: Path) -> bool:
    """Whether the name is that of a picture, or a list begins with one."""
    if path.suffix.lower() == ".jpg":
        return PICTURE.fullmatch(path.name) is not None
    with path.open() as stream:
        return LINE.fullmatch(stream.readline(200).strip()) is not None


def find(source: Path) -> Iterator[Item]:
    """Find the sequences of both lists, of one list, or the one picture that is named."""
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    root = _root(source)
    lists = {name: _listed(root / f"{name}.txt") for name in LISTS if (root / f"{name}.txt").is_file()}
    if len(lists) == 2:
        _check_apart(root, lists["train"], lists["test"])
    wanted = [split for split in lists if source.suffix.lower() != ".txt" or source.stem == split]
    items = [item for split in wanted for item in _items(root, split, lists[split], PICTURE.fullmatch(source.name))]
    if not items:
        raise BadInput(source, "is in no clip of train.txt or test.txt", "name a picture that is, or the folder human/")
    yield from items


def read(item: Item) -> xr.Dataset:
    """Pictures of one sequence: ``red``, ``green``, ``blue``.

    Raises:
        BadInput: If one is missing or is not what it should be.
    """
    name, key = PICTURE.fullmatch(item.path.name), KEY.fullmatch(item.key)
    if not name or not key or int(name[2]) != int(key[3]) or int(key[4]) > int(key[3]) + LONGEST * STEP:
        raise BadInput(item.path, f"has no part {item.key or '(none named)'}", "take items from find")
    split, (run, first, last) = key[1], map(int, key.groups()[1:])
    numbers = np.arange(first, last + 1, STEP)
    paths = [item.path.with_name(f"{name[1]}_{number:06}.jpg") for number in numbers]
    frames = stills.stack(paths, "JPEG", take=stills.COLOUR)
    attrs = {"title": TITLE, "source": item.path.name, "licence": LICENCE, "institution": "IMAR"}
    fields = {colour: frames[..., index] / np.float32(255) for index, colour in enumerate(COLOURS)}
    cube = make(
        fields,
        np.datetime64(0, "s") + numbers,
        pixels.picture(frames.shape[1:3]),
        split=split,
        sequence=f"{split}/{name[1]}/{run}",
        levels=pixels.LEVELS,
        attrs=attrs,
    )
    return check(cube, item)


# --- the lists ------------------------------------------------------------------------------------


def _root(source: Path) -> Path:
    """Find the folder of the lists."""
    folder = source.absolute()
    nearby = (folder, folder / "human", folder.parent, folder.parent.parent)
    for root in nearby[:3] if source.is_dir() else nearby[2:]:
        if any((root / f"{name}.txt").is_file() for name in LISTS):
            return root
    raise BadInput(source, "holds no train.txt or test.txt", "name the folder of the lists, human/")


def _listed(path: Path) -> Frames:
    clips: dict[tuple[str, str], list[np.ndarray]] = {}
    with decoding(path, "a list of clips"), path.open() as stream:
        for number, line in enumerate(stream, 1):
            match = LINE.fullmatch(line.strip())
            first, last = (int(match[3]), int(match[4])) if match else (0, -1)
            if match and first <= last < first + LONGEST * STEP:
                clips.setdefault((match[1], match[2]), []).append(np.arange(first, last + 1, STEP))
            elif line.strip():
                raise BadInput(path, f"has no clip in line {number}", "give images/S1_Directions.54138969_,226,296")
    if not clips:
        raise BadInput(path, "lists no clips", "fetch it again")
    return {video: np.unique(np.concatenate(frames)) for video, frames in clips.items()}


def _check_apart(root: Path, train: Frames, test: Frames) -> None:
    for folder, video in train.keys() & test.keys():
        shared = np.intersect1d(train[folder, video], test[folder, video])
        if shared.size:
            raise BadInput(
                root / folder / f"{video}_{shared[0]:06}.jpg",
                "is in clips of train.txt and of test.txt",
                "take it out of one of them",
            )


def _items(root: Path, split: str, videos: Frames, picture: re.Match[str] | None) -> Iterator[Item]:
    """Parts of the sequences of a list; with ``picture`` only that one."""
    most = 0
    for folder, video in sorted(videos, key=lambda place: natural(place[1])):
        if picture and video != picture[1]:
            continue
        for run in _runs(videos[folder, video]):
            wanted = run[run == int(picture[2])] if picture else run
            most = most or _most(root / folder / f"{video}_{run[0]:06}.jpg")
            for first in wanted[::most].tolist():
                last = min(first + (most - 1) * STEP, int(wanted[-1]))
                yield Item(root / folder / f"{video}_{first:06}.jpg", f"{split}:{run[0]}:{first}-{last}")


def _runs(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Unbroken stretches of every fifth frame."""
    ordered = frames[np.lexsort((frames, frames % STEP))]
    yield from np.split(ordered, np.flatnonzero(np.diff(ordered) != STEP) + 1)


def _most(picture: Path) -> int:
    """Count the pictures of an item, by the size of one of them."""
    try:
        with decoding(picture, "a JPEG picture"), Image.open(picture, formats=["JPEG"]) as image:  # the header alone
            columns, rows = image.size
    except BadInput:  # read will say what is wrong
        rows, columns = NATIVE
    return max(1, min(LONGEST, ITEM_BYTES // (4 * len(COLOURS) * max(1, rows * columns))))
