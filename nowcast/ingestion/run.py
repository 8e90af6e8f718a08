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
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from nowcast.config import QualitySettings
from nowcast.core.errors import BadInput, MissingExtra
from nowcast.ingestion.append import Appender, Summary, write_here
from nowcast.ingestion.cluster import cluster, in_parallel
from nowcast.ingestion.decode import DecodedItem, Found, Inspect, inspect, one_core_each, prepare, together
from nowcast.ingestion.memory import Memory
from nowcast.readers import READERS, Item, detect, get
from nowcast.readers.items import NEWS
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
    product: str = "",
    cadence: int | None = None,
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
        product: Which product to take where several come: words of ``cube.Identity``, such as ``RW`` or
            ``sum of 60 min``; others are left out. "": all, but a store holds one product only.
        cadence: Seconds between frames of a live feed; None: their times decide.
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
        context = (reader_name, product)
        appender = Appender(frames, settings or QualitySettings(), context=context, cadence=cadence or 0)
        items = [(name, replace(item, product=product)) for name, item in _find(reader_name, sources, appender)]
        fresh = [found for found in items if appender.is_new(found[1])]
        log.info("%s: %d items, %d of them new", frames, len(items), len(fresh))
        looking = partial(inspect, now=now, settings=appender.settings, product=product)
        report = _reporter(progress, len(items), len(items) - len(fresh))
        if (workers or scheduler) and fresh:
            with cluster(workers, scheduler) as client:
                in_parallel(fresh, looking, appender, client, report)
        else:
            _in_process(fresh, looking, appender, report)
        return appender.finished()


# --- what to read -------------------------------------------------------------------------------------


def _find(reader_name: str, sources: Iterable[str | Path], appender: Appender) -> Iterator[Found]:
    memory = appender.memory
    for source in sources:
        known, new = memory.known, len(memory.found)
        try:
            found = [found for match in _matches(source, memory) for found in _items(reader_name, match, memory)]
        except (BadInput, MissingExtra, OSError) as error:
            log.debug("%s holds nothing to read", source, exc_info=True)
            if memory.known > known and len(memory.found) == new:
                continue  # nothing new, and readers say that there is nothing
            appender.refuse_source(str(error), idle=_is_empty(Path(source)))
            continue
        if not found and memory.known == known:
            reason = f"{source}: nothing that this reader knows; check the path and the reader."
            appender.refuse_source(reason, idle=_is_empty(Path(source)))
        yield from found


def _matches(source: str | Path, memory: Memory) -> Iterator[Path]:
    """Find what a path or glob pattern names; what exists is no pattern, though brackets be in its name.

    Of the files that fit a pattern, those that are known are left out.
    """
    there = _root(Path(source))
    if there == Path(source) or not glob.has_magic(str(Path(source).relative_to(there))):
        yield Path(source)
        return
    pattern = os.path.join(glob.escape(str(there)), Path(source).relative_to(there))  # noqa: PTH118
    for match in sorted(map(Path, glob.glob(pattern, recursive=True))):  # noqa: PTH207
        if not memory.is_known(match):
            memory.found.append(match)
            yield match


def _root(source: Path) -> Path:
    """Find the part of a path or pattern that is there."""
    return next((place for place in (source, *source.parents) if place.exists()), Path())


def _items(reader_name: str, source: Path, memory: Memory) -> list[Found]:
    """Find the items of a file or folder; those of files that are known are left out."""
    name = _detected(source, memory) if reader_name == AUTO else reader_name
    reader = get(name)
    token = NEWS.set(memory if getattr(reader, "FILE_BY_FILE", True) else None)
    memory.root = source
    try:
        found = [(name, item) for item in reader.find(source)]
    finally:
        NEWS.reset(token)
    memory.found += dict.fromkeys(item.path for _, item in found)
    return found


def _detected(source: Path, memory: Memory) -> str:
    """Find the reader of a source; that of a folder is kept, so that not every cycle looks into it."""
    kept = memory.readers.get(str(source))
    if kept not in READERS or not source.is_dir():
        kept = detect(source)
        memory.readers[str(source)] = kept
    return kept


def _is_empty(source: Path) -> bool:
    """Tell whether a folder, or that of a pattern, is there and can be read, and holds nothing yet: nothing landed."""
    if glob.has_magic(str(source)) and not source.exists():
        return glob.has_magic(source.relative_to(_root(source)).parts[0])
    try:
        return source.is_dir() and not any(names for _, _, names in os.walk(source, onerror=_raise))
    except OSError:
        log.debug("%s cannot be listed", source, exc_info=True)
        return False


def _raise(error: OSError) -> None:
    raise error


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
