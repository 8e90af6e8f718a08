"""Items, the pieces that a reader reads: the files they lie in, and the parts of large files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nowcast.core.errors import BadInput

ITEM_BYTES = 2**26
"""An item decodes to about this at most, as float32: what a worker holds in memory."""


@dataclass(frozen=True)
class Item:
    """One thing to read: a file, or the part of it that ``key`` names."""

    path: Path
    key: str = ""
    product: str = field(default="", compare=False)
    """Which one to take where a file holds several, see ``cube.Identity.fits``; "" leaves the choice to the reader."""

    @property
    def signature(self) -> str:
        """Changes when the file does: name, part, size and time of modification."""
        stat = self.path.stat()
        return f"{self}|{stat.st_size}|{stat.st_mtime_ns}"

    def __str__(self) -> str:
        return self.path.name + (f"[{self.key}]" if self.key else "")


def files(source: Path, *patterns: str) -> list[Path]:
    """Find files under ``source`` (or itself) that match one of the glob patterns, in natural order of their names.

    Hidden files are left out: transfers write them before they rename.

    Raises:
        BadInput: If ``source`` does not exist or holds no such file.
    """
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    if source.is_file():
        return [source]
    found = {path for pattern in patterns for path in source.rglob(pattern)}
    found = {path for path in found if path.is_file() and not path.name.startswith(".")}
    if not found:
        raise BadInput(source, f"holds no file named {' or '.join(patterns)}", "check the path and the reader")
    return sorted(found, key=lambda path: (natural(path.name), str(path)))


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
