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
from nowcast.core.cube import Identity, identity
from nowcast.core.errors import BadInput, StoreError
from nowcast.ingestion import quality
from nowcast.ingestion.decode import DecodedItem, Pixels
from nowcast.ingestion.memory import Memory
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
    left_out: int = 0
    """Frames of other products than the one that was chosen."""
    remembered: int = 0
    """Files that were refused before and have not changed: they are not opened, and not named, again."""
    last_refusal: str = ""
    """Why the last of them was."""
    contradictions: list[str] = field(default_factory=list)
    """What the times of a live feed say against its stated step, one sentence each."""
    failure: str = ""
    """Why nothing could be taken of what landed, or that the source cannot be read; "" where something was taken, and
    where nothing landed."""


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
    def of(cls, store: FrameStore) -> _Contents:
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
            contents.before = quality.resume(kept)
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

    def __init__(
        self, store: FrameStore, settings: QualitySettings, *, context: object = None, cadence: int = 0
    ) -> None:
        """Look at what the store holds.

        Args:
            store: Where frames go.
            settings: Quality control.
            context: With what files are chosen and read, see ``Memory``.
            cadence: Seconds between frames as the operator states it; 0: the times decide.
        """
        self.store, self.settings, self.summary = store, settings, Summary()
        self.fitting: set[bytes] = set()
        """Kinds that the store takes."""
        self.contents = _Contents.of(store)
        self.identity = store.identity()
        """Product of the store; None until the first frame that fits makes it known."""
        self.cadence = cadence
        self.memory = Memory(store, (context, settings.model_dump_json()), set(self.contents.sources))
        self.opened, self.rejected, self.sources_at_fault = 0, 0, list[str]()
        """Items that were opened; those of them that were refused or left out; sentences on sources."""
        self._identities: dict[bytes, Identity] = {}

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
        self.opened += len(prepared)
        for one in prepared:
            if one.refused:
                self._refuse(one, one.refused, until=one.until)
            self.summary.left_out += one.left_out
            self.rejected += one.left_out > 0
        for group in _without_repeats([one for one in prepared if one.like is not None and self._belongs(one)]):
            pieces = [
                (one, [index for index, key in enumerate(one.keys) if key not in self.contents.frames]) for one in group
            ]
            others += [one for one, new in pieces if len(new) < len(one.keys)]
            self._add([piece for piece in pieces if piece[1]], write)
        for one in others:
            self.contents.seen.add(one.signature)
        return others

    def _refuse(self, one: DecodedItem, reason: str, *, until: float | None = None, by_store: bool = False) -> None:
        self.rejected += 1
        self.summary.refused.append(reason)
        self.memory.keep(one.item.path, reason=reason, until=until, by_store=by_store)

    def _belongs(self, one: DecodedItem) -> bool:
        """Refuse frames of another product than the store's: it is part of what a frame is, as its time is."""
        assert one.like is not None
        if one.kind not in self._identities:
            self._identities[one.kind] = identity(one.like).ordered()
        own = self._identities[one.kind]
        if self.identity is None and self.store.exists():  # made before stores knew their product
            try:
                self.store.check(one.like)
            except BadInput as error:
                log.debug("%s does not fit", one.item, exc_info=True)
                self._refuse(one, f"{one.item}: {error}", by_store=True)
                return False
        self.identity = self.identity or own
        if own == self.identity:
            return True
        remedy = f"take it into another store, or choose by feed.product or --product, such as {str(own)!r}"
        self._refuse(one, f"{one.item}: is {own}, and the store holds {self.identity}; {remedy}.", by_store=True)
        return False

    def _add(self, pieces: Pieces, write: Write) -> None:
        """Commit items together, or in halves where something does not fit, until only that is refused."""
        try:
            self._commit(pieces, write)
        except BadInput as error:
            if len(pieces) == 1:
                log.debug("%s does not fit", pieces[0][0].item, exc_info=True)
                self._refuse(pieces[0][0], f"{pieces[0][0].item}: {error}", by_store=True)
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
        labels["status"] = quality.compare(labels, before, self.settings, cadence=growth.cadence, override=self.cadence)
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

    def refuse_source(self, reason: str, *, idle: bool) -> None:
        """Refuse a source that holds nothing to read; that is no fault of one in which nothing landed yet."""
        self.summary.refused.append(reason)
        if not idle:
            self.sources_at_fault.append(reason)

    def finished(self) -> Summary:
        """Keep what became of the files, and return the summary."""
        summary, memory = self.summary, self.memory
        memory.taken = set(self.contents.sources)
        for path in memory.found:  # those without a reason: taken, left out, or without an item
            memory.keep(path)
        memory.save()
        summary.remembered = memory.refused
        summary.last_refusal = next(reversed(memory.reasons()), "") if memory.refused else ""
        summary.known += memory.known - memory.refused
        summary.failure = self._failure()
        if self.contents.frames:
            summary.newest = datetime.fromtimestamp(max(time for _, time in self.contents.frames), UTC)
            self.store.state_cadence(self.cadence)
            summary.contradictions = self.store.contradictions()
        return summary

    def _failure(self) -> str:
        """Say why nothing was taken although something landed, or could not even be looked for."""
        summary = self.summary
        if summary.taken or summary.revised or not summary.refused:
            return ""
        if self.opened and self.rejected >= self.opened:
            landed = f"{self.opened} items" if self.opened > 1 else "One item"
            return f"{landed} landed and none was taken: {summary.refused[0]}"
        return self.sources_at_fault[0] if self.sources_at_fault and not summary.known else ""


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
