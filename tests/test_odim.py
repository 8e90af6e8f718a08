import h5py
import numpy as np
import pytest

from nowcast.cube import BadInput
from nowcast.grid import NORTH_UP, Grid
from nowcast.readers import Item, odim
from tests import fixtures
from tests.fixtures import BELGIUM, DE1200, LAEA, LAMBERT_2008, PERIOD, ROOT, SWISS


def field(shape: tuple[int, int], *first: float, dtype: type = np.float64) -> np.ndarray:
    values = np.zeros(shape, dtype)
    values[0, : len(first)] = first
    return values


def start(cube, name: str, count: int) -> np.ndarray:
    return cube[name].values[0, 0, :count]


def test_odyssey_rate(tmp_path):
    path = fixtures.odyssey(tmp_path / "T_PAAH21_C_EUOC_20180824180000.hdf",
                            data=field((44, 38), -9999000.0, -8888000.0, 0.0, 0.01, 8646.0))  # fmt: skip
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 5), [np.nan, 0, 0, 0.01, 8646], rtol=1e-6)
    assert cube["time"].values[0] == np.datetime64("2018-08-24T18:00")  # nominal, though the scans end at 18:05
    assert cube.attrs["cadence_seconds"] == 900
    assert "quantum" not in cube["rainfall_rate"].encoding
    grid = Grid.of(cube)
    assert grid.orientation == NORTH_UP
    assert (grid.x[0], grid.y[0], grid.x[-1], grid.y[-1]) == (50_000, -50_000, 3_750_000, -4_350_000)


def test_cirrus_reflectivity_has_its_quantity_beside_the_data(tmp_path):
    what = {"quantity": "DBZH", "gain": 1.0, "offset": 0.0, "nodata": -9999000.0, "undetect": -8888000.0}
    path = fixtures.odim(tmp_path / "T_PABV21_C_EUOC_20241126010000.hdf",
                         field((44, 38), -9999000.0, -8888000.0, -40.0, 12.5), {
        "what": ROOT | {"version": "H5rad 2.4"}, "where": LAEA, "how": {"zr_a": 200.0, "zr_b": 1.6},
        "dataset1/what": PERIOD | {"product": "MAX"}, "dataset1/data1/what": what,
        "dataset1/data1/quality1/what": {"quantity": "QIND"},
    })  # fmt: skip
    cube = odim.read(Item(path))
    np.testing.assert_array_equal(start(cube, "reflectivity", 4), [np.nan, -32, -32, 12.5])
    assert (cube.attrs["cadence_seconds"], cube.attrs["zr_a"], cube.attrs["zr_b"]) == (300, 200.0, 1.6)


def test_rmi_keeps_its_grid_in_the_dataset_and_states_no_codes(tmp_path):
    names = ("LL_lon", "LL_lat", "UL_lon", "UL_lat", "UR_lon", "UR_lat", "LR_lon", "LR_lat")
    corners = dict(zip(names, _corners(LAMBERT_2008, 300_000, 300_000, 1_000_000, 1_000_000), strict=True))
    path = fixtures.odim(tmp_path / "20210704180500.rad.best.comp.rate.qpe.hdf",
                         field((70, 70), np.nan, 0.0, 3.5, dtype=np.float32), {
        "what": ROOT | {"date": "20210704", "time": "180500"}, "where": {"projdef": LAMBERT_2008} | corners,
        "dataset1/where": BELGIUM, "dataset1/data1/what": {"quantity": "RATE"},
    })  # fmt: skip
    cube = odim.read(Item(path))
    np.testing.assert_array_equal(start(cube, "rainfall_rate", 3), [np.nan, 0, 3.5])
    grid = Grid.of(cube)
    assert (grid.x[0], grid.y[0], grid.x[-1], grid.y[-1]) == (305_000, 995_000, 995_000, 305_000)
    assert cube.attrs["cadence_seconds"] == 300
    assert cube["time"].values[0] == np.datetime64("2021-07-04T18:05")


