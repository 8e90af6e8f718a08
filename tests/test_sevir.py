import csv
import shutil

import h5py
import numpy as np
import pytest

from nowcast.cube import BadInput
from nowcast.grid import SOUTH_UP, Grid
from nowcast.readers import Item, sevir
from nowcast.units import level_from_vil, quantity, vil_from_level
from tests import fixtures
from tests.fixtures import sevir_catalog, sevir_file, sevir_row

DULUTH = (-92.1005, 46.7867)


def only(source):
    (item,) = sevir.find(source)
    return sevir.read(item)


def images(side: int = 16, fill: int = 0, dtype: type = np.int64) -> np.ndarray:
    return np.full((1, side, side, 49), fill, dtype)


def root_with(tmp_path, kind: str, stack: np.ndarray, **row: object):
    name = f"{kind}/2019/SEVIR_{kind.upper()}_STORMEVENTS_2019_0101_0630.h5"
    sevir_file(tmp_path / "data" / name, kind, stack, ["S858968"])
    sevir_catalog(tmp_path, [sevir_row("S858968", name, 0, kind, **row)])
    return tmp_path / "data" / kind


def test_event_lies_where_the_catalogue_says(tmp_path):
    stack = images(384)
    stack[0, 79, 200, :] = 200  # the pixel of Duluth: x = 200.0215, y = 79.0576 from the lower left corner
    cube = only(root_with(tmp_path, "vil", stack))
    grid = Grid.of(cube)
    assert grid.orientation == SOUTH_UP
    assert (grid.y[0], grid.y[-1], grid.x[0], grid.x[-1]) == (500, 383_500, 500, 383_500)
    x, y = grid.project(*map(np.array, DULUTH))
    local_x, local_y = x - cube["origin_x"].values[0], y - cube["origin_y"].values[0]
    assert (local_x / 1000, local_y / 1000) == pytest.approx((200.0215, 79.0576), abs=1e-3)
    here = cube["vil"].sel(x=local_x, y=local_y, method="nearest")
    np.testing.assert_allclose(here, vil_from_level(np.array(200)))
    assert (cube["vil"] > 0).sum() == 49


def test_origin_of_another_event(tmp_path):
    cube = only(root_with(tmp_path, "vil", images(), llcrnrlat=38.5301158, llcrnrlon=-95.44742733))
    assert (cube["origin_x"][0], cube["origin_y"][0]) == pytest.approx((222_000, 62_000), abs=0.01)


def test_time_is_the_last_axis_and_offsets_start_where_they_do(tmp_path):
    stack = images()
    stack[0, 2, 3, :] = np.arange(10, 59)
    offsets = ":".join(str(minute) for minute in range(-119, 122, 5))
    cube = only(root_with(tmp_path, "vil", stack, minute_offsets=offsets))
    np.testing.assert_array_equal(np.rint(level_from_vil(cube["vil"].values[:, 2, 3])), np.arange(10, 59))
    assert cube["time"].values[0] == np.datetime64("2019-06-01T10:01")
    assert (np.diff(cube["time"].values) == np.timedelta64(5, "m")).all()
    assert set(cube["sequence"].values) == {"S858968"}
    assert "cadence_seconds" not in cube.attrs


def test_all_levels_survive_reading_packing_and_thresholding(tmp_path):
    stack = images()
    stack[0, :, :, 0] = np.arange(256).reshape(16, 16)
    variable = only(root_with(tmp_path, "vil", stack))["vil"]
    quantum = np.float32(variable.encoding["quantum"])
    steps = np.rint(variable.values[0] / quantum)
    assert np.nanmax(steps) <= 32767
    unpacked = (steps * quantum).astype(np.float32).ravel()
    assert np.isnan(unpacked[255]) and not np.isnan(unpacked[:255]).any()
    level = np.arange(255)
    np.testing.assert_array_equal(np.rint(level_from_vil(unpacked[:255])), np.where(level <= 5, 0, level))
    for values in (variable.values[0].ravel()[:255], unpacked[:255]):
        for threshold, limit in zip(quantity("vil").thresholds, (16, 74, 133, 160, 181, 219), strict=True):
            np.testing.assert_array_equal(values >= threshold, level >= limit)


