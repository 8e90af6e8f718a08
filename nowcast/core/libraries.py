"""C libraries that must not be entered by two threads at once, and the lock that keeps them from it.

    library        who keeps threads apart
    netCDF-C       nobody: two threads corrupt its memory and end the process. ``exclusive`` does
    ecCodes        nobody, unless it was built for threads. ``exclusive`` does
    HDF5 of h5py   h5py, by a lock of its own
    GDAL, FFmpeg,  the library itself, as long as no open file is shared between threads: none is
    PROJ, OpenCV

Take the lock around calls of the library alone, never while something is decoded or another thread is waited for: what
was read is decoded side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from h5py._objects import phil
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

_OURS = Lock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep every other thread out of netCDF-C and ecCodes, and out of HDF5, which they may share with h5py.

    Also held are the locks of xarray, for threads in which it reads NetCDF, and of h5py: a wheel brings an HDF5 of its
    own, but packages of conda and Linux have one for all. Not to be taken twice by one thread.
    """
    with _OURS, NETCDF4_PYTHON_LOCK, phil:
        yield


@contextmanager
def writing_netcdf() -> Iterator[None]:
    """Keep our other threads out of netCDF-C while xarray writes a file, for which it takes its own locks inside."""
    with _OURS:
        yield
