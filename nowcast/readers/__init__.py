"""Sources of radar frames. One file and one line below add a source.

A reader is a module with

- ``TITLE`` and ``LICENCE``: one line each, carried into every store;
- ``CADENCE``: seconds between frames of a live feed, or None where sequences are labelled or where
  each cube says it itself (``cadence_seconds``);
- ``PATTERNS``: globs of the names of its files;
- ``recognises(path) -> bool``: whether a file of such a name is really its own, from the names of its
  folders and a look at its head; may raise on a damaged file, which counts as no;
- ``find(source) -> Iterator[Item]``: the readable items of a file or folder, in time order or in that
  of the source, from names and headers alone, so that a folder of a year costs no decoding;
- ``read(item) -> Cube``: one item decoded, checked, in physical units; ``BadInput`` where it is not
  what it says it is. An item is small (``ITEM_BYTES``): a large file is many items, see ``parts``.

Below the registry: what several readers need to open a file and to say what is wrong with it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Protocol

import h5py
import numpy as np
import xarray as xr
from isal import isal_zlib
from PIL import Image
from pyproj import CRS

from nowcast.core.errors import BadInput, MissingExtra, OptionError

logger = logging.getLogger(__name__)

READERS = {
    # radar benchmarks
    "hko7": "hko7",
    "sevir": "sevir",
    "shanghai2020": "shanghai2020",
    "shanghai-radar": "shanghai_radar",
    "meteonet": "meteonet",
    "cikm2017": "cikm2017",
    # composites of the weather services
    "odim": "odim",
    "knmi": "knmi",
    "fmi-pgm": "fmi_pgm",
    "fmi-geotiff": "fmi_geotiff",
    "radolan": "radolan",
    "mch-gif": "mch_gif",
    "bom": "bom",
    "mrms": "mrms",
    # video benchmarks
    "moving-mnist": "moving_mnist",
    "kth": "kth",
    "bair": "bair",
    "human": "human",
    "kitticaltech": "kitticaltech",
    "taxibj": "taxibj",
    "gs2pm": "gs2pm",
    # made up
    "simulator": "simulator",
    # whatever follows a convention; last, so that ``detect`` asks the others first
    "netcdf": "netcdf",
    "zarr": "zarr_cf",
    "geotiff": "geotiff",
}
"""Name -> module."""

ITEM_BYTES = 2**26
"""An item decodes to about this at most, as float32: what a worker holds in memory."""
LOOKED_AT = 200
"""Files of a folder that are looked at to find out what it is."""


DECODER_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    Image.DecompressionBombError,
)
"""What decoders raise on bad bytes. Other types, which some libraries raise, are converted at their calls: ``odd``."""


@dataclass(frozen=True)
class Item:
    """One thing to read: a file, or the part of it that ``key`` names."""

    path: Path
    key: str = ""

    @property
    def signature(self) -> str:
        """Changes when the file does: name, part, size and time of modification."""
        stat = self.path.stat()
        return f"{self}|{stat.st_size}|{stat.st_mtime_ns}"

    def __str__(self) -> str:
        return self.path.name + (f"[{self.key}]" if self.key else "")


class Reader(Protocol):
    """What a module in this folder offers."""

    TITLE: str
    LICENCE: str
    CADENCE: int | None
    PATTERNS: tuple[str, ...]

    def recognises(self, path: Path) -> bool: ...

    def find(self, source: Path) -> Iterator[Item]: ...

    def read(self, item: Item) -> xr.Dataset: ...


def get(name: str) -> Reader:
    """The reader called ``name``.

    Raises:
        ValueError: If it is unknown; the message lists the known ones.
    """
    if name not in READERS:
        raise OptionError(f"Unknown reader {name!r}; known: {', '.join(READERS)}.")
    return import_module(f"nowcast.readers.{READERS[name]}")


def detect(source: Path) -> str:
    """The name of the reader that takes a file, or the first recognised file of a folder.

    Raises:
        BadInput: If none does; the message says what was looked for.
    """
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    for path in [source] if source.is_file() else islice(_named_alike(source), LOOKED_AT):
        for name in READERS:
            if _recognised(get(name), path):
                return name
    raise BadInput(source, "is of no known source", f"name a reader ({', '.join(READERS)}) to see what it misses")


def _named_alike(folder: Path) -> Iterator[Path]:
    """Files whose names some reader knows, folder by folder: the whole of a large archive is never listed."""
    patterns = {pattern for name in READERS for pattern in get(name).PATTERNS}
    for place, folders, names in os.walk(folder):
        folders.sort()
        known = (name for name in sorted(names) if not name.startswith(".") or name in patterns)
        yield from (Path(place, name) for name in known if any(fnmatch(name, pattern) for pattern in patterns))


def _recognised(reader: Reader, path: Path) -> bool:
    if not any(fnmatch(path.name, pattern) for pattern in reader.PATTERNS):
        return False
    try:
        return reader.recognises(path)
    except Exception as error:
        if not _is_the_file(error):
            raise
        # a damaged file is nobody's
        logger.debug("%s: not recognised by %s", path, reader, exc_info=True)
        return False


# --- parts of large files -------------------------------------------------------------------------


def parts(count: int, shape: tuple[int, ...], *, most: int | None = None) -> Iterator[str]:
    """Keys ``0:32``, ``32:64`` ... that cut ``count`` frames (or clips) into items of bounded size.

    Args:
        count: Frames in all.
        shape: Of one of them.
        most: Frames in an item at most; None: as many as ``ITEM_BYTES`` holds.
    """
    step = max(1, ITEM_BYTES // (4 * math.prod(shape)))
    step = min(step, most or step)
    for start in range(0, count, step):
        yield f"{start}:{min(start + step, count)}"


def part(item: Item) -> slice:
    """The frames that the key of an item names.

    Raises:
        BadInput: If it is not such a key.
    """
    match = re.fullmatch(r"(\d+):(\d+)", item.key)
    if not match:
        raise BadInput(item.path, f"has no part {item.key or '(none named)'}", "take items from find")
    return slice(int(match[1]), int(match[2]))


def optional(module: str, *, extra: str) -> ModuleType:
    """Imports the library that decodes a format and is not installed with the package.

    Raises:
        ModuleNotFoundError: With the line that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install 'nowcast-radar[{extra}]'") from None


