from pathlib import Path

import numpy as np
import pytest

from nowcast import config
from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.core.units import get_quantity
from nowcast.models import extrapolation
from nowcast.readers import Item, simulator, weather
from nowcast.readers.simulator import Simulator, simulate
from nowcast.store.packing import Packing
from tests.sources_clips import RADAR
from tests.sources_clips import simulator as write

STEADY = RADAR | {"radius_km": None, "rows": 96, "columns": 128, "pixel_m": 1500}


def settings(**changes: object) -> Simulator:
    return Simulator.model_validate({key: value for key, value in (STEADY | changes).items() if value is not None})


def read(path: Path, index: int = 0) -> np.ndarray:
    return simulator.read(Item(path, str(index)))["rainfall_rate"].values[0]


def test_a_frame_is_the_first_one_moved():
    # 10 m/s east and 5 m/s south for 300 s are 2 columns and 1 row of 1500 m
    radar = settings(motion={"u": 10, "v": -5})
    first, later = simulate(radar, 0), simulate(radar, 7)
    assert first.max() > 10
    assert np.abs(later[7:, 14:] - first[:-7, :-14]).max() < 1e-3
    assert np.abs(later - first).max() > 1


@pytest.mark.parametrize("only", ["cells", "layer"])
def test_so_are_both_kinds_of_rain_after_a_month(only):
    other = {"cells": "layer", "layer": "cells"}[only]
    radar = settings(motion={"u": -10, "v": 5}, frames=10_000, **{other: None})
    before, after = simulate(radar, 9000), simulate(radar, 9010)
    assert np.abs(after[:-10, :-20] - before[10:, 20:]).max() < 1e-3
    assert np.abs(after[:-10, :-20]).max() > 1


def test_parts_of_a_pixel_count_too():
    # half a pixel per frame: two frames are one pixel
    radar = settings(motion={"u": 2.5, "v": 0})
    first, second = simulate(radar, 0), simulate(radar, 2)
    assert np.abs(second[:, 1:] - first[:, :-1]).max() < 1e-3


def test_rotation_turns_the_rain_about_the_centre():
    # 90 degrees per hour, anticlockwise: after an hour east is north
    radar = settings(rows=96, columns=96, motion={"u": 0, "v": 0, "rotation": 90})
    assert np.abs(simulate(radar, 12) - np.rot90(simulate(radar, 0))).max() < 1e-3


def test_shear_moves_northern_rain_faster():
    # 0.1 m/s per km for 10,000 s: a pixel for every row north of the middle one
    still = settings(rows=95, cadence_seconds=10_000, cells=None, motion={"u": 0, "v": 0})
    radar = still.model_copy(update={"motion": weather.Motion(u=0, v=0, shear=0.1)})
    first, later = simulate(radar, 0), simulate(radar, 1)
    for row, way in ((47, 0), (40, 7), (10, 37), (60, -13)):
        moved = np.roll(first[row], way)
        inside = slice(max(way, 0), 128 + min(way, 0))
        assert np.abs(later[row, inside] - moved[inside]).max() < 1e-3


def test_way_of_the_air_fits_its_velocity():
    for turn, shear in ((0.0, 0.0), (30.0, 0.0), (0.0, 0.2), (30.0, 0.2), (-30.0, 0.2)):
        motion = weather.Motion(u=8, v=-3, rotation=turn, shear=shear)
        place = there = np.array([20_000.0, -35_000.0])
        omega = np.deg2rad(turn) / 3600
        for _ in range(3600):  # steps of 1 s, at the middle of each
            for _ in range(2):
                middle = (place + there) / 2
                speed = np.array([8 + (shear / 1000 - omega) * middle[1], -3 + omega * middle[0]])
                there = place + speed
            place = there
        matrix, shift = weather._flow(motion, 3600)
        np.testing.assert_allclose(matrix @ (20_000, -35_000) + shift, place, atol=0.5)
        back, origin = weather._flow(motion, -3600)
        np.testing.assert_allclose(back @ (matrix @ (1.0, 2.0) + shift) + origin, (1, 2), atol=1e-4)


