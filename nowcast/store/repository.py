"""Versioned stores: every store is an Icechunk repository (transactional Zarr 3).

One commit is one frame or one batch: a reader sees all of it or none, a killed writer leaves
nothing, a correction is a new commit and the old value stays in the history. Cubes grow along
``time``; forecasts and scores, the same way, along ``run``.

Arrays are written straight through zarr, not through xarray: an append costs milliseconds, and types
and fill values are those of ``schema``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import icechunk
import numpy as np
import xarray as xr
import zarr

from nowcast.core.cadence import OVERRIDE, contradictions, stated_cadence
from nowcast.core.cube import Identity, identity
from nowcast.core.errors import BadInput, StoreError
from nowcast.core.grid import Grid
from nowcast.core.locks import Timeout, locked
from nowcast.store import schema
from nowcast.store.chunk_io import Frames
from nowcast.store.decode import decode, in_order
from nowcast.store.extension import Extension, commit, write
from nowcast.store.packing import Packing

BRANCH = "main"
LOCK_SECONDS = 120
STEPS_PER_MANIFEST = 256

icechunk.set_logs_filter("error")  # its warning about local disks is what `Store.writing` locks against


@dataclass(frozen=True)
class Commit:
    """One version of a store."""

    snapshot: str
    time: datetime
    message: str
    metadata: Mapping[str, object]


class Store:
    """One store, of whatever kind: its repository is opened at the first use and kept.

    Nothing needs to be there yet. Every call sees what others have committed meanwhile, in this process or another.
    Threads may share a store; pickled, it is its path, and opens its repository anew where it arrives.
    """

    along: ClassVar[str] = ""
    """Dimension that grows; of a store of no known kind, that of the data."""
    later_labels: ClassVar[tuple[str, ...]] = ()
    """Labels that stores of older versions lack; they get them, empty, with the next run."""

    def __init__(self, path: str | Path) -> None:
        """Name a store; nothing is opened.

        Args:
            path: Folder, or ``s3://bucket/prefix`` with the usual AWS variables, ``AWS_ENDPOINT_URL`` too.
        """
        self.path = str(path)
        self.place = self.path.rstrip("/") if "://" in self.path else Path(path).resolve()
        """Two stores with the same are one: an absolute Path, or a URL."""
        self._kept: icechunk.Repository | None = None

    @classmethod
    def of(cls, place: Place) -> Self:
        """Return the store itself, or the one at a path."""
        if isinstance(place, cls):
            return place
        return cls(place.path if isinstance(place, Store) else place)

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def __reduce__(self) -> tuple[type[Store], tuple[str | Path]]:
        return type(self), (self.place,)

    # --- reading

    def exists(self) -> bool:
        """Tell whether something was ever committed here; a writer killed before that leaves nothing."""
        return self._look() is not None

    def snapshot(self) -> str:
        """Return the identifier of the newest version.

        Raises:
            StoreError: If there is no store.
        """
        return self._found()[1]

    def read(self, version: str | None = None) -> xr.Dataset:
        """Open what it holds, lazily.

        Args:
            version: Snapshot identifier; None is the newest.

        Returns:
            The Dataset, sorted along ``time`` within each sequence; attribute ``snapshot`` names the
            version read. The runs of a live feed are labelled here, because a late frame may join two.

        Raises:
            StoreError: If there is no store, or no such version.
        """
        session = self._session(version)
        raw = xr.open_zarr(session.store, consolidated=False, chunks=None, zarr_format=3, decode_cf=False)
        dataset = decode(raw, zarr.open_group(session.store, mode="r"))
        dataset.attrs["snapshot"] = session.snapshot_id
        return in_order(dataset) if "time" in dataset.dims else dataset

    def labels(self, *names: str, last: int | None = None) -> dict[str, np.ndarray]:
        """Read one-dimensional labels in order of arrival, straight from disk: positions for ``replace``.

        Args:
            names: Labels; those that are not there are left out.
            last: Only of so many last frames or runs; None: of all.
        """
        arrays = dict(zarr.open_group(self._session().store, mode="r").arrays())
        start = {name: max(0, arrays[name].shape[0] - last) if last else 0 for name in names if name in arrays}
        return {name: np.asarray(arrays[name][begin:]) for name, begin in start.items()}

    def history(self, *, limit: int | None = None) -> Iterator[Commit]:
        """List the commits, newest first."""
        repository, _ = self._found()
        for count, info in enumerate(repository.ancestry(branch=BRANCH)):
            if count == limit:
                return
            yield Commit(info.id, info.written_at, info.message, dict(info.metadata))

    def size(self) -> int:
        """Count the bytes of all chunks in the repository, all versions together."""
        return int(self._found()[0].chunk_storage_stats().native_bytes)

    def describe(self, *, commits: int = 5) -> dict[str, object]:
        """Describe what it holds, as plain values: for ``nowcast show``."""
        recent = [
            f"{commit.time:%Y-%m-%d %H:%M:%S}Z {commit.snapshot} {commit.message}"
            for commit in self.history(limit=commits)
        ]
        size = f"{self.size() / 2**20:.1f} MiB"
        return {"store": self.path} | _facts(self.read()) | {"size": size, "commits": recent}

    # --- writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock of a store on a local disk; object stores detect conflicts themselves.

        The lock belongs to the process and goes with it, also on ``kill -9``. It may be nested.

        Raises:
            StoreError: If another process has been writing for two minutes.
        """
        if not isinstance(self.place, Path):
            yield
            return
        self.place.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(
                    locked(self.place.with_name(self.place.name + ".lock"), seconds=LOCK_SECONDS, nested=True)
                )
            except Timeout:
                raise StoreError(f"{self.path}: another process is writing; wait for it or end it.") from None
            yield

    def append(self, dataset: xr.Dataset, *, message: str, metadata: Mapping[str, object] | None = None) -> str:
        """Add frames (or runs) at the end in one commit; the first ones make the store.

        Args:
            dataset: What to add; variables and labels with the dimension that grows are appended, the rest must
                equal what the store has.
            message: Commit message.
            metadata: Kept with the commit.

        Returns:
            Snapshot identifier.

        Raises:
            BadInput: If the grid, the variables or the other dimensions differ from the store's.
            StoreError: If the store cannot be written.
        """
        along = self._dimension(dataset)
        with self.writing():
            session = self._writable()
            group = zarr.open_group(session.store, mode="a")
            arrays = dict(group.arrays()) or schema.create(group, dataset, along, schema.event_length(dataset))
            arrays |= schema.add_labels(group, arrays, dataset, along, self.later_labels)
            schema.check_same(arrays, dataset, along, self.path, whole=True)
            names = schema.growing_names(dataset, along)
            length = arrays[names[0]].shape[0]
            write(arrays, {name: dataset[name].values for name in names}, slice(length, length + dataset.sizes[along]))
            return commit(session, message, metadata)

    def replace(
        self, dataset: xr.Dataset, *, at: int | slice, message: str, metadata: Mapping[str, object] | None = None
    ) -> str:
        """Write new values over frames (or runs) ``at`` in one commit; the old ones stay in the history.

        Args:
            dataset: New values; variables that it lacks are left as they are.
            at: Position on disk along the dimension that grows: the order of arrival, see ``labels``.
            message: Commit message.
            metadata: Kept with the commit.

        Returns:
            Snapshot identifier.
        """
        along = self._dimension(dataset)
        where = slice(at, at + 1) if isinstance(at, int) else at
        with self.writing():
            session = self._writable()
            group = zarr.open_group(session.store, mode="a")
            arrays = dict(group.arrays())
            arrays |= schema.add_labels(group, arrays, dataset, along, self.later_labels)
            schema.check_same(arrays, dataset, along, self.path)
            write(arrays, {name: dataset[name].values for name in schema.growing_names(dataset, along)}, where)
            return commit(session, message, metadata)

    def expire(self, *, older_than: timedelta) -> int:
        """Forget versions older than a limit and delete what only they used.

        Returns:
            Bytes freed.
        """
        limit = datetime.now(UTC) - older_than
        with self.writing():
            repository, _ = self._found()
            repository.expire_snapshots(older_than=limit)
            self._kept = None  # it still knows what is gone now
            return int(repository.garbage_collect(limit).bytes_deleted)

    def _dimension(self, dataset: xr.Dataset) -> str:
        """Choose the dimension along which a Dataset makes it grow."""
        along = self.along or _along(dataset)
        if along not in dataset.dims:
            raise BadInput(
                self.path, f"grows along {along}, and this has none", "use another store for another kind of data"
            )
        return along

    # --- its repository

    @cached_property
    def _storage(self) -> icechunk.Storage:
        return _storage(self.place)

    def _look(self) -> tuple[icechunk.Repository, str] | None:
        """Find the repository and its newest version; None if nothing was ever committed."""
        try:
            if (found := self._look_again() or self._look_first()) is None:
                return None
            repository, version = found
            empty = repository.lookup_snapshot(version).parent_id is None  # the one that every repository begins with
        except icechunk.IcechunkError as error:
            raise StoreError(f"{self.path}: cannot be opened: {_first_line(error)}.") from error
        return None if empty else found

    def _look_again(self) -> tuple[icechunk.Repository, str] | None:
        """Return the repository that was kept; None if none was, or if it was removed since."""
        if (kept := self._kept) is not None:
            with suppress(icechunk.IcechunkError):
                return kept, kept.lookup_branch(BRANCH)
        self._kept = None
        return None

    def _look_first(self) -> tuple[icechunk.Repository, str] | None:
        nowhere = isinstance(self.place, Path) and not self.place.is_dir()  # Icechunk makes a folder that it looks for
        if nowhere or not icechunk.Repository.exists(self._storage):
            return None
        self._kept = kept = icechunk.Repository.open(self._storage, config=_config())
        return kept, kept.lookup_branch(BRANCH)

    def _found(self) -> tuple[icechunk.Repository, str]:
        """Find them as ``_look`` does; an error where there is nothing."""
        if (found := self._look()) is None:
            raise StoreError(f"{self.path}: there is no store here; make one with `nowcast ingest`.")
        return found

    def _session(self, version: str | None = None) -> icechunk.Session:
        """Open a session that reads one version; None: the newest."""
        repository, newest = self._found()
        try:
            return repository.readonly_session(snapshot_id=version or newest)
        except icechunk.IcechunkError as error:
            raise StoreError(f"{self.path}: cannot read version {version}: {_first_line(error)}.") from error

    def _writable(self) -> icechunk.Session:
        """Open a session that writes; makes the repository if there is none."""
        self._look()
        try:
            repository = self._kept or icechunk.Repository.open_or_create(self._storage, config=_config())
            self._kept = repository
            return repository.writable_session(BRANCH)
        except icechunk.IcechunkError as error:
            raise StoreError(f"{self.path}: cannot write here: {_first_line(error)}.") from error


