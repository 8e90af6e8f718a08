"""What a store holds already, and how prepared items are added to it: new, known, corrected or refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr

from nowcast.config import QualitySettings
from nowcast.core.errors import BadInput, StoreError
from nowcast.ingestion import quality
from nowcast.ingestion.decode import DecodedItem, Pixels
from nowcast.ingestion.quality import Before
from nowcast.readers import Item
from nowcast.store import Extension, FrameStore

log = logging.getLogger(__name__)


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


# --- what the store holds -------------------------------------------------------------------------


@dataclass
class _Contents:
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
    def of(cls, store: FrameStore, settings: QualitySettings) -> _Contents:
        contents = cls()
        if not store.exists():
            return contents
        kept = store.labels("sequence", "time", "digest", "source", *quality.LABELS)
        keys = ("sequence", "time", "digest", "source")
        if absent := [key for key in keys if key not in kept]:
            raise StoreError(
                f"{store}: holds no {' or '.join(absent)}, so it was not made by `nowcast ingest`; name another store."
            )
        for sequence, time, fingerprint, source in zip(*(kept[key].tolist() for key in keys), strict=True):
            contents.add((sequence, time), fingerprint, source)
        if set(quality.LABELS) <= set(kept):
            kept["time"] = kept["time"].astype("datetime64[s]")
            quality.compare(kept, contents.before, settings, cadence=None)
        return contents

    def add(self, key: tuple[str, int], fingerprint: str, source: str) -> None:
        self.frames[key] = len(self.digests)
        self.digests.append(fingerprint)
        self.sources.append(source)
        self.seen.add(source)

    def corrects(self, key: tuple[str, int], fingerprint: str, source: str) -> bool:
        """Tell whether this is other content from a later file.

        Of two files with the same frame the later one wins whatever the order they are read in, so that they cannot
        replace each other for ever.
        """
        place = self.frames[key]
        return fingerprint != self.digests[place] and _age(source) > _age(self.sources[place])


def _age(signature: str) -> tuple[int, str]:
    name, _, modified = signature.rsplit("|", 2)
    return int(modified), name


# --- taking items in ------------------------------------------------------------------------------

Pieces = list[tuple[DecodedItem, list[int]]]
"""Items and those of their frames that are new."""
Write = Callable[[Extension, Pieces], Sequence[Any]]
"""Writes pixels to their places; returns the forks of the session that other processes wrote to."""


class Appender:
    """Sorts what was read into new, known, changed and refused, and has it written."""

    def __init__(self, store: FrameStore, settings: QualitySettings) -> None:
        self.store, self.settings, self.summary = store, settings, Summary()
        self.fitting: set[bytes] = set()
        """Kinds that the store takes."""
        self.contents = _Contents.of(store, settings)

    def is_new(self, item: Item) -> bool:
        """Tell whether an item was not read before; a file that cannot even be looked at is left to the reader."""
        try:
            known = item.signature in self.contents.seen
        except OSError:
            log.debug("%s cannot be looked at", item, exc_info=True)
            return True
        self.summary.known += known
        return not known

    def batch(self, prepared: Sequence[DecodedItem], write: Write) -> list[DecodedItem]:
        """Write the new frames of a batch; return the items that hold others too."""
        others = []
        self.summary.refused += [one.refused for one in prepared if one.refused]
        for group in _without_repeats([one for one in prepared if one.like is not None]):
            pieces = [
                (one, [index for index, key in enumerate(one.keys) if key not in self.contents.frames]) for one in group
            ]
            others += [one for one, new in pieces if len(new) < len(one.keys)]
            self._add([piece for piece in pieces if piece[1]], write)
        for one in others:
            self.contents.seen.add(one.signature)
        return others

    def _add(self, pieces: Pieces, write: Write) -> None:
        """Commit items together, or in halves where something does not fit, until only that is refused."""
        try:
            self._commit(pieces, write)
        except BadInput as error:
            if len(pieces) == 1:
                log.debug("%s does not fit", pieces[0][0].item, exc_info=True)
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
        before = dict(self.contents.before)
        labels = {key: np.concatenate([_picked(one, key)[new] for one, new in pieces]) for key in first.labels}
        growth = self.store.extend(first.like, len(labels["time"]), event=first.event)
        # in order of arrival: how items were put together must not show
        labels["status"] = quality.compare(labels, before, self.settings, cadence=growth.cadence)
        for kind, like in {one.kind: one.like for one, _ in pieces if one.like is not None}.items():
            if kind not in self.fitting:
                growth.check(like)
                self.fitting.add(kind)
        items = [one.item for one, _ in pieces]
        growth.commit(labels, forks=write(growth, pieces), message=_message(items))
        self.contents.before = before
        self._record(labels)

    def _record(self, labels: dict[str, np.ndarray]) -> None:
        stamps = labels["time"].astype("datetime64[s]").astype(np.int64).tolist()
        for sequence, stamp, *mark in zip(labels["sequence"], stamps, labels["digest"], labels["source"], strict=True):
            self.contents.add((str(sequence), stamp), *mark)
        self.summary.taken += len(stamps)
        for name, bit in quality.FLAGS.items():
            if count := int((labels["status"] & bit > 0).sum()):
                self.summary.flagged[name] = self.summary.flagged.get(name, 0) + count

    def revise(self, one: DecodedItem, pixels: Callable[[], Pixels]) -> None:
        """Replace the frames of an item whose content changed; count those whose did not."""
        held: Pixels = {}
        for index, key in enumerate(one.keys):
            place, fingerprint = self.contents.frames[key], one.labels["digest"][index]
            if self.contents.sources[place] == one.signature:
                continue  # taken just now
            if not self.contents.corrects(key, fingerprint, one.signature):
                self.summary.known += 1
                continue
            held = held or pixels()
            frames = {name: (np.asarray(values)[index], packing) for name, (values, packing) in held.items()}
            values = {name: packing.unpack(codes) if packing else codes for name, (codes, packing) in frames.items()}
            self.store.replace(_frame(one, index, values), at=place, message=f"Revise {one.item}")
            self.contents.digests[place], self.contents.sources[place] = fingerprint, one.signature
            self.summary.revised += 1

    def finished(self) -> Summary:
        """Return the summary, with the newest time in the store."""
        if self.contents.frames:
            self.summary.newest = datetime.fromtimestamp(max(time for _, time in self.contents.frames), UTC)
        return self.summary


def _picked(one: DecodedItem, key: str) -> np.ndarray:
    if key not in one.labels:
        raise BadInput(one.item, f"has no {key}, which others have", "use another store for another kind of data")
    return one.labels[key]


def _frame(one: DecodedItem, index: int, values: dict[str, np.ndarray]) -> xr.Dataset:
    """Make a Cube of one frame."""
    assert one.like is not None
    fixed = one.like.drop_dims("time")
    labels = {key: ("time", column[index : index + 1]) for key, column in one.labels.items()}
    fields = {name: (("time", "y", "x"), field[None]) for name, field in values.items()}
    return fixed.assign_coords(labels).assign(fields)


def _without_repeats(items: list[DecodedItem]) -> Iterator[list[DecodedItem]]:
    """Cut a batch where a frame comes a second time."""
    batch: list[DecodedItem] = []
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


def write_here(batch: Sequence[DecodedItem], appender: Appender) -> None:
    """Write a batch in this process: new frames, then corrections."""
    for one in appender.batch(batch, _write_in_process):
        appender.revise(one, lambda one=one: one.pixels)  # type: ignore[misc]


def _write_in_process(growth: Extension, pieces: Pieces) -> list[Any]:
    starts = np.cumsum([growth.start, *(len(new) for _, new in pieces)]).tolist()
    growth.fill([(at, one.part(new)) for at, (one, new) in zip(starts, pieces, strict=False)])
    return []
