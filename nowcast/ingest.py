"""Files in, store out: every readable frame once, everything else refused by name.

Idempotent: a file whose signature is known is not opened again; a frame of a known time and content
is a no-op; one of a known time and other content becomes a new version, and the old one stays in the
history of the store. Items are taken in batches, each of which is one commit: a conversion that was
cut off goes on where it stopped.

With ``workers`` or a ``scheduler`` the batches are read and written by Dask: the pixels of an item stay
in the worker that read them and go from there to the store, in whole objects; only labels travel.
"""

from __future__ import annotations

import glob
import pickle
import socket
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import xarray as xr

from nowcast import quality, store
from nowcast.chunks import Compressed
from nowcast.config import QualitySettings
from nowcast.cube import BadInput, channels, digest
from nowcast.packing import Packing, packed
from nowcast.quality import Before
from nowcast.readers import Item, detect, get

AUTO = "auto"
BATCH_ITEMS, BATCH_BYTES = 128, 2**26
"""Items, and bytes of pixels, that one process commits together."""
TASK_ITEMS, TASK_BYTES = 32, 2**25
"""Likewise what one process reads meanwhile, and a task of a worker, of which each has a few at a time."""
PREPARING = 2
"""Threads that prepare items: libraries work outside of Python's lock for half of that."""
BATCHES_AHEAD = 2
BLANKS_KEPT = 16
CONNECT_SECONDS = 10
KEPT = {"MALLOC_TRIM_THRESHOLD_": 2**28, "MALLOC_MMAP_THRESHOLD_": 2**25}
"""Bytes that a worker keeps for its next frames: to get them from the system again costs as much as the work."""
Pixels = dict[str, tuple[np.ndarray | Compressed, Packing | None]]
"""Channel -> (frame, row, column), and how it is packed."""
Inspect = Callable[[Item, str, xr.Dataset | None], "_Prepared"]
Progress = Callable[[int, int, str], None]
"""Called with: items done, items in all, name of the last one."""


@dataclass
class Summary:
    """What became of the items."""

    taken: int = 0
    """Frames that are new in the store."""
    known: int = 0
    """Frames that were there already."""
    revised: int = 0
    """Frames whose new content replaced an old one."""
    refused: list[str] = field(default_factory=list)
    """One sentence per item that was not taken."""
    flagged: dict[str, int] = field(default_factory=dict)
    """Flag of the quality control -> frames that were taken with it."""
    newest: datetime | None = None
    """Newest time in the store afterwards, UTC."""


def ingest(reader_name: str, sources: Iterable[str | Path], path: str | Path, *, now: datetime | None = None,
           settings: QualitySettings | None = None, workers: int = 0, scheduler: str | None = None,
           progress: Progress | None = None) -> Summary:  # fmt: skip
    """Brings files into a store.

    Args:
        reader_name: See ``readers.READERS``; ``auto`` asks which reader recognises each source.
        sources: Files, folders or glob patterns.
        path: Cube store; made if it does not exist.
        now: Frames later than this are from the future and refused; None: the clock.
        settings: Quality control.
        workers: Processes that read and write, on this machine; 0: this process alone.
        scheduler: Address of a running Dask cluster, ``tcp://host:port``, whose workers see the same
            files and store; takes the place of ``workers``.
        progress: Called after each item.

    Raises:
        ValueError: If the reader is unknown.
        StoreError: If the store cannot be written. What was committed before stays.
    """
    if reader_name != AUTO:
        get(reader_name)
    with store.writing(path):
        taking = _Taking(path, settings or QualitySettings())
        items = list(_find(reader_name, sources, taking.summary))
        fresh = [found for found in items if taking.is_new(found[1])]
        inspect = partial(_inspect, now=now, settings=taking.settings)
        report = _reporter(progress, len(items), len(items) - len(fresh))
        if (workers or scheduler) and fresh:
            with _cluster(workers, scheduler) as client:
                _in_parallel(fresh, inspect, taking, client, report)
        else:
            _alone(fresh, inspect, taking, report)
    return taking.finished()


