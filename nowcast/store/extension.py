"""What goes into a store: frames and labels to their places, by one process or several, and one commit for all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import icechunk
import numpy as np
import xarray as xr
import zarr
from zarr.core.sync import sync

from nowcast.core.errors import StoreError
from nowcast.store import schema
from nowcast.store.chunk_io import Compressed, Frames
from nowcast.store.packing import Packing

IDENTITY = ("product", "accumulation_seconds", "level")
"""Attributes that tell the product of a store."""
log = logging.getLogger(__name__)

Pixels = Mapping[str, tuple[np.ndarray | Compressed, Packing | None]]
"""Channel -> (frame, row, column) values, and how they are packed already."""


class Extension:
    """Frames that are being added to a store in one commit, by one process or several, see ``FrameStore.extend``."""

    def __init__(self, path: str | Path, session: icechunk.Session, like: xr.Dataset, count: int, event: int) -> None:
        self.path, self.session = path, session
        group = zarr.open_group(session.store, mode="a")
        self.arrays = dict(group.arrays()) or schema.create(group, like, "time", event)
        if "accumulation_seconds" in like.attrs and "accumulation_seconds" not in group.attrs:
            group.attrs.update(schema.plain({name: like.attrs[name] for name in IDENTITY}))  # made before identities
        self.cadence = cast(float | None, group.attrs.get("cadence_seconds"))
        """Seconds between the frames of a live feed."""
        self.start = self.arrays["time"].shape[0]
        self.total = self.start + count

    @property
    def steps(self) -> int:
        """Frames per object: an object is to be written by one process."""
        return max(Frames(array).steps for array in self.arrays.values() if array.ndim == 3)

    def check(self, like: xr.Dataset) -> None:
        """Refuse frames that do not fit.

        Raises:
            BadInput: See ``schema.check_same``.
        """
        schema.check_same(self.arrays, like, "time", self.path, whole=True)

    def fill(self, parts: Sequence[tuple[int, Pixels]]) -> None:
        """Write pixels to their positions, in this process; see ``fill`` for others."""
        _fill(self.arrays, parts, self.total)

    def fork(self) -> icechunk.ForkSession:
        """Make what another process needs for ``fill``: it goes there and comes back, both by pickle."""
        return self.session.fork()

    def commit(
        self,
        labels: Mapping[str, np.ndarray],
        *,
        message: str,
        forks: Sequence[icechunk.ForkSession] = (),
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Bring together what the processes wrote, add the labels of all new frames, commit all at once."""
        if forks:
            self.session.merge(*forks)
        write(self.arrays, labels, slice(self.start, self.total))
        return commit(self.session, message, metadata)


def fill(fork: icechunk.ForkSession, parts: Sequence[tuple[int, Pixels]], *, total: int) -> icechunk.ForkSession:
    """Write pixels to their positions in a store that grows to ``total`` frames.

    Args:
        fork: Of an ``Extension``.
        parts: Position of the first frame, and frames, in ascending order.
        total: Frames in the store afterwards.

    Raises:
        BadInput: If they are packed in another way and do not fit into the store's.
    """
    group = zarr.open_group(fork.store, mode="a")
    _fill({name: cast(zarr.Array[Any], group[name]) for name in parts[0][1]}, parts, total)
    return fork


def _fill(arrays: Mapping[str, zarr.Array[Any]], parts: Sequence[tuple[int, Pixels]], total: int) -> None:
    for name in parts[0][1]:
        array = arrays[name]
        if array.shape[0] < total:
            array.resize((total, *array.shape[1:]))
        own = Packing.of(array.dtype, array.attrs)
        Frames(array).write((at, _repacked(*pixels[name], own, array, name)) for at, pixels in parts)


def _repacked(
    values: np.ndarray | Compressed, packing: Packing | None, own: Packing | None, array: zarr.Array[Any], name: str
) -> np.ndarray | Compressed:
    if packing is not None and own is not None and own.attrs == packing.attrs:
        return values
    values = np.asarray(values)
    return schema.pack(packing.unpack(values) if packing is not None else values, array, name)


def write(arrays: Mapping[str, zarr.Array[Any]], values: Mapping[str, np.ndarray], where: slice) -> None:
    """Put values to their place along the first dimension, of all arrays at once; those that are too short grow."""
    packed = {name: schema.pack(part, arrays[name], name) for name, part in values.items()}

    async def put(name: str) -> None:
        array = arrays[name].async_array
        if array.shape[0] < where.stop:
            await array.resize((where.stop, *array.shape[1:]))
        await array.setitem(where, packed[name])

    async def put_all() -> None:
        await asyncio.gather(*map(put, packed))

    sync(put_all())


def commit(session: icechunk.Session, message: str, metadata: Mapping[str, object] | None) -> str:
    """Commit what was written in a session; gives the snapshot's identifier.

    Raises:
        StoreError: If another writer committed first.
    """
    log.debug("commit: %s", message)
    try:
        return session.commit(message, metadata=schema.plain(metadata or {}))
    except icechunk.ConflictError:
        raise StoreError("Another writer committed first; nothing was written, try again.") from None