@pytest.mark.parametrize(("u", "v"), [(12.0, 6.0), (-9.0, 15.0), (0.0, -14.0)])
def test_optical_flow_finds_the_motion(u, v):
    radar = settings(rows=160, columns=160, motion={"u": u, "v": v})
    frames = [get_quantity("rainfall_rate").scaling.encode(simulate(radar, index)) for index in range(4)]
    found = extrapolation.motion(np.stack(frames))[:, 24:-24, 24:-24].mean(axis=(1, 2)) * 1500 / 300
    np.testing.assert_allclose(found, (u, -v), atol=0.1 * np.hypot(u, v))


def test_cells_are_as_many_and_as_strong_as_asked():
    kind = {"per_100_km": 4, "size_km": [5, 9], "rain": [8, 16], "lifetime_minutes": [30, 60]}
    radar = settings(rows=512, columns=512, layer=None, cells=kind)
    born = [weather._alive(radar, radar.cells, hour, hour * 3600, 86_400) for hour in (23, 24)]
    x, y, peak, deviation = np.concatenate(born).T
    # 768 km square: 59 squares of 100 km with 4 cells each
    assert np.sum((np.abs(x) < 384_000) & (np.abs(y) < 384_000)) == pytest.approx(236, abs=50)
    assert (deviation.min() * 2.3548, deviation.max() * 2.3548) == pytest.approx((5000, 9000), abs=200)
    assert 14 < peak.max() < 16
    assert 8 < simulate(radar, 288).max() < 16


def test_a_cell_grows_and_decays():
    kind = {"per_100_km": 2, "size_km": [5, 5], "rain": [30, 30], "lifetime_minutes": [60, 60]}
    radar = settings(motion={"u": 0, "v": 0}, layer=None, cells=kind, frames=100)
    fields = np.stack([simulate(radar, index) for index in range(12, 37)])  # two hours
    row, column = np.unravel_index(fields[3:-3].max(axis=0).argmax(), fields.shape[1:])
    course = fields[:, row, column]
    peak = int(course[3:-3].argmax()) + 3
    assert course[peak] > 25
    # an hour from birth to end: half the peak a quarter of an hour before and after it
    assert course[peak - 3] + course[peak + 3] == pytest.approx(course[peak], rel=0.1)


def test_the_layer_covers_its_share():
    shares = [np.mean(simulate(settings(cells=None, seed=seed), 0) > 0) for seed in range(40)]
    assert np.mean(shares) == pytest.approx(0.4, abs=0.06)
    assert simulate(settings(cells=None), 0).max() <= 4


def test_the_layer_becomes_another_one():
    radar = settings(cells=None, motion={"u": 0, "v": 0}, layer=RADAR["layer"] | {"lifetime_minutes": 60})
    fields = [simulate(radar, index).ravel() for index in (0, 1, 6, 24)]
    likeness = [np.corrcoef(fields[0], field)[0, 1] for field in fields]
    assert likeness[0] > likeness[1] > 0.97 > likeness[2] > 0.3 > likeness[3]


def test_frames_do_not_depend_on_each_other():
    radar = settings(noise={"probability": 0.01, "rain": 2}, dropouts={"probability": 0.5})
    forwards = [simulate(radar, index) for index in range(4)]
    for index in (2, 0, 3, 1):
        np.testing.assert_array_equal(simulate(radar, index), forwards[index])
    assert not np.array_equal(simulate(settings(seed=2), 0), simulate(settings(), 0))


def test_a_pixel_is_the_same_whatever_the_grid():
    small, large = settings(rows=32, columns=40), settings(rows=96, columns=104)
    np.testing.assert_allclose(simulate(small, 3), simulate(large, 3)[32:64, 32:72], atol=1e-4)


