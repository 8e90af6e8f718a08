"""Items, the pieces that a reader reads: the files they lie in, and the parts of large files."""

from __future__ import annotations

import fnmatch
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from nowcast.core.errors import BadInput
from nowcast.readers.forecasts import lead

log = logging.getLogger(__name__)
ITEM_BYTES = 2**26
"""An item decodes to about this at most, as float32: what a worker holds in memory."""
SUFFIXES = re.compile(r"(?:[.-][A-Za-z][A-Za-z0-9]*)+$")
"""Of a name: ``.tar.gz``, ``-hd5``."""


class News(Protocol):
    """What is new in folders, for those who look into them again and again."""

    root: Path
    """Folder that is looked into; others are not part of it."""
    found: list[Path]
    """Files that were found to be new and of names that a reader takes."""

    def look(self, folder: Path) -> tuple[list[str], list[str]]:
        """List the folders in a folder, and its files that are new or changed."""

    @property
    def known(self) -> int:
        """Number of files that were left out because they need not be opened."""


NEWS: ContextVar[News | None] = ContextVar("NEWS", default=None)
"""Where it is set, ``walk`` and ``files`` leave out what is known, and find nothing where nothing is new."""


@dataclass(frozen=True)
class Item:
    """One thing to read: a file, or the part of it that ``key`` names."""

    path: Path
    key: str = ""
    product: str = field(default="", compare=False)
    """Which one to take where a file holds several, see ``cube.Identity.fits``; "" leaves the choice to the reader."""
    member: str = ""
    """Place of the file in the wrapping that ``path`` then is; readers never see one, see ``readers.Door``."""

    @property
    def signature(self) -> str:
        """Changes when the file does: name, part, size and time of modification."""
        stat = self.path.stat()
        return f"{self}|{stat.st_size}|{stat.st_mtime_ns}"

    def __str__(self) -> str:
        inside = "" if self.path.name.startswith(self.member) else f"/{self.member}"
        return self.path.name + inside + (f"[{self.key}]" if self.key else "")


def files(source: Path, *patterns: str) -> list[Path]:
    """Find files under ``source`` (or itself) of names that fit one of the patterns, in natural order of their names.

    Hidden files are left out: transfers write them before they rename. So are forecasts, which are no observations, and
    what is no news, see ``NEWS``.

    Raises:
        BadInput: If ``source`` does not exist or holds no such file.
    """
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    if source.is_file():
        return [source]
    named = [
        place / name
        for place, _, names in walk(source)
        for name in names
        if fits(name, patterns) and not name.startswith(".")
    ]
    news = _news_of(source)
    if news:
        news.found += named
    found = [path for path in named if not lead(path.name) and path.is_file()]
    if named and not found:
        raise BadInput(source, "holds no observed composite", "give analyses, of lead 000")
    if not found and not (news and news.known):
        raise BadInput(source, f"holds no file named {' or '.join(patterns)}", "check the path and the reader")
    return sorted(found, key=lambda path: (natural(path.name), str(path)))


def walk(source: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk through a folder as ``os.walk`` does, and through the folders that links lead to, each of them once.

    Files that are no news are left out, see ``NEWS``.
    """
    if not source.is_dir():
        return
    seen, waiting, look = set(), [source], (_news_of(source) or _Everything()).look
    while waiting:
        place = waiting.pop()
        try:
            about = place.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            folders, names = look(place)
        except OSError as error:
            if place == source:
                raise
            log.warning("%s cannot be listed: %s", place, error)
            continue
        folders.sort(key=natural)
        yield place, folders, names
        waiting += [place / name for name in reversed(folders)]


class _Everything:
    def look(self, folder: Path) -> tuple[list[str], list[str]]:
        with os.scandir(folder) as entries:
            parts: tuple[list[str], list[str]] = [], []
            for entry in entries:
                parts[not entry.is_dir()].append(entry.name)
            return parts


def _news_of(source: Path) -> News | None:
    """Return what is new there; None where all is wanted, as in what was unpacked."""
    news = NEWS.get()
    return news if news and (source == news.root or news.root in source.parents) else None


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name fits one of the glob patterns, its suffixes in small letters or in capitals: ``.h5``, ``.H5``."""
    known = _matcher(patterns)
    return bool(known(name) or known(SUFFIXES.sub(lambda match: match[0].lower(), name)))


@lru_cache(maxsize=256)
def _matcher(patterns: tuple[str, ...]) -> Callable[[str], object]:
    return re.compile("|".join(map(fnmatch.translate, patterns))).match


def natural(text: str) -> list[tuple[int, str]]:
    """Make a sort key under which ``sample2`` comes before ``sample10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def parts(count: int, shape: tuple[int, ...], *, most: int | None = None) -> Iterator[str]:
    """Make the keys ``0:32``, ``32:64`` ... that cut ``count`` frames (or clips) into items of bounded size.

    Args:
        count: Frames in all.
        shape: Of one of them.
        most: Frames in an item at most; None: as many as ``ITEM_BYTES`` holds.
    """
    step = max(1, ITEM_BYTES // (4 * math.prod(shape)))
    step = min(step, most or step)
    for start in range(0, count, step):
        yield f"{start}:{min(start + step, count)}"


def part(item: Item) -> slice:
    """Return the frames that the key of an item names.

    Raises:
        BadInput: If it is not such a key.
    """
    match = re.fullmatch(r"(\d+):(\d+)", item.key)
    if not match:
        raise BadInput(item.path, f"has no part {item.key or '(none named)'}", "take items from find")
    return slice(int(match[1]), int(match[2]))
