"""Archives of frames, as services deliver days and months of them: tar, plain or packed, of files plain or packed."""

from __future__ import annotations

import bz2
import gzip
import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from nowcast.core.errors import BadInput
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item

MOST_UNPACKED = 2**28
"""Bytes of a packed archive at most: every member of one is reached through all that lies before it."""
PIECE = 2**26
"""Bytes that are asked for at once at most: more is a damaged head of a member."""

AT_ONCE = 2**20
"""Bytes unpacked at a time, since a buffer of the largest size is taken before anything is read."""


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file is a tar archive, packed or not."""
    return ".tar" in path.suffixes or path.suffix == ".tgz"


def archived(path: Path, pattern: re.Pattern[str]) -> Iterator[Item]:
    """Find the members of an archive whose names match ``pattern``, in their order there.

    A damaged archive is itself an item, whose reading says what is wrong with it.
    """
    try:
        found = members(path, pattern)
    except BadInput:
        found = []
    yield from (Item(path, name) for name in found) if found else (Item(path),)


def members(path: Path, pattern: re.Pattern[str]) -> list[str]:
    """List the names of the files in an archive that match ``pattern`` as a whole.

    Raises:
        BadInput: If it is no archive, damaged, or holds more than ``MOST_UNPACKED`` bytes in packed form.
    """
    with _opened(path) as archive:
        return [member.name for member in archive if member.isreg() and pattern.fullmatch(member.name)]


def content(item: Item, most: int) -> bytes:
    """Read the unpacked bytes of a file, or of the member of an archive that the key of an item names.

    Args:
        item: The file or member; plain, or packed by gzip or bzip2.
        most: Bytes that it holds at most.

    Raises:
        BadInput: If it holds more, is damaged or does not exist.
    """
    with decoding(item.path, "a packed file"):
        if not is_archive(item.path):
            with item.path.open("rb") as stream:
                return _whole(stream, item, most)
        with _opened(item.path) as archive:
            for member in archive:
                if item.key and member.name == item.key and (packed := archive.extractfile(member)):
                    return _whole(io.BytesIO(packed.read(min(member.size, most))), item, most)
    raise BadInput(item.path, f"holds no {item.key or 'frame of this source'}", "take items from find")


def head(path: Path, size: int) -> bytes:
    """Read the first bytes of a file, unpacked."""
    with path.open("rb") as stream:
        return _unpacked(stream).read(size)


def _whole(stream: BinaryIO, item: Item, most: int) -> bytes:
    unpacked, data = _unpacked(stream), bytearray()
    while len(data) <= most and (piece := unpacked.read(AT_ONCE)):
        data += piece
    if len(data) > most:
        raise BadInput(item.path, f"holds more than {most} bytes{item.key and ' in '}{item.key}", "fetch it again")
    return bytes(data)


def _unpacked(stream: BinaryIO) -> BinaryIO:
    """Decompress the bytes of a stream as they are read."""
    magic = stream.read(3)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    return cast("BinaryIO", bz2.BZ2File(stream)) if magic == b"BZh" else stream


class _Limited(io.RawIOBase):
    """The bytes of an archive in pieces of bounded size, and of a packed one no more than ``MOST_UNPACKED``."""

    def __init__(self, stream: BinaryIO, path: Path, *, packed: bool) -> None:
        self.stream, self.path, self.packed = stream, path, packed

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= PIECE:
            raise ValueError(f"a piece of {size} bytes")
        self._check(self.stream.tell() + size)
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._check(offset)
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _check(self, place: int) -> None:
        if self.packed and place > MOST_UNPACKED + PIECE:
            raise BadInput(self.path, f"holds more than {MOST_UNPACKED >> 20} MiB", "unpack it and give the folder")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    with decoding(path, "a tar archive"), path.open("rb") as file:
        stream = _unpacked(file)
        limited = cast("BinaryIO", _Limited(stream, path, packed=stream is not file))
        with tarfile.open(fileobj=limited, mode="r:") as archive:
            yield archive
