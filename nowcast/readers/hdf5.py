"""HDF5 files: groups, attributes and datasets, and one sentence for what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib

from nowcast.core.errors import BadInput
from nowcast.readers.decoding import decoding


@contextmanager
def open_hdf5(path: Path, form: str) -> Iterator[h5py.File]:
    """Open an HDF5 file whose contents should be ``form``.

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
    """Return the group or dataset ``name``.

    Raises:
        BadInput: If there is none.
    """
    try:
        return file[name]
    except KeyError:
        raise BadInput(file.file.filename, f"has no {name}", "choose the reader for this product") from None


def attribute(node: h5py.Group | h5py.Dataset, name: str) -> str | float | list[Any]:
    """Read an HDF5 attribute as text or number; arrays of one element are unpacked, longer ones are lists.

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
    """Read a dataset as it is in the file, or one row of it; not to be written to.

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
    """Tell whether zlib alone made the chunk that begins at ``first``."""
    steps, chunk = data.id.get_create_plist(), data.id.get_chunk_info_by_coord(first)
    filters = [steps.get_filter(number)[0] for number in range(steps.get_nfilters())]
    present = chunk.byte_offset is not None and not chunk.filter_mask
    return present and filters == [h5py.h5z.FILTER_DEFLATE] and data.dtype.kind in "iuf"
