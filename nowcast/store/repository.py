"""Versioned stores: every store is an Icechunk repository (transactional Zarr 3).

One commit is one frame or one batch: a reader sees all of it or none, a killed writer leaves
nothing, a correction is a new commit and the old value stays in the history. Cubes grow along
``time``; forecasts and scores, the same way, along ``run``.

Arrays are written straight through zarr, not through xarray: an append costs milliseconds, and types
and fill values are those of ``layout``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import cast

import icechunk
import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.core.sync import sync

from nowcast.core.cube import label_runs
from nowcast.core.errors import StoreError
from nowcast.core.grid import Grid
from nowcast.core.units import QUANTITIES
from nowcast.store import schema
from nowcast.store.chunk_io import Compressed, Frames
from nowcast.store.packing import Packing

BRANCH = "main"
LOCK_SECONDS = 120
STEPS_PER_MANIFEST = 256
log = logging.getLogger(__name__)

icechunk.set_logs_filter("error")  # its warning about local disks is what `writing` locks against


@dataclass(frozen=True)
class Commit:
    """One version of a store."""

    snapshot: str
    time: datetime
    message: str
    metadata: Mapping[str, object]


# --- reading ------------------------------------------------------------------------------------


def exists(path: str | Path) -> bool:
    """True if something was ever committed at ``path``; a writer killed before that leaves nothing."""
    storage = _storage(path)
    return icechunk.Repository.exists(storage) and _begun(icechunk.Repository.open(storage))


def _begun(repository: icechunk.Repository) -> bool:
    """A new repository has one snapshot, without content."""
    return len(list(islice(repository.ancestry(branch=BRANCH), 2))) > 1


def snapshot(path: str | Path) -> str:
    """Identifier of the newest version."""
    return _repository(path).lookup_branch(BRANCH)


def open_store(path: str | Path, *, version: str | None = None) -> xr.Dataset:
    """Opens a store lazily.

    Args:
        path: Folder, or ``s3://bucket/prefix`` with the usual AWS variables, ``AWS_ENDPOINT_URL`` too.
        version: Snapshot identifier; None is the newest.

    Returns:
        The Dataset, sorted along ``time`` within each sequence; attribute ``snapshot`` names the
        version read. The runs of a live feed are labelled here, because a late frame may join two.

    Raises:
        StoreError: If there is no store, or no such version.
    """
    repository = _repository(path)
    version = version or repository.lookup_branch(BRANCH)
    try:
        session = repository.readonly_session(snapshot_id=version)
        raw = xr.open_zarr(session.store, consolidated=False, chunks=None, zarr_format=3, decode_cf=False)
    except icechunk.IcechunkError as error:
        raise StoreError(f"{path}: cannot read version {version}: {str(error).splitlines()[0]}.") from None
    dataset = _decode(raw, zarr.open_group(session.store, mode="r"))
    dataset.attrs["snapshot"] = version
    return _in_order(dataset) if "time" in dataset.dims else dataset


def timeline(path: str | Path, *, version: str | None = None) -> xr.Dataset:
    """The labels of all frames without their pixels, in the order of ``open_store``.

    ``position(time)`` says where a frame lies on disk; attribute ``channels`` lists the variables.
    """
    cube = open_store(path, version=version)
    names = [str(name) for name, variable in cube.data_vars.items() if variable.dims == ("time", "y", "x")]
    kept = cube.drop_vars([*names, "y", "x", "crs"], errors="ignore").reset_coords()
    return kept.assign_attrs(channels=names)


def packed(
    path: str | Path, names: Sequence[str], *, version: str | None = None
) -> dict[str, tuple[Frames, Packing | None]]:
    """Variables as they lie on disk, for those who read many frames: see ``chunks.Frames``."""
    repository = _repository(path)
    session = repository.readonly_session(snapshot_id=version or repository.lookup_branch(BRANCH))
    group = zarr.open_group(session.store, mode="r")
    arrays = {name: cast(zarr.Array, group[name]) for name in names}
    return {name: (Frames(array), Packing.of(array.dtype, array.attrs)) for name, array in arrays.items()}


def history(path: str | Path, *, limit: int | None = None) -> Iterator[Commit]:
    """Commits, newest first."""
    for count, info in enumerate(_repository(path).ancestry(branch=BRANCH)):
        if count == limit:
            return
        yield Commit(info.id, info.written_at, info.message, dict(info.metadata))


def size(path: str | Path) -> int:
    """Bytes of all chunks in the repository, all versions together."""
    return int(_repository(path).chunk_storage_stats().native_bytes)


def describe(path: str | Path, *, commits: int = 5) -> dict[str, object]:
    """What a store holds, as plain values: for ``nowcast show``."""
    dataset = open_store(path)
    along = "time" if "time" in dataset.dims else "run"
    stamps = dataset["time" if along == "time" else "forecast_reference_time"].values
    facts: dict[str, object] = {
        "store": str(path),
        "title": dataset.attrs.get("title", ""),
        "frames" if along == "time" else "runs": int(dataset.sizes[along]),
        "variables": [f"{name} ({variable.attrs.get('units', '-')})" for name, variable in dataset.data_vars.items()],
    }
    if "crs" in dataset.coords:
        facts["grid"] = str(Grid.of(dataset))
    if stamps.size:
        facts["span"] = (
            f"{np.datetime_as_string(stamps.min(), unit='s')}Z to {np.datetime_as_string(stamps.max(), unit='s')}Z"
        )
    if along == "time":
        facts["cadence"] = (
            f"{dataset.attrs['cadence_seconds']} s" if "cadence_seconds" in dataset.attrs else "per sequence"
        )
        facts["sequences"] = int(np.unique(dataset["sequence"].values.astype(str)).size)
        facts["gaps"] = _gaps(dataset)
    facts["size"] = f"{size(path) / 2**20:.1f} MiB"
    facts["commits"] = [
        f"{commit.time:%Y-%m-%d %H:%M:%S}Z {commit.snapshot} {commit.message}"
        for commit in history(path, limit=commits)
    ]
    return facts


def _gaps(cube: xr.Dataset) -> list[str]:
    """Breaks between the runs of a live feed."""
    if "cadence_seconds" not in cube.attrs or cube.sizes["time"] < 2:
        return []
    stamps = cube["time"].values.astype("datetime64[s]")
    step = np.diff(stamps) / np.timedelta64(int(cube.attrs["cadence_seconds"]), "s")
    return [
        f"{stamps[index]}Z to {stamps[index + 1]}Z ({step[index] - 1:.0f} frames)"
        for index in np.flatnonzero(step > 1.5)
    ]


class _ByTable(BackendArray):
    """Values of an array that is packed by a table of levels, which CF cannot express; read when asked for."""

    def __init__(self, array: zarr.Array) -> None:
        self.array, self.packing = array, cast(Packing, Packing.of(array.dtype, array.attrs))
        self.shape, self.dtype = array.shape, np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._values)

    def _values(self, key: tuple) -> np.ndarray:
        return self.packing.unpack(np.asarray(self.array.oindex[key]))


def _by_table(variable: xr.Variable, array: zarr.Array) -> xr.Variable:
    lazy = _ByTable(array)
    attrs = {key: value for key, value in variable.attrs.items() if key not in lazy.packing.attrs}
    mapping = {key: attrs.pop(key) for key in ["grid_mapping"] if key in attrs}  # where decode_cf puts it
    return xr.Variable(variable.dims, indexing.LazilyIndexedArray(lazy), attrs, mapping)


def _decode(raw: xr.Dataset, group: zarr.Group) -> xr.Dataset:
    tables = {str(name): variable for name, variable in raw.variables.items() if "levels" in variable.attrs}
    for variable in raw.variables.values():
        for key in {"scale_factor", "add_offset"} & set(variable.attrs):  # float64 would decode to float64
            variable.attrs[key] = np.float32(variable.attrs[key])
    dataset = xr.decode_cf(raw.drop_vars(tables), decode_timedelta=True, decode_coords="all")
    for name, variable in tables.items():
        dataset[name] = _by_table(variable, cast(zarr.Array, group[name]))
    for label, variable in dataset.variables.items():
        if variable.dtype.kind == "T":  # numpy's variable-width strings: few libraries take them yet
            dataset[label] = variable.astype(object)
    labels = [name for name in dataset.variables if dataset[name].dims in (("time",), ("run",)) or name == "crs"]
    return dataset.set_coords(labels)


def _in_order(cube: xr.Dataset) -> xr.Dataset:
    stamps, labels = cube["time"].values, cube["sequence"].values
    live = not any(labels)
    order = np.argsort(stamps, kind="stable") if live else _group(labels, stamps)
    if (order[1:] < order[:-1]).any():
        cube = cube.isel(time=order)
    known = list(QUANTITIES)  # a listing of a store has no order of its own
    cube = cube[sorted(map(str, cube.data_vars), key=lambda name: (known.index(name) if name in known else -1, name))]
    cube = cube.assign_coords(position=("time", order, {"long_name": "order of arrival"}))
    if live and "cadence_seconds" in cube.attrs:
        gap = int(cube.attrs.get("tolerated_gap", 0))
        runs = label_runs(cube["time"].values, cube.attrs["cadence_seconds"], tolerated_gap=gap)
        cube = cube.assign_coords(sequence=("time", runs))
    return cube


def _group(labels: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    """Order that keeps sequences together, in the order of their first appearance."""
    first: dict[str, int] = {}
    rank = np.asarray([first.setdefault(label, len(first)) for label in labels], np.int64)
    return np.lexsort((stamps, rank))


# --- writing ------------------------------------------------------------------------------------


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Holds the writer's lock of a store on a local disk; object stores detect conflicts themselves.

    The lock belongs to the process and goes with it, also on ``kill -9``. It may be nested.

    Raises:
        StoreError: If another process has been writing for two minutes.
    """
    if _is_url(path):
        yield
        return
    lock = _lock(Path(path))
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise StoreError(f"{path}: another process is writing; wait for it or end it.") from None
    try:
        yield
    finally:
        lock.release()


