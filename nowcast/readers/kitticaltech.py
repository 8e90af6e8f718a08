"""KITTI to Caltech: films from a moving car, learnt on KITTI, tested on Caltech Pedestrian, 128 x 160 pixels.

- ``kitti_hkl/X_{train,val,test}.hkl`` with ``sources_*.hkl`` of PredNet: uint8 (frame, 128, 160, 3), and the
  recording of each frame. A sequence ends where the recording changes. These are HDF5 files; they are read
  as such, and what hickle pickles into them is never unpickled.
- ``caltech/set06`` to ``set10``, ``V000.seq`` ...: films of JPEG pictures. As in the benchmark every third frame
  is taken, scaled to 128 rows (bilinear after a Gaussian blur, as ``skimage.transform.resize`` does) and
  cut to the middle 160 columns; here the result is rounded to 8 bits.
- ``caltech/data_cache.npy`` with ``indices_cache.npy``: the frames of those films, and where clips begin;
  ``kitticaltech_npy/{train,test}_{data,idx}.npy``: all frames as floats from 0 to 1. These do not tell the
  films apart, so each clip is a sequence of its own, unless clips overlap.

Each frame is taken once: in a folder with several forms of it, training frames come from ``X_train.hkl`` and
``X_val.hkl``, else from ``train_data.npy``; test frames from ``data_cache.npy``, else from the films, else from
``test_data.npy``, else from PredNet's own ``X_test.hkl``. The loader of the benchmark takes Caltech's films from
OpenCV and KITTI's pictures from PredNet, so that it tests on blue, green, red what has learnt on red, green,
blue, and its cached files of Caltech begin with blue. Here red is red everywhere.

Source: Lotter et al. (2017), Deep predictive coding networks (arXiv:1605.08104), process_kitti.py; Tan et al.
(2023), OpenSTL (arXiv:2306.11249); P. Dollar's Matlab toolbox (seqReaderPlugin.m) for the films.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import xarray as xr
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.readers import arrays, pixels
from nowcast.readers.decoding import decoding
from nowcast.readers.hdf5 import open_hdf5
from nowcast.readers.items import ITEM_BYTES, Item, files, natural, part

TITLE = "KITTI to Caltech driving films"
LICENCE = "KITTI: CC BY-NC-SA 3.0; Caltech Pedestrian: see data.caltech.edu/records/f6rph-90m20"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("X_*.hkl", "data_cache.npy", "train_data.npy", "test_data.npy", "V*.seq")

FORM = "a file of KITTI or Caltech frames"
SHAPE = (128, 160, 3)
ROWS, COLUMNS = SHAPE[:2]
MOST = ITEM_BYTES // (4 * math.prod(SHAPE))
"""Frames of an item."""
CLIP, LONGEST_CLIP = 11, 20
"""Frames of a clip of the benchmark, 10 to see and 1 to foresee, and of any variant of it."""
SPLITS = {"train": "train", "val": "valid", "test": "test"}
COMPANIONS = {"data_cache.npy": "indices_cache.npy", "train_data.npy": "train_idx.npy", "test_data.npy": "test_idx.npy"}
LONGEST_LIST, LARGEST_LIST, LARGEST_TEXT = 2**20, 2**26, 2**12
"""Entries and bytes of a list of recordings or of clips, and bytes of a name in it."""
HEADER = 1024
MAGIC = struct.pack("<I", 0xFEED) + "Norpix seq".encode("utf-16-le")
FIELDS = struct.Struct("<548x9I")
"""Width, height, bits, bits in use, bytes, format, frames, 0, bytes with padding."""
JPEG = (102, 201)
"""Formats: grey, colour."""
STAMP = 8
"""Bytes of the time after every picture, which 8 empty ones may follow."""
THIRD = 3
LARGEST_SIDE, LARGEST_PICTURE = 2048, 2**24
"""Pixels of a side and bytes of a picture; Caltech's have 480 x 640."""
TEST_SETS = ("set06", "set07", "set08", "set09", "set10")


