"""What publish writes, read back; and what is left when it dies in between."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.plotting import levels
from nowcast.plotting.levels import Picture, geography
from nowcast.web.publish import publish, publish_maps
from tests.synthetic import GRID, START, STEP, cube, rain

LEADS = 3
RATE = Picture.of("rainfall_rate", GRID)


def forecasts(*rows: tuple[int, str, str]) -> xr.Dataset:
    """Rows of (frame of the run, model, state); the cell moves on as in the observations."""
    frames, models, states = zip(*rows, strict=True) if rows else ((), (), ())
    fields = np.full((len(rows), LEADS, *GRID.shape), np.nan, np.float32)
    for row, frame in enumerate(frames):
        if states[row] != "withheld":
            fields[row] = [rain(frame + lead) for lead in range(1, LEADS + 1)]
    reference = (START + np.asarray(frames, int) * STEP).astype("datetime64[ns]")
    labels = {
        "model": models,
        "producer": ["" if state == "withheld" else model for model, state in zip(models, states, strict=True)],
        "state": states,
        "reason": ["" if state == "ok" else "too few frames" for state in states],
    }
    coords = {key: ("run", np.asarray(values, object)) for key, values in labels.items()}
    coords |= {"forecast_reference_time": ("run", reference), "created": ("run", reference + STEP)}
    coords |= {"lead_time": (STEP * np.arange(1, LEADS + 1)).astype("timedelta64[ns]")}
    units = {"units": "mm h-1"}
    return xr.Dataset({"rainfall_rate": (("run", "lead_time", "y", "x"), fields, units)}, coords | GRID.coordinates())


def manifest(site: Path) -> dict:
    return json.loads((site / "latest.json").read_text())


def named(site: Path) -> list[Path]:
    """Every file that the manifest names."""
    now = manifest(site)
    entries = [entry for run in now["runs"] for entry in run["models"] if entry["folder"]]
    names = [now["base"], *(frame["file"] for frame in now["observed"])]
    names += [f"{entry['folder']}/{file}" for entry in entries for file in entry["files"]]
    names += [entry["file"] for entry in (now["maps"] or {"files": []})["files"]]
    return [site / name for name in names] + ([site / now["scores"]] if now["scores"] else [])


# --- pictures -------------------------------------------------------------------------------------


def test_levels_by_hand() -> None:
    field = np.array([[np.nan, 0.0, 0.079], [0.08, 320.0, 1000.0]], np.float32)
    assert RATE.levels(field).tolist() == [[0, 1, 1], [2, 255, 255]]
    assert RATE.table[0] == pytest.approx(0.08) and RATE.table[-1] == pytest.approx(320)


@given(st.floats(0.125, 256, width=32))
def test_a_rate_is_read_back_within_two_percent(rate: float) -> None:
    level = RATE.levels(np.full((1, 1), rate, np.float32)).item()
    assert RATE.table[level - 2] == pytest.approx(rate, rel=0.02)


def test_reflectivity_has_even_steps() -> None:
    picture = Picture.of("reflectivity", GRID)
    assert np.ptp(np.diff(picture.table)) == pytest.approx(0, abs=1e-9)
    assert picture.levels(np.array([[-32.0, 5.0]], np.float32)).tolist() == [[1, 2]]


def test_south_up_grids_are_turned_north_up() -> None:
    turned = Picture.of("rainfall_rate", Grid(GRID.crs, GRID.y[::-1], GRID.x))
    field = np.array([[0.0], [np.nan]], np.float32)
    assert turned.levels(field).ravel().tolist() == [0, 1]


def test_large_grids_keep_the_largest_value_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "LONGEST_SIDE", 32)
    picture = Picture.of("rainfall_rate", GRID)
    field = np.full((3, 4), np.nan, np.float32)
    field[0, 1], field[2, 3] = 0.08, 0
    assert picture.reduction == 2 and picture.levels(field).tolist() == [[2, 0], [0, 1]]


def test_geography_is_in_pixels() -> None:
    under = geography(GRID, RATE)
    assert (under["width"], under["height"], under["aspect"]) == (64, 48, 1)
    lon, lat = GRID.lonlat(0, 400_000)
    assert [under["lattice"][key][0] for key in ("lon", "lat")] == pytest.approx([lon, lat], abs=1e-4)
    points = np.reshape(np.concatenate(under["lines"]["graticule"]), (-1, 2))
    assert (points >= -1).all() and (points[:, 0] <= 65).all() and (points[:, 1] <= 49).all()


def test_degrees_of_longitude_are_narrower_in_the_north() -> None:
    grid = Grid.regular("EPSG:4326", (20, 20), upper_left=(5, 60.1), pixel=(0.01, 0.01))
    assert geography(grid, Picture.of("rainfall_rate", grid))["aspect"] == pytest.approx(2, abs=0.01)


# --- the site -------------------------------------------------------------------------------------


def test_publishes_what_it_names(tmp_path: Path) -> None:
    runs = forecasts((3, "net", "ok"), (5, "net", "withheld"), (5, "flow", "ok"))
    runs = runs.assign_coords(checkpoint=("run", np.asarray(["3f9a2c1db4e07788", "", "flow-0.1"], object)))
    path = publish(cube(range(6)), runs, None, tmp_path, title="Rain", products=["net"])
    now = manifest(tmp_path)
    assert path == tmp_path / "latest.json"
    assert all(file.is_file() for file in named(tmp_path)) and (tmp_path / "index.html").is_file()
    assert (now["title"], now["products"], now["quantity"]["unit"]) == ("Rain", ["net", "flow"], "mm/h")
    assert [run["reference_time"] for run in now["runs"]] == ["2010-08-26T00:25:00Z", "2010-08-26T00:15:00Z"]
    withheld, made = now["runs"][0]["models"]
    assert (withheld["state"], withheld["folder"], withheld["reason"]) == ("withheld", None, "too few frames")
    assert (made["leads"], made["files"]) == ([5, 10, 15], ["+005.png", "+010.png", "+015.png"])
    assert made["folder"].startswith("runs/20100826T0025Z/flow-")
    assert [entry["checkpoint"] for run in now["runs"] for entry in run["models"]] == [
        "",
        "flow-0.1",
        "3f9a2c1db4e07788",
    ]


def test_pictures_hold_the_values(tmp_path: Path) -> None:
    publish(cube(range(2)), forecasts((1, "net", "ok")), None, tmp_path)
    now = manifest(tmp_path)
    seen = cv2.imread(str(tmp_path / now["observed"][-1]["file"]), cv2.IMREAD_UNCHANGED)
    made = cv2.imread(str(tmp_path / now["runs"][0]["models"][0]["folder"] / "+010.png"), cv2.IMREAD_UNCHANGED)
    assert (seen == RATE.levels(rain(1))).all() and (made == RATE.levels(rain(3))).all()
    assert np.allclose(now["values"]["table"], RATE.table, rtol=1e-4)


def test_a_second_time_writes_only_the_manifest(tmp_path: Path) -> None:
    data = cube(range(4)), forecasts((3, "net", "ok")), None, tmp_path
    publish(*data)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    publish(*data)
    changed = {path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"latest.json"}


def test_published_frames_are_not_read_again(tmp_path: Path) -> None:
    observed, runs = cube(range(3)), forecasts((2, "net", "ok"))
    publish(observed, runs, None, tmp_path)
    hidden = observed.assign(rainfall_rate=observed["rainfall_rate"] * np.nan)
    publish(hidden, runs * np.nan, None, tmp_path)
    seen = cv2.imread(str(tmp_path / manifest(tmp_path)["observed"][0]["file"]), cv2.IMREAD_UNCHANGED)
    assert (seen == RATE.levels(rain(0))).all()


def test_a_corrected_frame_gets_a_new_name(tmp_path: Path) -> None:
    observed = cube(range(3)).drop_vars("digest")
    publish(observed, forecasts(), None, tmp_path)
    old = manifest(tmp_path)["observed"]
    observed["rainfall_rate"][1] += 1
    publish(observed, forecasts(), None, tmp_path)
    new = manifest(tmp_path)["observed"]
    assert [first == second for first, second in zip(old, new, strict=True)] == [True, False, True]


def test_keeps_the_newest_only(tmp_path: Path) -> None:
    runs = forecasts(*((frame, "net", "ok") for frame in range(5)))
    publish(cube(range(6)), runs, None, tmp_path, keep_runs=2, keep_observed=3)
    now = manifest(tmp_path)
    assert [frame["time"][11:16] for frame in now["observed"]] == ["00:15", "00:20", "00:25"]
    assert [run["reference_time"][11:16] for run in now["runs"]] == ["00:20", "00:15"]


def test_removes_what_is_old_and_no_longer_named(tmp_path: Path) -> None:
    publish(cube(range(3)), forecasts((0, "net", "ok"), (2, "net", "ok")), None, tmp_path)
    (tmp_path / ".cycle.lock").touch()
    (tmp_path / "observed" / ".new-half.png").touch()
    long_ago = time.time() - 7 * 3600
    for path in tmp_path.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    publish(cube(range(3)), forecasts((2, "net", "ok")), None, tmp_path, keep_observed=2, retain=timedelta(hours=6))
    assert all(file.is_file() for file in named(tmp_path))
    assert len(list((tmp_path / "observed").iterdir())) == 2
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["20100826T0010Z"]
    assert (tmp_path / ".cycle.lock").exists(), "somebody holds it"


@pytest.mark.parametrize("step", range(0, 40, 3))
def test_is_whole_whenever_it_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A process that is killed leaves the files it had renamed: stop at each rename in turn."""
    publish(cube(range(3)), forecasts((2, "net", "ok")), None, tmp_path)
    data = cube(range(5)), forecasts((2, "net", "ok"), (4, "net", "ok"), (4, "flow", "ok")), None, tmp_path
    done, replace = [], Path.replace

    def dying(self: Path, target: Path) -> Path:
        done.append(target)
        if len(done) > step:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        try:
            publish(*data)
        except KeyboardInterrupt:
            assert manifest(tmp_path)["runs"][0]["reference_time"].endswith("00:10:00Z")
    assert all(file.is_file() for file in named(tmp_path))
    publish(*data)
    assert manifest(tmp_path)["runs"][0]["reference_time"].endswith("00:20:00Z")
    assert all(file.is_file() for file in named(tmp_path))


