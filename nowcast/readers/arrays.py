"""Slices of NumPy files, plain or inside an ``.npz``: what is asked for is read, the rest stays on disk.

A deflated member can only be unpacked from its beginning. Where a read ends, the state of the
decompressor is kept, so that reading a file item by item unpacks it once and not once for every item.

Source: the ``.npy`` format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from nowcast.core.errors import BadInput

CHUNK = 2**20
MARKS = 64
"""States of a decompressor kept for a member: some 45 kB each."""
DEFLATE_RATIO = 1032
"""No deflated byte stands for more: a member that declares more is not what it says it is."""


@dataclass(frozen=True)
class Array:
    """Where the values of an array lie; ``read`` gets them."""

    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    origin: int
    """Bytes before the first value, in the file or in the unpacked member."""
    start: int = 0
    """Byte of the file where the member begins."""
    packed: int | None = None
    """Bytes of the deflated member; None where it is stored as it is."""


def npy(path: Path) -> Array:
    """The array in an ``.npy`` file.

    Raises:
        BadInput: If it is of Python objects, in an unusual layout, or if values are lacking.
        ValueError: If it is no such file.
    """
    with path.open("rb") as stream:
        dtype, shape = _header(path, path.name, stream)
        origin = stream.tell()
    return _whole(Array(path, path.name, dtype, shape, origin), path.stat().st_size)


def names(path: Path) -> set[str]:
    """Names of the arrays in an ``.npz`` file."""
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def npz(path: Path, wanted: Iterable[str]) -> list[Array]:
    """The named arrays of an ``.npz`` file.

    Raises:
        BadInput: If one is not there or cannot be taken, see ``npy``.
        zipfile.BadZipFile: If it is no such file.
    """
    with zipfile.ZipFile(path) as archive:
        return [_member(path, archive, name) for name in wanted]


def read(array: Array, first: int, count: int) -> np.ndarray:
    """``count`` values from the ``first`` on, in the order of the file.

    Raises:
        BadInput: If the array ends before.
    """
    size = array.dtype.itemsize
    if first < 0 or count < 0 or first + count > math.prod(array.shape):
        raise BadInput(array.path, f"has no values {first} to {first + count} in {array.name}", "take items from find")
    start = array.origin + first * size
    if array.packed is not None:
        return _inflated(array, start, count * size).view(array.dtype)
    with array.path.open("rb") as stream:
        stream.seek(array.start + start)
        values = np.fromfile(stream, array.dtype, count)
    if values.size != count:
        raise _short(array)
    return values


def _header(path: Path, name: str, stream: Any) -> tuple[np.dtype, tuple[int, ...]]:
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
    with archive.open(info) as stream:
        dtype, shape = _header(path, name, stream)
        origin = stream.tell()
    with path.open("rb") as file:
        start = _data_start(file, info.header_offset)
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if start + info.compress_size > path.stat().st_size:
        raise BadInput(path, f"ends inside {name}", "fetch it again")
    held = min(info.file_size, info.compress_size * (DEFLATE_RATIO if deflated else 1))
    return _whole(Array(path, name, dtype, shape, origin, start, info.compress_size if deflated else None), held)


def _data_start(file: BinaryIO, header: int) -> int:
    """Byte after a local header, whose extra field may differ from that of the directory."""
    file.seek(header)
    name, extra = struct.unpack("<26xHH", file.read(30))
    return header + 30 + name + extra


def _whole(array: Array, held: int) -> Array:
    if array.origin + math.prod(array.shape) * array.dtype.itemsize > held:
        raise _short(array)
    return array


def _short(array: Array) -> BadInput:
    return BadInput(array.path, f"holds fewer values of {array.name} than it declares", "fetch it again")


@dataclass(frozen=True)
class _Mark:
    """A decompressor that has given ``done`` bytes for ``taken`` bytes."""

    done: int
    taken: int
    state: Any


@lru_cache(maxsize=8)
def _marks(path: Path, size: int, modified: int, start: int) -> list[_Mark]:
    """Of one member of one version of a file; filled by ``_inflated``."""
    return [_Mark(0, 0, zlib.decompressobj(-zlib.MAX_WBITS))]


def _inflated(array: Array, start: int, size: int) -> np.ndarray:
    """Unpacked bytes of a member as uint8, from the nearest place where unpacking can go on."""
    stat = array.path.stat()
    marks = _marks(array.path, stat.st_size, stat.st_mtime_ns, array.start)
    mark = max((mark for mark in tuple(marks) if mark.done <= start), key=lambda mark: mark.done)
    done, taken, state, pending = mark.done, mark.taken, mark.state.copy(), b""
    values = np.empty(size, np.uint8)
    with array.path.open("rb") as stream:
        stream.seek(array.start + taken)
        while done < start + size:
            if not pending:
                pending = stream.read(min(CHUNK, (array.packed or 0) - taken))
                taken += len(pending)
            given = state.decompress(pending, min(CHUNK, (start if done < start else start + size) - done))
            if not given and (not pending or state.eof):
                raise _short(array)
            if done >= start:
                values[done - start : done - start + len(given)] = np.frombuffer(given, np.uint8)
            done, pending = done + len(given), state.unconsumed_tail
    marks.append(_Mark(done, taken - len(pending), state))
    if len(marks) > MARKS:
        del marks[1:-1:2]
    return values
