"""What version 0.1 made still opens: stores, checkpoints, the registry, NetCDF files, the page's data.

``compatibility_v0.1.tar.xz`` was made by that version: two cycles over six of the sample's files, with forecasts of two
lead times by persistence and extrapolation, their scores, and one registered network.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nowcast.operations import cycle
from nowcast.registry import checkpoint
from nowcast.registry.registry import Registry
from nowcast.store import open_store
from nowcast.verification.tables import table
from tests.paths import ROOT, SAMPLE

FILES = sorted(SAMPLE.glob("*.h5"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as version 0.1 left it."""
    folder = tmp_path_factory.mktemp("made")
    with tarfile.open(ROOT / "tests" / "compatibility_v0.1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def chain(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to go on with, and the feed with one more frame."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "feed").mkdir()
    for file in FILES[:7]:
        shutil.copy(file, tmp_path / "feed")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stores_open(made: Path) -> None:
    frames, forecasts, scores = (open_store(made / name) for name in ("frames", "forecasts", "scores"))
    assert frames["rainfall_rate"].shape == (6, 765, 700)
    assert forecasts["rainfall_rate"].shape == (4, 2, 765, 700)
    assert np.isfinite(frames["rainfall_rate"].isel(time=-1)).sum() > 100_000
    assert sorted(set(forecasts["model"].values.tolist())) == ["extrapolation", "persistence"]
    rows = {row["model"]: row for row in table(scores.load())}
    assert rows["extrapolation"]["MSE"] < rows["persistence"]["MSE"]


def test_checkpoints_open_and_forecast(made: Path) -> None:
    model = checkpoint.load(made / "runs" / "tiny" / "best.safetensors")
    future = checkpoint.predict(model, np.ones((2, 32, 32), np.float32), quantity="rainfall_rate", leads=2)
    assert np.isfinite(future).all()


def test_the_registry_knows_its_champion(made: Path) -> None:
    registry = Registry(made / "models")
    assert registry.standing.names[registry.champion] == "tiny"
    assert registry.file(registry.champion).is_file()


def test_files_open(made: Path) -> None:
    (path, *_) = sorted((made / "netcdf").rglob("*.nc"))
    with xr.open_dataset(path, decode_timedelta=True) as run:
        assert run["rainfall_rate"].sizes["lead_time"] == 2
    assert json.loads((made / "site" / "latest.json").read_text())["runs"]


def test_a_cycle_goes_on_where_version_0_1_stopped(chain: Path) -> None:
    report = cycle.cycle(cycle.load("operations.yaml"))
    assert report.taken == 1
    assert open_store("frames").sizes["time"] == 7
    runs = open_store("forecasts")
    assert runs["version"].values.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # 04:25, which had no forecast, has one now
    manifest = json.loads((chain / "site" / "latest.json").read_text())
    assert {run["reference_time"][:16] for run in manifest["runs"]} >= {"2010-08-26T04:35", "2010-08-26T04:30"}
