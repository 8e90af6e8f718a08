"""The demo, whole, from the wheel and outside of the checkout: what it prints, draws, writes and publishes; twice is
once.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xarray as xr

from nowcast.operations import demo
from nowcast.store import Store
from nowcast.verification.tables import table
from tests import installed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]
COMMAND = "import nowcast; print(nowcast.__file__); from nowcast.cli import main; main()"


@pytest.fixture(scope="module")
def printed(site_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo says, and the folder it made."""
    folder = tmp_path_factory.mktemp("elsewhere")
    python = site_packages.parents[2] / "bin/python"
    return installed.run(python, "-c", COMMAND, "demo", "--no-serve", cwd=folder), folder / "demo"


@pytest.fixture(scope="module")
def again(printed: tuple[str, Path]) -> tuple[demo.Result, bool]:
    """The demo in the same folder once more, and whether that left the stores as they were."""
    folder = printed[1]
    before = {name: Store(folder / name).snapshot() for name in ("frames", "forecasts", "scores")}
    result = demo.run(folder, progress=lambda done, total, name: None)
    return result, {name: Store(folder / name).snapshot() for name in before} == before


def test_it_runs_from_the_wheel(printed: tuple[str, Path], site_packages: Path) -> None:
    text, folder = printed
    assert str(site_packages) in text
    assert "CSI≥1" in text
    assert (folder / "site/latest.json").exists()


def test_every_product_is_made_by_its_own_model_and_scored(again: tuple[demo.Result, bool]) -> None:
    result, _ = again
    assert result.lines == []
    rows = {row["model"]: row for row in table(result.scores)}
    assert set(rows) == {"extrapolation", "lagrangian", "persistence"}
    assert len({row["frames"] for row in rows.values()}) == 1
    for model in ("extrapolation", "lagrangian"):
        assert rows[model]["CSI≥1"] > rows["persistence"]["CSI≥1"]
        assert rows[model]["MSE"] < rows["persistence"]["MSE"]


def test_pictures_files_and_page_are_there(printed: tuple[str, Path]) -> None:
    folder = printed[1]
    pictures = {path.name for path in folder.rglob("*.png")} | {path.name for path in folder.rglob("*.gif")}
    assert {"loop.gif", "csi_1.png", "mse.png", "observed_030.png", "lagrangian_060.png"} <= pictures
    files = sorted((folder / "netcdf").rglob("*.nc"))
    assert len(files) == 6 * 3
    with xr.open_dataset(files[0], decode_timedelta=True) as run:
        assert run.sizes["lead_time"] == 12
    manifest = json.loads((folder / "site/latest.json").read_text())
    assert manifest["replay"]
    assert [len(run["models"]) for run in manifest["runs"]] == [3] * 6


def test_again_changes_nothing(again: tuple[demo.Result, bool]) -> None:
    assert again[1]