def test_faults_of_a_radar():
    radar = settings(cells=None, layer=None, noise={"probability": 0.02, "rain": 3}, radius_km=60)
    field = simulate(radar, 1)
    x, y = np.meshgrid((np.arange(128) - 63.5) * 1.5, (47.5 - np.arange(96)) * 1.5)
    np.testing.assert_array_equal(np.isnan(field), np.hypot(x, y) > 60)
    seen = field[~np.isnan(field)]
    assert np.mean(seen > 0) == pytest.approx(0.02, abs=0.005)
    assert seen[seen > 0].mean() == pytest.approx(3, abs=0.6)


def test_dropouts_are_sectors():
    radar = settings(cells=None, layer=None, dropouts={"probability": 0.5, "degrees": 40}, rows=96, columns=96)
    shares = np.array([np.isnan(simulate(radar, index)).mean() for index in range(40)])
    assert 8 <= np.count_nonzero(shares) <= 32
    assert shares[shares > 0].mean() == pytest.approx(40 / 360, abs=0.01)


def test_a_sector_lies_clockwise_of_its_azimuth():
    sector = weather._sector(settings(rows=10, columns=10), np.deg2rad(50), 100)
    x, y = np.meshgrid(np.arange(10) - 4.5, 4.5 - np.arange(10))
    azimuth = np.rad2deg(np.arctan2(x, y)) % 360
    np.testing.assert_array_equal(sector, (azimuth > 50) & (azimuth < 150))


# --- as a reader ----------------------------------------------------------------------------------


def test_reads_frames_of_a_file(tmp_path):
    path = write(tmp_path / "a.simulator.yaml", gaps=[1], centre=[500_000, 200_000], crs="EPSG:28992")
    items = list(simulator.find(tmp_path))
    assert [item.key for item in items] == ["0", "2", "3"]
    cube = simulator.read(items[1])
    assert cube["time"].values.tolist() == [np.datetime64("2020-06-01T12:10", "ns").astype(int)]
    assert cube["sequence"].values.tolist() == [""]
    assert cube.attrs["cadence_seconds"] == 300
    assert (cube.attrs["motion_x"], cube.attrs["motion_y"], cube.attrs["source"]) == (10, 5, path.name)
    grid = Grid.of(cube)
    assert (grid.shape, grid.orientation, grid.crs.to_epsg()) == ((32, 40), NORTH_UP, 28992)
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (461_000, 539_000, 231_000, 169_000)
    assert np.isnan(cube["rainfall_rate"].values[0, 0, 0])  # 50 km from the radar, which sees 35


def test_values_lie_on_the_raster(tmp_path):
    path = write(tmp_path / "a.simulator.yaml", noise={"probability": 0.1, "rain": 200})
    cube = simulator.read(Item(path, "2"))
    packing, values = Packing.wanted(cube["rainfall_rate"]), cube["rainfall_rate"].values
    np.testing.assert_array_equal(packing.unpack(packing.pack(values)), values)
    assert np.nanmax(values) == pytest.approx(300)  # capped, so that 16 bits hold it
    radar = Simulator.model_validate(RADAR | {"noise": {"probability": 0.1, "rain": 200}})
    np.testing.assert_allclose(values[0], simulate(radar, 2), atol=0.00501)


def test_a_changed_file_is_read_again(tmp_path):
    before = read(write(tmp_path / "a.simulator.yaml"))
    after = read(write(tmp_path / "a.simulator.yaml", seed=22))
    assert not np.array_equal(before, after, equal_nan=True)


