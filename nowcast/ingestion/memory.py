"""What need not be looked at again: files that were refused, and folders in which nothing changed.

Kept beside the store, so that cycles and processes share it. A file is forgotten when it changes; all of it is when the
code of the readers or the settings change, and may be deleted at any time.

A folder is listed again when its time of modification changed, or an hour has gone by; a file in an unchanged folder
is looked at only while it is young, since files may be written in place, or if it was refused.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from nowcast.core.files import write_atomic
from nowcast.store import FrameStore

SUFFIX = ".seen.json"
"""Of the name of the file, after that of the store."""
MOST_FILES, MOST_CONTEXTS = 50_000, 4
FULL_LOOK_SECONDS = 3600
"""So long an unchanged folder is not listed, and so long files are young."""
CLOCK_SECONDS = 3
"""A folder that changed so shortly before it was listed may have changed after it as well."""
CODE = ("core", "ingestion", "readers")
"""Packages whose code decides what is refused."""
log = logging.getLogger(__name__)


@dataclass
class _File:
    """A file that need not be opened again."""

    signature: str
    """Size and time of modification."""
    reason: str = ""
    """Why it was refused; "" where it was taken, left out, or holds nothing for its reader."""
    until: float | None = None
    """Seconds since 1970 from which it is looked at again; None: when it changes."""
    by_store: bool = False
    """Whether the store refused it; then it is forgotten with the store."""


@dataclass
class _Folder:
    modified: int
    """Nanoseconds since 1970."""
    listed: float
    """Seconds since 1970."""
    folders: list[str] = field(default_factory=list)
    watched: dict[str, bool] = field(default_factory=dict)
    """Names that are looked at even if the folder did not change, and whether they were known."""
    known: int = 0
    """Number of files in it that need not be opened."""


class Memory:
    """What ``readers.items.walk`` leaves out of a listing, and why."""

    def __init__(self, store: FrameStore, context: object, taken: set[str], *, now: float | None = None) -> None:
        """Read what is kept.

        Args:
            store: Where the frames go.
            context: Reader and settings: with others, other files are refused.
            taken: Signatures of the items that the store holds.
            now: Seconds since 1970; None: the clock.
        """
        self.path, self.taken, self.now = place(store), taken, time.time() if now is None else now
        self.context = blake2b(f"{context!r} {_code()}".encode(), digest_size=12).hexdigest()
        kept = _read(self.path).get(self.context, {})
        self.files = {path: _File(**about) for path, about in kept.get("files", {}).items()}
        self.folders = {path: _Folder(**about) for path, about in kept.get("folders", {}).items()}
        self.readers: dict[str, str] = kept.get("readers", {})
        """Folder -> name of the reader that was found for it."""
        if not store.exists():
            self.files = {path: about for path, about in self.files.items() if not about.by_store}
            self.folders = {}
        self.root = Path()
        self.found: list[Path] = []
        """New files of names that the reader takes."""
        self._left_out: dict[str, tuple[int, int]] = {}
        self._looks: dict[Path, tuple[list[str], list[str]]] = {}
        self._fresh: dict[str, str] = {}
        self._refused: set[str] = set()
        self._listed: dict[str, set[str]] = {}

    # --- what is new

    def look(self, folder: Path) -> tuple[list[str], list[str]]:
        """List the folders in a folder, and its files that are new or changed; once, however often it is asked."""
        if folder not in self._looks:
            self._looks[folder] = self._look(folder)
        folders, names = self._looks[folder]
        return list(folders), list(names)

    def _look(self, folder: Path) -> tuple[list[str], list[str]]:
        about, name = folder.stat(), str(folder)
        kept = self.folders.get(name)
        unchanged = (
            kept is not None
            and kept.modified == about.st_mtime_ns
            and kept.modified < (kept.listed - CLOCK_SECONDS) * 1e9
            and self.now - kept.listed < FULL_LOOK_SECONDS
        )
        return self._again(folder, kept) if kept and unchanged else self._list(folder, about.st_mtime_ns)

    def _again(self, folder: Path, kept: _Folder) -> tuple[list[str], list[str]]:
        fresh = [name for name in kept.watched if not self._knows_at(folder / name)]
        self._count(folder, kept, kept.known - sum(kept.watched[name] for name in fresh))
        return kept.folders, fresh

    def _count(self, folder: Path, found: _Folder, known: int) -> None:
        refused = sum(self._was_refused(os.path.join(folder, name)) for name in found.watched)  # noqa: PTH118
        self._left_out[str(folder)] = known, refused

    def _list(self, folder: Path, modified: int) -> tuple[list[str], list[str]]:
        found, names, fresh = _Folder(modified, self.now), set[str](), list[str]()
        prefix = f"{folder}{os.sep}"
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    found.folders.append(name)
                    continue
                names.add(name)
                try:
                    about = entry.stat()
                except OSError:
                    fresh.append(name)
                    continue
                known = self._knows(prefix + name, name, about.st_size, about.st_mtime_ns)
                found.known += known
                if not known:
                    fresh.append(name)
                elif about.st_mtime > self.now - FULL_LOOK_SECONDS or self._was_refused(prefix + name):
                    found.watched[name] = True
        self._count(folder, found, found.known)
        self.folders[str(folder)], self._listed[str(folder)] = found, names
        found.watched |= dict.fromkeys(fresh, False)
        return found.folders, fresh

    def _was_refused(self, path: str) -> bool:
        about = self.files.get(path)
        return about is not None and bool(about.reason)

    def _knows_at(self, path: Path) -> bool:
        try:
            about = path.stat()
        except OSError:
            return False
        return self._knows(str(path), path.name, about.st_size, about.st_mtime_ns)

    def _knows(self, path: str, name: str, size: int, modified: int) -> bool:
        signature = f"{size}|{modified}"
        if f"{name}|{signature}" in self.taken:
            return True
        kept = self.files.get(path)
        if kept and kept.signature == signature and self._lasts(kept):
            return True
        self._fresh[path] = signature
        return False

    def _lasts(self, about: _File) -> bool:
        return about.until is None or self.now < about.until

    def is_known(self, path: Path) -> bool:
        """Tell whether a file need not be opened, outside of a listing."""
        known = not path.is_dir() and self._knows_at(path)
        self._left_out[str(path)] = int(known), int(known and self._was_refused(str(path)))
        return known

    @property
    def known(self) -> int:
        """Number of files that were left out, the refused ones too."""
        return sum(known for known, _ in self._left_out.values())

    @property
    def refused(self) -> int:
        """Number of files that were left out because they had been refused."""
        return sum(refused for _, refused in self._left_out.values())

    # --- what became of it

    def keep(self, path: Path, *, reason: str = "", until: float | None = None, by_store: bool = False) -> None:
        """Keep what became of a file as it was when it was listed; the first reason stays.

        Args:
            path: The file.
            reason: Why it was refused, or one of its items.
            until: When it is to be looked at again, seconds since 1970; None: when it changes.
            by_store: Whether the reason is what the store holds.
        """
        signature = self._fresh.get(str(path))
        if signature is None or f"{path.name}|{signature}" in self.taken:
            return
        if str(path) in self._refused:
            return
        if reason:
            self._refused.add(str(path))
        self.files.pop(str(path), None)  # to the end
        self.files[str(path)] = _File(signature, reason, until, by_store)

    def reasons(self) -> list[str]:
        """List why files were refused, the last one at the end."""
        return [about.reason for about in self.files.values() if about.reason]

    def save(self) -> None:
        """Write it down. Where that fails, the next one looks again."""
        if self.path is None:
            return
        for folder, about in self.folders.items():
            for name, known in about.watched.items():
                about.watched[name] = self._settled(os.path.join(folder, name))  # noqa: PTH118
                about.known += about.watched[name] - known
        self.files = dict(list(self._there())[-MOST_FILES:])
        own = {
            name: {key: asdict(about) for key, about in getattr(self, name).items()} for name in ("files", "folders")
        }
        others = {key: kept for key, kept in _read(self.path).items() if key != self.context}
        whole = dict(list(others.items())[1 - MOST_CONTEXTS :]) | {self.context: own | {"readers": self.readers}}
        try:
            write_atomic(self.path, json.dumps(whole).encode())
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error, exc_info=True)

    def _settled(self, path: str) -> bool:
        """Tell whether a file is known now; it is looked at again, as it may have changed meanwhile."""
        fresh = dict(self._fresh)
        try:
            return self._knows_at(Path(path))
        finally:
            self._fresh = fresh

    def _there(self) -> Iterable[tuple[str, _File]]:
        """Leave out files that are gone from the folders that were listed."""
        for path, about in self.files.items():
            folder, name = os.path.split(path)
            if name in self._listed.get(folder, (name,)):
                yield path, about


def place(store: FrameStore) -> Path | None:
    """Find the file beside a store; None for one that is no folder."""
    return store.place.with_name(store.place.name + SUFFIX) if isinstance(store.place, Path) else None


def refusals(store: FrameStore) -> list[str]:
    """List the reasons of the files that were refused and have not changed since, the last one at the end."""
    found = _read(place(store)).values()
    return [about["reason"] for kept in found for about in kept.get("files", {}).values() if about.get("reason")]


def _read(path: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()) if path else {}
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read and is made anew: %s", path, error, exc_info=True)
        return {}


@lru_cache(maxsize=1)
def _code() -> str:
    """Fingerprint the code that decides, by size and time of its files."""
    root, state = Path(__file__).parents[1], blake2b(digest_size=12)
    for path in sorted(path for name in CODE for path in (root / name).glob("*.py")):
        about = path.stat()
        state.update(f"{path.name}|{about.st_size}|{about.st_mtime_ns}\n".encode())
    return state.hexdigest()