Place = Store | str | Path
"""A store, or its path."""


class FrameStore(Store):
    """Cubes: frames along ``time``."""

    along = "time"

    def timeline(self, version: str | None = None) -> xr.Dataset:
        """Read the labels of all frames without their pixels, in the order of ``read``.

        ``position(time)`` says where a frame lies on disk; attribute ``channels`` lists the variables.
        """
        cube = self.read(version)
        names = [str(name) for name, variable in cube.data_vars.items() if variable.dims == ("time", "y", "x")]
        kept = cube.drop_vars([*names, "y", "x", "crs"], errors="ignore").reset_coords()
        return kept.assign_attrs(channels=names)

    def times(self) -> np.ndarray:
        """Read the times of all frames, datetime64[s], ascending."""
        return np.sort(self.labels("time")["time"]).astype("datetime64[s]")

    def packed(self, names: Sequence[str], *, version: str | None = None) -> dict[str, tuple[Frames, Packing | None]]:
        """Open variables as they lie on disk, for those who read many frames: see ``chunk_io.Frames``."""
        group = zarr.open_group(self._session(version).store, mode="r")
        arrays = {name: cast(zarr.Array[Any], group[name]) for name in names}
        return {name: (Frames(array), Packing.of(array.dtype, array.attrs)) for name, array in arrays.items()}

    def identity(self) -> Identity | None:
        """Read which product it holds; None where nothing is there yet, and of stores older than identities."""
        group = self._group()
        if group is None or "accumulation_seconds" not in group.attrs:
            return None
        names = [name for name, array in group.arrays() if _dimensions(array) == ("time", "y", "x")]
        return identity(group.attrs, names).ordered()

    def check(self, like: xr.Dataset) -> None:
        """Refuse frames that do not fit beside those that are here.

        Raises:
            BadInput: See ``schema.check_same``.
        """
        if group := self._group():
            schema.check_same(dict(group.arrays()), like, self.along, self.path, whole=True)

    def state_cadence(self, seconds: int) -> None:
        """Keep the seconds between frames that the operator states; 0: their times decide."""
        group = self._group()
        if group is None or "cadence_seconds" not in group.attrs or group.attrs.get(OVERRIDE, 0) == seconds:
            return
        with self.writing():
            session = self._writable()
            zarr.open_group(session.store, mode="a").attrs[OVERRIDE] = seconds
            commit(session, f"State a step of {seconds} s" if seconds else "State no step", None)

    def contradictions(self) -> list[str]:
        """Say what the times of a live feed say against its stated step; see ``cadence.contradictions``."""
        group = self._group()
        if group is None or "cadence_seconds" not in group.attrs:
            return []
        return contradictions(self.times(), **stated_cadence(group.attrs))

    def _group(self) -> zarr.Group | None:
        return zarr.open_group(self._session().store, mode="r") if self.exists() else None

    def extend(self, like: xr.Dataset, count: int, *, event: int = 1) -> Extension:
        """Open the store for ``count`` more frames; makes it if there is none. To be called under ``writing``.

        Args:
            like: A Cube as the frames will be; it may have none itself.
            count: Frames.
            event: Frames of an event, where such come whole: a new store is laid out for them.
        """
        return Extension(self.path, self._writable(), like, count, event)