class Span(NamedTuple):
    """Frames ``start`` to ``stop`` of a file, of which the first is number ``number`` of its sequence."""

    label: str
    number: int
    start: int
    stop: int


def recognises(path: Path) -> bool:
    """Whether this is a film, an array of frames beside the file that names them, or an HDF5 dump of frames."""
    if path.suffix.lower() == ".seq":
        with path.open("rb") as stream:
            return _is_film(stream.read(HEADER))
    if path.suffix.lower() == ".npy":
        return arrays.npy(path).shape[1:] == SHAPE and _companion(path).is_file()
    with open_hdf5(path, FORM) as file:
        return len(_frames_of(file)) > 0


def find(source: Path) -> Iterator[Item]:
    """Find the films of a file or folder, in items of some hundred frames."""
    paths = files(source, *PATTERNS)
    for path in _chosen(source, paths) if source.is_dir() else paths:
        try:
            spans = _spans(path)
        except BadInput:
            yield Item(path)  # so that a damaged file is refused by itself, when it is read
        else:
            yield from (Item(path, key) for key in _groups(spans))


def read(item: Item) -> xr.Dataset:
    """Read some frames: ``red``, ``green`` and ``blue`` from 0 to 1.

    Raises:
        BadInput: If the file is not of this data set.
    """
    path = item.path
    listed, taken = _spans(path), part(item)
    spans = listed[taken]
    if taken.stop > len(listed) or not 0 < sum(span.stop - span.start for span in spans) <= MOST:
        raise BadInput(path, f"has no part {item.key} of up to {MOST} frames", "take items from find")
    with decoding(path, FORM):
        load = {".hkl": _hickled, ".npy": _cached, ".seq": _filmed}[path.suffix.lower()]
        clips = [(label, number, load(path, start, stop)) for label, number, start, stop in spans]
    attrs = {"title": TITLE, "source": path.name, "licence": LICENCE}
    return pixels.video(item, clips, split=_split(path), attrs=attrs)


def _chosen(source: Path, paths: list[Path]) -> list[Path]:
    """Choose the first of every form in which the same frames may come."""
    films = [path for path in paths if path.suffix.lower() == ".seq" and path.absolute().parent.name in TEST_SETS]
    films.sort(key=lambda path: (natural(path.parent.name), natural(path.name)))
    named = {name: [path for path in paths if path.name == name] for name in {path.name for path in paths}}
    training = named.get("X_train.hkl", []) + named.get("X_val.hkl", []) or named.get("train_data.npy", [])
    forms = (named.get("data_cache.npy"), films, named.get("test_data.npy"), named.get("X_test.hkl"))
    chosen = training + next(filter(None, forms), [])
    if not chosen:
        raise BadInput(source, "holds no frames of KITTI and no test set of Caltech", "name a file")
    return chosen


def _split(path: Path) -> str:
    return next((split for word, split in SPLITS.items() if word in path.stem.split("_")), "test")


def _companion(path: Path) -> Path:
    """Find the file that tells the clips of ``path`` apart; a film does so itself."""
    if path.suffix.lower() == ".hkl":
        return path.with_name(path.name.replace("X_", "sources_", 1))
    return path.with_name(COMPANIONS.get(path.name, path.name))


# --- sequences ------------------------------------------------------------------------------------


def _spans(path: Path) -> list[Span]:
    """List the sequences of a file, cut to the length of an item."""
    versions = []
    for file in (path, _companion(path)):
        with decoding(file, FORM):
            stat = file.stat()
        versions += [stat.st_size, stat.st_mtime_ns]
    return _listed(path, tuple(versions))


