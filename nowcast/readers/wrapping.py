"""Files in archives and compressed files: tar, zip, gzip, bzip2 and xz, one in another too.

A wrapping is unpacked into a folder for temporary files, which the readers then see; the last few stay until others
take their place or the process ends. What a wrapping holds is bounded in bytes, in members and in the ratio of what
comes out to what is there, so that a damaged or malicious one fills neither disk nor memory.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO, Any, BinaryIO, cast

from isal import igzip

from nowcast.core.errors import BadInput
from nowcast.readers.decoding import decoding

MOST_BYTES = 2**30
"""Unpacked."""
MOST_MEMBERS = 20_000
MOST_RATIO, FREE_BYTES = 1032, 2**26
"""Bytes for one packed byte, as much as deflate can make of it; a dry frame may be more, so the first ones are free."""
DEPTH = 3
"""Wrappings in each other."""
KEPT = 4
PIECE = 2**20
"""Bytes copied at a time."""
FORM = "an archive or compressed file"
ODD = (NotImplementedError, KeyError, AttributeError)
"""What the libraries raise on odd archives beside errors of their own."""
FOLDER = "nowcast-unpacked-"
"""Beginning of the names of the folders; the number of the process follows."""
DAY = 86_400

NAME = re.compile(r"(?P<stem>.+?)\.(?:(?P<archive>zip|tar|tgz|tbz2?|txz|tar\.(?:gz|bz2|xz))|gz|bz2|xz)", re.IGNORECASE)
OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": igzip.IGzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
"""Of compressed files, by what they begin with."""


def is_wrapping(name: str) -> bool:
    """Whether a file of this name holds other files."""
    return NAME.fullmatch(name) is not None


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed as a whole, whatever its name says."""
    with suppress(OSError), path.open("rb") as stream:
        return stream.read(6).startswith(tuple(OPENERS))
    return False


def names(path: Path) -> list[str]:
    """List what a wrapping holds, without unpacking it: places of files in it, with forward slashes.

    Raises:
        BadInput: If it is damaged, not bounded or none.
    """
    match = NAME.fullmatch(path.name)
    if match and not match["archive"]:
        return [match["stem"]]
    with _members(path, path.name) as members:
        return [place for place, _ in members]


@contextmanager
def unwrapped(path: Path, keep: Callable[[str], bool]) -> Iterator[Path]:
    """Give the folder with what a wrapping holds; it stays at least until the block ends.

    Args:
        path: The wrapping.
        keep: Names of wrappings that a reader takes as they are.

    Raises:
        BadInput: If it is damaged, not bounded or none.
        OSError: If there is no room for it.
    """
    try:
        about = path.stat()
    except OSError:
        raise BadInput(path, "does not exist", "check the path") from None
    with _lock(path):
        held = _unpacked(path.absolute(), about.st_size, about.st_mtime_ns, keep)
    yield held.path  # which lives as long as somebody holds it


# --- unpacked folders -----------------------------------------------------------------------------


class _Folder:
    """A temporary folder that is removed when nobody holds it."""

    def __init__(self) -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")).resolve()
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class _PathLock:
    """A lock that can be referred to weakly."""

    def __init__(self) -> None:
        self.lock = Lock()


_LOCKS: weakref.WeakValueDictionary[Path, _PathLock] = weakref.WeakValueDictionary()
_GUARD = Lock()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one thread unpack a wrapping; the others then find it unpacked."""
    with _GUARD:
        own = _LOCKS.setdefault(path, _PathLock())
    with own.lock:
        yield


@lru_cache(maxsize=KEPT)
def _unpacked(path: Path, size: int, modified: int, keep: Callable[[str], bool]) -> _Folder:
    folder = _Folder()
    _Unpacking(path, size, keep).into(folder.path)
    return folder


@lru_cache(maxsize=1)
def _sweep() -> None:
    """Remove what killed processes of this user left, a day later: in containers process numbers repeat."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        number = folder.name.removeprefix(FOLDER).partition("-")[0]
        with suppress(OSError):
            about = folder.stat()
            if (
                about.st_uid == os.getuid()
                and about.st_mtime < time.time() - DAY
                and not Path("/proc", number).exists()
            ):
                shutil.rmtree(folder, ignore_errors=True)


