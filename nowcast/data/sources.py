"""Sources of windows of frames: spans of stores, and clips generated on the fly.

The windows follow from the labels of a store alone. Its pixels are read as they are stored, one or two bytes
each, together with a table of the scaled value of every code; only frames that are resized, or were never packed,
are scaled here.

Shape letters: T time, C channel, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import xarray as xr

from nowcast.config import Moving, Span, WindowSettings
from nowcast.core.cube import utc
from nowcast.core.errors import ConfigError
from nowcast.core.units import COLOURS, MARSHALL_PALMER, convert, get_quantity
from nowcast.readers.moving_images import MovingImages, load_images
from nowcast.store import FrameStore
from nowcast.store.packing import Packing

log = logging.getLogger(__name__)
MISSING = -1
"""Position of a missing frame, in a gap that the source tolerates."""
AMOUNTS = ("rainfall_rate", "vil")
"""Quantities whose mean measures the amount of rain; for others the share of wet pixels is used."""


class Source(Protocol):
    """Windows of one span."""

    name: str
    weights: np.ndarray
    """Relative weights with which the windows are drawn (window)."""
    table: np.ndarray | None
    """Scaled value of every code, by its bits as unsigned integer, NaN for no data; None: frames are floats."""
    dtype: np.dtype[Any]
    channels: int
    size: tuple[int, int]
    """Rows and columns."""
    step_seconds: int
    """Time between frames: the median over the windows."""
    endless: bool
    """Whether every number is a window: training draws another one each time."""

    def read(self, window: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read codes (T, C, H, W), into ``out`` if it is given, or float32 in [0, 1] if there is no table."""
        ...

    def read_many(self, windows: Sequence[int], out: np.ndarray, rows: np.ndarray) -> None:
        """Read the codes of several windows into ``rows`` of ``out`` (B, T, C, H, W)."""
        ...

    def facts(self) -> dict[str, object]:
        """Describe the source for the card of a checkpoint."""
        ...

    def beginnings(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sequence and the time of the first frame of every window."""
        ...

    def physical(self, window: int) -> np.ndarray:
        """Read float32 (T, C, H, W) in the unit of the span's quantity, NaN for no data."""
        ...


def source(span: Span | Moving, settings: WindowSettings) -> Source:
    """Find the windows of a span.

    Raises:
        ConfigError: If there are none, or the store does not have the quantity, split or sequences.
    """
    found: Source = Generated(span, settings) if isinstance(span, Moving) else Stored(span, settings)
    if not found.weights.size:
        raise ConfigError(f"No window of {settings.in_steps + settings.out_steps} unbroken frames in {found.name}.")
    return found


class Stored:
    """The windows of a span of a store."""

    endless = False

    def __init__(self, span: Span, settings: WindowSettings) -> None:
        self.span, self.settings, self.name = span, settings, _name(span)
        self.store = FrameStore(span.store)
        self.version = self.store.snapshot()
        timeline = self.store.timeline(self.version)
        self.attrs, self.quantity = timeline.attrs, span.quantity or settings.quantity
        self.names = _chosen(self.attrs["channels"], self.quantity, settings, span)
        self.channels = len(self.names)
        if self.channels > 1:
            self.quantity = self.names[0]  # all colours have the same scaling
        scaling = span.scaling or (settings.scaling if span.quantity is None else None)
        self.scaling = scaling.build() if scaling else get_quantity(self.quantity).scaling
        self._index(timeline)
        self._frames: dict[str, tuple[Any, Packing | None]] = {}
        self.size = next(iter(self.frames().values()))[0].array.shape[1:]
        packing = self._packing()
        self.table = None if packing is None else self._table(packing)
        self.dtype = np.dtype(np.float32) if packing is None else packing.dtype

    def _packing(self) -> Packing | None:
        """Return the packing that all channels share, if batches can contain their codes."""
        packings = [packing for _, packing in self.frames().values()]
        first = packings[0]
        if first is None or self.settings.resize or any(one is None or one.attrs != first.attrs for one in packings):
            return None
        return first if first.missing is not None or MISSING not in self.slots else None

    # --- index of windows

    def _index(self, timeline: xr.Dataset) -> None:
        """Set ``slots``, the positions of frames, one unbroken run after the other, and ``starts`` of windows in it."""
        length, stride = self.settings.in_steps + self.settings.out_steps, self.settings.stride
        stamps, labels, inside = timeline["time"].values, timeline["sequence"].values, self._inside(timeline)
        joined = (labels[1:] == labels[:-1]) & inside[1:] & inside[:-1]
        slots, starts, size = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for run in np.split(np.arange(stamps.size), np.flatnonzero(~joined) + 1):
            if run.size and inside[run[0]]:
                slots.append(_slots(run, timeline))
                starts.append(np.arange(size, size + slots[-1].size - length + 1, stride))
                size += slots[-1].size
        order, self.starts, self.length = np.concatenate(slots), np.concatenate(starts), length
        self.slots = np.append(timeline["position"].values, MISSING)[order]
        steps = np.diff(stamps)[joined] / np.timedelta64(1, "s")
        self.step_seconds = int(np.median(steps)) if steps.size else 0
        self.weights = self._weights(timeline, order)

    def _inside(self, timeline: xr.Dataset) -> np.ndarray:
        """Tell which frames belong to the span."""
        span, stamps, labels = self.span, timeline["time"].values, timeline["sequence"].values
        inside: np.ndarray = np.ones(stamps.size, bool)
        if span.start:
            inside &= stamps >= utc(span.start)
        if span.end:
            inside &= stamps < utc(span.end)
        if "missing_share" in timeline:
            inside &= ~(timeline["missing_share"].values > self.settings.most_missing)
        if span.split is not None:
            splits = timeline["split"].values if "split" in timeline else np.full(stamps.size, "")
            if span.split not in splits:
                found = ", ".join(sorted({str(split) for split in splits} - {""})) or "none"
                raise ConfigError(f"{span.store}: there is no split {span.split!r}; its splits: {found}.")
            inside &= splits == span.split
        if span.sequences:
            chosen = {label for label in set(labels.tolist()) if any(fnmatchcase(label, p) for p in span.sequences)}
            inside &= np.isin(labels.astype(str), sorted(chosen))
        if "step" in timeline:
            inside &= _usual_step(timeline["step"].values, inside)
        return inside & _in_share(timeline["sequence"].values.astype(str), inside, span.share) if span.share else inside

    def _weights(self, timeline: xr.Dataset, order: np.ndarray) -> np.ndarray:
        """Compute the weight of every window from the labels of its frames; nothing is decoded."""
        even = np.ones(self.starts.size)
        label = "mean_value" if self.attrs["channels"][0] in AMOUNTS else "wet_share"
        if not self.settings.event_weight or label not in timeline or not even.size:
            return even
        rain = np.append(np.nan_to_num(timeline[label].values), 0)[order]  # the last one is that of ``MISSING``
        sums = np.concatenate([[0], np.cumsum(rain, dtype=np.float64)])
        means = (sums[self.starts + self.length] - sums[self.starts]) / self.length
        return np.asarray(even + self.settings.event_weight * means / max(means.mean(), 1e-12))

    def positions(self, window: int) -> np.ndarray:
        """Return the positions of a window's frames in the store; ``MISSING`` for a missing frame."""
        start = self.starts[window]
        return self.slots[start : start + self.length]

    @property
    def touched(self) -> np.ndarray:
        """Positions of all frames that are part of a window."""
        slots = np.zeros(self.slots.size + 1, np.int64)
        np.add.at(slots, self.starts, 1)
        np.add.at(slots, self.starts + self.length, -1)
        places = self.slots[np.cumsum(slots[:-1]) > 0]
        return np.unique(places[places != MISSING])

    def facts(self) -> dict[str, object]:
        """Describe the source for the card of a checkpoint."""
        span = self.span.model_dump(mode="json", exclude_defaults=True)
        words = {key: str(self.attrs.get(key, "")) for key in ("title", "licence")}
        return span | {"snapshot": self.version, "frames": int(self.touched.size)} | words

    def beginnings(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sequence and the time of the first frame of every window."""
        timeline = self.store.timeline(self.version)
        order = np.argsort(timeline["position"].values)
        first = [places[places != MISSING][0] for places in map(self.positions, range(self.starts.size))]
        there = timeline.isel(time=order[first])
        return there["sequence"].values.astype(str), there["time"].values

    # --- pixels

    def frames(self) -> dict[str, tuple[Any, Packing | None]]:
        """Open the store's arrays, once per process, at the version that the index was made from."""
        if not self._frames:
            self._frames = self.store.packed(self.names, version=self.version)
        return self._frames

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_frames": {}}

    def read(self, window: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read codes (T, C, H, W), into ``out`` if it is given, or float32 in [0, 1] if there is no table."""
        places = self.positions(window)
        if self.table is None:
            return np.stack([self._values(name, places) for name in self.names], axis=1)
        if out is None:
            out = np.empty((self.length, self.channels, *self.size), self.dtype)
        for index, name in enumerate(self.names):
            self._codes(name, places, out[:, index])
        return out

    def read_many(self, windows: Sequence[int], out: np.ndarray, rows: np.ndarray) -> None:
        """Read the codes of several windows into ``rows`` of ``out`` (B, T, C, H, W)."""
        for row, window in zip(rows, windows, strict=True):
            self.read(window, out[row])

    def physical(self, window: int) -> np.ndarray:
        """Read float32 (T, C, H, W) in the unit of the span's quantity, NaN for no data."""
        places = self.positions(window)
        if self.settings.resize:  # as networks get it
            return self.scaling.decode(np.stack([self._values(name, places) for name in self.names], axis=1))
        return np.stack([self._converted(self._unpacked(name, places)) for name in self.names], axis=1)

    def _codes(self, name: str, places: np.ndarray, out: np.ndarray) -> None:
        frames, packing = self.frames()[name]
        if places[0] != MISSING and (np.diff(places) > 0).all():
            frames.read(places, out=out)
            return
        present = places != MISSING
        unique, back = np.unique(places[present], return_inverse=True)  # late frames are at the end of a store
        out[present] = frames.read(unique)[back]
        if not present.all():
            out[~present] = packing.missing  # type: ignore[union-attr]

    def _values(self, name: str, places: np.ndarray) -> np.ndarray:
        """Read float32 in [0, 1], NaN for no data, resized if the settings say so."""
        values = self._scaled(self._unpacked(name, places))
        if side := self.settings.resize:
            values = np.stack([resized(frame, side) for frame in values])
        return values

    def _unpacked(self, name: str, places: np.ndarray) -> np.ndarray:
        """Read float32 in the unit of the store, NaN for no data."""
        frames, packing = self.frames()[name]
        present = places != MISSING
        unique, back = np.unique(places[present], return_inverse=True)
        codes = frames.read(unique)
        whole = np.full((places.size, *codes.shape[1:]), np.nan, np.float32)
        whole[present] = (packing.unpack(codes) if packing else codes)[back]
        return whole

    def _table(self, packing: Packing) -> np.ndarray:
        """Tabulate the scaled values, in the order of the codes as unsigned integers."""
        return self._scaled(np.roll(packing.table, np.iinfo(packing.dtype).min))

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # codes that no pixel has: thousands of dBZ, rain below 0
            return self.scaling.encode(self._converted(values))

    def _converted(self, values: np.ndarray) -> np.ndarray:
        zr = (self.attrs["zr_a"], self.attrs["zr_b"]) if "zr_a" in self.attrs else MARSHALL_PALMER
        return convert(values, self.names[0], self.quantity, zr=zr)


class Generated:
    """Windows of clips that are generated on the fly."""

    channels, step_seconds, endless = 1, 1, True

    def __init__(self, span: Moving, settings: WindowSettings) -> None:
        self.span, self.name = span, f"{span.images} (moving)"
        self.side, self.weights = settings.resize, np.ones(span.clips)
        self.size = (span.canvas, span.canvas)
        length = settings.in_steps + settings.out_steps
        images = load_images(span.images)[span.images_from : span.images_to]
        if not len(images):
            raise ConfigError(f"{span.images}: there are no images {span.images_from} to {span.images_to or 'end'}.")
        self.clips = MovingImages(images, canvas=span.canvas, frames=length, count=span.objects, seed=span.seed)
        own = settings.scaling if settings.quantity == "intensity" else None
        scaling = own.build() if own else get_quantity("intensity").scaling
        self.values = scaling.encode(np.arange(256, dtype=np.float32) / 255)
        self.table = None if self.side else self.values
        self.dtype = np.dtype(np.float32 if self.side else np.uint8)

    def facts(self) -> dict[str, object]:
        """Describe the source for the card of a checkpoint."""
        return self.span.model_dump(mode="json") | {"title": "Clips of moving pictures"}

    def beginnings(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of every clip as its sequence, and a time of 1970 for each."""
        clips = self.span.clips
        return np.arange(clips).astype(str), np.zeros(clips, "datetime64[ns]")

    def physical(self, window: int) -> np.ndarray:
        """Generate a clip as float32 (T, C, H, W) in [0, 1], the unit of intensity."""
        frames = self.clips.clip(window).astype(np.float32) / 255
        return (np.stack([resized(frame, self.side) for frame in frames]) if self.side else frames)[:, None]

    def read(self, window: int, out: np.ndarray | None = None) -> np.ndarray:
        """Generate a clip as codes (T, C, H, W), into ``out`` if it is given, or as float32 if it is resized."""
        frames = self.clips.clip(window)
        if self.side:
            return np.stack([resized(frame, self.side) for frame in self.values[frames]])[:, None]
        if out is None:
            return frames[:, None]
        out[:, 0] = frames
        return out

    def read_many(self, windows: Sequence[int], out: np.ndarray, rows: np.ndarray) -> None:
        """Generate several clips together, which costs a fifth of one by one."""
        out[rows, :, 0] = self.clips.clips(windows)


def resized(frame: np.ndarray, side: int) -> np.ndarray:
    """Resize a field (H, W) to a square; pixels without data, and their neighbours, have no data."""
    shrinks = min(frame.shape) > side
    return cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _chosen(held: Sequence[str], wanted: str, settings: WindowSettings, span: Span) -> list[str]:
    """Choose the channels of a store that are read."""
    if settings.channels == len(COLOURS) and set(COLOURS) <= set(held) and wanted in ("intensity", *COLOURS):
        return list(COLOURS)
    if wanted in held:
        return [wanted]
    radar = ("rainfall_rate", "reflectivity")
    if wanted in radar and set(held) & set(radar):
        return [next(name for name in held if name in radar)]
    raise ConfigError(
        f"{span.store}: holds {', '.join(held)}, and no formula makes {wanted} of it; "
        "name the quantity of this span, or choose another store."
    )


def _in_share(labels: np.ndarray, inside: np.ndarray, share: tuple[float, float]) -> np.ndarray:
    """Tell which frames are of the sequences in a share of those that have frames inside, in the order of the store."""
    kept, first = np.unique(labels[inside], return_index=True)
    ordered = kept[np.argsort(first)]
    low, high = (round(part * ordered.size) for part in share)
    return np.isin(labels, ordered[low:high])


def _usual_step(steps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Tell which frames came at the step that most of a span have: a network learns one step."""
    values, counts = np.unique(steps[inside], return_counts=True)
    same: np.ndarray = steps == values[counts.argmax()] if values.size else np.ones(steps.size, bool)
    if left := int((inside & ~same).sum()):
        log.warning("%d frames are left out: their step is not %d s", left, values[counts.argmax()])
    return same


def _slots(run: np.ndarray, timeline: xr.Dataset) -> np.ndarray:
    """Place the frames of a run at multiples of its step, with ``MISSING`` in its gaps."""
    if not timeline.attrs.get("tolerated_gap"):
        return run
    stamps, seconds = timeline["time"].values[run], int(timeline["step"].values[run[-1]])
    steps = np.rint((stamps - stamps[0]) / np.timedelta64(seconds, "s")).astype(int)
    slots = np.full(steps[-1] + 1, MISSING)
    slots[steps] = run
    return slots


def _name(span: Span) -> str:
    """Describe a span for error messages."""
    parts = [f"split {span.split}"] if span.split else []
    parts += [f"sequences {', '.join(span.sequences)}"] if span.sequences else []
    parts += [f"share {span.share[0]:g} to {span.share[1]:g}"] if span.share else []
    start, end = (f"{time:%Y-%m-%dT%H:%MZ}" if time else "" for time in (span.start, span.end))
    parts += [f"{start or 'start'} to {end or 'end'}"] if span.start or span.end else []
    return f"{span.store} ({'; '.join(parts) or 'all of it'})"


# --- splits ---------------------------------------------------------------------------------------


def check_apart(
    train: Sequence[Source], valid: Sequence[Source], *, names: tuple[str, str] = ("train", "valid")
) -> None:
    """Refuse a split in which a frame is in two parts, such as training and validation.

    Frames of the same store are compared by position, frames of two stores by time and content.

    Raises:
        ConfigError: Names the stores and the frames.
    """
    both = " and ".join(names)
    for fitting in train:
        for held in valid:
            if isinstance(fitting, Generated) and isinstance(held, Generated):
                if _clips(fitting.span) == _clips(held.span):
                    raise ConfigError(f"{fitting.name}: {both} make the same clips; give them different seeds.")
            elif isinstance(fitting, Stored) and isinstance(held, Stored) and (shared := _shared_frames(fitting, held)):
                raise ConfigError(
                    f"{fitting.span.store}: {len(shared)} frames are in {both}, {shared[0]} to "
                    f"{shared[-1]}; give the spans start and end, splits or sequences."
                )


def _clips(span: Moving) -> tuple[Path, int]:
    """Return a key that is equal for spans whose clips show the same images on the same trajectories."""
    return span.images.resolve(), span.seed


def _shared_frames(one: Stored, other: Stored) -> list[str]:
    """Name the frames that two sources have in common, in order of time."""
    same = one.store.place == other.store.place
    mine, theirs = (_identities(found, by_position=same) for found in (one, other))
    return sorted(mine[key] for key in mine.keys() & theirs.keys())


def _identities(stored: Stored, *, by_position: bool) -> dict[Any, str]:
    """Map the identity of every frame in a window, position or (time, digest), to its name."""
    timeline = stored.store.timeline(stored.version)
    timeline = timeline.isel(time=np.isin(timeline["position"].values, stored.touched))
    times, positions = timeline["time"].values, timeline["position"].values.tolist()
    names = [
        f"{time} {label}".strip()
        for time, label in zip(times.astype("datetime64[s]").astype(str), timeline["sequence"].values, strict=True)
    ]
    if by_position:
        return dict(zip(positions, names, strict=True))
    if "digest" not in timeline:
        return {}
    wet = timeline["wet_share"].values != 0 if "wet_share" in timeline else np.ones(times.size, bool)
    keys = zip(times.astype(np.int64).tolist(), timeline["digest"].values, strict=True)
    return {key: name for key, name, rain in zip(keys, names, wet, strict=True) if rain}  # dry frames are all alike
