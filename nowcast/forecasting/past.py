"""The frames that a model is given: the newest ones, at even steps, whatever is missing between those of the archive.

A gap of one or two frames is bridged along the motion. Bridged fields are inputs only: never in the archive, and named
in every forecast made from them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

import numpy as np
import xarray as xr

from nowcast.core.cadence import ON_TIME, newest_step, stated_cadence
from nowcast.core.cube import channels, event_labels, utc
from nowcast.core.errors import ForecastError
from nowcast.core.provenance import BRIDGED, Entry, stamp
from nowcast.forecasting.bridging import bridge

MOST_BRIDGED = 2
"""Missing frames in a row that are bridged."""
LONGEST_BRIDGE = np.timedelta64(45, "m")
"""Frames further apart show other rain."""
RECENT_STEPS = 10
"""Steps whose median is the step of frames without a stated one."""


@dataclass(frozen=True)
class Input:
    """One frame of a model's input: a frame of the archive, or a time between two of them."""

    time: np.datetime64
    before: int
    """Position in ``Past.time``."""
    after: int
    """The same; that of ``before`` for a frame of the archive."""

    @property
    def is_bridged(self) -> bool:
        """Whether the archive has no frame at this time."""
        return self.before != self.after


@dataclass(frozen=True)
class Past:
    """The frames up to the reference time, since the last gap that is too long to be bridged."""

    field: xr.DataArray
    """(time, y, x) physical values, not loaded yet."""
    time: np.ndarray
    digests: list[str]
    quantity: str
    cadence_seconds: int
    zr: tuple[float, float] | None
    """a, b of Z = a R^b, where the source states them."""
    sequence: str
    """Label of the event, where a store holds events that may share times; "" in a live feed."""
    made: dict[tuple[int, int, np.datetime64], np.ndarray] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    """Bridged fields, for the next model."""

    def inputs(self, most: int, step_seconds: float | None = None) -> list[Input]:
        """Choose up to ``most`` frames at even steps that end at the reference time, oldest first.

        Args:
            most: Frames wanted.
            step_seconds: Time between them; None: the feed's.
        """
        step = np.timedelta64(round(1e9 * (step_seconds or self.cadence_seconds)), "ns")
        chosen = [Input(self.time[-1], self.time.size - 1, self.time.size - 1)]
        while len(chosen) < most and (found := self._at(chosen[-1].time - step, step)):
            chosen.append(found)
        return chosen[::-1]

    def _at(self, wanted: np.datetime64, step: np.timedelta64) -> Input | None:
        """Find the frame at a time or those around it; None where there are none."""
        after = int(np.searchsorted(self.time, wanted))
        near = min((max(after - 1, 0), after), key=lambda place: abs(self.time[place] - wanted))
        if abs(self.time[near] - wanted) <= ON_TIME * step:
            return Input(self.time[near], near, near)
        close = after and self.time[after] - self.time[after - 1] <= LONGEST_BRIDGE
        return Input(wanted, after - 1, after) if close else None

    def values(self, inputs: list[Input]) -> np.ndarray:
        """Read frames, and bridge those that are missing: (time, y, x) in the cube's unit."""
        kept = sorted({place for one in inputs for place in (one.before, one.after)})
        read = dict(zip(kept, self.field[kept[0] : kept[-1] + 1].values[np.subtract(kept, kept[0])], strict=True))
        return np.stack([self._bridged(one, read) if one.is_bridged else read[one.before] for one in inputs])

    def _bridged(self, one: Input, read: dict[int, np.ndarray]) -> np.ndarray:
        key = one.before, one.after, one.time
        if key not in self.made:
            start, end = self.time[[one.before, one.after]]
            share = float((one.time - start) / (end - start))
            self.made[key] = bridge(read[one.before], read[one.after], share, quantity=self.quantity)
        return self.made[key]

    def entries(self, inputs: list[Input]) -> list[Entry]:
        """Describe the input of a forecast for its label ``input_frames``; empty where frames have no digest."""
        if not self.digests:
            return []
        return [
            [stamp(one.time), BRIDGED, self._entry(one.before), self._entry(one.after)]
            if one.is_bridged
            else self._entry(one.before)
            for one in inputs
        ]

    def _entry(self, place: int) -> Entry:
        return [stamp(self.time[place]), self.digests[place]]


def past(cube: xr.Dataset, *, time: datetime | np.datetime64 | None = None, channel: str | None = None) -> Past:
    """Find the frames that end at ``time``, since the last gap that is too long to be bridged.

    Raises:
        ForecastError: If there is no frame at ``time``, or the channel is not there.
    """
    name = channel or channels(cube)[0]
    if name not in cube:
        raise ForecastError(f"the store has no {name}; it has {', '.join(channels(cube))}")
    stamps, events = cube["time"].values, event_labels(cube)
    end = stamps.size - 1 if time is None else _position(stamps, time)
    first = int(np.flatnonzero(events[: end + 1] == events[end])[0])
    cadence = _step(cube, slice(first, end + 1))
    limit = np.timedelta64(round((MOST_BRIDGED + 1 + ON_TIME) * cadence), "s")
    gaps = np.flatnonzero(np.diff(stamps[first : end + 1]) > limit)
    start = first + (gaps[-1] + 1 if gaps.size else 0)
    chosen = cube.isel(time=slice(start, end + 1))
    zr = (float(cube.attrs["zr_a"]), float(cube.attrs["zr_b"])) if "zr_a" in cube.attrs else None
    digests = [str(text) for text in chosen["digest"].values] if "digest" in chosen.coords else []
    return Past(chosen[name], chosen["time"].values, digests, name, cadence, zr, str(events[end]))


def _position(stamps: np.ndarray, time: datetime | np.datetime64) -> int:
    wanted = utc(time)
    found = np.flatnonzero(stamps == wanted)
    if found.size > 1:
        raise ForecastError(
            f"{found.size} events have a frame at {stamp(wanted)}; put one event into a store of its own"
        )
    if not found.size:
        raise ForecastError(f"there is no frame at {stamp(wanted)}; the newest is {stamp(stamps[-1])}")
    return int(found[0])


def _step(cube: xr.Dataset, past: slice) -> int:
    """Find the step at the last of some frames: what the store found, else from their times."""
    if "step" in cube.coords:
        return int(cube["step"].values[past][-1]) or _unknown_step()
    stamps = cube["time"].values[past]
    if "cadence_seconds" in cube.attrs:
        return newest_step(stamps, **stated_cadence(cube.attrs)) or _unknown_step()
    if stamps.size < 2:
        _unknown_step()
    return int(np.median(np.diff(stamps[-RECENT_STEPS:]) / np.timedelta64(1, "s")))


def _unknown_step() -> NoReturn:
    raise ForecastError(
        "the step is unknown: one frame, whose file states none; wait for the next, or set cadence_seconds"
    )