def append(
    path: str | Path,
    dataset: xr.Dataset,
    *,
    message: str,
    along: str = "time",
    metadata: Mapping[str, object] | None = None,
) -> str:
    """Adds frames (or runs) at the end of a store in one commit; makes the store if there is none.

    Args:
        path: Folder or URL.
        dataset: What to add; variables and labels with dim ``along`` are appended, the rest must
            equal what the store has.
        message: Commit message.
        along: ``time`` for a Cube, ``run`` for forecasts and scores.
        metadata: Kept with the commit.

    Returns:
        Snapshot identifier.

    Raises:
        BadInput: If the grid, the variables or the other dimensions differ from the store's.
        StoreError: If the store cannot be written.
    """
    with writing(path):
        session = _writable(path)
        group = zarr.open_group(session.store, mode="a")
        arrays = dict(group.arrays()) or schema.create(group, dataset, along, schema.event_length(dataset))
        schema.check_same(arrays, dataset, along, path, whole=True)
        names = schema.growing_names(dataset, along)
        length = arrays[names[0]].shape[0]
        _write(arrays, {name: dataset[name].values for name in names}, slice(length, length + dataset.sizes[along]))
        return _commit(session, message, metadata)


Pixels = Mapping[str, tuple[np.ndarray | Compressed, Packing | None]]
"""Channel -> (frame, row, column) values, and how they are packed already."""


