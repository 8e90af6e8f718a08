"""KTH: 25 people in six actions before a still camera, grey, 160 x 120 pixels at 25 frames a second.

Two forms are read, at their own size:

- the original videos ``personPP_<action>_dD_uncomp.avi``, divided into the sequences that ``00sequences.txt`` lists
  where it lies beside them or in the folder above; a video that it does not list is one sequence;
- folders of pictures ``<action>/personPP_<action>_dD_uncomp/image_0257.jpg``, numbered like the frames, as E3D-LSTM
  and PredRNN use them. Frames without a person are left out there: a gap begins a new sequence.

Frames count from 1, as both forms do, and the number is the time in seconds. The label of a sequence ends in its
first frame: ``train/boxing/person01_boxing_d1/96``. Grey is the red channel, as the reference loaders take it. People
1 to 16 train and 17 to 25 test, as in PredRNN; the authors of the data divided them otherwise.

Source: Schuldt et al. (2004), Recognizing human actions: a local SVM approach, ICPR; Wang et al. (2017), PredRNN, for
the folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.readers import pixels, stills
from nowcast.readers.decoding import decoding, optional
from nowcast.readers.items import ITEM_BYTES, Item, walk

TITLE = "KTH human actions"
LICENCE = "non-commercial use, KTH Royal Institute of Technology (csc.kth.se/cvap/actions)"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("person*.avi", "image_*.jpg")

CLIP = re.compile(r"(person(\d\d)_(boxing|handclapping|handwaving|jogging|running|walking)_d\d)(_uncomp)?")
PICTURE = re.compile(r"image_(\d{4})\.jpg")
SEQUENCES = "00sequences.txt"
LISTED = re.compile(r"\s*(person\d\d_[a-z]+_d\d)\s+frames\b(.*)")
PIECE = re.compile(r"(\d{1,6}):(\d{1,6})-(\d{0,6})")

SHAPE = (120, 160)
"""Of the videos; pictures may have been resized."""
LARGEST = 256
"""Side of a picture, in pixels, for which items are small enough."""
TRAINED = 16
"""The last person to train on."""
MOST_PIXELS = str(2**18)
"""In a frame, whatever a damaged header says; the decoder's own margins count."""
LONGEST = 100_000
"""Frames of a video; a header that states more is not believed."""
SLACK = 25
"""Frames that a header may count and the stream not hold: the codec of the videos can keep some back."""
LARGEST_LIST = 2**20


@dataclass(frozen=True)
class Piece:
    """Frames ``first`` to ``last`` of the sequence that begins at ``run``; ``last`` 0: to the end of the video."""

    run: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.run}:{self.first}-{self.last or ''}"


def recognises(path: Path) -> bool:
    """Whether this is a video of such a name, or a picture in a folder of a clip."""
    if path.suffix.lower() == ".avi":
        with path.open("rb") as stream:
            return CLIP.fullmatch(path.stem) is not None and stream.read(12)[8:] == b"AVI "
    return PICTURE.fullmatch(path.name) is not None and CLIP.fullmatch(path.parent.name) is not None


def find(source: Path) -> Iterator[Item]:
    """Find the clips of a folder, video or picture, by the names of folders and files."""
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    videos: list[Item] = []
    pictures: list[Item] = []
    for folder, names in _folders(source):
        for name in names:
            if name.lower().endswith(".avi") and CLIP.fullmatch(name[:-4]):
                videos += _of_video(folder / name)
        if CLIP.fullmatch(folder.name):
            pictures += _of_folder(folder, [int(match[1]) for name in names if (match := PICTURE.fullmatch(name))])
    if videos and pictures:
        raise BadInput(source, "holds KTH as videos and as pictures", "name the folder of one of the two")
    if not videos and not pictures:
        raise BadInput(
            source,
            "holds neither person01_boxing_d1_uncomp.avi nor person01_boxing_d1/image_0001.jpg or the like",
            "check the path and the reader",
        )
    yield from videos or pictures


