"""The step of a stored feed: found from its times, whatever its files say, and another one after a change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nowcast.config import Span, WindowSettings
from nowcast.core import cube
from nowcast.core.errors import ForecastError
from nowcast.data import sources
from nowcast.forecasting import run as forecasting
from nowcast.store import FrameStore, open_store
from tests.synthetic import GRID, START

MINUTE = np.timedelta64(60, "s")


def stored(path: Path, minutes: list[float], *, hint: int) -> Path:
    """Make a store of frames at some minutes, in one commit."""
    stamps = START + (60 * np.asarray(minutes)).astype("timedelta64[s]")
    fields = np.ones((len(minutes), *GRID.shape), np.float32)
    FrameStore(path).append(cube.make({"rainfall_rate": fields}, stamps, GRID, cadence=hint), message="m")
    return path


def runs(data: xr.Dataset) -> list[int]:
    """Count the frames of every run."""
    _, counts = np.unique(data["sequence"].values.astype(str), return_counts=True)
    return counts.tolist()


def changed(before: int, after: int) -> list[float]:
    return [*range(0, 10 * before, before), *range(9 * before + after, 9 * before + 11 * after, after)]


@pytest.mark.parametrize("hint", [0, 300, 599, 3600])
def test_a_wrong_hint_breaks_no_run(tmp_path: Path, hint: int) -> None:
    data = open_store(stored(tmp_path / "s", list(range(0, 120, 15)), hint=hint))
    assert data.attrs["cadence_seconds"] == 900
    assert runs(data) == [8]
    past = forecasting.past(data)
    assert (past.cadence_seconds, past.time.size) == (900, 8)
    facts = FrameStore(tmp_path / "s").describe()
    assert facts["cadence"] == "900 s"
    assert facts["gaps"] == []
    assert ("step" in facts) == (hint > 0)


@pytest.mark.parametrize(("before", "after"), [(15, 5), (10, 5), (5, 10)])
def test_a_change_of_step_begins_another_run(tmp_path: Path, before: int, after: int) -> None:
    data = open_store(stored(tmp_path / "s", changed(before, after), hint=60 * before))
    assert data.attrs["cadence_seconds"] == 60 * after
    assert runs(data) == [10, 10]
    early, late = forecasting.past(data, time=data["time"].values[9]), forecasting.past(data)
    assert (early.cadence_seconds, early.time.size) == (60 * before, 10)
    assert late.cadence_seconds == 60 * after
    assert "the step changed" in FrameStore(tmp_path / "s").contradictions()[0]


def test_windows_have_the_step_that_most_frames_have(tmp_path: Path) -> None:
    path = stored(tmp_path / "s", [*changed(15, 5), *range(190, 220, 5)], hint=900)
    found = sources.source(Span(store=str(path)), WindowSettings(quantity="rainfall_rate", in_steps=2, out_steps=2))
    assert found.step_seconds == 300
    positions = np.concatenate([found.positions(window) for window in range(found.weights.size)])
    assert positions.min() >= 10


def test_one_frame_without_a_hint_has_no_step(tmp_path: Path) -> None:
    data = open_store(stored(tmp_path / "s", [0], hint=0))
    assert data.attrs["cadence_seconds"] == 0
    with pytest.raises(ForecastError, match="the step is unknown"):
        forecasting.past(data)
    stored(tmp_path / "s", [15], hint=0)
    assert open_store(tmp_path / "s").attrs["cadence_seconds"] == 900


def test_the_operator_may_state_it(tmp_path: Path) -> None:
    store = FrameStore(stored(tmp_path / "s", list(range(0, 120, 15)), hint=300))
    store.state_cadence(600)
    assert open_store(store).attrs["cadence_seconds"] == 600
    assert "cadence_seconds is set to 600 s" in store.contradictions()[0]
    store.state_cadence(0)
    assert open_store(store).attrs["cadence_seconds"] == 900
