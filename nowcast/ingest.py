"""Files in, store out: every readable frame once, everything else refused by name.

Idempotent: a file whose signature is known is not opened again; a frame of a known time and content
is a no-op; one of a known time and other content becomes a new version, and the old one stays in the
history of the store.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast import quality, store
from nowcast.cube import BadInput, channels, check, digest
from nowcast.readers import Item, Reader, get

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
    newest: datetime | None = None
    """Newest time in the store afterwards, UTC."""

    def __iadd__(self, other: Summary) -> Summary:
        self.taken += other.taken
        self.known += other.known
        self.revised += other.revised
        self.refused += other.refused
        self.newest = other.newest
        return self


def ingest(reader_name: str, sources: Iterable[str | Path], path: str | Path, *, now: datetime | None = None,
           progress: Progress | None = None) -> Summary:  # fmt: skip
    """Brings files into a store.

    Args:
        reader_name: See ``readers.READERS``.
        sources: Files, folders or glob patterns.
        path: Cube store; made if it does not exist.
        now: Frames later than this are from the future and refused; None: the clock.
        progress: Called after each item.

    Raises:
        ValueError: If the reader is unknown.
        StoreError: If the store cannot be written. What was committed before stays.
    """
    reader, summary = get(reader_name), Summary()
    with store.writing(path):
        book = _Book.of(path)
        items = list(_find(reader, sources, summary))
        for done, item in enumerate(items, 1):
            _take(reader, item, path, book, summary, now)
            if progress:
                progress(done, len(items), str(item))
    if book.frames:
        summary.newest = datetime.fromtimestamp(max(time for _, time in book.frames), UTC)
    return summary


@dataclass
class _Book:
    """What the store holds, in order of arrival."""

    frames: dict[tuple[str, int], int] = field(default_factory=dict)
    """(sequence, time) -> position on disk."""
    digests: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """Signatures that need not be opened again."""

    @classmethod
    def of(cls, path: str | Path) -> _Book:
        book = cls()
        if store.exists(path):
            labels = store.labels(path, "sequence", "time", "digest", "source").values()
            for sequence, time, fingerprint, source in zip(*(values.tolist() for values in labels), strict=True):
                book.add((sequence, time), fingerprint, source)
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


def _find(reader: Reader, sources: Iterable[str | Path], summary: Summary) -> Iterator[Item]:
    for source in sources:
        matches = sorted(glob.glob(str(source), recursive=True)) if glob.has_magic(str(source)) else [source]  # noqa: PTH207
        try:
            found = [item for match in matches for item in reader.find(Path(match))]
        except BadInput as error:
            summary.refused.append(str(error))
            continue
        if not found:
            summary.refused.append(f"{source}: nothing that this reader knows; check the path and the reader.")
        yield from found


def _take(reader: Reader, item: Item, path: str | Path, book: _Book, summary: Summary, now: datetime | None) -> None:
    try:
        signature = item.signature
        if signature in book.seen:
            summary.known += 1
            return
        cube = check(reader.read(item), item)
        flags = quality.inspect_frames(cube, now=now, where=item)
        cube = _labelled(cube, signature, flags)
        _store(cube, item, path, book, summary)
    except (BadInput, OSError) as error:
        summary.refused.append(str(error))
    else:
        book.seen.add(signature)


def _labelled(cube: xr.Dataset, signature: str, flags: xr.DataArray) -> xr.Dataset:
    """Adds what the store keeps of every frame: digest, source and status."""
    names = channels(cube)
    stacked = np.stack([cube[name].values for name in names], axis=1)
    digests = np.asarray([digest(frame) for frame in stacked], dtype=object)
    sources = np.full(cube.sizes["time"], signature, dtype=object)
    cube.attrs.pop("source", None)  # attributes are the store's: they must hold for every frame
    return cube.assign_coords(digest=("time", digests), source=("time", sources), status=flags)


def _store(cube: xr.Dataset, item: Item, path: str | Path, book: _Book, summary: Summary) -> None:
    """Appends the new frames of a cube in one commit, and revises the changed ones."""
    stamps = cube["time"].values.astype("datetime64[s]").astype(np.int64).tolist()
    keys = list(zip([str(label) for label in cube["sequence"].values], stamps, strict=True))
    marks = list(zip(keys, cube["digest"].values.tolist(), cube["source"].values.tolist(), strict=True))
    new = [index for index, (key, *_) in enumerate(marks) if key not in book.frames]
    changed = [index for index, mark in enumerate(marks) if mark[0] in book.frames and book.corrects(*mark)]
    note = {"item": str(item)}
    if new:
        store.append(path, cube.isel(time=new), message=f"Add {item}", metadata=note)
    for index in new:
        book.add(*marks[index])
    for index in changed:
        key, book_digest, source = marks[index]
        place = book.frames[key]
        store.replace(path, cube.isel(time=[index]), at=place, message=f"Revise {item}", metadata=note)
        book.digests[place], book.sources[place] = book_digest, source
    summary.taken += len(new)
    summary.revised += len(changed)
    summary.known += len(keys) - len(new) - len(changed)