# --- finding files --------------------------------------------------------------------------------


def files(source: Path, *patterns: str) -> list[Path]:
    """Files under ``source`` (or itself) that match one of the glob patterns, in natural order of their names.

    Hidden files are left out: transfers write them before they rename.

    Raises:
        BadInput: If ``source`` does not exist or holds no such file.
    """
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    if source.is_file():
        return [source]
    found = {path for pattern in patterns for path in source.rglob(pattern)}
    found = {path for path in found if path.is_file() and not path.name.startswith(".")}
    if not found:
        raise BadInput(source, f"holds no file named {' or '.join(patterns)}", "check the path and the reader")
    return sorted(found, key=lambda path: (natural(path.name), str(path)))


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key under which ``sample2`` comes before ``sample10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


# --- opening them ---------------------------------------------------------------------------------


@contextmanager
def decoding(path: Path, form: str, *odd: type[Exception]) -> Iterator[None]:
    """Turn what decoders raise on a bad file into one sentence.

    A bug in a reader (``TypeError``, ``AttributeError``, ``KeyError`` ...) keeps its type and traceback.

    Args:
        path: The file.
        form: What it should be, such as ``a PNG image``.
        odd: Further types that a library raises on bad bytes; only around calls of that library alone.

    Raises:
        BadInput: In place of ``DECODER_ERRORS``.
    """
    try:
        yield
    except (BadInput, ModuleNotFoundError):
        raise
    except FileNotFoundError:
        raise BadInput(path, "does not exist", "check the path") from None
    except (PermissionError, IsADirectoryError):
        raise BadInput(path, "cannot be opened", "give a file that may be read") from None
    except Exception as error:
        if not (_is_the_file(error) or isinstance(error, odd)):
            raise
        raise BadInput(path, f"is damaged or not {form}", "fetch it again or choose another reader") from error