class _Unpacking:
    """Unpacks one wrapping and those in it, within bounds for all of them together."""

    def __init__(self, path: Path, size: int, keep: Callable[[str], bool]) -> None:
        self.path, self.keep = path, keep
        self.most = min(MOST_BYTES, max(FREE_BYTES, MOST_RATIO * size))
        self.bytes = self.members = 0

    def into(self, folder: Path) -> None:
        with decoding(self.path, FORM, *ODD):
            self._open(self.path, self.path.name, folder, DEPTH)

    def _open(self, path: Path, name: str, folder: Path, depth: int) -> None:
        """Unpack a file that goes by a name into a folder, and then what it holds."""
        match = NAME.fullmatch(name)
        if match and match["archive"]:
            with _members(path, name) as members:
                files = [self._write(opened, folder / place) for place, opened in members]
        else:
            with _decompressed(path) as stream:
                files = [self._write(lambda: stream, folder / (match["stem"] if match else name))]
        for file in files:
            if (inner := NAME.fullmatch(file.name)) and not self.keep(file.name):
                self._nested(file, file if inner["archive"] else file.parent, depth - 1)

    def _nested(self, file: Path, folder: Path, depth: int) -> None:
        """Put what a file holds in its place: a folder of its name, or the one file."""
        if not depth:
            raise BadInput(self.path, f"holds wrappings more than {DEPTH} deep", "unpack it and give the folder")
        packed = file.rename(file.with_name(f".packed-{file.name}"))
        self._open(packed, file.name, folder, depth)
        packed.unlink()

    def _write(self, opened: Callable[[], IO[bytes]], target: Path) -> Path:
        self.members += 1
        if self.members > MOST_MEMBERS:
            raise BadInput(self.path, f"holds more than {MOST_MEMBERS} files", "unpack it and give the folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            stream = opened()
            while piece := stream.read(PIECE):
                self.bytes += len(piece)
                if self.bytes > self.most:
                    raise BadInput(
                        self.path, f"unpacks to more than {self.most >> 20} MiB", "unpack it and give the folder"
                    )
                out.write(piece)
        return target


# --- opening them ---------------------------------------------------------------------------------

Member = tuple[str, Callable[[], IO[bytes]]]
"""Place in an archive, and what opens it."""


@contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, and decompress it as it is read if it is compressed."""
    with path.open("rb") as file:
        head = file.read(6)
    opener = next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)
    with opener(path) if opener else path.open("rb") as stream:
        yield stream


@contextmanager
def _members(path: Path, name: str) -> Iterator[Iterator[Member]]:
    """Open an archive; gives its files one after the other."""
    with decoding(path, FORM, *ODD):
        if name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as zipped:
                yield _of_zip(path, zipped)
            return
        with (
            _decompressed(path) as stream,
            tarfile.open(fileobj=cast("BinaryIO", _Pieces(path, stream)), mode="r:") as tar,
        ):
            yield ((_place(path, one.name), _opener(tar, one)) for one in tar if one.isreg())


def _of_zip(path: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    for one in archive.infolist():
        kind = stat.S_IFMT(one.external_attr >> 16)
        if one.is_dir() or kind not in (0, stat.S_IFREG):
            continue
        if one.flag_bits & 1:
            raise BadInput(path, "is encrypted", "unpack it and give the folder")
        yield _place(path, one.filename), _zip_opener(archive, one)


def _opener(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.extractfile(member) or io.BytesIO()


def _zip_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(member)


def _place(path: Path, name: str) -> str:
    """Check where in the folder a member goes."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".")]
    if not parts or ".." in parts or "\0" in name:
        raise BadInput(path, f"holds a file that would lie outside of it, {name!r}", "ask who made it")
    return "/".join(parts)


class _Pieces(io.RawIOBase):
    """An archive, read in pieces that fit into memory: a damaged header may state any size."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream = path, stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 4 * PIECE:
            raise ValueError(f"a piece of {size} bytes")
        if self.stream.tell() > MOST_BYTES:
            raise BadInput(self.path, f"unpacks to more than {MOST_BYTES >> 20} MiB", "unpack it and give the folder")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(min(offset, 2 * MOST_BYTES), whence)

    def tell(self) -> int:
        return self.stream.tell()
