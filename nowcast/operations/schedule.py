"""Which forecasts are due: every nominal time of the feed is answered, by a forecast or by a reason why there is none.

The newest frame comes first. Then: frames that came late, times whose frame is missing, and forecasts whose input was
corrected since. A frame that is ahead of the clock has to wait for it, and one off the feed's step is no reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import xarray as xr

from nowcast.config import Operations
from nowcast.core import provenance
from nowcast.core.cadence import ON_TIME
from nowcast.core.cube import to_datetime, utc
from nowcast.core.provenance import stamp
from nowcast.store import ForecastStore

PHASE_FRAMES = 24
"""Newest frames that tell at which minutes the feed has its frames."""
PHASE_SHARE = 0.75
"""A feed with a smaller share of frames that are on time has no nominal times."""
EARLY = 0.5
"""Share of the step by which a frame may be ahead of the clock."""
LOOK_BACK = timedelta(hours=2)
"""A frame that comes later than this makes no forecast by itself."""
STATED_BACK = timedelta(hours=24)
"""Times of an outage of the chain up to this age are answered with the reason."""
REVISED_STEPS = 2
"""Forecasts from frames up to so many steps before the newest are made again when an input was corrected."""
NOT_RUN = "the chain did not run in time; `nowcast run backfill` makes it"


@dataclass(frozen=True)
class Due:
    """What is to be done for one reference time."""

    time: datetime
    products: tuple[str, ...]
    again: dict[str, str] = field(default_factory=dict)
    """Product -> why its forecast is made again."""
    reason: str = ""
    """Why there is no forecast, where nothing but this is to be stated."""


@dataclass(frozen=True)
class _Answer:
    """The newest row of a product for a reference time."""

    producer: str
    input_frames: str

    @property
    def is_without_frame(self) -> bool:
        """Whether it only states why there is no forecast."""
        return not self.producer and self.input_frames in ("", "[]")


def visible(cube: xr.Dataset, settings: Operations, now: datetime | None) -> xr.Dataset:
    """Leave out the frames that are ahead of the clock; they count once it has reached them."""
    if now is None and settings.replay:
        return cube
    step = float(cube.attrs.get("cadence_seconds", 0))
    limit = utc((now or datetime.now(UTC)) + timedelta(seconds=EARLY * step))
    return cube.isel(time=cube["time"].values <= limit)


def due(settings: Operations, cube: xr.Dataset, forecasts: ForecastStore) -> list[Due]:
    """List what is due, the newest reference time first.

    Args:
        settings: The chain.
        cube: Its frames, see ``visible``.
        forecasts: Its forecasts.
    """
    times, step = _seconds(cube["time"].values), int(cube.attrs.get("cadence_seconds", 0))
    if not times.size:
        return []
    nominal = {to_datetime(time): there for time, there in nominal_times(times, step, back=STATED_BACK)}
    nominal = {time: there for time, there in nominal.items() if is_due(time, settings.issue_every_minutes)}
    answers = _answers(forecasts, len(settings.products) * _per_day(step))
    names = [product.name for product in settings.products]
    wanted = [_wanted(nominal, answers.get(name, {})) for name in names]
    again = _again(names, cube, answers, step)
    moments = sorted({*again, *(time for one in wanted for time in one)}, reverse=True)
    return [_due(time, names, wanted, again.get(time, {})) for time in moments]


def all_due(settings: Operations, forecasts: ForecastStore, times: Sequence[datetime]) -> list[Due]:
    """List what is to be made from all these frames, of whatever age: what is not there, or was only given a reason."""
    answers = _answers(forecasts, None)
    names = tuple(product.name for product in settings.products)
    dues = []
    for time in times:
        there = {name: answers[name][time] for name in names if time in answers.get(name, {})}
        again = {name: "made later" for name, answer in there.items() if answer.is_without_frame}
        dues.append(Due(time, tuple(name for name in names if name not in there or name in again), again))
    return dues


def nominal_times(times: np.ndarray, step: int, *, back: timedelta) -> list[tuple[np.datetime64, bool]]:
    """List the times at which the feed has frames, and whether it has; ascending, up to the newest.

    Args:
        times: Of all frames, datetime64[s], ascending.
        step: Seconds between them; 0: not known.
        back: How far to go back from the newest.

    Returns:
        Where frames lie within a quarter of the step of even times, these, with the exact time of a frame that is
        there; else the times of the frames themselves.
    """
    recent = times[times > times[-1] - np.timedelta64(back)]
    phase = _phase(times[-PHASE_FRAMES:], step)
    if phase is None:
        return [(time, True) for time in recent]
    places = (recent - phase) / np.timedelta64(step, "s")
    on_time = np.abs(places - np.round(places)) <= ON_TIME
    frames = dict(zip(np.round(places[on_time]).astype(int).tolist(), recent[on_time], strict=True))
    if not frames:
        return []
    even = ((place, phase + place * np.timedelta64(step, "s")) for place in range(min(frames), max(frames) + 1))
    return [(frames.get(place, time), place in frames) for place, time in even]


def is_due(time: datetime, every: int | None) -> bool:
    """Tell whether a time is due: every one is, or those at round multiples of some minutes."""
    return every is None or (time.hour * 60 + time.minute) % every == 0


def _phase(times: np.ndarray, step: int) -> np.datetime64 | None:
    """Find the time, modulo the step, around which most frames lie; None if they have none in common."""
    if not step:
        return None
    rest = (times - times[0]).astype(int) % step
    apart = np.abs(rest[:, None] - rest[None])
    near = np.minimum(apart, step - apart) <= ON_TIME * step
    counts = near.sum(axis=1)
    best = int(counts.argmax())
    return times[best] if counts[best] >= PHASE_SHARE * times.size else None


def _wanted(nominal: dict[datetime, bool], answers: dict[datetime, _Answer]) -> dict[datetime, str]:
    """Map the times at which a product is to be made to ``""``, and those to be stated to the reason."""
    there = [time for time, has_frame in nominal.items() if has_frame]
    if not there:
        return {}
    newest = there[-1]
    if not answers:
        return {newest: ""}
    first, last = min(answers), max(answers)
    wanted: dict[datetime, str] = {}
    for time, has_frame in nominal.items():
        if time < first or (time in answers and not (has_frame and answers[time].is_without_frame)):
            continue
        if has_frame and time > newest - LOOK_BACK:
            wanted[time] = ""
        elif time not in answers and has_frame:
            wanted[time] = NOT_RUN
        elif time not in answers and time > last:
            before = max((other for other in there if other < time), default=last)
            wanted[time] = f"no frame of {time:%H:%M} has come; the forecast of {before:%H:%M} stands"
    return wanted


def _again(
    names: Sequence[str], cube: xr.Dataset, answers: dict[str, dict[datetime, _Answer]], step: int
) -> dict[datetime, dict[str, str]]:
    """Map recent reference times to the products that are made again, and why."""
    if "digest" not in cube.coords or not step:
        return {}
    newest = to_datetime(_seconds(cube["time"].values)[-1])
    there = _digests(cube, newest - LOOK_BACK - STATED_BACK)
    again: dict[datetime, dict[str, str]] = {}
    for name in names:
        for time, answer in answers.get(name, {}).items():
            if answer.is_without_frame and stamp(utc(time)) in there and time > newest - LOOK_BACK:
                again.setdefault(time, {})[name] = f"the frame of {time:%H:%M} came late"
            elif newest - REVISED_STEPS * timedelta(seconds=step) <= time <= newest:
                changed = provenance.changed(answer.input_frames, there)
                if changed:
                    again.setdefault(time, {})[name] = f"corrected or late: {', '.join(changed)}"
    return again


def _digests(cube: xr.Dataset, since: datetime) -> dict[str, str]:
    recent = np.flatnonzero(cube["time"].values > utc(since))
    return provenance.digests(cube["time"].values[recent], cube["digest"].values[recent])


def _due(
    time: datetime,
    names: Sequence[str],
    wanted: Sequence[dict[datetime, str]],
    again: dict[str, str],
) -> Due:
    """Bring together what is due at one time: forecasts, or else the reason why there are none."""
    asked = {name: one[time] for name, one in zip(names, wanted, strict=True) if time in one}
    if make := tuple(name for name in names if name in again or asked.get(name) == ""):
        return Due(time, make, again)
    return Due(time, tuple(asked), reason=next(iter(asked.values())))


def _answers(forecasts: ForecastStore, rows: int | None) -> dict[str, dict[datetime, _Answer]]:
    """Read the newest rows of the forecast store, or all: product -> reference time -> what is there."""
    answers: dict[str, dict[datetime, _Answer]] = {}
    if not forecasts.exists():
        return answers
    names = ("model", "forecast_reference_time", "producer", "input_frames")
    labels = forecasts.labels(*names, last=rows)
    for model, seconds, producer, inputs in zip(*(labels[name].tolist() for name in names), strict=True):
        answers.setdefault(model, {})[datetime.fromtimestamp(seconds, UTC)] = _Answer(producer, inputs)
    return answers


def _per_day(step: int) -> int:
    """Count the rows of a product that surely reach back as far as any answer is looked for."""
    return 2 * int(STATED_BACK.total_seconds() // step if step else 288) + 100


def _seconds(times: np.ndarray) -> np.ndarray:
    return times.astype("datetime64[s]")
