"""A whole day of a feed in which everything goes wrong, cycle by cycle."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest

from nowcast.config import Operations
from nowcast.operations import cycle
from nowcast.store import ForecastStore, FrameStore
from tests.a_day import START, STEP, Day, a_day, land

NETWORK = "lagrangian-radar.safetensors"
MOST_FALLBACKS = 0.05
SETTLED = 100
"""Cycles after which nothing may grow any more."""


def chain(root: Path) -> Operations:
    (root / "feed").mkdir()
    return Operations.model_validate(
        {
            "title": "a day",
            "feed": {"reader": "knmi", "source": root / "feed"},
            "store": str(root / "frames"),
            "forecasts": str(root / "forecasts"),
            "scores": str(root / "scores"),
            "site": root / "site",
            "products": [{"name": "network", "model": NETWORK}],
            "leads": 3,
            "map_leads": (),
            "keep_runs": 4,
            "keep_observed": 6,
            "replay": True,
        }
    )


def run_day(settings: Operations, day: Day) -> tuple[list[cycle.Report], list[tuple[int, int]]]:
    """Run a cycle every five minutes; reports, and bytes of memory and open files after each."""
    reports, sizes, process = [], [], psutil.Process()
    now, end = START, day.nominal[-1] + timedelta(minutes=15)
    while now <= end:
        land(day, now, settings.feed.source)
        reports.append(cycle.cycle(settings, now=now))
        sizes.append((process.memory_info().rss, process.num_fds()))
        now += STEP
    return reports, sizes


def utc(times: set[datetime]) -> set[np.datetime64]:
    return {np.datetime64(time.replace(tzinfo=None), "ns") for time in times}


@pytest.mark.slow
def test_a_day_in_which_everything_goes_wrong(tmp_path: Path) -> None:
    settings, day = chain(tmp_path), a_day()
    reports, sizes = run_day(settings, day)

    frames = FrameStore(settings.store).times()
    assert len(set(frames)) == len(frames)
    assert set(frames) == utc(day.valid), "every valid frame once, and no other"

    runs = ForecastStore(settings.forecasts).read()
    states = Counter(runs["state"].values.tolist())
    assert states["fallback"] <= MOST_FALLBACKS * runs.sizes["run"], states
    answered = set(runs["forecast_reference_time"].values)
    assert utc(set(day.nominal[1:])) <= answered, "every nominal time has a forecast or a reason"

    named = Counter(name for report in reports for line in report.refused for name in day.refused if name in line)
    assert named == dict.fromkeys(day.refused, 1), "what is refused is named once"

    memory, files = zip(*sizes[SETTLED:], strict=True)
    assert max(memory[-SETTLED:]) < 1.2 * max(memory[:SETTLED])
    assert max(files[-SETTLED:]) <= max(files[:SETTLED])