@pytest.mark.parametrize(("kind", "name", "raw", "value"), [
    ("vis", "visible_reflectance", 4321, 0.4321),
    ("ir069", "brightness_temperature_069", -3683, -36.83),
    ("ir107", "brightness_temperature_107", 2550, 25.5),
])  # fmt: skip
def test_satellite_kinds(tmp_path, kind, name, raw, value):
    stack = images(fill=raw)
    stack[0, 0, 1, 2] = -32768
    cube = only(root_with(tmp_path, kind, stack))
    assert float(cube[name][0, 0, 0]) == pytest.approx(value, rel=1e-6)
    np.testing.assert_array_equal(np.argwhere(np.isnan(cube[name].values)), [[2, 0, 1]])


def test_lightning_is_binned_to_the_frame_that_ends_after_it(tmp_path):
    flashes = np.array([
        # seconds, lat, lon, x, y (cells of 8 km)
        [0.0, 0, 0, 3.7, 5.2],
        [-1.0, 0, 0, 3.0, 5.9],
        [1.0, 0, 0, 3.7, 5.2],
        [-7200.0, 0, 0, 47.9, 0.0],
        [7200.0, 0, 0, 0.0, 47.9],
        [7201.0, 0, 0, 0.0, 0.0],  # after the event
        [0.0, 0, 0, 48.0, 0.0],  # outside the square
        [0.0, 0, 0, -0.1, 0.0],
    ])  # fmt: skip
    name = "lght/2019/SEVIR_LGHT_ALLEVENTS_2019_0601_0701.h5"
    (tmp_path / "data" / name).parent.mkdir(parents=True)
    with h5py.File(tmp_path / "data" / name, "w") as file:
        file["S1"], file["S2"] = flashes, np.zeros((0, 5))
    rows = [sevir_row(event, name, 0, "lght", minute_offsets=offsets) for event, offsets in (("S1", ""), ("S2", "nan"))]
    sevir_catalog(tmp_path, rows)
    first, second = (sevir.read(item)["lightning_flashes"] for item in sevir.find(tmp_path / "data" / "lght"))
    assert first.shape == (49, 48, 48)
    counts = first.values
    assert (counts[24, 5, 3], counts[25, 5, 3], counts[0, 0, 47], counts[48, 47, 0]) == (2, 1, 1, 1)
    assert counts.sum() == 5
    assert second.sum() == 0
    assert first["time"].values[24] == np.datetime64("2019-06-01T12:00")


def test_lower_resolution_release_has_no_ids_and_every_second_frame(tmp_path):
    root = fixtures.sevir(tmp_path, ids=["S1"])
    path = next((tmp_path / "data").rglob("*.h5"))
    with h5py.File(path, "w") as file:
        file["vil"] = np.zeros((1, 128, 128, 25), np.uint8)
    cube = only(root)
    assert (np.diff(cube["time"].values) == np.timedelta64(10, "m")).all()
    assert np.diff(cube["x"].values)[0] == 3000


# --- finding --------------------------------------------------------------------------------------


def test_finds_by_root_catalogue_kind_year_and_file(tmp_path):
    names = [f"{kind}/{year}/SEVIR_{kind.upper()}_STORMEVENTS_{year}_0101_0630.h5"
             for kind in ("vil", "vis") for year in (2018, 2019)]  # fmt: skip
    rows = []
    for name in names:
        kind, year = name[:3], name[4:8]
        sevir_file(tmp_path / "data" / name, kind, images(), [f"S{year}"])
        rows.append(sevir_row(f"S{year}", name, 0, kind, time_utc=f"{year}-06-01 12:00:00"))
    sevir_catalog(tmp_path, rows[::-1])

    def found(source) -> list[str]:
        return [str(item) for item in sevir.find(source)]

    vil = [f"{name.rsplit('/', 1)[1]}[S{name[4:8]}]" for name in names[:2]]
    vis = [f"{name.rsplit('/', 1)[1]}[S{name[4:8]}]" for name in names[2:]]
    data = tmp_path / "data"
    assert found(tmp_path) == found(tmp_path / "CATALOG.csv") == found(data) == found(data / "vil") == vil
    assert found(data / "vis") == vis
    assert found(data / "vis" / "2019") == found(data / names[3]) == vis[1:]