class ForecastStore(Store):
    """Forecasts: runs of products along ``run``.

    A forecast that is made again is a new run, with the next number as its ``version``; the older ones stay.
    """

    along = "run"
    later_labels = ("version", "revised", "bridged")

    def read(self, version: str | None = None) -> xr.Dataset:
        """Open the newest version of every forecast, lazily; ``Store.read`` has the older ones too."""
        runs = super().read(version)
        if "version" not in runs.coords or not (runs["version"].values > 1).any():
            return runs
        keys = zip(
            *(runs[name].values.tolist() for name in ("forecast_reference_time", "sequence", "model")), strict=True
        )
        newest = {key: row for row, key in enumerate(keys)}
        return runs.isel(run=sorted(newest.values()))

    def issued(self, reference: np.datetime64, sequence: str) -> dict[str, int]:
        """Map the products that have a forecast from this time (of this event) to its newest version."""
        if not self.exists():
            return {}
        labels = self.labels("model", "forecast_reference_time", "sequence", "version")
        same = labels["forecast_reference_time"] == reference.astype("datetime64[s]").astype(np.int64)
        same &= labels["sequence"] == sequence
        versions = labels.get("version", np.zeros(same.size, np.int64))
        return dict(zip(labels["model"][same].tolist(), np.maximum(versions[same], 1).tolist(), strict=True))