def test_dwd_reflectivity(tmp_path):
    what = {"quantity": "DBZH", "gain": 0.0029296875, "offset": -64.0, "nodata": 65535.0, "undetect": 0.0}
    path = fixtures.odim(tmp_path / "composite_hx_20250909_0635-hd5",
                         field((24, 22), 0, 65535, 1, 32768, dtype=np.uint16), {
        "what": ROOT | {"date": "20250909", "time": "063500"}, "where": DE1200, "dataset1/data1/what": what,
    })  # fmt: skip
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "reflectivity", 4), [-32, np.nan, -32, 32.0])
    assert "quantum" not in cube["reflectivity"].encoding  # 65,536 steps do not fit 16 signed bits


def test_dwd_accumulation_becomes_rate_at_its_end(tmp_path):
    what = {"quantity": "ACRR", "gain": 0.01, "offset": 0.0, "nodata": 65535.0, "undetect": 0.0}
    period = {"startdate": "20250909", "starttime": "063000", "enddate": "20250909", "endtime": "063500"}
    path = fixtures.odim(tmp_path / "composite_rv_20250909_0635_000-hd5",
                         field((24, 22), 0, 65535, 25, dtype=np.uint16), {
        "what": ROOT | {"date": "20250909", "time": "063500"}, "where": DE1200,
        "dataset1/what": period, "dataset1/data1/what": what,
    })  # fmt: skip
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 3), [0, np.nan, 3.0], rtol=1e-6)  # 0.25 mm in 5 min
    assert cube["rainfall_rate"].encoding["quantum"] == 0.12
    assert cube["time"].values[0] == np.datetime64("2025-09-09T06:35")
    assert cube.attrs["cadence_seconds"] == 300


def test_meteoswiss_states_kilometres_nan_and_infinity(tmp_path):
    what = {"quantity": "ACRR", "nodata": np.nan, "undetect": np.inf}  # gain and offset left out
    period = {"startdate": "20231221", "starttime": "123000", "enddate": "20231221", "endtime": "133000"}
    path = fixtures.odim(tmp_path / "CPC2335513304_00060.001.h5", field((64, 71), np.nan, np.inf, 2.4), {
        "what": ROOT | {"date": "20231221", "time": "133000", "source": "ORG:215"}, "where": SWISS,
        "dataset1/what": period, "dataset1/data1/what": what,
    })  # fmt: skip
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 3), [np.nan, 0, 2.4], rtol=1e-6)
    grid = Grid.of(cube)
    assert np.unique(np.diff(grid.x)) == 10_000
    assert (grid.x[0] - 5000, grid.y[0] + 5000) == pytest.approx((2_255_000, 1_480_000), abs=300)
    assert cube.attrs["cadence_seconds"] == 600


@pytest.mark.parametrize(("period", "nominal", "want"), [
    (("170000", "180000"), "180000", "18:00"),  # the usual
    (("175000", "180500"), "180000", "18:00"),  # the nominal time lies within: OPERA
    (("180000", "180500"), "180000", "18:05"),  # it is the start
    (("181000", "181500"), "180000", "18:15"),  # it is that of a forecast's run
])  # fmt: skip
def test_time_of_an_accumulation(tmp_path, period, nominal, want):
    path = fixtures.odyssey(tmp_path / "a.h5", time=nominal, quantity="ACRR", starttime=period[0], endtime=period[1])
    assert str(odim.read(Item(path))["time"].values[0])[11:16] == want


def test_first_known_quantity_is_taken(tmp_path):
    path = fixtures.odim(tmp_path / "a.h5", np.zeros((44, 38)), {
        "what": ROOT, "where": LAEA, "dataset1/what": PERIOD, "dataset1/data1/what": {"quantity": "QIND"}})  # fmt: skip
    with h5py.File(path, "a") as file:
        file["dataset2/data1/data"] = np.full((44, 38), 20.0)
        file["dataset2"].create_group("what").attrs["quantity"] = np.bytes_("TH")
    assert (odim.read(Item(path))["reflectivity"] == 20).all()


