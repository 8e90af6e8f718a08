"""Ingest on a Dask cluster.

The pixels of an item stay in the worker that read them and go from there to the store, in whole objects; only labels
travel.
"""

from __future__ import annotations

import pickle
import socket
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Any

from nowcast.core.errors import ClusterError
from nowcast.ingestion.append import Appender, Pieces, write_here
from nowcast.ingestion.decode import DecodedItem, Found, Inspect, Pixels, decode_all, together
from nowcast.readers import Item
from nowcast.store import Extension, fill

BATCHES_AHEAD = 2
PARTS = 2
"""Of a batch that every worker reads: while one is read, what was read before it waits to be written."""
CONNECT_SECONDS = 10
Reading = tuple[Any, Any]
"""Futures of items with their pixels, which stay in the worker, and without."""


@contextmanager
def cluster(workers: int, scheduler: str | None) -> Iterator[Any]:
    """Connect to the Dask cluster at ``scheduler``, or start one of ``workers`` processes; gives its client.

    Raises:
        ClusterError: If no scheduler answers.
    """
    distributed: Any = import_module("distributed")  # has no types

    if scheduler:
        try:  # a client that cannot connect is left half made, and may lock up the process when it is collected
            where = distributed.comm.get_address_host_port(scheduler)
            socket.create_connection(where, timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"No Dask scheduler answers at {scheduler}; give the address that it prints, "
                "tcp://host:port, or a number of workers."
            ) from error
        with distributed.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False) as client:
            yield client
        return
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs="ERROR"
        ) as cluster,  # HDF5 takes one thread at a time anyway
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def in_parallel(
    found: list[Found], inspect: Inspect, appender: Appender, client: Any, report: Callable[[Item], None]
) -> None:
    """Read the next batches while one is written."""
    size = 1
    while found and not appender.contents.frames:  # the first good item makes the store, here
        first = decode_all(found[:1], inspect)
        write_here(first, appender)
        report(first[0].item)
        found, size = found[1:], together(first, size)
    workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    waiting: deque[list[Reading]] = deque()
    while found or waiting:
        while found and len(waiting) <= BATCHES_AHEAD:
            batch, found = found[: size * workers * PARTS], found[size * workers * PARTS :]
            parts = [batch[start : start + size] for start in range(0, len(batch), size)]
            waiting.append([_reading(part, inspect, client) for part in parts])
        written = _write_there(waiting.popleft(), appender, client)
        for one in written:
            report(one.item)
        size = together(written, size)


def _reading(part: list[Found], inspect: Inspect, client: Any) -> Reading:
    whole = client.submit(decode_all, part, inspect, pure=False)
    return whole, client.submit(_without_pixels, whole, pure=False, priority=1)


def _write_there(batch: list[Reading], appender: Appender, client: Any) -> list[DecodedItem]:
    """Write a batch whose pixels lie in the workers; return what is known of it here."""
    submit = partial(client.submit, pure=False, priority=1)  # before what is read ahead
    reading = [whole for whole, _ in batch]
    groups = [pickle.loads(part) for part in client.gather([labels for _, labels in batch])]
    where = {id(one): (group, number) for group, part in enumerate(groups) for number, one in enumerate(part)}

    def write(growth: Extension, pieces: Pieces) -> list[Any]:
        jobs = []
        for span in _spans([(*where[id(one)], new) for one, new in pieces], growth.start, growth.steps):
            (own, cuts), *others = span.items()
            rest = [submit(_cut, reading[group], foreign) for group, foreign in others]
            jobs.append(submit(_fill, growth.fork(), reading[own], cuts, rest, growth.total))
        forks: list[Any] = client.gather(jobs)
        return forks

    def pixels(one: DecodedItem) -> Pixels:
        group, number = where[id(one)]
        held: Pixels = submit(_pixels, reading[group], number).result()
        return held

    prepared = [one for part in groups for one in part]
    for one in appender.batch(prepared, write):
        appender.revise(one, partial(pixels, one))
    return prepared


Cut = tuple[int, list[int], int]
"""Number of an item in its group, some of its frames, and the position in the store of the first of them."""


def _spans(pieces: Sequence[tuple[int, int, list[int]]], start: int, steps: int) -> list[dict[int, list[Cut]]]:
    """Divide frames into what one worker each is to write.

    That is the frames of one group, from the first object that begins with them, and from the next groups what
    completes its last object.

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


# --- what the workers do ----------------------------------------------------------------------------


def _without_pixels(group: Sequence[DecodedItem]) -> bytes:
    """Pickle items without their pixels as one, so that what they have in common travels once."""
    return pickle.dumps([replace(one, pixels={}) for one in group])


def _pixels(group: Sequence[DecodedItem], number: int) -> Pixels:
    return group[number].pixels


def _cut(group: Sequence[DecodedItem], cuts: Sequence[Cut]) -> list[tuple[int, Pixels]]:
    return [(at, group[number].part(frames)) for number, frames, at in cuts]


def _fill(
    fork: Any, group: Sequence[DecodedItem], cuts: Sequence[Cut], rest: Sequence[list[tuple[int, Pixels]]], total: int
) -> Any:
    return fill(fork, [*_cut(group, cuts), *chain.from_iterable(rest)], total=total)