class ScoreStore(Store):
    """Sums of verified forecasts: runs along ``run``, ratios are made on reading."""

    along = "run"
    later_labels = ("version",)


def open_store(path: Place, *, version: str | None = None) -> xr.Dataset:
    """Open a store of whatever kind, lazily.

    Args:
        path: Folder or ``s3://bucket/prefix``, or a ``Store``.
        version: Snapshot identifier; None is the newest.

    Returns:
        See ``Store.read``.

    Raises:
        StoreError: If there is no store, or no such version.
    """
    return Store.of(path).read(version)


# --- what it holds --------------------------------------------------------------------------------


def _dimensions(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    return tuple(cast(Any, array.metadata).dimension_names or ())


def _along(dataset: xr.Dataset) -> str:
    """Find the dimension that grows."""
    return "time" if "time" in dataset.dims else "run"


def _facts(dataset: xr.Dataset) -> dict[str, object]:
    """Describe what a Cube, forecasts or scores hold, as plain values."""
    along = _along(dataset)
    stamps = dataset["time" if along == "time" else "forecast_reference_time"].values
    facts: dict[str, object] = {
        "title": dataset.attrs.get("title", ""),
        "frames" if along == "time" else "runs": int(dataset.sizes[along]),
        "variables": [f"{name} ({variable.attrs.get('units', '-')})" for name, variable in dataset.data_vars.items()],
    }
    if "crs" in dataset.coords:
        facts["grid"] = str(Grid.of(dataset))
    if stamps.size:
        first, last = (np.datetime_as_string(stamp, unit="s") for stamp in (stamps.min(), stamps.max()))
        facts["span"] = f"{first}Z to {last}Z"
    if along == "time":
        seconds = dataset.attrs.get("cadence_seconds")
        facts["cadence"] = "per sequence" if seconds is None else f"{seconds} s"
        facts |= _contradicted(dataset)
        facts["product"] = str(identity(dataset))
        facts["sequences"] = int(np.unique(dataset["sequence"].values.astype(str)).size)
        facts["gaps"] = _gaps(dataset)
    return facts


def _contradicted(cube: xr.Dataset) -> dict[str, object]:
    """Say what the times of a live feed say against its stated step."""
    if "cadence_seconds" not in cube.attrs:
        return {}
    said = contradictions(cube["time"].values, **stated_cadence(cube.attrs))
    return {"step": said} if said else {}


def _gaps(cube: xr.Dataset) -> list[str]:
    """List the breaks between the runs of a live feed."""
    if "cadence_seconds" not in cube.attrs or cube.sizes["time"] < 2:
        return []
    stamps = cube["time"].values.astype("datetime64[s]")
    step = np.diff(stamps) / cube["step"].values[1:].astype("timedelta64[s]")
    return [
        f"{stamps[index]}Z to {stamps[index + 1]}Z ({step[index] - 1:.0f} frames)"
        for index in np.flatnonzero(step > 1.5)
    ]


# --- where ---------------------------------------------------------------------------------------


def _storage(place: str | Path) -> icechunk.Storage:
    if isinstance(place, Path):
        return icechunk.local_filesystem_storage(str(place))
    scheme, _, rest = place.partition("://")
    if scheme != "s3":
        raise StoreError(f"{place}: stores live in a folder or at s3://bucket/prefix.")
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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _config() -> icechunk.RepositoryConfig:
    """Keep the lists of chunks short: a commit rewrites those that it touches, and a year of frames would slow it."""
    every, first = icechunk.ManifestSplitCondition.AnyArray(), icechunk.ManifestSplitDimCondition.Axis(0)
    splitting = icechunk.ManifestSplittingConfig.from_dict({every: {first: STEPS_PER_MANIFEST}})
    return icechunk.RepositoryConfig(manifest=icechunk.ManifestConfig(splitting=splitting), storage=_requests())


def _requests() -> icechunk.StorageSettings:
    """Cut reads from a disk in two: a request for a whole object is streamed by 8 KiB, one for a range is not."""
    pair = icechunk.StorageConcurrencySettings(max_concurrent_requests_for_object=2, ideal_concurrent_request_size=1000)
    return icechunk.StorageSettings(concurrency=pair)