# --- one item -------------------------------------------------------------------------------------


def _find(reader_name: str, sources: Iterable[str | Path], summary: Summary) -> Iterator[tuple[str, Item]]:
    for source in sources:
        matches = sorted(glob.glob(str(source), recursive=True)) if glob.has_magic(str(source)) else [source]  # noqa: PTH207
        try:
            found = [(name, item) for match in map(Path, matches)
                     for name in [detect(match) if reader_name == AUTO else reader_name]
                     for item in get(name).find(match)]  # fmt: skip
        except (BadInput, ModuleNotFoundError) as error:
            summary.refused.append(str(error))
            continue
        if not found:
            summary.refused.append(f"{source}: nothing that this reader knows; check the path and the reader.")
        yield from found


@dataclass(frozen=True)
class _Prepared:
    """One item, read, looked at and packed."""

    item: Item
    signature: str = ""
    like: xr.Dataset | None = None
    """A Cube of no frames as these are; None where the item was refused."""
    kind: bytes = b""
    """The same for all that are alike."""
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """What the store keeps of every frame."""
    event: int = 1
    """Frames of its first event."""
    pixels: Pixels = field(default_factory=dict)
    """Empty where they stay in a worker."""
    size: int = 0
    """Bytes of the pixels, wherever they are."""
    refused: str = ""

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(sequence, seconds since 1970) of every frame."""
        stamps = self.labels["time"].astype("datetime64[s]").astype(np.int64).tolist()
        return list(zip(map(str, self.labels["sequence"]), stamps, strict=True))

    def part(self, frames: Sequence[int]) -> Pixels:
        """The pixels of some frames."""
        whole = len(frames) == len(self.labels["time"])
        return {name: (values if whole else values[list(frames)], packing)
                for name, (values, packing) in self.pixels.items()}  # fmt: skip


def _read(found: tuple[str, Item]) -> tuple[Item, str, xr.Dataset | None]:
    """An item, and its signature and Cube; or what is wrong with it in one sentence, and None."""
    name, item = found
    try:
        return item, item.signature, get(name).read(item)
    except (BadInput, OSError, ModuleNotFoundError) as error:
        return item, str(error), None


def _inspect(item: Item, signature: str, cube: xr.Dataset | None, *, now: datetime | None,
             settings: QualitySettings) -> _Prepared:  # fmt: skip
    """Looks at what was read and packs it."""
    if cube is None:
        return _Prepared(item, refused=signature)
    labels = {str(key): variable.values for key, variable in cube.variables.items() if variable.dims == ("time",)}
    try:
        clipped = quality.clip(cube, settings)
        plain = {channel: packed(cube.variables[channel], channel) for channel in channels(cube)}
        labels |= quality.measure(cube, settings, pixels=plain, now=now, where=item)
    except BadInput as error:
        return _Prepared(item, refused=str(error))
    labels["status"] |= clipped
    frames = zip(*(values for values, _ in plain.values()), strict=True)
    labels["digest"] = np.asarray([digest(*frame) for frame in frames], object)
    labels["source"] = np.full(cube.sizes["time"], signature, object)
    event = store.event_length(cube)
    pixels: Pixels = {name: (store.compressed(codes, packing) if event == 1 else codes, packing)
                      for name, (codes, packing) in plain.items()}  # fmt: skip
    size = sum(values.nbytes for values, _ in pixels.values())
    return _Prepared(item, signature, *_blank(cube, labels), labels, event, pixels, size)


def _prepare_one(found: tuple[str, Item], inspect: Inspect) -> _Prepared:
    return inspect(*_read(found))


def _prepare(found: Sequence[tuple[str, Item]], inspect: Inspect) -> list[_Prepared]:
    with _one_core_each():
        return [_prepare_one(one, inspect) for one in found]


_BLANKS: dict[bytes, xr.Dataset] = {}
"""To make one costs as much as to read a frame, and thousands of files are alike."""


def _blank(cube: xr.Dataset, labels: dict[str, np.ndarray]) -> tuple[xr.Dataset, bytes]:
    """A Cube of no frames, with all labels, and what tells its kind from others."""
    attrs = {key: value for key, value in cube.attrs.items() if key != "source"}  # the store's hold for every frame
    names, variables = channels(cube), cube.variables
    packing = [(name, key, value.tobytes() if isinstance(value, np.ndarray) else value)
               for name in names for key, value in variables[name].encoding.items()]  # fmt: skip
    words = repr((*names, *labels, *packing, attrs, variables["crs"].attrs["crs_wkt"])).encode()
    kind = blake2b(b"".join([words, variables["y"].values.tobytes(), variables["x"].values.tobytes()])).digest()
    if kind not in _BLANKS:
        if len(_BLANKS) >= BLANKS_KEPT:
            _BLANKS.clear()
        plain = {key: ("time", labels[key]) for key in ("digest", "source")}
        _BLANKS[kind] = quality.labelled(cube, labels).assign_coords(plain).isel(time=slice(0))
        _BLANKS[kind].attrs = attrs
    return _BLANKS[kind], kind


# --- what the store holds -------------------------------------------------------------------------


@dataclass
class _Book:
    """What the store holds, in order of arrival."""

    frames: dict[tuple[str, int], int] = field(default_factory=dict)
    """(sequence, time) -> position on disk."""
    digests: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """Signatures that need not be opened again."""
    before: dict[str, Before] = field(default_factory=dict)
    """Last frame of every sequence, for the quality control of the next."""

    @classmethod
    def of(cls, path: str | Path, settings: QualitySettings) -> _Book:
        book = cls()
        if not store.exists(path):
            return book
        kept = store.labels(path, "sequence", "time", "digest", "source", *quality.LABELS)
        keys = ("sequence", "time", "digest", "source")
        if absent := [key for key in keys if key not in kept]:
            raise store.StoreError(f"{path}: holds no {' or '.join(absent)}, so it was not made by `nowcast ingest`; "
                                   "name another store.")  # fmt: skip
        for sequence, time, fingerprint, source in zip(*(kept[key].tolist() for key in keys), strict=True):
            book.add((sequence, time), fingerprint, source)
        if set(quality.LABELS) <= set(kept):
            kept["time"] = kept["time"].astype("datetime64[s]")
            quality.compare(kept, book.before, settings, cadence=None)
        return book

    def add(self, key: tuple[str, int], fingerprint: str, source: str) -> None:
        self.frames[key] = len(self.digests)
        self.digests.append(fingerprint)
        self.sources.append(source)
        self.seen.add(source)

    def corrects(self, key: tuple[str, int], fingerprint: str, source: str) -> bool:
        """True for other content from a later file. Of two files with the same frame the later one
        wins whatever the order they are read in, so that they cannot replace each other for ever."""
        place = self.frames[key]
        return fingerprint != self.digests[place] and _age(source) > _age(self.sources[place])


def _age(signature: str) -> tuple[int, str]:
    name, _, modified = signature.rsplit("|", 2)
    return int(modified), name


# --- taking items in ------------------------------------------------------------------------------

Pieces = list[tuple[_Prepared, list[int]]]
"""Items and those of their frames that are new."""
Write = Callable[[store.Growth, Pieces], Sequence[Any]]
"""Writes pixels to their places; returns the forks of the session that other processes wrote to."""


class _Taking:
    """Sorts what was read into new, known, changed and refused, and has it written."""

    def __init__(self, path: str | Path, settings: QualitySettings) -> None:
        self.path, self.settings, self.summary = path, settings, Summary()
        self.fitting: set[bytes] = set()
        """Kinds that the store takes."""
        self.book = _Book.of(path, settings)

    def is_new(self, item: Item) -> bool:
        """False for what was read before; a file that cannot even be looked at is left to the reader."""
        try:
            known = item.signature in self.book.seen
        except OSError:
            return True
        self.summary.known += known
        return not known

    def batch(self, prepared: Sequence[_Prepared], write: Write) -> list[_Prepared]:
        """Writes the new frames of a batch; returns the items that hold others too."""
        others = []
        self.summary.refused += [one.refused for one in prepared if one.refused]
        for group in _without_repeats([one for one in prepared if one.like is not None]):
            pieces = [(one, [index for index, key in enumerate(one.keys) if key not in self.book.frames])
                      for one in group]  # fmt: skip
            others += [one for one, new in pieces if len(new) < len(one.keys)]
            self._add([piece for piece in pieces if piece[1]], write)
        for one in others:
            self.book.seen.add(one.signature)
        return others

    def _add(self, pieces: Pieces, write: Write) -> None:
        """Commits items together, or where something does not fit in halves, until only that is refused."""
        try:
            self._commit(pieces, write)
        except BadInput as error:
            if len(pieces) == 1:
                self.summary.refused.append(f"{pieces[0][0].item}: {error}")
                return
            half = len(pieces) // 2
            self._add(pieces[:half], write)
            self._add(pieces[half:], write)

    def _commit(self, pieces: Pieces, write: Write) -> None:
        if not pieces:
            return
        first = pieces[0][0]
        assert first.like is not None
        before = dict(self.book.before)
        labels = {key: np.concatenate([_picked(one, key)[new] for one, new in pieces]) for key in first.labels}
        growth = store.growing(self.path, first.like, len(labels["time"]), event=first.event)
        # in order of arrival: how items were put together must not show
        labels["status"] = quality.compare(labels, before, self.settings, cadence=growth.cadence)
        for kind, like in {one.kind: one.like for one, _ in pieces if one.like is not None}.items():
            if kind not in self.fitting:
                growth.check(like)
                self.fitting.add(kind)
        items = [one.item for one, _ in pieces]
        growth.commit(labels, forks=write(growth, pieces), message=_message(items))
        self.book.before = before
        self._note(labels)

    def _note(self, labels: dict[str, np.ndarray]) -> None:
        stamps = labels["time"].astype("datetime64[s]").astype(np.int64).tolist()
        for sequence, stamp, *mark in zip(labels["sequence"], stamps, labels["digest"], labels["source"], strict=True):
            self.book.add((str(sequence), stamp), *mark)
        self.summary.taken += len(stamps)
        for name, bit in quality.FLAGS.items():
            if count := int((labels["status"] & bit > 0).sum()):
                self.summary.flagged[name] = self.summary.flagged.get(name, 0) + count

    def revise(self, one: _Prepared, pixels: Callable[[], Pixels]) -> None:
        """Replaces the frames of an item whose content changed; counts those that did not."""
        held: Pixels = {}
        for index, key in enumerate(one.keys):
            place, fingerprint = self.book.frames[key], one.labels["digest"][index]
            if self.book.sources[place] == one.signature:
                continue  # taken just now
            if not self.book.corrects(key, fingerprint, one.signature):
                self.summary.known += 1
                continue
            held = held or pixels()
            frames = {name: (np.asarray(values)[index], packing) for name, (values, packing) in held.items()}
            values = {name: packing.unpack(codes) if packing else codes for name, (codes, packing) in frames.items()}
            store.replace(self.path, _frame(one, index, values), at=place, message=f"Revise {one.item}")
            self.book.digests[place], self.book.sources[place] = fingerprint, one.signature
            self.summary.revised += 1

    def finished(self) -> Summary:
        if self.book.frames:
            self.summary.newest = datetime.fromtimestamp(max(time for _, time in self.book.frames), UTC)
        return self.summary


def _picked(one: _Prepared, key: str) -> np.ndarray:
    if key not in one.labels:
        raise BadInput(one.item, f"has no {key}, which others have", "use another store for another kind of data")
    return one.labels[key]


def _frame(one: _Prepared, index: int, values: dict[str, np.ndarray]) -> xr.Dataset:
    """One frame as a Cube."""
    assert one.like is not None
    fixed = one.like.drop_dims("time")
    labels = {key: ("time", column[index : index + 1]) for key, column in one.labels.items()}
    fields = {name: (("time", "y", "x"), field[None]) for name, field in values.items()}
    return fixed.assign_coords(labels).assign(fields)


def _without_repeats(items: list[_Prepared]) -> Iterator[list[_Prepared]]:
    """Cuts a batch where a frame comes a second time."""
    batch: list[_Prepared] = []
    held: set[tuple[str, int]] = set()
    for one in items:
        keys = set(one.keys)
        if keys & held:
            yield batch
            batch, held = [], set()
        batch.append(one)
        held |= keys
    yield batch


def _message(items: Sequence[Item]) -> str:
    return f"Add {items[0]}" if len(items) == 1 else f"Add {items[0]} to {items[-1]}, {len(items)} items"


def _reporter(progress: Progress | None, total: int, done: int) -> Callable[[Item], None]:
    def report(item: Item) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, str(item))

    return report


# --- in this process ------------------------------------------------------------------------------


def _alone(found: Sequence[tuple[str, Item]], inspect: Inspect, taking: _Taking,
           report: Callable[[Item], None]) -> None:  # fmt: skip
    """Prepares the next items in other threads while a batch is written."""
    with _one_core_each(), ThreadPoolExecutor(PREPARING, "preparing") as pool:
        prepared = (pool.submit(_prepare_one, one, inspect) for one in found)
        for batch in _batches(_ahead(prepared)):
            _write_here(batch, taking)
            for one in batch:
                report(one.item)


@contextmanager
def _one_core_each() -> Iterator[None]:
    """Keeps OpenCV from dividing single frames between cores: its threads wait for work by spinning, which costs more
    than the work."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _ahead(prepared: Iterable[Future[_Prepared]]) -> Iterator[_Prepared]:
    """Items in order; meanwhile as many more are made as a task may hold."""
    waiting: deque[Future[_Prepared]] = deque()
    most = 1
    for future in prepared:
        waiting.append(future)
        if len(waiting) > most:
            one = waiting.popleft().result()
            most = _together([one], most)
            yield one
    while waiting:
        yield waiting.popleft().result()


