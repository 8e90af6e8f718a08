"""A day of a radar feed as it comes: real frames, stamped anew, with everything that goes wrong.

The files are those of KNMI that come with the package, cut to their rainy middle and played forwards and backwards, so
that the motion has no jumps.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np

from tests.paths import SAMPLE

START = datetime(2024, 3, 1, tzinfo=UTC)
STEP, LONG_STEP = timedelta(minutes=5), timedelta(minutes=10)
SIDE, FIRST_ROW, FIRST_COLUMN = 256, 250, 200
SOURCES = sorted(SAMPLE.glob("*.h5"))
STAMP = "%d-%b-%Y;%H:%M:%S.000"
NODATA = 65535


@dataclass
class Day:
    """What is delivered when."""

    nominal: list[datetime] = field(default_factory=list)
    """Times at which a frame is due."""
    valid: set[datetime] = field(default_factory=set)
    """Times of the frames that arrive whole, sooner or later."""
    deliveries: dict[datetime, list[tuple[str, datetime, str]]] = field(default_factory=dict)
    """Arrival -> (kind, time of the frame, name of the file)."""
    refused: set[str] = field(default_factory=set)
    """Names of the files that hold nothing to take."""
    late: set[datetime] = field(default_factory=set)
    missing: set[datetime] = field(default_factory=set)
    """Times whose frame never arrives whole."""


def a_day(*, long_frames: int = 24, frames: int = 288, seed: int = 0) -> Day:
    """Draw a day in which everything goes wrong.

    5 % of the frames are late, 3 % missing, 2 % doubled, 2 % corrupt; there are an outage of 40 minutes, a frame
    without data, one from the future, foreign files, and a step that changes from 5 to 10 minutes.

    Args:
        long_frames: How many of the frames, at the end, come every 10 minutes.
        frames: Of the day.
        seed: Of what goes wrong where.
    """
    random, day = np.random.default_rng(seed), Day()
    time = START
    for index in range(frames):
        day.nominal.append(time)
        time += STEP if index < frames - long_frames else LONG_STEP
    outage = frames // 2
    free = [index for index in range(12, frames) if not outage - 2 <= index < outage + 10]
    drawn = iter(random.permutation(free).tolist())

    def some(share: float) -> set[int]:
        return {next(drawn) for _ in range(round(share * frames))}

    late, missing, doubled, corrupt = some(0.05), some(0.03), some(0.02), some(0.02)
    empty, future = {next(drawn)}, {next(drawn)}
    missing |= set(range(outage, outage + 8))
    for index, time in enumerate(day.nominal):
        if index in missing:
            day.missing.add(time)
            continue
        arrival = time + timedelta(minutes=5 * int(random.integers(1, 3))) if index in late else time
        kind = "corrupt" if index in corrupt else "empty" if index in empty else "frame"
        _deliver(day, arrival, kind, time, f"RAD_NL25_RAP_5min_{time:%Y%m%d%H%M}.h5")
        if index in late:
            day.late.add(time)
        if index in doubled:
            _deliver(day, arrival + STEP, "frame", time, f"RAD_NL25_RAP_5min_{time:%Y%m%d%H%M}_copy.h5")
        if index in future:
            ahead = time + timedelta(minutes=8)
            _deliver(day, arrival, "frame", ahead, f"RAD_NL25_RAP_5min_{ahead:%Y%m%d%H%M}.h5")
        if index % 96 == 5:
            _deliver(day, arrival, "foreign", time, f"notes_{index}.h5")
    return day


def _deliver(day: Day, arrival: datetime, kind: str, time: datetime, name: str) -> None:
    day.deliveries.setdefault(arrival, []).append((kind, time, name))
    if kind == "frame":
        day.valid.add(time)
        return
    day.refused.add(name)
    if kind != "foreign":
        day.missing.add(time)


def land(day: Day, now: datetime, folder: Path) -> None:
    """Write the files that arrive at ``now``."""
    for kind, time, name in day.deliveries.get(now, ()):
        target = folder / name
        if kind == "foreign":
            target.write_bytes(b"\x89HDF\r\n\x1a\n and nothing more")
            continue
        whole = folder / f".{name}"
        _stamped(whole, time, blank=kind == "empty")
        if kind == "corrupt":
            whole.write_bytes(whole.read_bytes()[:3000])
        whole.rename(target)


def _stamped(path: Path, time: datetime, *, blank: bool) -> None:
    """Write the frame of a time, a part of one of the samples."""
    count = len(SOURCES)
    place = int((time - START) / STEP) % (2 * count - 2)
    shutil.copy(SOURCES[min(place, 2 * count - 2 - place)], path)
    with h5py.File(path, "r+") as file:
        for edge, moment in (("start", time - STEP), ("end", time)):
            file["overview"].attrs[f"product_datetime_{edge}"] = np.bytes_(moment.strftime(STAMP).upper())
        place = file["geographic"].attrs
        place["geo_number_rows"], place["geo_number_columns"] = np.int32([SIDE]), np.int32([SIDE])
        place["geo_row_offset"] = place["geo_row_offset"] + np.float32(FIRST_ROW)
        place["geo_column_offset"] = place["geo_column_offset"] + np.float32(FIRST_COLUMN)
        del place["geo_product_corners"]
        pixels = file["image1/image_data"][FIRST_ROW : FIRST_ROW + SIDE, FIRST_COLUMN : FIRST_COLUMN + SIDE]
        del file["image1/image_data"]
        file["image1/image_data"] = np.full_like(pixels, NODATA) if blank else pixels
