"""Items, the pieces that a reader reads: the files they lie in, and the parts of large files."""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from nowcast.core.errors import BadInput
from nowcast.readers.forecasts import lead

ITEM_BYTES = 2**26
"""An item decodes to about this at most, as float32: what a worker holds in memory."""
SUFFIXES = re.compile(r"(?:[.-][A-Za-z][A-Za-z0-9]*)+$")
"""Of a name: ``.tar.gz``, ``-hd5``."""


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

    Hidden files are left out: transfers write them before they rename. So are forecasts, which are no observations.

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
    found = [path for path in named if not lead(path.name) and path.is_file()]
    if named and not found:
        raise BadInput(source, "holds no observed composite", "give analyses, of lead 000")
    if not found:
        raise BadInput(source, f"holds no file named {' or '.join(patterns)}", "check the path and the reader")
    return sorted(found, key=lambda path: (natural(path.name), str(path)))


def walk(source: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk through a folder as ``os.walk`` does, and through the folders that links lead to, each of them once."""
    seen = set()
    for place, folders, names in os.walk(source, followlinks=True):
        about = os.stat(place)  # noqa: PTH116
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders.sort(key=natural)
        yield Path(place), folders, names


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