def read(item: Item) -> xr.Dataset:
    """Read some sequences of one clip, or a part of one: ``intensity``.

    Raises:
        BadInput: If a picture or frame is missing or is not what it should be.
    """
    video = item.path.suffix.lower() == ".avi"
    clip = CLIP.fullmatch(item.path.stem if video else item.path.parent.name)
    if not clip:
        raise BadInput(item.path, "is not of a clip such as person01_boxing_d1", "keep the names of the source")
    pieces = _pieces(item)
    frames = _decoded(item.path, pieces) if video else _pictured(item.path.parent, pieces)
    last = max(frames, default=0)
    chosen = [
        (piece.run, number)
        for piece in pieces
        for number in range(piece.first, (piece.last or last) + 1)
        if number in frames
    ]
    if not chosen:
        raise BadInput(item.path, f"has no frame of {item.key}", "fetch it again")
    split = "train" if int(clip[2]) <= TRAINED else "test"
    labels = [f"{split}/{clip[3]}/{clip[1]}/{run}" for run, _ in chosen]
    attrs = {"title": TITLE, "source": item.path.name, "licence": LICENCE, "institution": "KTH"}
    numbers = np.array([number for _, number in chosen])
    values = np.stack([frames[number] for number in numbers.tolist()]) / np.float32(255)
    cube = make(
        {"intensity": values},
        np.datetime64(0, "s") + numbers,
        pixels.picture(values.shape[1:]),
        sequence=labels,
        split=split,
        levels=pixels.LEVELS,
        attrs=attrs,
    )
    return check(cube, item)


# --- finding clips --------------------------------------------------------------------------------


