"""Quality control on arrival: what is wrong with a frame, noted beside it.

``measure`` looks at frames by themselves, ``compare`` at what came before them. Values are altered in
one case only: where the settings name a limit to clip to, and then the frame says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import cv2 as _cv2
import numpy as np
import xarray as xr

from nowcast.config import QualitySettings
from nowcast.core.cadence import ON_TIME, newest_step
from nowcast.core.cube import channels, impossible
from nowcast.core.errors import BadInput, FromFuture
from nowcast.core.units import get_quantity
from nowcast.store.packing import Packing

cv2: Any = _cv2
"""Its stubs know no comparison of an array with a number."""

FLAGS = {
    "mostly_missing": 1,
    "dry": 2,
    "out_of_range": 4,
    "speckle": 8,
    "clipped": 16,
    "partial_coverage": 32,
    "jump": 64,
    "off_cadence": 128,
    "impossible_values": 256,
}
"""Bits of a frame's status. A dry frame is a good frame: the flag lets training thin them out. Impossible values, such
as negative rain, were made no data when the frame was read, see ``cube.impossible``."""
LABELS = ("missing_share", "wet_share", "mean_value", "status")
"""What the store keeps of every frame."""

RANGES = {
    "rainfall_rate": (0.0, 500.0),
    "reflectivity": (-64.0, 80.0),
    "vil": (0.0, 100.0),
    "visible_reflectance": (0.0, 2.0),
    "brightness_temperature_069": (-130.0, 80.0),
    "brightness_temperature_107": (-130.0, 80.0),
    "lightning_flashes": (0.0, 1e5),
}
"""Lowest and highest value that can be weather; beyond are clutter, interference and decoding errors."""
NEIGHBOURS = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
"""Of a pixel, without itself."""
SPECKS = 20
"""Lone wet pixels below this number are no speckle."""
REMEMBERED = 16
"""Newest frames from which the step of a live feed is found."""


Pixels = Mapping[str, tuple[np.ndarray, Packing | None]]
"""Channel -> (frame, row, column), and how it is packed."""


@dataclass(frozen=True)
class Before:
    """The frame before, as far as it matters to the next one."""

    time: np.datetime64
    step: float
    """Seconds from the one before it; 0 where there is none."""
    wet: float
    missing: float
    """Lowest missing share of the sequence so far."""
    times: tuple[np.datetime64, ...] = ()
    """Its newest frames, of a live feed: they tell the step."""


def clip(cube: xr.Dataset, settings: QualitySettings) -> np.ndarray:
    """Set values above the limits that the settings name to them, in place; int16 status of every frame."""
    status = np.zeros(cube.sizes["time"], np.int16)
    for name in set(settings.clip) & set(channels(cube)):
        values = cube.variables[name].values
        beyond = values > settings.clip[name]
        values[beyond] = settings.clip[name]
        status[beyond.any(axis=(1, 2))] = FLAGS["clipped"]
    return status


def measure(
    cube: xr.Dataset,
    settings: QualitySettings,
    *,
    pixels: Pixels | None = None,
    now: datetime | None = None,
    where: object = "cube",
) -> dict[str, np.ndarray]:
    """Measure every frame of a Cube by itself.

    Args:
        cube: Frames of one item.
        settings: Limits.
        pixels: Its channels as the store keeps them, see ``packing.packed``; None: as they are.
        now: Time of arrival, UTC; None: the clock.
        where: Named in errors.

    Returns:
        ``LABELS`` per frame: of all channels the largest share of missing pixels; of the first the
        share of wet pixels (at or above the lowest event threshold, of those measured) and the mean.
        ``status`` is the sum of its ``FLAGS``; those of several channels add up; a frame is dry if all
        its channels are that can be.

    Raises:
        BadInput: If not one pixel was measured in the whole item, or a frame is from the future.
    """
    _refuse_future(cube, now or datetime.now(UTC), settings, where)
    pixels = pixels or {name: (cube.variables[name].values, None) for name in channels(cube)}
    views = [
        [_statistics(name, frame, packing, settings) for frame in values] for name, (values, packing) in pixels.items()
    ]
    shares = np.array([[view.missing for view in row] for row in views])
    missing = shares.max(axis=0)
    if (shares == 1).all():
        raise BadInput(where, "has no measured pixel", "wait for the next frame or check the radar")
    dry = ~np.any([[view.wet != 0 for view in row] for row in views], axis=0)  # NaN: cannot be dry
    bits = {
        "mostly_missing": missing > settings.most_missing,
        "dry": dry & (missing < 1),
        "out_of_range": np.any([[view.out_of_range for view in row] for row in views], axis=0),
        "speckle": np.any([[view.speckled for view in row] for row in views], axis=0),
        "impossible_values": impossible(cube) > 0,
    }
    return {
        "missing_share": missing.astype(np.float32),
        "wet_share": np.array([view.wet for view in views[0]], np.float32),
        "mean_value": np.array([view.mean for view in views[0]], np.float32),
        "status": sum(bit.astype(np.int16) * np.int16(FLAGS[name]) for name, bit in bits.items()),
    }


def labelled(cube: xr.Dataset, labels: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Add ``LABELS`` to a Cube as coordinates, described by CF's attributes."""
    words = {
        "missing_share": "share of the pixels without data",
        "wet_share": "share of the measured pixels at or above the lowest event threshold",
        "mean_value": "mean of the measured pixels",
        "status": "status of the frame",
    }
    flags = {
        "standard_name": "status_flag",
        "flag_masks": np.array(list(FLAGS.values()), np.int16),
        "flag_meanings": " ".join(FLAGS),
    }
    return cube.assign_coords(
        {
            key: ("time", labels[key], {"long_name": word} | (flags if key == "status" else {}))
            for key, word in words.items()
        }
    )