def _is_the_file(error: Exception) -> bool:
    """True for what decoders raise on bad bytes: h5py and ISA-L raise types that mistakes of a reader have too."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_by = frame.f_globals.get("__name__", "").partition(".")[0]
    return isinstance(error, DECODER_ERRORS) or raised_by == "h5py" or type(error).__name__ == "IsalError"


@contextmanager
def open_hdf5(path: Path, form: str) -> Iterator[h5py.File]:
    """Opens an HDF5 file whose contents should be ``form``.

    Raises:
        BadInput: If it is no HDF5 file, is truncated, or anything inside the block fails.
    """
    with decoding(path, form), _opened(path) as file:
        yield file


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError:
        path.open("rb").close()  # h5py calls an unreadable file "not HDF5"
        if not h5py.is_hdf5(path):
            raise BadInput(path, "is not an HDF5 file", "fetch it again or choose another reader") from None
        raise


def member(file: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """The group or dataset ``name``.

    Raises:
        BadInput: If there is none.
    """
    try:
        return file[name]
    except KeyError:
        raise BadInput(file.file.filename, f"has no {name}", "choose the reader for this product") from None


def attribute(node: h5py.Group | h5py.Dataset, name: str) -> str | float | list:
    """An HDF5 attribute as text or number; arrays of one element are unpacked, longer ones are lists.

    By way of h5py's own groups and ``attrs`` it takes twice as long, and files have dozens.

    Args:
        node: A group, dataset or file.
        name: With the path to it, such as ``what/gain``, where it is that of a group within.

    Raises:
        BadInput: If there is none.
    """
    place, _, last = name.rpartition("/")
    try:
        found = h5py.h5a.open(node.id, last.encode(), obj_name=place.encode() or b".")
    except KeyError:
        absent = f"attribute {node.name.rstrip('/')}/{name}" if not place or place in node else place
        raise BadInput(node.file.filename, f"has no {absent}", "choose another reader") from None
    array = np.empty(found.shape, found.dtype)
    found.read(array)
    values = [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]
    return values[0] if len(values) == 1 else values


def numbers(data: h5py.Dataset, row: int | None = None) -> np.ndarray:
    """A dataset as it is in the file, or one row of it; not to be written to.

    Where that is one chunk of zlib's, it is inflated here, by ISA-L: HDF5 takes more than twice as long, which is most
    of what a file takes, and meanwhile lets no other thread read.
    """
    shape = data.shape if row is None else data.shape[1:]
    first = (*[row or 0] * (data.ndim - len(shape)), *[0] * len(shape))
    if data.chunks != (*[1] * (data.ndim - len(shape)), *shape) or not _is_deflated(data, first):
        return np.asarray(data[() if row is None else row])
    _, chunk = data.id.read_direct_chunk(first)
    size = data.dtype.itemsize * math.prod(shape)
    return np.frombuffer(isal_zlib.decompress(chunk, bufsize=size), data.dtype).reshape(shape)


def _is_deflated(data: h5py.Dataset, first: tuple[int, ...]) -> bool:
    """True where zlib alone made the chunk that begins at ``first``."""
    steps, chunk = data.id.get_create_plist(), data.id.get_chunk_info_by_coord(first)
    filters = [steps.get_filter(number)[0] for number in range(steps.get_nfilters())]
    present = chunk.byte_offset is not None and not chunk.filter_mask
    return present and filters == [h5py.h5z.FILTER_DEFLATE] and data.dtype.kind in "iuf"


def grey_png(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Grey levels of a PNG in mode L, P (grey palette) or RGB (equal channels).

    Args:
        path: The file.
        shape: Rows, columns that it must have.

    Returns:
        (row, column) uint8.

    Raises:
        BadInput: If it is no such picture.
    """
    with decoding(path, "a PNG image"), Image.open(path, formats=["PNG"]) as image:
        if image.size != shape[::-1]:
            raise BadInput(
                path,
                f"has {image.size[1]}x{image.size[0]} pixels, not {shape[0]}x{shape[1]}",
                "choose the reader for this source",
            )
        if image.mode not in ("L", "P", "RGB"):
            raise BadInput(path, f"is a PNG of mode {image.mode}, not grey", "choose the reader for this source")
        levels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    if levels.ndim == 3 and (levels != levels[..., :1]).any():
        raise BadInput(path, "is a coloured picture, not grey levels", "get the original data")
    return levels if levels.ndim == 2 else levels[..., 0]


@lru_cache(maxsize=16)
def metric_crs(definition: str) -> CRS:
    """A projection in metres from a PROJ string, which some services write with radii and offsets in km.

    Raises:
        pyproj.exceptions.CRSError: If PROJ does not know it.
    """
    terms = dict(re.findall(r"(\w+)=(\S+)", definition))
    if float(terms.get("a") or terms.get("R") or 1e7) > 1e4:
        return CRS.from_user_input(definition)
    lengths = {name: float(terms[name]) * 1000 for name in ("a", "b", "R", "x_0", "y_0") if name in terms}
    return CRS.from_dict(terms | lengths | {"units": "m"})