def _folders(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of the files in them, without a look at the files."""
    if source.is_file():
        yield source.absolute().parent, [source.name]
        return
    for folder, _, names in walk(source):
        yield folder.absolute(), sorted(names)


def _of_video(path: Path) -> Iterator[Item]:
    runs = _listed(path)
    if runs:
        groups = list(_cut(runs, _most(SHAPE)))
    else:
        groups = list(_cut([(1, max(1, _counted(path)))], _most(SHAPE)))
        groups[-1][-1] = replace(groups[-1][-1], last=0)  # the header may count too few
    for pieces in groups:
        yield Item(path, ",".join(map(str, pieces)))


def _of_folder(folder: Path, numbers: list[int]) -> Iterator[Item]:
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        following = runs and number == runs[-1][1] + 1
        runs = [*runs[:-1], (runs[-1][0], number)] if following else [*runs, (number, number)]
    for pieces in _cut(runs, _most((LARGEST, LARGEST))):
        # the clip is part of the key, as all of them have pictures of the same names
        yield Item(folder / f"image_{pieces[0].first:04}.jpg", f"{folder.name}/{','.join(map(str, pieces))}")


def _most(shape: tuple[int, int]) -> int:
    """Frames in an item."""
    return ITEM_BYTES // (4 * shape[0] * shape[1])


def _cut(runs: Iterable[tuple[int, int]], most: int) -> Iterator[list[Piece]]:
    """Cut runs (first, last) into groups of ``most`` frames together; the last may have fewer."""
    pieces: list[Piece] = []
    room = most
    for run, last in runs:
        first = run
        while first <= last:
            end = min(last, first + room - 1)
            pieces.append(Piece(run, first, end))
            room -= end - first + 1
            first = end + 1
            if not room:
                yield pieces
                pieces, room = [], most
    if pieces:
        yield pieces


def _listed(video: Path) -> list[tuple[int, int]]:
    """First and last frame of the sequences of a video, in order of time; they may share frames."""
    for folder in (video.parent, video.parent.parent):
        path = folder / SEQUENCES
        if path.is_file():
            clip = CLIP.fullmatch(video.stem)
            return sorted(_sequences(path, path.stat().st_mtime_ns).get(clip[1] if clip else "", ()))
    return []


@lru_cache(maxsize=4)
def _sequences(path: Path, modified: int) -> dict[str, list[tuple[int, int]]]:
    with decoding(path, "KTH's list of sequences"):
        if path.stat().st_size > LARGEST_LIST:
            raise BadInput(path, "is too large for KTH's list of sequences", "fetch it again")
        lines = path.read_text(errors="replace").splitlines()
    found = {match[1]: re.findall(r"(\d+)\s*-\s*(\d+)", match[2]) for line in lines if (match := LISTED.match(line))}
    listed = {clip: [(int(first[:7]), int(last[:7])) for first, last in ranges] for clip, ranges in found.items()}
    for clip, ranges in listed.items():
        for first, last in ranges:
            if not 1 <= first <= last <= LONGEST:
                raise BadInput(path, f"lists frames {first}-{last} of {clip}", "correct or remove it")
    return listed


def _counted(path: Path) -> int:
    """Frames that the header of an AVI counts; 0 where there is none or it cannot be believed."""
    head = b""
    with suppress(OSError), path.open("rb") as stream:  # read will say what is wrong
        head = stream.read(52)
    count = int.from_bytes(head[48:52], "little") if head[8:16] + head[20:28] == b"AVI LISThdrlavih" else 0
    return count if count <= LONGEST else 0


# --- decoding one ---------------------------------------------------------------------------------


def _pieces(item: Item) -> list[Piece]:
    matches = [PIECE.fullmatch(text) for text in item.key.rpartition("/")[2].split(",")]
    pieces = [Piece(int(match[1]), int(match[2]), int(match[3] or 0)) for match in matches if match]
    held = sum((piece.last or piece.first) - piece.first + 1 for piece in pieces)
    if len(pieces) < len(matches) or held > _most(SHAPE):
        raise BadInput(item.path, f"has no part {item.key or '(none named)'}", "take items from find")
    return pieces


def _decoded(path: Path, pieces: list[Piece]) -> dict[int, np.ndarray]:
    """Frames of a video by their number, from 1: (row, column) uint8."""
    video = optional("av", extra="video")
    colours = video.video.reformatter.VideoReformatter()  # one for all frames: making it takes longer than using it
    most = _most(SHAPE)
    ends = [piece.last or piece.first + most for piece in pieces]
    wanted = {number for piece, end in zip(pieces, ends, strict=True) for number in range(piece.first, end + 1)}
    stop = max(wanted)
    frames: dict[int, np.ndarray] = {}
    number = 0
    with decoding(path, "a KTH video in AVI", video.error.FFmpegError), video.open(str(path), format="avi") as file:
        if not file.streams.video:
            raise BadInput(path, "holds no video", "fetch it again")
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": MOST_PIXELS}
        for number, frame in enumerate(file.decode(stream), 1):
            if number > stop:
                break
            if (frame.height, frame.width) != SHAPE:
                raise BadInput(
                    path,
                    f"has {frame.height}x{frame.width} pixels, not {SHAPE[0]}x{SHAPE[1]}",
                    "give the original video",
                )
            if number in wanted:
                frames[number] = colours.reformat(frame, format="rgb24").to_ndarray()[..., 0].copy()
        counted = stream.frames if stream.frames <= LONGEST else 0
    if number < stop and number < counted - SLACK:
        raise BadInput(path, f"ends after {number} of {counted} frames", "fetch it again")
    if len(frames) > most:
        raise BadInput(path, f"holds more frames than the {counted} that its header counts", "repair the header")
    return frames


def _pictured(folder: Path, pieces: list[Piece]) -> dict[int, np.ndarray]:
    """Pictures of a folder by their number: (row, column) uint8."""
    numbers = [number for piece in pieces for number in range(piece.first, piece.last + 1)]
    paths = [folder / f"image_{number:04}.jpg" for number in numbers]
    return dict(zip(numbers, stills.stack(paths, "JPEG", take=stills.RED), strict=True))