@lru_cache(maxsize=8)
def _listed(path: Path, versions: tuple[int, ...]) -> list[Span]:
    """List the spans of one version of a file and its companion."""
    with decoding(path, FORM):
        whole = {".hkl": _recordings, ".npy": _clips, ".seq": _film}[path.suffix.lower()](path)
        return [
            Span(span.label, span.number + start - span.start, start, min(start + MOST, span.stop))
            for span in whole
            for start in range(span.start, span.stop, MOST)
        ]


def _groups(spans: list[Span]) -> Iterator[str]:
    """Keys of items that hold as many spans as they can."""
    first, frames = 0, 0
    for place, span in enumerate(spans):
        length = span.stop - span.start
        if frames + length > MOST:
            yield f"{first}:{place}"
            first, frames = place, 0
        frames += length
    if frames:
        yield f"{first}:{len(spans)}"


# --- hickle ---------------------------------------------------------------------------------------


def _recordings(path: Path) -> Iterator[Span]:
    """Unbroken runs of one recording; the second run of the same one is called ``#2``."""
    with open_hdf5(path, FORM) as file:
        count = _frames_of(file).shape[0]
    sources = _companion(path)
    with open_hdf5(sources, "a list of recordings by hickle") as file:
        recordings = _texts(file, _root(file))
    if len(recordings) != count:
        raise BadInput(sources, f"names {len(recordings)} recordings for {count} frames", "fetch both again")
    start, met = 0, dict.fromkeys(recordings, 0)
    folder = "kitti-test" if path.stem == "X_test" else _split(path)  # Caltech is the test of this benchmark
    for name, run in groupby(recordings):
        stop, met[name] = start + sum(1 for _ in run), met[name] + 1
        yield Span(f"{folder}/{name}" + (f"#{met[name]}" if met[name] > 1 else ""), 0, start, stop)
        start = stop


def _root(file: h5py.File) -> h5py.Group | h5py.Dataset:
    """Find what was dumped: ``data_0`` in hickle 2 and 3, ``data`` in 1, 4 and 5."""
    for name in ("data_0", "data"):
        if name in file:
            return file[name]
    raise BadInput(file.filename, "has neither data_0 nor data", "give a file written by hickle")


def _frames_of(file: h5py.File) -> h5py.Dataset:
    node = _root(file)
    if not isinstance(node, h5py.Dataset) or node.shape is None:
        raise BadInput(file.filename, "holds no array", "fetch it again")
    if node.shape[1:] != SHAPE or node.dtype != np.uint8:
        raise BadInput(file.filename, f"holds {node.shape} of {node.dtype}", f"give uint8 frames of {SHAPE}")
    return node


def _texts(file: h5py.File, node: h5py.Group | h5py.Dataset) -> list[str]:
    """Read a list of texts in the layout of any hickle.

    One array of texts (1 to 3), or a group with a member for each: an array of one text (2), of its
    characters (4, 5), or a reference to a member with the same text (5).
    """
    if isinstance(node, h5py.Dataset):
        return [_text(value) for value in _values(node, LARGEST_LIST).ravel().tolist()]
    texts: dict[str, str] = {}
    for name in sorted(node, key=natural):
        text = node[name]
        if not isinstance(text, h5py.Dataset):
            raise BadInput(file.filename, "is damaged or not a list of recordings by hickle", "fetch it again")
        texts[f"{node.name}/{name}"] = _member_text(file, text, texts)
    return list(texts.values())


def _member_text(file: h5py.File, node: h5py.Dataset, known: dict[str, str]) -> str:
    if _refers(node):
        name = h5py.h5r.get_name(_values(node, LARGEST_TEXT).item(), file.id)
        if name is None or name.decode() not in known:
            raise BadInput(file.filename, "refers to a text that is not there", "fetch it again")
        return known[name.decode()]
    values = _values(node, LARGEST_TEXT)
    if values.dtype.itemsize == 1:
        return values.tobytes().decode()
    return _text(values.item())


