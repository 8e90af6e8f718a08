"""Files in, store out: every readable frame once, everything else refused by name.

Idempotent: a file whose signature is known is not opened again; a frame of a known time and content
is a no-op; one of a known time and other content becomes a new version, and the old one stays in the
history of the store. Items are taken in batches, each of which is one commit: a conversion that was
cut off goes on where it stopped.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path

from nowcast.config import QualitySettings
from nowcast.core.errors import BadInput, MissingExtra
from nowcast.ingestion.append import Appender, Summary, write_here
from nowcast.ingestion.cluster import cluster, in_parallel
from nowcast.ingestion.decode import DecodedItem, Found, Inspect, inspect, one_core_each, prepare, together
from nowcast.readers import Item, detect, get
from nowcast.store import FrameStore, Place

AUTO = "auto"
BATCH_ITEMS, BATCH_BYTES = 512, 2**26
"""Items, and bytes of their pixels, that one process commits together, and may have ready for the next time."""
PREPARING = 2
"""Threads that prepare items: libraries work outside of Python's lock for half of that."""
Progress = Callable[[int, int, str], None]
"""Called with: items done, items in all, name of the last one."""
log = logging.getLogger(__name__)


def ingest(
    reader_name: str,
    sources: Iterable[str | Path],
    store: Place,
    *,
    now: datetime | None = None,
    settings: QualitySettings | None = None,
    workers: int = 0,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Bring files into a store.

    Args:
        reader_name: See ``readers.READERS``; ``auto`` asks which reader recognises each source.
        sources: Files, folders or glob patterns.
        store: Cube store, or its path; made if it does not exist.
        now: Frames later than this are from the future and refused; None: the clock.
        settings: Quality control.
        workers: Processes that read and write, on this machine; 0: this process alone.
        scheduler: Address of a running Dask cluster, ``tcp://host:port``, whose workers see the same
            files and store; takes the place of ``workers``.
        progress: Called after each item.

    Raises:
        OptionError: If the reader is unknown.
        StoreError: If the store cannot be written. What was committed before stays.
    """
    if reader_name != AUTO:
        get(reader_name)
    frames = FrameStore.of(store)
    with frames.writing():
        appender = Appender(frames, settings or QualitySettings())
        items = list(_find(reader_name, sources, appender.summary))
        fresh = [found for found in items if appender.is_new(found[1])]
        log.info("%s: %d items, %d of them new", frames, len(items), len(fresh))
        looking = partial(inspect, now=now, settings=appender.settings)
        report = _reporter(progress, len(items), len(items) - len(fresh))
        if (workers or scheduler) and fresh:
            with cluster(workers, scheduler) as client:
                in_parallel(fresh, looking, appender, client, report)
        else:
            _in_process(fresh, looking, appender, report)
    return appender.finished()


# --- what to read -------------------------------------------------------------------------------------


def _find(reader_name: str, sources: Iterable[str | Path], summary: Summary) -> Iterator[Found]:
    for source in sources:
        try:
            found = [
                (name, item)
                for match in _matches(Path(source))
                for name in [detect(match) if reader_name == AUTO else reader_name]
                for item in get(name).find(match)
            ]
        except (BadInput, MissingExtra) as error:
            log.debug("%s holds nothing to read", source, exc_info=True)
            summary.refused.append(str(error))
            continue
        if not found:
            summary.refused.append(f"{source}: nothing that this reader knows; check the path and the reader.")
        yield from found


def _matches(source: Path) -> list[Path]:
    """Find what a path or glob pattern names; what exists is no pattern, though brackets be in its name."""
    there = next((place for place in (source, *source.parents) if place.exists()), Path())
    if there == source or not glob.has_magic(str(source.relative_to(there))):
        return [source]
    pattern = os.path.join(glob.escape(str(there)), source.relative_to(there))  # noqa: PTH118
    return sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207


def _reporter(progress: Progress | None, total: int, done: int) -> Callable[[Item], None]:
    def report(item: Item) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, str(item))

    return report


# --- in this process ------------------------------------------------------------------------------


def _in_process(found: Sequence[Found], looking: Inspect, appender: Appender, report: Callable[[Item], None]) -> None:
    """Prepare the next items in other threads while a batch is written."""
    with one_core_each(), ThreadPoolExecutor(PREPARING, "preparing") as pool:
        prepared = (pool.submit(prepare, one, looking) for one in found)
        for batch in _batches(_prefetched(prepared)):
            write_here(batch, appender)
            for one in batch:
                report(one.item)


def _prefetched(prepared: Iterable[Future[DecodedItem]]) -> Iterator[DecodedItem]:
    """Give items in order; meanwhile as many more are made as memory allows."""
    waiting: deque[Future[DecodedItem]] = deque()
    most = 1
    for future in prepared:
        waiting.append(future)
        if len(waiting) > most:
            one = waiting.popleft().result()
            most = together([one], most, limit=BATCH_ITEMS)
            yield one
    while waiting:
        yield waiting.popleft().result()


def _batches(prepared: Iterable[DecodedItem]) -> Iterator[list[DecodedItem]]:
    batch: list[DecodedItem] = []
    size = 0
    for one in prepared:
        batch.append(one)
        size += one.size
        if len(batch) >= BATCH_ITEMS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