def _batches(prepared: Iterable[_Prepared]) -> Iterator[list[_Prepared]]:
    batch: list[_Prepared] = []
    for one in prepared:
        batch.append(one)
        if len(batch) >= BATCH_ITEMS or sum(each.size for each in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_here(batch: Sequence[_Prepared], taking: _Taking) -> None:
    for one in taking.batch(batch, _write_alone):
        taking.revise(one, lambda one=one: one.pixels)  # type: ignore[misc]


def _write_alone(growth: store.Growth, pieces: Pieces) -> list[Any]:
    starts = np.cumsum([growth.start, *(len(new) for _, new in pieces)]).tolist()
    growth.fill([(at, one.part(new)) for at, (one, new) in zip(starts, pieces, strict=False)])
    return []


# --- on a Dask cluster ----------------------------------------------------------------------------


@contextmanager
def _cluster(workers: int, scheduler: str | None) -> Iterator[Any]:
    import dask
    import distributed

    if scheduler:
        try:  # a client that cannot connect is left half made, and may lock up the process when it is collected
            where = distributed.comm.get_address_host_port(scheduler)
            socket.create_connection(where, timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError):
            raise ConnectionError(f"No Dask scheduler answers at {scheduler}; give the address that it prints, "
                                  "tcp://host:port, or a number of workers.") from None  # fmt: skip
        with distributed.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False) as client:
            yield client
        return
    with (
        dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": size for name, size in KEPT.items()}),
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0",
                                 silence_logs="ERROR") as cluster,  # HDF5 takes one thread at a time anyway
        distributed.Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        yield client


