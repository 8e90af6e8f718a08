"""The classic formats of NetCDF: CDF-1, CDF-2 (64-bit offsets) and CDF-5 (64-bit data).

Read here and not by a library, because those at hand take bad files for good ones. The NetCDF library (4.10) reads a
truncated file as zeros, that is as measured dry, asks for memory without bound where the number of records is left open
("streaming"), and crashes on one in 400 damaged CDF-5 files. ``scipy.io.netcdf_file`` (1.17) knows no CDF-5, drops the
records of a streamed file, and stores global attributes in its own fields, so that a file with an attribute ``mode`` or
``variables`` breaks it. Here every count and offset is held against the size of the file first, and data are mapped,
not read.

Source: NetCDF Classic Format Specification, docs.unidata.ucar.edu/netcdf-c/current/file_format_specifications.html.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nowcast.core.errors import BadInput
from nowcast.readers.cf import Array

MAGIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
TYPES = {1: "i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8", 7: "u1", 8: ">u2", 9: ">u4", 10: ">i8", 11: ">u8"}
DIMENSION, VARIABLE, ATTRIBUTE = 10, 11, 12
MOST = 10_000
"""Dims, variables or attributes in a list, and values of an attribute."""
MOST_DIMS = 32
"""Of a variable."""


class _Header:
    """Walks through the header; whatever it asks for beyond the end of the file is an error."""

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self.path, self.data, self.place = path, data, 4
        self.version = data[3]

    def take(self, length: int) -> bytes:
        piece = self.data[self.place : self.place + length]
        if length < 0 or len(piece) < length:
            raise self.bad()
        self.place += length
        return piece

    def number(self, *, wide: bool) -> int:
        return int.from_bytes(self.take(8 if wide else 4), "big", signed=True)

    def size(self) -> int:
        """Read a count, a length or a dim."""
        return self.number(wide=self.version == 5)

    def count(self, tag: int) -> int:
        """Entries of a list of some kind."""
        found, size = self.number(wide=False), self.size()
        if (found, size) != (0, 0) and (found != tag or not 0 <= size <= MOST):
            raise self.bad()
        return size

    def padded(self, length: int) -> bytes:
        piece = self.take(length)
        self.take(-length % 4)
        return piece

    def name(self) -> str:
        length = self.size()
        if length > MOST:
            raise self.bad()
        return self.padded(length).decode()

    def attributes(self) -> dict[str, object]:
        attrs: dict[str, object] = {}
        for _ in range(self.count(ATTRIBUTE)):
            name, dtype, size = self.name(), self.dtype(), self.size()
            if size < 0 or (size > MOST and dtype.kind != "S"):
                raise self.bad()
            raw = self.padded(size * dtype.itemsize)
            values = np.frombuffer(raw, dtype)
            text = dtype.kind == "S"
            attrs[name] = raw.rstrip(b"\0").decode(errors="replace") if text else values[0] if size == 1 else values
        return attrs

    def dtype(self) -> np.dtype[Any]:
        code = self.number(wide=False)
        if code not in TYPES:
            raise self.bad()
        return np.dtype(TYPES[code])

    def bad(self) -> BadInput:
        return BadInput(self.path, "is damaged or not complete", "fetch it again")


class _Variable(NamedTuple):
    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    """0 first if it grows record by record."""
    attrs: dict[str, object]
    dtype: np.dtype
    begin: int

    @property
    def grows(self) -> bool:
        return self.shape[:1] == (0,)

    @property
    def slab(self) -> int:
        """Bytes of one record, or of a fixed variable's first index."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def opened(path: Path) -> tuple[dict[str, Array], dict[str, object]]:
    """Variables and global attributes of a file.

    Raises:
        BadInput: If it holds less than it states.
    """
    with path.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    header = _Header(path, data)
    records = header.size()
    dims = [(header.name(), header.size()) for _ in range(header.count(DIMENSION))]
    attrs = header.attributes()
    variables = [_variable(header, dims) for _ in range(header.count(VARIABLE))]
    growing = [variable for variable in variables if variable.grows]
    record = sum(variable.slab + -variable.slab % 4 for variable in growing)
    if len(growing) == 1:  # then records are not padded
        record = growing[0].slab
    if records < 0 and record:  # it was still being written
        records = (len(data) - min(variable.begin for variable in growing)) // record
    views = {variable.name: (variable, _view(header, variable, records, record)) for variable in variables}
    arrays = {
        name: Array(variable.dims, view.shape, variable.dtype, variable.attrs, view.__getitem__)
        for name, (variable, view) in views.items()
        if view.size
    }
    return arrays, attrs


def _view(header: _Header, variable: _Variable, records: int, record: int) -> np.ndarray:
    """Map the data of a variable where they lie in the file."""
    shape = (records, *variable.shape[1:]) if variable.grows else variable.shape
    strides = [math.prod(shape[place + 1 :]) * variable.dtype.itemsize for place in range(len(shape))]
    if variable.grows:
        strides[0] = record
    if min(shape, default=0) < 0 or variable.begin < 0:
        raise header.bad()
    if not math.prod(shape):
        return np.empty(0)
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + variable.dtype.itemsize
    if variable.begin + reach > len(header.data):
        raise header.bad()
    return np.ndarray(shape, variable.dtype, header.data, variable.begin, strides)


def _variable(header: _Header, dims: list[tuple[str, int]]) -> _Variable:
    name, count = header.name(), header.size()
    if not 0 <= count <= MOST_DIMS:
        raise header.bad()
    places = [header.size() for _ in range(count)]
    if not all(0 <= place < len(dims) for place in places):
        raise header.bad()
    attrs, dtype = header.attributes(), header.dtype()
    header.size()  # bytes, which follow from the dims
    begin = header.number(wide=header.version != 1)
    names, sizes = zip(*(dims[place] for place in places), strict=True) if places else ((), ())
    return _Variable(name, tuple(names), tuple(sizes), attrs, dtype, begin)
