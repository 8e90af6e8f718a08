"""The demo, whole: what it prints, draws, writes and publishes; twice is once."""

from __future__ import annotations

import json

import pytest
import xarray as xr

from nowcast import demo, store
from nowcast.scores.summary import table


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> demo.Result:
    return demo.run(tmp_path_factory.mktemp("demo"), progress=lambda done, total, name: None)


@pytest.mark.slow
def test_every_product_is_made_by_its_own_model_and_scored(result: demo.Result) -> None:
    assert result.lines == []
    rows = {row["model"]: row for row in table(result.scores)}
    assert set(rows) == {"extrapolation", "lagrangian", "persistence"}
    assert len({row["frames"] for row in rows.values()}) == 1
    for model in ("extrapolation", "lagrangian"):
        assert rows[model]["CSI≥1"] > rows["persistence"]["CSI≥1"]
        assert rows[model]["MSE"] < rows["persistence"]["MSE"]


@pytest.mark.slow
def test_pictures_files_and_page_are_there(result: demo.Result) -> None:
    pictures = {path.name for path in result.pictures.iterdir()}
    assert {"loop.gif", "csi_1.png", "mse.png", "observed_030.png", "lagrangian_060.png"} <= pictures
    files = sorted(result.netcdf.rglob("*.nc"))
    assert len(files) == 6 * 3
    with xr.open_dataset(files[0], decode_timedelta=True) as run:
        assert run.sizes["lead_time"] == 12
    manifest = json.loads((result.site / "latest.json").read_text())
    assert manifest["replay"]
    assert [len(run["models"]) for run in manifest["runs"]] == [3] * 6


@pytest.mark.slow
def test_again_changes_nothing(result: demo.Result) -> None:
    folder = result.site.parent
    before = {name: store.snapshot(folder / name) for name in ("frames", "forecasts", "scores")}
    demo.run(folder, progress=lambda done, total, name: None)
    assert {name: store.snapshot(folder / name) for name in before} == before