class Growth:
    """Frames that are being added to a store in one commit, by one process or several, see ``growing``."""

    def __init__(self, path: str | Path, session: icechunk.Session, like: xr.Dataset, count: int, event: int) -> None:
        self.path, self.session = path, session
        group = zarr.open_group(session.store, mode="a")
        self.arrays = dict(group.arrays()) or schema.create(group, like, "time", event)
        self.cadence = cast(float | None, group.attrs.get("cadence_seconds"))
        """Seconds between the frames of a live feed."""
        self.start = self.arrays["time"].shape[0]
        self.total = self.start + count

    @property
    def steps(self) -> int:
        """Frames per object: an object is to be written by one process."""
        return max(Frames(array).steps for array in self.arrays.values() if array.ndim == 3)

    def check(self, like: xr.Dataset) -> None:
        """Refuses frames that do not fit.

        Raises:
            BadInput: See ``append``.
        """
        schema.check_same(self.arrays, like, "time", self.path, whole=True)

    def fill(self, parts: Sequence[tuple[int, Pixels]]) -> None:
        """Writes pixels to their positions, in this process; see ``fill`` for others."""
        _fill(self.arrays, parts, self.total)

    def fork(self) -> icechunk.ForkSession:
        """What another process needs for ``fill``: goes there and comes back, both by pickle."""
        return self.session.fork()

    def commit(
        self,
        labels: Mapping[str, np.ndarray],
        *,
        message: str,
        forks: Sequence[icechunk.ForkSession] = (),
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Brings together what the processes wrote, adds the labels of all new frames, commits all at once."""
        if forks:
            self.session.merge(*forks)
        _write(self.arrays, labels, slice(self.start, self.total))
        return _commit(self.session, message, metadata)


def growing(path: str | Path, like: xr.Dataset, count: int, *, event: int = 1) -> Growth:
    """Opens a store for ``count`` more frames; makes it if there is none. To be called under ``writing``.

    Args:
        path: Folder or URL.
        like: A Cube as the frames will be; it may have none itself.
        count: Frames.
        event: Frames of an event, where such come whole: a new store is laid out for them.
    """
    return Growth(path, _writable(path), like, count, event)


def fill(fork: icechunk.ForkSession, parts: Sequence[tuple[int, Pixels]], *, total: int) -> icechunk.ForkSession:
    """Writes pixels to their positions in a store that grows to ``total`` frames.

    Args:
        fork: Of a ``Growth``.
        parts: Position of the first frame, and frames, in ascending order.
        total: Frames in the store afterwards.

    Raises:
        BadInput: If they are packed in another way and do not fit into the store's.
    """
    group = zarr.open_group(fork.store, mode="a")
    _fill({name: cast(zarr.Array, group[name]) for name in parts[0][1]}, parts, total)
    return fork


def _fill(arrays: Mapping[str, zarr.Array], parts: Sequence[tuple[int, Pixels]], total: int) -> None:
    for name in parts[0][1]:
        array = arrays[name]
        if array.shape[0] < total:
            array.resize((total, *array.shape[1:]))
        own = Packing.of(array.dtype, array.attrs)
        Frames(array).write((at, _repacked(*pixels[name], own, array, name)) for at, pixels in parts)


def _repacked(
    values: np.ndarray | Compressed, packing: Packing | None, own: Packing | None, array: zarr.Array, name: str
) -> np.ndarray | Compressed:
    if packing is not None and own is not None and own.attrs == packing.attrs:
        return values
    values = np.asarray(values)
    return schema.pack(packing.unpack(values) if packing is not None else values, array, name)


def replace(
    path: str | Path,
    dataset: xr.Dataset,
    *,
    at: int | slice,
    message: str,
    along: str = "time",
    metadata: Mapping[str, object] | None = None,
) -> str:
    """Writes new values over frames (or runs) ``at`` in one commit; the old ones stay in the history.

    Args:
        path: Folder or URL.
        dataset: New values; variables that it lacks are left as they are.
        at: Position on disk along ``along``: the order of arrival, see ``positions``.
        message: Commit message.
        along: Dimension.
        metadata: Kept with the commit.
    """
    where = slice(at, at + 1) if isinstance(at, int) else at
    with writing(path):
        session = _writable(path)
        arrays = dict(zarr.open_group(session.store, mode="a").arrays())
        schema.check_same(arrays, dataset, along, path)
        _write(arrays, {name: dataset[name].values for name in schema.growing_names(dataset, along)}, where)
        return _commit(session, message, metadata)


def labels(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """One-dimensional labels in order of arrival, straight from disk: positions for ``replace``."""
    session = _repository(path).readonly_session(BRANCH)
    arrays = dict(zarr.open_group(session.store, mode="r").arrays())
    return {name: np.asarray(arrays[name][:]) for name in names if name in arrays}


def expire(path: str | Path, *, older_than: timedelta) -> int:
    """Forgets versions older than a limit and deletes what only they used.

    Returns:
        Bytes freed.
    """
    limit = datetime.now(UTC) - older_than
    with writing(path):
        repository = _repository(path)
        repository.expire_snapshots(older_than=limit)
        return int(repository.garbage_collect(limit).bytes_deleted)


def _write(arrays: Mapping[str, zarr.Array], values: Mapping[str, np.ndarray], where: slice) -> None:
    """Puts values to their place along the first dimension, of all arrays at once; those that are too short grow."""
    packed = {name: schema.pack(part, arrays[name], name) for name, part in values.items()}

    async def put(name: str) -> None:
        array = arrays[name].async_array
        if array.shape[0] < where.stop:
            await array.resize((where.stop, *array.shape[1:]))
        await array.setitem(where, packed[name])

    async def put_all() -> None:
        await asyncio.gather(*map(put, packed))

    sync(put_all())


def _commit(session: icechunk.Session, message: str, metadata: Mapping[str, object] | None) -> str:
    log.debug("commit: %s", message)
    try:
        return session.commit(message, metadata=schema.plain(metadata or {}))
    except icechunk.ConflictError:
        raise StoreError("Another writer committed first; nothing was written, try again.") from None


# --- where ---------------------------------------------------------------------------------------

_LOCKS: dict[Path, FileLock] = {}


def _lock(path: Path) -> FileLock:
    """One lock object per store and process, so that nested use does not wait for itself."""
    path = path.resolve()
    if path not in _LOCKS:
        path.parent.mkdir(parents=True, exist_ok=True)
        _LOCKS[path] = FileLock(path.with_name(path.name + ".lock"))
    return _LOCKS[path]


def _is_url(path: str | Path) -> bool:
    return "://" in str(path)


def _storage(path: str | Path) -> icechunk.Storage:
    if not _is_url(path):
        return icechunk.local_filesystem_storage(str(Path(path).resolve()))
    scheme, _, rest = str(path).partition("://")
    if scheme != "s3":
        raise StoreError(f"{path}: stores live in a folder or at s3://bucket/prefix.")
    bucket, _, prefix = rest.partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    return icechunk.s3_storage(
        bucket=bucket,
        prefix=prefix,
        from_env=True,
        endpoint_url=endpoint,
        force_path_style=endpoint is not None,
        allow_http=bool(endpoint and endpoint.startswith("http://")),
    )


def _repository(path: str | Path) -> icechunk.Repository:
    absent = f"{path}: there is no store here; make one with `nowcast ingest`."
    try:
        config = None if _is_url(path) else icechunk.RepositoryConfig(storage=_requests())
        repository = icechunk.Repository.open(_storage(path), config=config)
    except icechunk.IcechunkError as error:
        raise StoreError(absent) from error
    if not _begun(repository):
        raise StoreError(absent)
    return repository


def _config() -> icechunk.RepositoryConfig:
    """A commit rewrites the lists of chunks it touches: short lists, or a year of frames slows every append."""
    every, first = icechunk.ManifestSplitCondition.AnyArray(), icechunk.ManifestSplitDimCondition.Axis(0)
    splitting = icechunk.ManifestSplittingConfig.from_dict({every: {first: STEPS_PER_MANIFEST}})
    return icechunk.RepositoryConfig(manifest=icechunk.ManifestConfig(splitting=splitting), storage=_requests())


def _requests() -> icechunk.StorageSettings:
    """Reads from a disk are cut in two: a request for a whole object is streamed by 8 KiB, one for a range is not."""
    pair = icechunk.StorageConcurrencySettings(max_concurrent_requests_for_object=2, ideal_concurrent_request_size=1000)
    return icechunk.StorageSettings(concurrency=pair)


def _writable(path: str | Path) -> icechunk.Session:
    storage = _storage(path)
    try:
        return icechunk.Repository.open_or_create(storage, config=_config()).writable_session(BRANCH)
    except icechunk.IcechunkError as error:
        raise StoreError(f"{path}: cannot write here: {str(error).splitlines()[0]}.") from None