def test_finds_from_the_working_directory(tmp_path, monkeypatch):
    root = fixtures.sevir(tmp_path)
    monkeypatch.chdir(root / "data" / "vil")
    assert len(list(sevir.find(fixtures.Path()))) == 2


def test_events_are_in_order_of_time_and_listed_once(tmp_path):
    def change(rows: list[dict]) -> list[dict]:
        rows[0]["time_utc"] = "2019-06-02 00:00:00"
        return [*rows, dict(rows[1]), rows[2] | {"img_type": "vis", "file_name": "vis/2019/absent.h5"}]

    root = fixtures.sevir(tmp_path, ids=["S1", "S2", "R18010112345678"], rows=change)
    assert [item.key for item in sevir.find(root)] == ["R18010112345678", "S1"]  # S2 is there twice


def test_share_of_missing_pixels_is_kept(tmp_path):
    assert set(only(root_with(tmp_path, "vil", images(), pct_missing=0.2))["pct_missing"].values) == {0.2}


def test_the_catalogue_is_read_once_for_each_version(tmp_path):
    root = fixtures.sevir(tmp_path)
    sevir._books.cache_clear()
    for item in sevir.find(root):
        sevir.read(item)
    assert sevir._books.cache_info().misses == 1


# --- refusals -------------------------------------------------------------------------------------


def test_refuses_a_file_without_catalogue(tmp_path):
    root = fixtures.sevir(tmp_path)
    (root / "CATALOG.csv").unlink()
    for source in (root, next(root.rglob("*.h5"))):
        with pytest.raises(BadInput, match=r"no CATALOG\.csv in it or above it; download s3://sevir/CATALOG\.csv"):
            list(sevir.find(source))


def test_refuses_a_catalogue_of_something_else(tmp_path):
    (tmp_path / "CATALOG.csv").write_text("id,name\n1,a\n")
    with pytest.raises(BadInput, match="has no column file_index"):
        list(sevir.find(tmp_path))


def test_refuses_a_catalogue_without_its_files(tmp_path):
    root = fixtures.sevir(tmp_path)
    shutil.rmtree(root / "data" / "vil")
    (root / "data" / "vis").mkdir()
    for source in (root, root / "data" / "vis"):
        with pytest.raises(BadInput, match=r"holds no event that CATALOG\.csv lists"):
            list(sevir.find(source))


@pytest.mark.parametrize(("index", "fault"), [(7, "has no event in row 7"), (0, "holds S100001 in row 0, not S100002")])
def test_refuses_a_catalogue_of_another_release(tmp_path, index, fault):
    root = fixtures.sevir(tmp_path, rows=lambda rows: [rows[1] | {"file_index": index}])
    with pytest.raises(BadInput, match=fault):
        only(root)


def test_refuses_missing_dataset_and_frames(tmp_path):
    root = fixtures.sevir(tmp_path, ids=["S1"])
    path = next(root.rglob("*.h5"))
    with h5py.File(path, "a") as file:
        del file["vil"]
    with pytest.raises(BadInput, match="has no vil"):
        only(root)
    with h5py.File(path, "a") as file:
        file["vil"] = np.zeros((1, 16, 16, 40), np.uint8)
    with pytest.raises(BadInput, match="holds 40 frames for 49 offsets"):
        only(root)


def test_refuses_an_item_without_event(tmp_path):
    path = next(fixtures.sevir(tmp_path).rglob("*.h5"))
    with pytest.raises(BadInput, match=r"holds no event \(none named\)"):
        sevir.read(Item(path))


def test_columns_are_those_of_the_real_catalogue(tmp_path):
    root = fixtures.sevir(tmp_path)
    with (root / "CATALOG.csv").open() as stream:
        assert len(next(csv.reader(stream))) == 21