def test_refuses_forecasts_on_another_grid(tmp_path: Path) -> None:
    runs = forecasts((0, "net", "ok"))
    with pytest.raises(BadInput, match="another grid"):
        publish(cube(range(1)), runs.assign_coords(x=runs["x"] + 500), None, tmp_path)


# --- skill ----------------------------------------------------------------------------------------


def scores() -> xr.Dataset:
    """Two runs, one threshold, two leads: 8 hits and 2 misses; then a dry frame with 10 false alarms."""
    counts = {"hits": [8, 0], "misses": [2, 0], "false_alarms": [0, 10], "correct_negatives": [90, 90]}
    sums = {
        "n": [100, 100],
        "squared_error": [50.0, 150.0],
        "absolute_error": [10.0, 30.0],
        "error": [0.0, 0.0],
        "frames": [1, 1],
        "ssim": [0.5, 0.7],
    }
    verified = np.array([1, 0])  # nothing is known of the second lead yet
    by_threshold, by_lead = ("run", "lead_time", "threshold"), ("run", "lead_time")
    table = {key: (by_threshold, np.outer(values, verified)[..., None]) for key, values in counts.items()}
    table |= {key: (by_lead, np.outer(values, verified)) for key, values in sums.items()}
    reference = START + STEP * np.arange(2)
    labels = {"forecast_reference_time": reference, "model": ["net", "net"], "state": ["ok", "fallback"]}
    coords = {key: ("run", values) for key, values in labels.items()}
    coords |= {"threshold": [1.0], "lead_time": STEP * np.arange(1, 3)}
    return xr.Dataset(table, coords)


