"""BAIR robot pushing: an arm among toys, 30 frames a trajectory, 64 x 64 pixels in colour.

``softmotion30_44k/{train,test}/traj_<a>_to_<b>.tfrecords``, 256 trajectories in a file. A record is a
``tf.train.Example`` whose features ``<frame>/image_aux1/encoded`` hold the bytes of a picture, without
compression; the second camera, ``image_main``, is left out as in the benchmarks. TensorFlow is not needed.
Also the folders that such files are converted to, ``processed_data/{train,test}/traj_<a>_to_<b>/<k>/<frame>.png``.

``traj_256_to_511`` of the training part is the validation part, as is usual.

Source: Ebert et al. (2017), Self-supervised visual planning with temporal skip connections
(arXiv:1710.05268); https://www.tensorflow.org/tutorials/load_data/tfrecord for the framing and
https://protobuf.dev/programming-guides/encoding for the records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
import xarray as xr
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.readers import pixels
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files, fits, natural, part, parts, walk

TITLE = "BAIR robot pushing"
LICENCE = "see arXiv:1710.05268, Berkeley AI Research"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("traj_*.tfrecords", "[0-9]*.png")

FORM = "a file of BAIR trajectories"
CAMERA = "image_aux1"
SHAPE = (64, 64, 3)
FRAMES = 30
NAME = r"traj_\d+_to_\d+"
VALID = "traj_256_to_511"
LARGEST = 2**21
"""Bytes of a record; with two cameras it has 0.75 million."""
VARINT, EIGHT_BYTES, RUN, FOUR_BYTES = 0, 1, 2, 5
"""Wire types of a protocol buffer."""


def recognises(path: Path) -> bool:
    """Whether this is a TFRecord of such a name, or a picture in a folder of trajectories."""
    if path.suffix.lower() == ".png":
        return path.stem.isdecimal() and path.parent.name.isdecimal() and bool(_named(path.parents[1]))
    return bool(_named(path)) and next(_records(path), None) is not None


def find(source: Path) -> Iterator[Item]:
    """Find the trajectories of a file or folder, some dozen in an item."""
    if source.suffix.lower() == ".png" and source.is_file():
        source = source.parent
    recorded = not source.is_dir() or any(fits(name, PATTERNS[:1]) for _, _, names in walk(source) for name in names)
    if not recorded and (converted := list(_converted(source.absolute()))):
        yield from converted
        return
    for path in files(source, PATTERNS[0]):
        try:
            with decoding(path, FORM):
                keys = _keys(sum(1 for _ in _records(path)))
        except BadInput:
            keys = [""]  # so that a damaged file is refused by itself, when it is read
        yield from (Item(path, key) for key in keys)


def read(item: Item) -> xr.Dataset:
    """Read some trajectories: ``red``, ``green`` and ``blue`` from 0 to 1.

    Raises:
        BadInput: If a file is not of this data set.
    """
    path = item.path
    with decoding(path, FORM):
        names, clips = _drawn(path, item) if path.is_dir() else _recorded(path, item)
    if not names:
        raise BadInput(path, f"has no trajectories {item.key}", "take items from find")
    name, folder = path.name.removesuffix(".tfrecords"), path.absolute().parent.name
    where = f"{folder}/{name}" if folder in ("train", "test") else name
    split = {"train": "valid" if name == VALID else "train", "test": "test"}.get(folder)
    attrs = {"title": TITLE, "source": path.name, "licence": LICENCE, "institution": "UC Berkeley"}
    labels = (f"{where}/{number}" for number in names)
    return pixels.video(item, zip(labels, repeat(0), clips), split=split, attrs=attrs)


def _named(path: Path) -> re.Match[str] | None:
    return re.fullmatch(NAME, path.name.removesuffix(".tfrecords"))


def _keys(count: int) -> list[str]:
    return list(parts(count, (FRAMES, *SHAPE)))


# --- records --------------------------------------------------------------------------------------


def _recorded(path: Path, item: Item) -> tuple[list[str], list[np.ndarray]]:
    """Numbers and frames of the trajectories that an item names."""
    places = list(_records(path))
    taken = part(item)
    if taken.stop > len(places):
        raise BadInput(path, f"holds {len(places)} trajectories, not {taken.stop}", "fetch it again")
    with path.open("rb") as stream:
        clips = [_frames(path, _record(path, stream, *place)) for place in places[taken]]
    return [str(number) for number in range(taken.start, taken.stop)], clips


def _records(path: Path) -> Iterator[tuple[int, int]]:
    """First byte and length of every record."""
    place, size = 0, path.stat().st_size
    with path.open("rb") as stream:
        while place < size:
            stream.seek(place)
            head = stream.read(12)
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or _checksum(head[:8]) != head[8:] or length > LARGEST:
                raise BadInput(path, f"is damaged at byte {place} or holds no records", "fetch it again")
            if place + length + 16 > size:
                raise BadInput(path, f"ends inside the record at byte {place}", "fetch it again")
            yield place + 12, length
            place += length + 16


def _record(path: Path, stream: BinaryIO, place: int, length: int) -> memoryview:
    stream.seek(place)
    record = stream.read(length)
    if _checksum(record) != stream.read(4):
        raise BadInput(path, f"is damaged in the record at byte {place}", "fetch it again")
    return memoryview(record)


def _checksum(content: bytes) -> bytes:
    """CRC-32C, turned by 15 bits and shifted as TensorFlow does."""
    crc: int = google_crc32c.value(content)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def _frames(path: Path, example: memoryview) -> np.ndarray:
    """(frame, row, column, colour) uint8 of one trajectory."""
    pictures = {}
    for features in _fields(example, 1):
        for entry in _fields(features, 1):
            name = b"".join(map(bytes, _fields(entry, 1))).decode()
            if match := re.fullmatch(rf"(\d{{1,6}})/{CAMERA}/encoded", name):
                kinds = [kind for feature in _fields(entry, 2) for kind in _fields(feature, 1)]
                pictures[int(match[1])] = b"".join(value for kind in kinds for value in _fields(kind, 1))
    if sorted(pictures) != list(range(len(pictures))) or not pictures:
        raise BadInput(path, f"has a record without pictures or with gaps in {CAMERA}", "fetch it again")
    frames = [np.frombuffer(pictures[number], np.uint8).reshape(SHAPE) for number in sorted(pictures)]
    return np.stack(frames)


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Find the runs of bytes under one number in a protocol buffer.

    Raises:
        ValueError: If it is none.
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        length = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind, 0)
        if kind in (VARINT, RUN):
            value, place = _varint(message, place)
            length = value if kind == RUN else 0
        elif not length:
            raise ValueError(f"wire type {kind}")
        if place + length > len(message):
            raise ValueError("a field ends beyond its message")
        if number == wanted and kind == RUN:
            yield message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Decode a number in groups of 7 bits, the lowest first; also the place after it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = message[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 64 bits")


# --- converted folders ----------------------------------------------------------------------------


def _converted(source: Path) -> Iterator[Item]:
    """Find the trajectories under a folder, or that one trajectory."""
    if source.name.isdecimal() and _named(source.parent):
        place = _pictures(source.parent).index(source)
        yield Item(source.parent, f"{place}:{place + 1}")
        return
    folders = []
    for root, below, _ in walk(source):
        if _named(root):
            folders.append(root)
            below.clear()
    for folder in sorted(folders, key=lambda path: (natural(path.name), str(path))):
        yield from (Item(folder, key) for key in _keys(len(_pictures(folder))))


def _pictures(folder: Path) -> list[Path]:
    """Folders of one trajectory each."""
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _drawn(folder: Path, item: Item) -> tuple[list[str], list[np.ndarray]]:
    """Names and frames of the trajectories that an item names."""
    taken = _pictures(folder)[part(item)]
    return [path.name for path in taken], [_trajectory(path) for path in taken]


def _trajectory(folder: Path) -> np.ndarray:
    names = {path.name for path in folder.glob("*.png")}
    missing = {f"{number}.png" for number in range(len(names))} - names
    if missing or not names:
        raise BadInput(folder, f"lacks {min(missing, key=natural, default='0.png')}", "convert it again")
    return np.stack([_picture(folder / f"{number}.png") for number in range(len(names))])


def _picture(path: Path) -> np.ndarray:
    with decoding(path, "a PNG image"), Image.open(path, formats=["PNG"]) as image:
        if image.size != SHAPE[1::-1] or image.mode != "RGB":
            raise BadInput(
                path,
                f"has {image.size[1]}x{image.size[0]} pixels of mode {image.mode}, not 64x64 of RGB",
                "choose the reader for this source",
            )
        return np.asarray(image)
