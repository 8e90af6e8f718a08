"""What is compared with what, worked by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nowcast.config import Product
from nowcast.core.errors import ConfigError, ForecastError
from nowcast.forecasting import fallback as fallbacks
from nowcast.store import FrameStore, open_store
from nowcast.verification import run as verification
from nowcast.verification.tables import table
from tests import synthetic

PRODUCTS = [Product(name="persistence", model="persistence"), Product(name="extrapolation", model="extrapolation")]


def issue(tmp_path: Path, index: int, *, leads: int = 2, products: list[Product] = PRODUCTS, **options: object) -> None:
    fallbacks.issue(
        str(tmp_path / "frames"),
        str(tmp_path / "f"),
        products,
        leads=leads,
        fallback=(),
        time=synthetic.START + index * synthetic.STEP,
        **options,
    )


def score(tmp_path: Path, **options: object) -> tuple[int, xr.Dataset]:
    count = verification.verify(str(tmp_path / "frames"), str(tmp_path / "f"), str(tmp_path / "s"), **options)  # type: ignore[arg-type]
    return count, open_store(tmp_path / "s").load()


def test_sums_are_those_of_the_two_fields(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(6))
    issue(tmp_path, 4, products=PRODUCTS[:1])
    count, sums = score(tmp_path, thresholds=(1.0, 5.0))
    assert count == 1
    made, seen = synthetic.rain(4), synthetic.rain(5)
    both = np.isfinite(made) & np.isfinite(seen)
    first = sums.isel(run=0, lead_time=0)
    assert first["n"] == both.sum()
    assert first["hits"].values.tolist() == [((made >= limit) & (seen >= limit)).sum() for limit in (1, 5)]
    assert first["false_alarms"].values.tolist() == [((made >= limit) & (seen < limit)).sum() for limit in (1, 5)]
    assert first["squared_error"] == pytest.approx(((made - seen)[both] ** 2).sum(), rel=1e-2)
    assert (sums.isel(run=0, lead_time=1)["n"] == 0).all()


def test_a_lead_is_scored_when_its_time_is_observed_and_only_once(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(5))
    issue(tmp_path, 4)
    assert score(tmp_path)[0] == 0
    for index, expected in ((5, 2), (6, 2), (7, 0)):
        synthetic.make_store(tmp_path / "frames", [index])
        assert score(tmp_path)[0] == expected


def test_scores_pool_before_they_divide(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(12))
    for index in (4, 6, 8):
        issue(tmp_path, index)
    _, sums = score(tmp_path)
    rows = {row["model"]: row for row in table(sums)}
    of = sums.isel(run=sums["model"].values == "persistence").sum(("run", "lead_time")).sel(threshold=1.0)
    assert rows["persistence"]["CSI≥1"] == pytest.approx(
        float(of["hits"] / (of["hits"] + of["misses"] + of["false_alarms"]))
    )
    assert rows["persistence"]["frames"] == 6
    assert rows["extrapolation"]["CSI≥1"] > rows["persistence"]["CSI≥1"]
    assert len(table(sums, by_lead=True)) == 4


def test_withheld_runs_are_not_scored(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(6))
    issue(tmp_path, 4, products=[Product(name="gone", model="gone.safetensors"), *PRODUCTS[:1]])
    count, sums = score(tmp_path)
    assert (count, sums["model"].values.tolist()) == (1, ["persistence"])


def test_only_recent_runs_are_looked_at_on_demand(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(10))
    for index in (3, 6):
        issue(tmp_path, index, products=PRODUCTS[:1])
    count, sums = score(tmp_path, since=datetime(2010, 8, 26, 0, 20, tzinfo=UTC))
    assert (count, sums.sizes["run"]) == (2, 1)


def test_other_thresholds_need_another_store(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(6))
    issue(tmp_path, 3)
    score(tmp_path, thresholds=(2.0,))
    issue(tmp_path, 4)
    with pytest.raises(ConfigError, match=r"counts events at \[2\.0\], not \[1\.0, 3\.0\]"):
        score(tmp_path, thresholds=(1.0, 3.0))
    assert score(tmp_path)[1]["threshold"].values.tolist() == [2.0]


def test_a_corrected_observation_is_scored_again(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "frames", range(6))
    issue(tmp_path, 4, products=PRODUCTS[:1])
    before = score(tmp_path)[1].isel(run=0, lead_time=0)
    corrected = synthetic.cube([5])
    corrected["rainfall_rate"] += 1
    FrameStore(path).replace(corrected.assign_coords(digest=("time", ["other"])), at=5, message="corrected")
    count, sums = score(tmp_path)
    assert count == 1
    assert sums.isel(run=0, lead_time=0)["absolute_error"] > before["absolute_error"]
    assert score(tmp_path)[0] == 0


def test_events_that_share_their_times_are_not_mixed(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "frames", range(6), sequence="first", cadence=None)
    still = synthetic.cube([0] * 6, sequence="still", cadence=None)
    still = still.assign_coords(time=synthetic.START + np.arange(6) * synthetic.STEP)
    FrameStore(path).append(still, message="another event")
    fallbacks.issue(path, str(tmp_path / "f"), PRODUCTS[:1], leads=2, fallback=())
    assert open_store(tmp_path / "f")["sequence"].values.tolist() == ["still"]
    with pytest.raises(ForecastError, match="2 events have a frame at"):
        issue(tmp_path, 3)


def test_withheld_runs_alone_leave_nothing_to_score(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(6))
    issue(tmp_path, 4, products=[Product(name="gone", model="gone.safetensors")])
    assert verification.verify(str(tmp_path / "frames"), str(tmp_path / "f"), str(tmp_path / "s")) == 0


def test_no_echo_costs_nothing_whatever_its_floor(tmp_path: Path) -> None:
    frames = synthetic.cube(range(3))
    echo = np.where(frames["rainfall_rate"][:1].values > 0, np.float32(20), np.float32(-32)).repeat(3, axis=0)
    dbz = frames["rainfall_rate"].copy(data=echo).assign_attrs(units="dBZ")
    still = frames.drop_vars("rainfall_rate").assign(reflectivity=dbz)
    FrameStore(tmp_path / "frames").append(still, message="dBZ")
    issue(tmp_path, 1, leads=1, products=PRODUCTS[:1])
    assert open_store(tmp_path / "f")["reflectivity"].min() == -32
    assert score(tmp_path)[1]["squared_error"].sum() == 0


def test_the_perceptual_distance_is_scored_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOWCAST_LPIPS_WEIGHTS", "untrained")
    synthetic.make_store(tmp_path / "frames", range(6))
    issue(tmp_path, 4)
    _, sums = score(tmp_path, lpips=True)
    assert sums["lpips_frames"].sum() == 2
    rows = {row["model"]: row["LPIPS"] for row in table(sums)}
    assert 0 < rows["extrapolation"] < rows["persistence"]


def test_a_run_from_the_very_time_asked_for_is_looked_at(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(10))
    for index in (3, 4, 6):
        issue(tmp_path, index, products=PRODUCTS[:1])
    count, sums = score(tmp_path, since=datetime(2010, 8, 26, 0, 20, tzinfo=UTC))
    wanted = [synthetic.START + index * synthetic.STEP for index in (4, 6)]
    assert sums["forecast_reference_time"].values.tolist() == [time.item() for time in wanted]
    assert count == 4


def test_frames_of_trembling_times_are_scored(tmp_path: Path) -> None:
    times = [0, 290, 615, 895, 1200, 1530]
    for index, seconds in enumerate(times):
        frame = synthetic.cube([index])
        moved = synthetic.START + np.timedelta64(seconds, "s")
        FrameStore(tmp_path / "frames").append(
            frame.assign_coords(time=("time", np.array([moved], "datetime64[ns]"))), message="m"
        )
    at = synthetic.START + np.timedelta64(times[3], "s")
    fallbacks.issue(str(tmp_path / "frames"), str(tmp_path / "f"), PRODUCTS[:1], leads=3, fallback=(), time=at)
    assert score(tmp_path)[0] == 2
