"""What is compared with what, worked by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nowcast import forecast, store, verify
from nowcast.config import Product
from nowcast.scores.summary import table
from tests import synthetic

PRODUCTS = [Product(name="persistence", model="persistence"), Product(name="extrapolation", model="extrapolation")]


def issue(tmp_path: Path, index: int, *, leads: int = 2, products: list[Product] = PRODUCTS, **options: object) -> None:
    forecast.issue(str(tmp_path / "frames"), str(tmp_path / "f"), products, leads=leads, fallback=(),
                   time=synthetic.START + index * synthetic.STEP, **options)  # fmt: skip


def score(tmp_path: Path, **options: object) -> tuple[int, xr.Dataset]:
    count = verify.verify(str(tmp_path / "frames"), str(tmp_path / "f"), str(tmp_path / "s"), **options)  # type: ignore[arg-type]
    return count, store.open_store(tmp_path / "s").load()


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


def test_a_store_keeps_the_thresholds_it_was_made_with(tmp_path: Path) -> None:
    synthetic.make_store(tmp_path / "frames", range(6))
    issue(tmp_path, 3)
    score(tmp_path, thresholds=(2.0,))
    issue(tmp_path, 4)
    assert score(tmp_path, thresholds=(1.0, 3.0))[1]["threshold"].values.tolist() == [2.0]


def test_the_perceptual_distance_is_scored_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOWCAST_LPIPS_WEIGHTS", "untrained")
    synthetic.make_store(tmp_path / "frames", range(6))
    issue(tmp_path, 4)
    _, sums = score(tmp_path, lpips=True)
    assert sums["lpips_frames"].sum() == 2
    rows = {row["model"]: row["LPIPS"] for row in table(sums)}
    assert 0 < rows["extrapolation"] < rows["persistence"]
