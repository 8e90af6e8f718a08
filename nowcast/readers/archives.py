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
WITHIN = "!/"
"""In keys: between the name of an archive within an archive and that of its member."""
AT_ONCE = 2**20
"""Bytes unpacked at a time, since a buffer of the largest size is taken before anything is read."""


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file is a tar archive, packed or not."""
    return ".tar" in path.suffixes or path.suffix.lower() == ".tgz"


def holds(path: Path, pattern: re.Pattern[str]) -> bool:
    """Tell whether there is a file in an archive whose name matches ``pattern``; no more is unpacked than it takes.

    Raises:
        BadInput: If it is damaged before there is one.
    """
    with _opened(path) as archive:
        return any(pattern.fullmatch(name.rpartition(WITHIN)[2]) for name in _names(archive, path, pattern))


def archived(path: Path, pattern: re.Pattern[str]) -> Iterator[Item]:
    """Find the files in an archive whose names match ``pattern`` as a whole, in their order there.

    Those in archives within it, as of the days of a month, have keys such as ``day1.tar.gz!/RW_20220101-0050.asc``.
    What is damaged is itself an item, after those before it: its reading says what is wrong.
    """
    found: list[str] = []
    try:
        with _opened(path) as archive:
            found.extend(_names(archive, path, pattern))  # keeps what lies before damage
    except BadInput:
        found.append("")
    yield from (Item(path, name) for name in found or [""])


def _names(archive: tarfile.TarFile, path: Path, pattern: re.Pattern[str], *, nested: bool = True) -> Iterator[str]:
    for member in archive:
        if member.isreg() and pattern.fullmatch(member.name):
            yield member.name
        elif nested and member.isreg() and is_archive(Path(member.name)):
            try:
                with _within(archive, member, path) as inner:
                    yield from [member.name + WITHIN + name for name in _names(inner, path, pattern, nested=False)]
            except BadInput:
                yield member.name


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
            return _named(archive, item.key, item, most)


def head(path: Path, size: int) -> bytes:
    """Read the first bytes of a file, unpacked."""
    with path.open("rb") as stream:
        return unpacked(stream).read(size)


def _named(archive: tarfile.TarFile, key: str, item: Item, most: int) -> bytes:
    outer, _, inner = key.partition(WITHIN)
    for member in archive:  # without a key, too: what is damaged says so
        if not outer or member.name != outer:
            continue
        if inner:
            with _within(archive, member, item.path) as archive_within:
                return _named(archive_within, inner, item, most)
        return _whole(_packed(archive, member, most + AT_ONCE), item, most)  # packing may make noise longer
    raise BadInput(item.path, f"holds no {key or 'frame of this source'}", "take items from find")


def _packed(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> BinaryIO:
    """Take the bytes of a member as they are in the archive, so many at most."""
    stream = archive.extractfile(member)
    if stream is None:
        raise ValueError("a member that is no file")
    return io.BytesIO(stream.read(min(member.size, most)))


@contextmanager
def _within(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Iterator[tarfile.TarFile]:
    """Open an archive that is a member of another."""
    if member.size > PIECE:
        raise BadInput(path, f"holds an archive of {member.size >> 20} MiB", "unpack it and give the folder")
    with decoding(path, "an archive of archives"), _limited(_packed(archive, member, PIECE), path) as inner:
        yield inner


def _whole(stream: BinaryIO, item: Item, most: int) -> bytes:
    plain, data = unpacked(stream), bytearray()
    while len(data) <= most and (piece := plain.read(AT_ONCE)):
        data += piece
    if len(data) > most:
        raise BadInput(item.path, f"holds more than {most} bytes{item.key and ' in '}{item.key}", "fetch it again")
    return bytes(data)


def unpacked(stream: BinaryIO) -> BinaryIO:
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
    with decoding(path, "a tar archive"), path.open("rb") as file, _limited(file, path) as archive:
        yield archive


@contextmanager
def _limited(file: BinaryIO, path: Path) -> Iterator[tarfile.TarFile]:
    stream = unpacked(file)
    limited = cast("BinaryIO", _Limited(stream, path, packed=stream is not file))
    with tarfile.open(fileobj=limited, mode="r:") as archive:
        yield archive