def _refers(node: h5py.Dataset) -> bool:
    return h5py.check_ref_dtype(node.dtype) is h5py.Reference  # all dtypes of objects equal one another


def _values(node: h5py.Dataset, most: int) -> np.ndarray:
    """Read all of a dataset of texts, characters or references, of up to ``most`` bytes."""
    texts = h5py.check_string_dtype(node.dtype)
    if not (texts or _refers(node) or node.dtype.kind == "u"):  # HDF5 may crash on others in a damaged file
        raise BadInput(node.file.filename, f"holds {node.dtype} where a text should be", "fetch it again")
    size = _size_of_texts(node) if texts and texts.length is None else node.nbytes
    if max(size, node.nbytes) > most or node.size > LONGEST_LIST:
        raise BadInput(node.file.filename, f"has a list or a text of {size} bytes", "fetch it again")
    values = np.empty(node.shape, node.dtype)
    node.read_direct(values)
    return values


def _size_of_texts(node: h5py.Dataset) -> int:
    """Bytes of texts of any length, which HDF5 would allocate unseen: a length goes before every place in its heap."""
    entry = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
    offset, count = node.id.get_offset(), min(node.size, LONGEST_LIST)
    if offset is None:
        raise BadInput(node.file.filename, "holds a compressed list of texts", "write it without compression")
    with Path(node.file.filename).open("rb") as stream:
        stream.seek(offset)
        return int(np.fromfile(stream, entry, count)["length"].sum(dtype=np.int64))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _hickled(path: Path, start: int, stop: int) -> np.ndarray:
    with open_hdf5(path, FORM) as file:
        frames = _frames_of(file)
        if math.prod(frames.chunks or ()) > ITEM_BYTES:
            raise BadInput(path, f"is stored in chunks of {frames.chunks}", "write it in smaller ones")
        return np.asarray(frames[start:stop])


# --- cached arrays --------------------------------------------------------------------------------


def _clips(path: Path) -> Iterator[Span]:
    """Clips from where they begin, as long as the closest two are apart; those that overlap are one."""
    frames = _checked(path)
    index = arrays.npy(_companion(path))
    if index.dtype.kind not in "iu" or math.prod(index.shape) > LONGEST_LIST:
        raise BadInput(
            _companion(path), f"holds {index.shape} of {index.dtype}, not where clips begin", "fetch it again"
        )
    starts = np.unique(arrays.read(index, 0, math.prod(index.shape)).astype(np.int64)).tolist()
    if not starts or starts[0] < 0 or starts[-1] + CLIP > frames.shape[0]:
        raise BadInput(_companion(path), f"lists clips beyond {frames.shape[0]} frames", "fetch both again")
    closest = min((after - before for before, after in pairwise(starts)), default=CLIP)
    length = closest if CLIP <= closest <= LONGEST_CLIP else CLIP
    first = starts[0]
    for before, after in pairwise([*starts, frames.shape[0] + length]):
        stop = min(before + length, frames.shape[0])
        if after >= stop:
            yield Span(f"{_split(path)}/{first}", 0, first, stop)
            first = after


def _checked(path: Path) -> arrays.Array:
    frames = arrays.npy(path)
    if frames.shape[1:] != SHAPE or frames.dtype.kind not in "uf":
        raise BadInput(path, f"holds {frames.shape} of {frames.dtype}", f"give frames of {SHAPE}")
    return frames


def _cached(path: Path, start: int, stop: int) -> np.ndarray:
    size = math.prod(SHAPE)
    frames = arrays.read(_checked(path), start * size, (stop - start) * size).reshape(-1, *SHAPE)
    return frames[..., ::-1] if _split(path) == "test" else frames  # Caltech's films were read by OpenCV: blue first


# --- films ----------------------------------------------------------------------------------------


def _film(path: Path) -> Iterator[Span]:
    """Every third frame of a film, counted as if they were all."""
    count = len(_pictures(path)[1]) // THIRD
    yield Span(f"test/{path.absolute().parent.name}/{path.stem}", 0, 0, count)


