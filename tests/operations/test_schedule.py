"""Every nominal time has a forecast or a stated reason, whatever the order in which frames come."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta

import h5py
import numpy as np
import pytest

from nowcast.config import Operations
from nowcast.operations import cycle, schedule
from nowcast.store import ForecastStore, open_store
from nowcast.store.repository import Store
from tests.operations import test_cycle
from tests.operations.test_cycle import FRAMES, land, manifest

chain = test_cycle.chain
FIRST = datetime(2010, 8, 26, 4, 5, tzinfo=UTC)


def at(index: float) -> datetime:
    return FIRST + index * timedelta(minutes=5)


def text(index: int) -> str:
    return f"{at(index):%H:%M}"


def rows(chain: Operations) -> dict[str, tuple[str, str, int]]:
    runs = ForecastStore(chain.forecasts).read()
    times = [str(time)[11:16] for time in runs["forecast_reference_time"].values]
    facts = zip(runs["state"].values, runs["reason"].values, runs["version"].values.tolist(), strict=True)
    return dict(zip(times, facts, strict=True))


def corrected(chain: Operations, index: int) -> None:
    """The feed replaces a frame by one with other rain."""
    path = chain.feed.source / FRAMES[index].name
    with h5py.File(path, "r+") as file:
        file["image1/image_data"][300:340, 300:340] = 90
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


@pytest.mark.parametrize(
    ("minutes", "step", "expected"),
    [
        ([0, 5, 10, 15], 300, [(0, True), (5, True), (10, True), (15, True)]),
        ([0, 5, 15, 20], 300, [(0, True), (5, True), (10, False), (15, True), (20, True)]),
        ([0, 5, 10, 15, 18], 300, [(0, True), (5, True), (10, True), (15, True)]),
        ([0, 5.5, 10, 14.2, 20], 300, [(0, True), (5.5, True), (10, True), (14.2, True), (20, True)]),
        ([0, 2, 4, 6, 8], 300, [(0, True), (2, True), (4, True), (6, True), (8, True)]),
        ([0, 4, 9], 0, [(0, True), (4, True), (9, True)]),
    ],
)
def test_the_nominal_times_of_a_feed(minutes: list[float], step: int, expected: list[tuple[float, bool]]) -> None:
    start = np.datetime64("2010-08-26T00:00", "s")
    times = np.array([start + np.timedelta64(round(60 * minute), "s") for minute in minutes])
    found = schedule.nominal_times(times, step, back=timedelta(hours=24))
    assert [((time - start) / np.timedelta64(60, "s"), there) for time, there in found] == expected


def test_a_missing_frame_is_stated_and_made_up_for_when_it_comes_late(chain: Operations) -> None:
    land(chain, 0, 1)
    cycle.cycle(chain)
    land(chain, 3)
    cycle.cycle(chain)
    reason = f"no frame of {text(2)} has come; the forecast of {text(1)} stands"
    assert rows(chain) == {text(1): ("ok", "", 1), text(3): ("ok", "", 1), text(2): ("withheld", reason, 1)}
    land(chain, 2)
    report = cycle.cycle(chain)
    assert report.issued == [f"persistence 2010-08-26T{text(2)}Z ok (revised: the frame of {text(2)} came late)"]
    assert rows(chain)[text(2)] == ("ok", "", 2)
    assert [run["models"][0]["state"] for run in manifest(chain)["runs"]] == ["ok"] * 3
    assert cycle.cycle(chain).idle


def test_frames_that_come_together_are_all_answered_the_newest_first(chain: Operations) -> None:
    land(chain, 0)
    cycle.cycle(chain)
    land(chain, 1, 2, 3)
    report = cycle.cycle(chain)
    assert [line.split()[1][11:16] for line in report.issued] == [text(3), text(2), text(1)]


def test_what_an_outage_of_the_chain_left_out_is_stated_and_backfilled(
    chain: Operations,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "LOOK_BACK", timedelta(minutes=10))
    land(chain, 0)
    cycle.cycle(chain)
    land(chain, 1, 2, 3, 4)
    cycle.cycle(chain)
    states = {time: state for time, (state, _, _) in sorted(rows(chain).items())}
    assert states == dict(zip(map(text, range(5)), ["ok", "withheld", "withheld", "ok", "ok"], strict=True))
    assert "nowcast run backfill" in rows(chain)[text(1)][1]
    cycle.backfill(chain, start=at(0), end=at(5))
    assert {state for state, _, _ in rows(chain).values()} == {"ok"}


def test_a_frame_ahead_of_the_clock_waits_and_blocks_nothing(chain: Operations) -> None:
    live = chain.model_copy(update={"replay": False})
    land(live, 0)
    cycle.cycle(live, now=at(0.2))
    ahead = live.feed.source / FRAMES[2].name.replace(FRAMES[2].stem[-4:], f"{at(2.6):%H%M}")
    shutil.copy(FRAMES[2], ahead)  # the KNMI reader takes the time from the name
    made = cycle.cycle(live, now=at(1))
    assert made.issued == []
    assert manifest(live)["observed"][-1]["time"][11:16] == text(0)
    for index in (1, 2, 3):
        land(live, index)
        report = cycle.cycle(live, now=at(index + 0.2))
        assert [line.split()[1][11:16] for line in report.issued] == [text(index)]
        assert manifest(live)["observed"][-1]["time"][11:16] >= text(index)


@pytest.mark.parametrize(
    ("index", "remade"),
    [pytest.param(4, [4], marks=pytest.mark.slow), pytest.param(3, [3], marks=pytest.mark.slow), (2, [2]), (1, [])],
)
def test_a_forecast_of_a_corrected_frame_is_made_again_if_it_is_recent(
    chain: Operations,
    index: int,
    remade: list[int],
) -> None:
    for frame in range(5):
        land(chain, frame)
        cycle.cycle(chain)
    before = Store(chain.scores).read().load()
    corrected(chain, index)
    report = cycle.cycle(chain)
    assert [line.split()[1][11:16] for line in report.issued] == [text(each) for each in remade]
    assert [version for _, _, version in sorted(rows(chain).values())].count(2) == len(remade)
    every = open_store(chain.forecasts)
    assert every.sizes["run"] == 5 + len(remade), "the one before stays"
    entry = {run["reference_time"][11:16]: run["models"][0] for run in manifest(chain)["runs"]}[text(index)]
    stamps = [f"2010-08-26T{text(index)}Z"]
    if not remade:
        assert (entry["revised"], entry["corrected"]) == ("", stamps)
        return
    assert (entry["revised"], entry["corrected"]) == (f"corrected or late: {stamps[0]}", [])
    (path,) = chain.netcdf.rglob(f"*_{at(index):%Y%m%dT%H%MZ}.nc")  # type: ignore[union-attr]
    with h5py.File(path) as file:
        assert b"corrected" in file.attrs["revised"]
    after = Store(chain.scores).read().load()
    row = (after["forecast_reference_time"] == np.datetime64(at(index).replace(tzinfo=None))).values
    if index < 4:
        assert after["version"].values[row].tolist() == [2]
        assert (after["squared_error"].values[row] != before["squared_error"].values[row]).any()
    assert cycle.cycle(chain).idle