@pytest.mark.parametrize(("name", "kind", "seconds", "want"), [
    ("T_PAAH22_C_EUOC_20241126010000.hdf", "RATE", 0, 900),
    ("T_PASH22_C_EUOC_20241126010000.hdf", "ACRR", 3600, 900),
    ("x.h5", "RATE", 600, 600),
    ("x.h5", "ACRR", 3600, 300),
    ("x.h5", "DBZH", 0, 300),
])  # fmt: skip
def test_cadence(name, kind, seconds, want):
    assert odim._cadence(name, kind, seconds) == want


def test_half_dbz_steps_are_kept_for_packing(tmp_path):
    what = {"quantity": "DBZH", "gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
    path = fixtures.odim(tmp_path / "a.h5", field((44, 38), 0, 255, 64, dtype=np.uint8), {
        "what": ROOT, "where": LAEA, "dataset1/what": PERIOD, "dataset1/data1/what": what})  # fmt: skip
    cube = odim.read(Item(path))
    assert cube["reflectivity"].encoding["quantum"] == 0.5
    np.testing.assert_array_equal(start(cube, "reflectivity", 3), [-32, np.nan, 0])


def test_find_leaves_out_dwd_forecasts(tmp_path):
    names = (
        "composite_rv_20250909_0635_000-hd5",
        "composite_rv_20250909_0635_005-hd5",
        "composite_hx_20250909_0635-hd5",
    )
    for name in names:
        (tmp_path / name).touch()
    assert [item.path.name for item in odim.find(tmp_path)] == [names[2], names[0]]
    assert [item.path.name for item in odim.find(tmp_path / names[1])] == [names[1]]  # asked for by name


@pytest.mark.parametrize(("what", "root", "where", "fault"), [
    ({"quantity": "VRADH"}, {}, {}, "holds VRADH; give one of RATE"),
    ({}, {"object": "PVOL"}, {}, "holds a PVOL"),
    ({"quantity": "ACRR", "starttime": "180500"}, {}, {}, "over no time"),
    ({}, {}, {"xsize": 37}, "has 44x38 pixels but states 44x37"),
    ({}, {}, {"xscale": 50_000.0, "UL_x": 0.0, "UL_y": 0.0}, "corners that do not fit"),
    ({}, {}, {"UR_lon": None}, "all four corners"),
    ({}, {}, {"projdef": None}, "names no projection"),
    ({}, {}, {"projdef": "+proj=atlantis"}, "damaged or not"),
])  # fmt: skip
def test_refuses(tmp_path, what, root, where, fault, monkeypatch):
    places = {key: value for key, value in (LAEA | where).items() if value is not None}
    monkeypatch.setattr(fixtures, "LAEA", places)
    with pytest.raises(BadInput, match=fault):
        odim.read(Item(fixtures.odyssey(tmp_path / "a.h5", root=root, **what)))


def _corners(projdef: str, left: float, bottom: float, right: float, top: float) -> list[float]:
    grid = Grid.regular(projdef, (2, 2), upper_left=(left, top), pixel=((right - left) / 2, (top - bottom) / 2))
    places = (left, bottom), (left, top), (right, top), (right, bottom)
    return [degree for place in places for degree in grid.lonlat(*place)]


@pytest.mark.skipif(not (fixtures.SHARED / "opera").is_dir(), reason="real files are not here")
def test_real_files():
    items = list(odim.find(fixtures.SHARED / "opera"))
    assert len(items) == 12
    cube = odim.read(items[1])
    assert str(cube["time"].values[0])[:16] == "2018-08-24T18:15"
    rate = cube["rainfall_rate"].values
    assert np.nanmax(rate) == pytest.approx(_raw(items[1]).max())
    assert np.isnan(rate).mean() == pytest.approx((_raw(items[1]) == -9999000).mean())
    grid = Grid.of(cube)
    assert (grid.x[0], grid.y[0], grid.x[-1], grid.y[-1]) == (1000, -1000, 3_799_000, -4_399_000)
    names = [f"{corner}_{axis}" for axis in ("lon", "lat") for corner in ("LL", "UL", "UR", "LR")]
    stated = np.array([LAEA[name] for name in names]).reshape(2, 4)
    assert grid.misfit(*stated) < 1e-3


def _raw(item: Item) -> np.ndarray:
    with h5py.File(item.path) as file:
        return file["dataset1/data1/data"][()]