def _filmed(path: Path, start: int, stop: int) -> np.ndarray:
    size, places = _pictures(path)
    taken = places[THIRD - 1 :: THIRD][start:stop]
    if len(taken) != stop - start:
        raise BadInput(path, f"holds {len(places)} frames", "fetch it again")
    with path.open("rb") as stream:
        frames = np.empty((len(taken), *SHAPE), np.uint8)
        for frame, (place, length) in zip(frames, taken, strict=True):
            stream.seek(place)
            frame[:] = _scaled(_decoded(path, stream.read(length), size))
    return frames


def _is_film(header: bytes) -> bool:
    return header.startswith(MAGIC) and len(header) == HEADER


def _pictures(path: Path) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Rows and columns of a film, and first byte and length of every picture."""
    end, places = path.stat().st_size, list[tuple[int, int]]()
    with path.open("rb") as stream:
        header = stream.read(HEADER)
        if not _is_film(header):
            raise BadInput(path, "is not a film of Norpix's seq format", "fetch it again")
        columns, rows, *_, form, stated, _, _ = FIELDS.unpack_from(header)
        if form not in JPEG or not 0 < min(rows, columns) <= max(rows, columns) <= LARGEST_SIDE:
            raise BadInput(path, f"holds {rows}x{columns} pixels in format {form}, not JPEG", "give films of Caltech")
        place, gap = HEADER, STAMP
        while place + 4 <= end and (not stated or len(places) < stated):
            stream.seek(place)
            length = int.from_bytes(stream.read(4), "little")  # with its own 4 bytes
            if not length and len(places) == 1 and gap == STAMP:
                place, gap = place + STAMP, 2 * STAMP
                continue
            if not 4 < length <= LARGEST_PICTURE or place + length > end:
                break
            places.append((place + 4, length - 4))
            place += length + gap
    if len(places) < stated:
        raise BadInput(path, f"holds {len(places)} of {stated} pictures", "fetch it again")
    return (rows, columns), places


def _decoded(path: Path, jpeg: bytes, size: tuple[int, int]) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        if image.size != size[::-1]:
            raise BadInput(
                path,
                f"holds a picture of {image.size[1]}x{image.size[0]} pixels, not {size[0]}x{size[1]}",
                "fetch it again",
            )
        return np.asarray(image.convert("RGB"))


def _scaled(picture: np.ndarray) -> np.ndarray:
    """128 rows and the middle 160 columns of a picture, rounded to levels."""
    down, across = _weights(*picture.shape[:2])
    rows = (down @ picture.reshape(len(picture), -1).astype(np.float32)).reshape(ROWS, -1, 3)
    planes = rows.transpose(0, 2, 1).reshape(ROWS * 3, -1) @ across.T
    levels: np.ndarray = np.rint(planes.reshape(ROWS, 3, COLUMNS).transpose(0, 2, 1)).clip(0, 255)
    return levels.astype(np.uint8)


@lru_cache(maxsize=4)
def _weights(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the rows and columns of a picture in those of a frame: resizing is linear, axis by axis.

    Raises:
        ValueError: If the scaled picture is too narrow, or far too wide.
    """
    transform: Any = import_module("skimage.transform")  # has no types; takes a second to import

    wide = int(np.round(ROWS / rows * columns))
    if not COLUMNS <= wide <= LARGEST_SIDE:
        raise ValueError(f"{rows}x{columns} pixels cannot be cut to {ROWS}x{COLUMNS}")
    down = transform.resize(np.eye(rows), (ROWS, rows), preserve_range=True)
    across = transform.resize(np.eye(columns), (wide, columns), preserve_range=True)
    margin = (wide - COLUMNS) // 2
    return down.astype(np.float32), across[margin : margin + COLUMNS].astype(np.float32)