def compare(
    labels: Mapping[str, np.ndarray],
    before: dict[str, Before],
    settings: QualitySettings,
    *,
    cadence: float | None,
    override: float = 0,
) -> np.ndarray:
    """Complete the status of frames by what only their predecessors show.

    Args:
        labels: ``time``, ``sequence`` and ``LABELS`` of frames in order of time.
        before: Last frame of every sequence; brought up to date.
        settings: Limits.
        cadence: Seconds between the frames of a live feed as their files state it, 0 where they do not; None for
            events.
        override: Seconds between them as the operator states it; 0: the times decide.

    Returns:
        int16, the sum of the ``FLAGS``. A frame that comes later than a younger one is not compared.
    """
    status = labels["status"].astype(np.int16)
    for index, (time, sequence) in enumerate(zip(labels["time"], labels["sequence"], strict=True)):
        wet, missing = float(labels["wet_share"][index]), float(labels["missing_share"][index])
        last = before.get(sequence)
        if last is not None and time <= last.time:
            continue
        step = 0.0 if last is None else float((time - last.time) / np.timedelta64(1, "s"))
        times = () if cadence is None else (*(last.times if last else ())[1 - REMEMBERED :], time)
        if last is not None:
            usual = None if cadence is None else newest_step(np.array(times), hint=cadence, override=override)
            status[index] |= _changes(last, step, wet, missing, settings, usual)
        lowest = missing if last is None else min(missing, last.missing)
        before[sequence] = Before(time, step, wet, lowest, times)
    return status


def resume(labels: Mapping[str, np.ndarray]) -> dict[str, Before]:
    """Find the last frame of every sequence of a store, as ``compare`` leaves it.

    Args:
        labels: ``time``, ``sequence`` and ``LABELS`` of all frames in order of arrival.
    """
    groups: dict[str, list[int]] = {}
    for index, word in enumerate(labels["sequence"].tolist()):
        groups.setdefault(word, []).append(index)
    return {word: _last({name: labels[name][part] for name in ("time", *LABELS)}) for word, part in groups.items()}