def _in_parallel(found: list[tuple[str, Item]], inspect: Inspect, taking: _Taking, client: Any,
                 report: Callable[[Item], None]) -> None:  # fmt: skip
    """Reads the next batches while one is written."""
    size = 1
    while found and not taking.book.frames:  # the first good item makes the store, here
        first = _prepare(found[:1], inspect)
        _write_here(first, taking)
        report(first[0].item)
        found, size = found[1:], _together(first, size)
    workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    waiting: deque[list[Any]] = deque()
    while found or waiting:
        while found and len(waiting) <= BATCHES_AHEAD:
            batch, found = found[: size * workers], found[size * workers :]
            parts = [batch[start : start + size] for start in range(0, len(batch), size)]
            waiting.append([client.submit(_prepare, part, inspect, pure=False) for part in parts])
        written = _write_there(waiting.popleft(), taking, client)
        for one in written:
            report(one.item)
        size = _together(written, size)


def _together(prepared: Sequence[_Prepared], size: int) -> int:
    """How many items like these a task may hold; ``size`` where nothing is known of them."""
    largest = max(one.size for one in prepared)
    return max(1, min(TASK_ITEMS, TASK_BYTES // largest)) if largest else size


def _write_there(reading: list[Any], taking: _Taking, client: Any) -> list[_Prepared]:
    """Writes a batch whose pixels lie in the workers; returns what is known of it here."""
    submit = partial(client.submit, pure=False, priority=1)  # before what is read ahead
    groups = [pickle.loads(part) for part in client.gather([submit(_without_pixels, future) for future in reading])]
    where = {id(one): (group, number) for group, part in enumerate(groups) for number, one in enumerate(part)}

    def write(growth: store.Growth, pieces: Pieces) -> list[Any]:
        jobs = []
        for span in _spans([(*where[id(one)], new) for one, new in pieces], growth.start, growth.steps):
            (own, cuts), *others = span.items()
            rest = [submit(_cut, reading[group], foreign) for group, foreign in others]
            jobs.append(submit(_fill, growth.fork(), reading[own], cuts, rest, growth.total))
        return client.gather(jobs)

    def pixels(one: _Prepared) -> Pixels:
        group, number = where[id(one)]
        return submit(_pixels, reading[group], number).result()

    prepared = [one for part in groups for one in part]
    for one in taking.batch(prepared, write):
        taking.revise(one, partial(pixels, one))
    return prepared


Cut = tuple[int, list[int], int]
"""Number of an item in its group, some of its frames, and the position in the store of the first of them."""


def _spans(pieces: Sequence[tuple[int, int, list[int]]], start: int, steps: int) -> list[dict[int, list[Cut]]]:
    """Divides frames into what one worker each is to write: those of one group, from the first object that begins
    with them, and what completes the last object from the next ones.

    Args:
        pieces: Group, number of an item in it, and frames of that.
        start: Position of the first frame.
        steps: Frames per object.
    """
    ends: dict[int, int] = {}
    stop = start
    for group, _, frames in pieces:
        stop = ends[group] = stop + len(frames)
    borders = sorted({min(stop, -(-end // steps) * steps) for end in ends.values()})
    spans: list[dict[int, list[Cut]]] = [{} for _ in borders]
    at = start
    for group, number, frames in pieces:
        while frames:
            place = bisect_right(borders, at)
            part, frames = frames[: borders[place] - at], frames[borders[place] - at :]
            spans[place].setdefault(group, []).append((number, part, at))
            at += len(part)
    return spans


# what the workers do


def _without_pixels(group: Sequence[_Prepared]) -> bytes:
    """Pickled as one, so that what items have in common travels once."""
    return pickle.dumps([replace(one, pixels={}) for one in group])


def _pixels(group: Sequence[_Prepared], number: int) -> Pixels:
    return group[number].pixels


def _cut(group: Sequence[_Prepared], cuts: Sequence[Cut]) -> list[tuple[int, Pixels]]:
    return [(at, group[number].part(frames)) for number, frames, at in cuts]


def _fill(fork: Any, group: Sequence[_Prepared], cuts: Sequence[Cut], rest: Sequence[list[tuple[int, Pixels]]],
          total: int) -> Any:  # fmt: skip
    return store.fill(fork, [*_cut(group, cuts), *chain.from_iterable(rest)], total=total)
