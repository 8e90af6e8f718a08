"""Slices of NumPy files, plain or inside an ``.npz``: what is asked for is read, the rest stays on disk.

A compressed member can only be unpacked from its beginning. Its streams stay open where their last reader left them,
so that reading a file item by item, by several threads too, unpacks it once per thread and not once per item:
``numpy.load`` holds the whole array in memory, and a new stream for each of n items unpacks n / 2 times as much.

Source: the ``.npy`` format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from nowcast.core.errors import BadInput
from nowcast.readers.decoding import decoding

ODD = (tokenize.TokenError, SyntaxError, TypeError)
"""What NumPy raises beside ``ValueError`` on a header that is no Python literal."""
PIECE = 2**20
"""Bytes unpacked at a time."""
STREAMS = 4
"""Kept open for a member: more than the threads that prepare items."""
DEFLATE_RATIO = 1032
"""No deflated byte stands for more: a member that declares more is not what it says it is."""


@dataclass(frozen=True)
class Array:
    """Where the values of an array lie; ``read`` gets them."""

    path: Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    origin: int
    """Bytes before the first value, in the file or in the unpacked member."""
    member: str | None = None
    """Its name in the archive; None where the file is the array."""


def npy(path: Path) -> Array:
    """Find the array in an ``.npy`` file.

    Raises:
        BadInput: If it is of Python objects, in an unusual layout, if values are lacking, or if it is no such file.
    """
    with path.open("rb") as stream:
        dtype, shape = _header(path, path.name, stream)
        return _whole(Array(path, path.name, dtype, shape, stream.tell()), path.stat().st_size)


def names(path: Path) -> set[str]:
    """List the arrays in an ``.npz`` file."""
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def npz(path: Path, wanted: Iterable[str]) -> list[Array]:
    """Find the named arrays of an ``.npz`` file.

    Raises:
        BadInput: If one is not there or cannot be taken, see ``npy``.
        zipfile.BadZipFile: If it is no such file.
    """
    with zipfile.ZipFile(path) as archive:
        return [_member(path, archive, name) for name in wanted]


def read(array: Array, first: int, count: int) -> np.ndarray:
    """Read ``count`` values from the ``first`` on, in the order of the file.

    Raises:
        BadInput: If the array ends before.
    """
    if first < 0 or count < 0 or first + count > math.prod(array.shape):
        raise BadInput(array.path, f"has no values {first} to {first + count} in {array.name}", "take items from find")
    values = np.empty(count, array.dtype)
    place = array.origin + first * array.dtype.itemsize
    if array.member is None:
        with array.path.open("rb") as file:
            file.seek(place)
            _fill(array, values, file)
        return values
    stat = array.path.stat()
    try:
        with _streams(array.path, stat.st_size, stat.st_mtime_ns, array.member).at(place) as stream:
            _fill(array, values, stream)
    except (EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise BadInput(array.path, f"is damaged inside {array.name}", "fetch it again") from error
    return values


def _fill(array: Array, values: np.ndarray, stream: IO[bytes]) -> None:
    target = values.view(np.uint8)
    for start in range(0, target.size, PIECE):  # what zipfile unpacks it copies
        piece = stream.read(min(PIECE, target.size - start))
        if len(piece) < min(PIECE, target.size - start):
            raise _short(array)
        target[start : start + len(piece)] = np.frombuffer(piece, np.uint8)


def _header(path: Path, name: str, stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    with decoding(path, "an array of NumPy", *ODD):
        if npy_format.read_magic(stream) != (1, 0):  # later versions hold structures
            raise BadInput(path, f"holds {name} as an unusual kind of array", "save it again as numbers")
        shape, by_columns, dtype = npy_format.read_array_header_1_0(stream)
    if dtype.hasobject or dtype.names or by_columns or any(length < 0 for length in shape):
        raise BadInput(path, f"holds {name} as objects or by columns", "save it again as rows of numbers")
    return dtype, shape


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Array:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise BadInput(path, f"has no array {name}", "choose the reader for this file") from None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise BadInput(path, f"holds {name} in an unusual compression", "save it again with numpy.savez")
    if info.header_offset + info.compress_size > path.stat().st_size:
        raise BadInput(path, f"ends inside {name}", "fetch it again")
    with archive.open(info) as stream:
        dtype, shape = _header(path, name, stream)
        origin = stream.tell()
    ratio = DEFLATE_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1
    held = min(info.file_size, info.compress_size * ratio)
    return _whole(Array(path, name, dtype, shape, origin, info.filename), held)


def _whole(array: Array, held: int) -> Array:
    if array.origin + math.prod(array.shape) * array.dtype.itemsize > held:
        raise _short(array)
    return array


def _short(array: Array) -> BadInput:
    return BadInput(array.path, f"holds fewer values of {array.name} than it declares", "fetch it again")


class _Streams:
    """The open streams of one member that nobody reads from."""

    def __init__(self, path: Path, member: str) -> None:
        self.path, self.member = path, member
        self.idle: list[IO[bytes]] = []
        self.lock = Lock()

    @contextmanager
    def at(self, place: int) -> Iterator[IO[bytes]]:
        """Lend the stream that has the least way to go to a byte of the member, or a new one; a failed one is gone."""
        stream = self._nearest(place) or self._new()
        stream.seek(place)
        yield stream
        with self.lock:
            self.idle = [*self.idle, stream][-STREAMS:]

    def _new(self) -> IO[bytes]:
        with zipfile.ZipFile(self.path) as archive:  # its file stays open until the stream is closed
            return archive.open(self.member)

    def _nearest(self, place: int) -> IO[bytes] | None:
        with self.lock:
            before = [stream for stream in self.idle if stream.tell() <= place]
            nearest = max(before, key=lambda stream: stream.tell(), default=None)
            if nearest:
                self.idle.remove(nearest)
            return nearest


@lru_cache(maxsize=8)
def _streams(path: Path, size: int, modified: int, member: str) -> _Streams:
    """Return the streams of one member of one version of a file."""
    return _Streams(path, member)
