"""One item on its way into a store: read, looked at, packed and, of a live feed, compressed."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from hashlib import blake2b

import cv2
import numpy as np
import xarray as xr

from nowcast.config import QualitySettings
from nowcast.core.cube import channels, digest, identity, impossible
from nowcast.core.errors import BadInput, FromFuture, MissingExtra
from nowcast.ingestion import quality
from nowcast.readers import Item, get
from nowcast.store import schema
from nowcast.store.chunk_io import Compressed
from nowcast.store.packing import Packing, packed

TASK_ITEMS, TASK_BYTES = 32, 2**25
"""Items, and bytes of their pixels, that are prepared together."""
BLANKS_KEPT = 16
KEPT = {-1: 2**28, -3: 2**25}
"""Bytes that a process keeps for its next frames, by glibc's options ``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD``."""
Pixels = dict[str, tuple[np.ndarray | Compressed, Packing | None]]
"""Channel -> (frame, row, column), and how it is packed."""
Found = tuple[str, Item]
"""Name of a reader, and what it is to read."""
Inspect = Callable[[Item, str, xr.Dataset], "DecodedItem"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedItem:
    """One item, read, looked at and packed."""

    item: Item
    signature: str = ""
    like: xr.Dataset | None = None
    """A Cube of no frames as these are; None where the item was refused."""
    kind: bytes = b""
    """The same for all that are alike."""
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """What the store keeps of every frame."""
    event: int = 1
    """Frames of its first event."""
    pixels: Pixels = field(default_factory=dict)
    """Empty where they stay in a worker."""
    size: int = 0
    """Bytes of the pixels, wherever they are."""
    refused: str = ""
    """Why it was not taken."""
    until: float | None = None
    """When a refused item is to be looked at again, seconds since 1970; None: when it changes."""
    left_out: int = 0
    """Number of frames of another product than was chosen."""

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(sequence, seconds since 1970) of every frame."""
        stamps = self.labels["time"].astype("datetime64[s]").astype(np.int64).tolist()
        return list(zip(map(str, self.labels["sequence"]), stamps, strict=True))

    def part(self, frames: Sequence[int]) -> Pixels:
        """Take the pixels of some frames."""
        whole = len(frames) == len(self.labels["time"])
        return {
            name: (values if whole else values[list(frames)], packing)
            for name, (values, packing) in self.pixels.items()
        }


def inspect(
    item: Item, signature: str, cube: xr.Dataset, *, now: datetime | None, settings: QualitySettings, product: str = ""
) -> DecodedItem:
    """Check what was read, and pack it.

    Args:
        item: What was read.
        signature: Of the item, before it was read.
        cube: What it holds.
        now: Time of arrival, UTC; None: the clock.
        settings: Quality control.
        product: Which one is wanted, see ``cube.Identity.fits``; others are left out.
    """
    if not identity(cube).fits(product):
        return DecodedItem(item, left_out=cube.sizes["time"])
    labels = {str(key): variable.values for key, variable in cube.variables.items() if variable.dims == ("time",)}
    try:
        clipped = quality.clip(cube, settings)
        plain = {channel: packed(cube.variables[channel], channel) for channel in channels(cube)}
        labels |= quality.measure(cube, settings, pixels=plain, now=now, where=item)
    except FromFuture as error:
        log.debug("%s is refused", item, exc_info=True)
        return DecodedItem(item, refused=str(error), until=error.until)
    except BadInput as error:
        log.debug("%s is refused", item, exc_info=True)
        return DecodedItem(item, refused=str(error))
    labels["status"] |= clipped
    if count := int(impossible(cube).sum()):
        log.warning("%s: %s values cannot be, such as negative rain; they are no data", item, count)
    frames = zip(*(values for values, _ in plain.values()), strict=True)
    labels["digest"] = np.asarray([digest(*frame) for frame in frames], object)
    labels["source"] = np.full(cube.sizes["time"], signature, object)
    event = schema.event_length(cube)
    pixels: Pixels = {
        name: (schema.compressed(codes, packing) if event == 1 else codes, packing)
        for name, (codes, packing) in plain.items()
    }
    size = sum(values.nbytes for values, _ in pixels.values())
    return DecodedItem(item, signature, *_blank(cube, labels), labels, event, pixels, size)


def prepare(found: Found, inspect: Inspect) -> DecodedItem:
    """Read, check and pack an item; or say in one sentence what is wrong with it."""
    name, item = found
    try:
        signature, cube = item.signature, get(name).read(item)
    except BadInput as error:
        log.debug("%s is refused", item, exc_info=True)
        return DecodedItem(item, refused=str(error))
    except MissingExtra as error:
        log.debug("%s is refused", item, exc_info=True)
        return DecodedItem(item, refused=str(error), until=0.0)  # may be mended without a change of the file
    except OSError as error:
        log.warning("%s cannot be read: %s", item, error, exc_info=True)
        sentence = f"{item.path}: cannot be read now ({error.strerror or error}); it is tried again."
        return DecodedItem(item, refused=sentence, until=0.0)
    return inspect(item, signature, cube)


def decode_all(found: Sequence[Found], inspect: Inspect) -> list[DecodedItem]:
    """Prepare several items, one after the other."""
    with one_core_each():
        return [prepare(one, inspect) for one in found]


_BLANKS: dict[bytes, xr.Dataset] = {}
"""To make one costs as much as to read a frame, and thousands of files are alike."""


def _blank(cube: xr.Dataset, labels: dict[str, np.ndarray]) -> tuple[xr.Dataset, bytes]:
    """Make a Cube of no frames, with all labels, and what tells its kind from others."""
    attrs = {key: value for key, value in cube.attrs.items() if key != "source"}  # the store's hold for every frame
    names, variables = channels(cube), cube.variables
    packing = [
        (name, key, value.tobytes() if isinstance(value, np.ndarray) else value)
        for name in names
        for key, value in variables[name].encoding.items()
    ]
    words = repr((*names, *labels, *packing, attrs, variables["crs"].attrs["crs_wkt"])).encode()
    kind = blake2b(b"".join([words, variables["y"].values.tobytes(), variables["x"].values.tobytes()])).digest()
    if kind not in _BLANKS:
        if len(_BLANKS) >= BLANKS_KEPT:
            _BLANKS.clear()
        plain = {key: ("time", labels[key]) for key in ("digest", "source")}
        _BLANKS[kind] = quality.labelled(cube, labels).assign_coords(plain).isel(time=slice(0))
        _BLANKS[kind].attrs = attrs
    return _BLANKS[kind], kind


@contextmanager
def one_core_each() -> Iterator[None]:
    """Keep OpenCV from dividing single frames between cores until the block ends.

    Its threads wait for work by spinning, which costs more than the work. Memory of a frame is kept for the next.
    """
    _keep_memory()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


@cache
def _keep_memory() -> None:
    """Keep freed memory in the process.

    To get the same pages from the system again for every frame costs as much as to fill them, and threads wait for
    each other meanwhile.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library, which has its own ways
        for option, size in KEPT.items():
            ctypes.CDLL(None).mallopt(option, size)


def together(prepared: Sequence[DecodedItem], size: int, *, limit: int | None = None) -> int:
    """Choose how many items like these to prepare together.

    ``limit`` or ``TASK_ITEMS`` at most; ``size`` where nothing is known of them.
    """
    largest = max(one.size for one in prepared)
    return max(1, min(limit or TASK_ITEMS, TASK_BYTES // largest)) if largest else size