def _last(labels: Mapping[str, np.ndarray]) -> Before:
    """Find the last frame of a sequence; frames that came later than a younger one do not count."""
    time, seconds = labels["time"], labels["time"].astype(np.int64)
    youngest = np.concatenate([[True], seconds[1:] > np.maximum.accumulate(seconds)[:-1]])
    times, missing = time[youngest], labels["missing_share"][youngest]
    step = float((times[-1] - times[-2]) / np.timedelta64(1, "s")) if times.size > 1 else 0.0
    wet = float(labels["wet_share"][youngest][-1])
    return Before(times[-1], step, wet, float(missing.min()), tuple(times[-REMEMBERED:]))


def _changes(
    last: Before, step: float, wet: float, missing: float, settings: QualitySettings, cadence: float | None
) -> int:
    interval = cadence or last.step or step
    missed = abs(step - round(step / interval) * interval) if cadence else abs(step - interval)
    bits = {
        "partial_coverage": missing > last.missing + settings.coverage_loss,
        "jump": abs(wet - last.wet) > settings.jump and step < 1.5 * interval,
        "off_cadence": missed > ON_TIME * interval,
    }
    return sum(FLAGS[name] for name, bit in bits.items() if bit)


def describe(status: int) -> str:
    """Name the flags in a status, or say ``good``."""
    return ", ".join(name.replace("_", " ") for name, bit in FLAGS.items() if status & bit) or "good"


@dataclass(frozen=True)
class _Statistics:
    missing: float
    wet: float
    """NaN where the quantity knows no dry."""
    mean: float
    out_of_range: bool
    speckled: bool


def _statistics(name: str, frame: np.ndarray, packing: Packing | None, settings: QualitySettings) -> _Statistics:
    known = packing.known(frame) if packing else cv2.compare(frame, frame, cv2.CMP_EQ)  # NaN differs from itself
    count = cv2.countNonZero(known)
    thresholds = get_quantity(name).thresholds
    if not count:
        return _Statistics(1.0, 0.0 if thresholds else np.nan, np.nan, False, False)
    missing, out_of_range = 1 - count / frame.size, _out_of_range(name, frame, known, packing, settings)
    # a mean under a mask takes ten times as long
    mean = packing.mean(frame, count) if packing else cv2.sumElems(cv2.copyTo(frame, known))[0] / count
    if not thresholds:
        return _Statistics(missing, np.nan, mean, out_of_range, False)
    first = packing.first(thresholds[0]) if packing else thresholds[0]
    wet = cv2.compare(frame, float(first), cv2.CMP_GE)
    if packing and packing.missing is not None and packing.missing >= first:
        wet = cv2.bitwise_and(wet, known)
    number = cv2.countNonZero(wet)
    return _Statistics(missing, number / count, mean, out_of_range, _speckled(wet, number, settings.speckle))


def _out_of_range(
    name: str, frame: np.ndarray, known: np.ndarray, packing: Packing | None, settings: QualitySettings
) -> bool:
    """Tell whether a value lies beyond what can be weather."""
    lowest, highest, *_ = cv2.minMaxLoc(frame, mask=known)
    if packing:
        lowest, highest = packing.unpack(np.array([[lowest, highest]], packing.dtype))[0]
    low, high = settings.limits.get(name) or RANGES.get(name, (-np.inf, np.inf))
    return bool(lowest < low or highest > high)


def _speckled(wet: np.ndarray, count: int, most: float) -> bool:
    """Tell whether too many wet pixels have no wet neighbour."""
    if count < SPECKS:
        return False
    lone = cv2.countNonZero(cv2.subtract(wet, cv2.dilate(wet, NEIGHBOURS)))
    return bool(lone >= SPECKS and lone > most * count)


def _refuse_future(cube: xr.Dataset, now: datetime, settings: QualitySettings, where: object) -> None:
    limit = now + timedelta(minutes=settings.clock_slack_minutes)
    latest = cube.variables["time"].values.max().astype("datetime64[s]")
    ahead = latest - np.datetime64(limit.astimezone(UTC).replace(tzinfo=None), "s")
    if ahead > np.timedelta64(0):
        until = now + timedelta(seconds=int(ahead / np.timedelta64(1, "s")))
        raise FromFuture(where, latest, until.timestamp())