def test_the_shipped_example_is_pleasant():
    path = config.find("datasets/radar.simulator.yaml")
    items = list(simulator.find(path))
    assert len(items) == 25  # two hours
    rain = np.stack([read(path, index) for index in (0, 12, 24)])
    assert rain.shape[1:] == (256, 256)
    assert 0.2 < np.isnan(rain).mean() < 0.3
    wet = np.nanmean(rain > 0.1, axis=(1, 2))
    assert (wet > 0.1).all() and (wet < 0.6).all()
    assert (np.nanmax(rain, axis=(1, 2)) > 20).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows": None}, "rows: Field required"),
        ({"rows": 1}, "rows: Input should be greater than or equal to 2"),
        ({"rows": 8000, "columns": 9000}, "columns: 8000 x 9000 pixels are too many; have 16777216 at most"),
        ({"columns": 10**12}, "columns: 32 x 1000000000000 pixels are too many"),
        ({"frames": 10_000_001}, "frames: Input should be less than or equal to 10000000"),
        ({"frames": 10_000_000}, None),
        ({"frames": 10_000_000, "cadence_seconds": 3600}, "the frames do not lie in 1900 to 2200"),
        ({"start": "2020-06-01T12:00"}, "start: Input should have timezone info"),
        ({"cadence": 300}, "cadence: unknown key; known here: rows, columns, pixel_m, crs"),
        ({"motion": {"u": 1}}, "motion.v: Field required"),
        ({"motion": {"u": 1, "v": 1, "w": 1}}, "motion.w: unknown key; known here: u, v, rotation, shear"),
        ({"motion": {"u": float("nan"), "v": 0}}, "motion.u: Input should be"),
        ({"motion": {"u": float("inf"), "v": 0}}, "motion.u: Input should be"),
        ({"motion": {"u": 1, "v": 1, "shear": 0.1}}, "motion.shear draws the rain out"),
        ({"crs": "EPSG:4326"}, "crs: 'EPSG:4326' is no projection in metres"),
        ({"crs": "moon"}, "crs: 'moon' is no projection in metres"),
        ({"gaps": [2, 4]}, "gaps names frame 4; the last one is 3"),
        ({"cells": RADAR["cells"] | {"size_km": [9, 3]}}, "cells.size_km: 9 is more than 3; give the smaller first"),
        ({"cells": RADAR["cells"] | {"rain": [1, 500]}}, "cells.rain.1: Input should be less than or equal to 200"),
        ({"cells": RADAR["cells"] | {"size_km": [9, 9000]}}, "cells are too many"),
        ({"cells": {"per_100_km": 1000, "size_km": [1, 2], "rain": [1, 2]}, "pixel_m": 50_000}, "cells are too many"),
        ({"layer": RADAR["layer"] | {"coverage": 1}}, "layer.coverage: Input should be less than 1"),
        ({"noise": {"probability": 2, "rain": 1}}, "noise.probability: Input should be less than or equal to 0.1"),
        ({"dropouts": {"probability": 0.1, "degrees": 200}}, "dropouts.degrees: Input should be less than 180"),
        (
            {"rows": "many", "seed": -1},
            "rows: Input should be a valid integer, unable to parse string as an integer (and 1 more)",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, changes, sentence):
    path = write(tmp_path / "a.simulator.yaml", **changes)
    if sentence is None:
        assert next(simulator.find(path)).key == "0"
        return
    for attempt in (lambda: next(simulator.find(path)), lambda: simulator.read(Item(path, "0"))):
        with pytest.raises(BadInput) as refusal:
            attempt()
        assert sentence in str(refusal.value)
        assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)
        assert "radar.simulator.yaml is an example" in refusal.value.remedy


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"rows: [", "not YAML"),
        (b"- 1", "expected keys and values"),
        (b"\xff\xfe", "damaged or not a file of settings"),
        (b"#" * 70_000, "has 70000 bytes"),
        (b"[" * 20_000, "damaged or not a file of settings"),
    ],
)
def test_other_content_is_refused(tmp_path, content, sentence):
    path = tmp_path / "a.simulator.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=sentence):
        next(simulator.find(path))


@pytest.mark.parametrize("key", ["", "4", "-1", "1", "x", "²"])
def test_frames_that_are_not_there(tmp_path, key):
    path = write(tmp_path / "a.simulator.yaml", gaps=[1])
    with pytest.raises(BadInput, match="has no frame"):
        simulator.read(Item(path, key))


def test_one_radar_at_a_time(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.simulator.yaml")
    with pytest.raises(BadInput, match="holds 2 simulated radars"):
        next(simulator.find(tmp_path))