def test_skill_adds_up_before_it_divides(tmp_path: Path) -> None:
    publish(cube(range(3)), forecasts((0, "net", "ok")), scores(), tmp_path)
    skill = json.loads((tmp_path / "scores.json").read_text())
    pooled = skill["pooled"]["net"]
    assert (pooled["csi"], pooled["pixels"], pooled["runs"]) == ([[0.4, None]], [200, 0], [2, 0])
    assert (pooled["mse"], pooled["ssim"]) == ([1, None], [0.6, None])
    assert [run["reference_time"][11:16] for run in skill["runs"]] == ["00:05", "00:00"]
    assert [run["models"]["net"]["csi"][0][0] for run in skill["runs"]] == [0, 0.8]
    assert (skill["thresholds"], skill["leads"]) == ([1], [5, 10])


def test_scores_without_a_verified_run(tmp_path: Path) -> None:
    publish(cube(range(1)), forecasts(), scores() * 0, tmp_path, thresholds=[1.0, 2.0])
    skill = json.loads((tmp_path / "scores.json").read_text())
    assert (skill["pooled"], skill["runs"]) == ({}, [])


# --- map pictures ---------------------------------------------------------------------------------


def test_maps_are_named_by_the_manifest_that_exists(tmp_path: Path) -> None:
    data = cube(range(3)), forecasts((2, "net", "ok"), (2, "flow", "ok"))
    publish(*data, None, tmp_path)
    drawn = publish_maps(*data, tmp_path, leads=(1, 3))
    assert [path.name for path in drawn] == ["+005.png", "+015.png", "loop.gif"]
    assert drawn[0].parent.name.startswith("net-") and set(drawn) <= set(named(tmp_path))
    publish(*data, None, tmp_path)
    assert set(drawn) <= set(named(tmp_path)), "a later manifest keeps them"


def test_a_withheld_run_is_not_drawn(tmp_path: Path) -> None:
    data = cube(range(3)), forecasts((1, "net", "ok"), (2, "net", "withheld"))
    assert publish_maps(*data, tmp_path) == []
    publish(*data, None, tmp_path)
    assert manifest(tmp_path)["maps"] is None


@pytest.mark.parametrize(("retain", "kept"), [(timedelta(hours=6), True), (timedelta(hours=4), False)])
def test_what_is_no_longer_named_stays_for_pages_still_open(tmp_path: Path, retain: timedelta, kept: bool) -> None:
    publish(cube(range(3)), forecasts((0, "net", "ok"), (2, "net", "ok")), None, tmp_path)
    old = {path for path in named(tmp_path) if "20100826T0000Z" in str(path)}
    assert old
    five_hours_ago = time.time() - 5 * 3600
    for path in tmp_path.rglob("*"):
        os.utime(path, (five_hours_ago, five_hours_ago))
    publish(cube(range(3)), forecasts((2, "net", "ok")), None, tmp_path, keep_observed=2, retain=retain)
    assert not old & set(named(tmp_path))
    assert {path.exists() for path in old} == {kept}
