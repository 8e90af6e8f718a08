from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pyproj import Proj

from nowcast.core.cube import identity, impossible
from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, odim
from nowcast.store.packing import Packing
from tests import fixtures
from tests.fixtures import BELGIUM, DE1200, LAEA, LAMBERT_2008, PERIOD, ROOT, SWISS
from tests.paths import REAL_DATA, needs_real


def field(shape: tuple[int, int], *first: float, dtype: type = np.float64) -> np.ndarray:
    values = np.zeros(shape, dtype)
    values[0, : len(first)] = first
    return values


def start(cube, name: str, count: int) -> np.ndarray:
    return cube[name].values[0, 0, :count]


def test_odyssey_rate(tmp_path):
    path = fixtures.odyssey(
        tmp_path / "T_PAAH21_C_EUOC_20180824180000.hdf", data=field((44, 38), -9999000.0, -8888000.0, 0.0, 0.01, 8646.0)
    )
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
    path = fixtures.odim(
        tmp_path / "T_PABV21_C_EUOC_20241126010000.hdf",
        field((44, 38), -9999000.0, -8888000.0, -40.0, 12.5),
        {
            "what": ROOT | {"version": "H5rad 2.4"},
            "where": LAEA,
            "how": {"zr_a": 200.0, "zr_b": 1.6},
            "dataset1/what": PERIOD | {"product": "MAX"},
            "dataset1/data1/what": what,
            "dataset1/data1/quality1/what": {"quantity": "QIND"},
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_array_equal(start(cube, "reflectivity", 4), [np.nan, -32, -32, 12.5])
    assert (cube.attrs["cadence_seconds"], cube.attrs["zr_a"], cube.attrs["zr_b"]) == (300, 200.0, 1.6)


def test_cirrus_quality_lies_below_the_data_and_its_codes_are_its_own(tmp_path):
    what = {"quantity": "DBZH", "gain": 1.0, "offset": 0.0, "nodata": -9999000.0, "undetect": -8888000.0}
    path = fixtures.odim(
        tmp_path / "T_PABV21_C_EUOC_20241126010500.hdf",
        field((44, 38), 0.5, -8888000.0, -9999000.0),
        {
            "what": ROOT | {"version": "H5rad 2.4", "date": "20241126", "time": "010500"},
            "where": LAEA,
            "dataset1/what": {"product": "MAX"},
            "dataset1/data1/what": what,
            # NIMBUS states no nodata here, CIRRUS does
            "dataset1/data1/quality1/what": {"gain": 0.004, "offset": 0.1, "nodata": 0.5},
            "dataset1/data1/quality1/how": {"task": "pl.imgw.quality.qi_total"},
        },
    )
    with h5py.File(path, "a") as file:
        file["dataset1/data1/quality1/data"] = np.full((44, 38), 0.5)
    cube = odim.read(Item(path))
    np.testing.assert_array_equal(start(cube, "reflectivity", 3), [0.5, -32, np.nan])
    assert list(cube.data_vars) == ["reflectivity"]
    assert cube["time"].values[0] == np.datetime64("2024-11-26T01:05")
    grid = Grid.of(cube)
    assert grid.shape == (44, 38)  # 4400 x 3800 of 1 km in earnest, on the same area as ODYSSEY
    assert (grid.x[0] - 50_000, grid.y[0] + 50_000) == (0, 0)


@pytest.mark.parametrize(
    ("name", "quantity", "period", "factor"),
    [
        ("T_PAAH22_C_EUOC_20241126010000.hdf", "RATE", ("010000", "010000"), 1),
        ("T_PASH22_C_EUOC_20241126010000.hdf", "ACRR", ("000000", "010000"), 1),  # an hour
    ],
)
def test_nimbus_rate_and_hourly_accumulation(tmp_path, name, quantity, period, factor):
    what = {"quantity": quantity, "gain": 1.0, "offset": 0.0, "nodata": -9999000.0, "undetect": -8888000.0}
    times = {"startdate": "20241126", "starttime": period[0], "enddate": "20241126", "endtime": period[1]}
    path = fixtures.odim(
        tmp_path / name,
        field((44, 38), -9999000.0, -8888000.0, 2.5),
        {
            "what": ROOT | {"version": "H5rad 2.4", "date": "20241126", "time": "010000"},
            "where": LAEA,
            "how": {"zr_a": 200.0, "zr_b": 1.6},
            "dataset1/what": times | {"product": "COMP"},
            "dataset1/data1/what": what,
            "dataset1/data1/quality1/what": {"gain": 1.0, "offset": 0.0},
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 3), [np.nan, 0, 2.5 * factor], rtol=1e-6)
    assert cube["time"].values[0] == np.datetime64("2024-11-26T01:00")
    assert (cube.attrs["cadence_seconds"], cube.attrs["zr_a"], cube.attrs["zr_b"]) == (900, 200.0, 1.6)
    assert cube.attrs["odim_quantity"] == quantity


def test_rmi_keeps_its_grid_in_the_dataset_and_states_no_codes(tmp_path):
    names = ("LL_lon", "LL_lat", "UL_lon", "UL_lat", "UR_lon", "UR_lat", "LR_lon", "LR_lat")
    corners = dict(zip(names, _corners(LAMBERT_2008, 300_000, 300_000, 1_000_000, 1_000_000), strict=True))
    path = fixtures.odim(
        tmp_path / "20210704180500.rad.best.comp.rate.qpe.hdf",
        field((70, 70), np.nan, 0.0, 3.5, dtype=np.float32),
        {
            "what": ROOT | {"date": "20210704", "time": "180500"},
            "where": {"projdef": LAMBERT_2008} | corners,
            "dataset1/where": BELGIUM,
            "dataset1/data1/what": {"quantity": "RATE"},
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_array_equal(start(cube, "rainfall_rate", 3), [np.nan, 0, 3.5])
    grid = Grid.of(cube)
    assert (grid.x[0], grid.y[0], grid.x[-1], grid.y[-1]) == (305_000, 995_000, 995_000, 305_000)
    assert cube.attrs["cadence_seconds"] == 0  # nothing tells
    assert cube["time"].values[0] == np.datetime64("2021-07-04T18:05")


def test_dwd_reflectivity(tmp_path):
    what = {"quantity": "DBZH", "gain": 0.0029296875, "offset": -64.0, "nodata": 65535.0, "undetect": 0.0}
    path = fixtures.odim(
        tmp_path / "composite_hx_20250909_0635-hd5",
        field((24, 22), 0, 65535, 1, 32768, dtype=np.uint16),
        {
            "what": ROOT | {"date": "20250909", "time": "063500"},
            "where": DE1200,
            "dataset1/data1/what": what,
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "reflectivity", 4), [-32, np.nan, -32, 32.0])
    assert "quantum" not in cube["reflectivity"].encoding  # 65,536 steps do not fit 16 signed bits


def test_dwd_accumulation_becomes_rate_at_its_end(tmp_path):
    what = {"quantity": "ACRR", "gain": 0.01, "offset": 0.0, "nodata": 65535.0, "undetect": 0.0}
    period = {"startdate": "20250909", "starttime": "063000", "enddate": "20250909", "endtime": "063500"}
    path = fixtures.odim(
        tmp_path / "composite_rv_20250909_0635_000-hd5",
        field((24, 22), 0, 65535, 25, dtype=np.uint16),
        {
            "what": ROOT | {"date": "20250909", "time": "063500"},
            "where": DE1200,
            "dataset1/what": period,
            "dataset1/data1/what": what,
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 3), [0, np.nan, 3.0], rtol=1e-6)  # 0.25 mm in 5 min
    assert cube["rainfall_rate"].encoding["quantum"] == 0.12
    assert cube["time"].values[0] == np.datetime64("2025-09-09T06:35")
    assert cube.attrs["cadence_seconds"] == 300


def test_dwd_hourly_sums_of_radolan(tmp_path):
    """RW, since 2025 in ODIM_H5 too: tenths of a millimetre in an hour, every hour."""
    what = {"quantity": "ACRR", "gain": 0.1, "offset": 0.0, "nodata": 65535.0, "undetect": 0.0}
    period = {"startdate": "20250909", "starttime": "055000", "enddate": "20250909", "endtime": "065000"}
    path = fixtures.odim(
        tmp_path / "composite_rw_20250909_0650-hd5",
        field((24, 22), 0, 65535, 25, dtype=np.uint16),
        {
            "what": ROOT | {"date": "20250909", "time": "065000"},
            "where": DE1200,
            "dataset1/what": period,
            "dataset1/data1/what": what,
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 3), [0, np.nan, 2.5], rtol=1e-6)
    assert cube["rainfall_rate"].encoding["quantum"] == 0.1
    grid = Grid.of(cube)
    corners = [DE1200[f"{corner}_{axis}"] for axis in ("lon", "lat") for corner in ("LL", "UL", "UR", "LR")]
    assert grid.misfit(*np.reshape(corners, (2, 4))) < 1e-3


def test_meteo_france_accumulates_five_minutes(tmp_path):
    """LAME_D_EAU: hundredths of a millimetre in 16 bits on a polar stereographic grid."""
    projection = (
        "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=45 +x_0=619652.074056 +y_0=3526818.337932 +a=6378137 +b=6356752"
    )
    grid = Grid.regular(projection, (50, 40), upper_left=(0.0, 0.0), pixel=(20_000.0, 20_000.0))
    corners = {}
    for name, x, y in (("LL", 0, -1e6), ("UL", 0, 0), ("UR", 8e5, 0), ("LR", 8e5, -1e6)):
        corners[f"{name}_lon"], corners[f"{name}_lat"] = map(float, grid.lonlat(np.array(x), np.array(y)))
    what = {"quantity": "ACRR", "gain": 0.01, "offset": 0.0, "nodata": 65535.0, "undetect": 0.0}
    path = fixtures.odim(
        tmp_path / "T_IPRN20_C_LFPW_20240501120000.h5",
        field((50, 40), 65535, 0, 1, 100, dtype=np.uint16),
        {
            "what": ROOT | {"date": "20240501", "time": "120000", "source": "ORG:85,CMT:Meteo-France"},
            "where": {"projdef": projection, "xscale": 20_000.0, "yscale": 20_000.0, "xsize": 40, "ysize": 50}
            | corners,
            "dataset1/what": {
                "product": "COMP",
                "startdate": "20240501",
                "starttime": "115500",
                "enddate": "20240501",
                "endtime": "120000",
            },
            "dataset1/data1/what": what,
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 4), [np.nan, 0, 0.12, 12], rtol=1e-6)
    packing = Packing.wanted(cube["rainfall_rate"])
    assert (packing.dtype, packing.scale) == (np.int16, 0.12)
    assert (cube.attrs["cadence_seconds"], str(cube["time"].values[0])[:16]) == (300, "2024-05-01T12:00")
    np.testing.assert_allclose((Grid.of(cube).x[0], Grid.of(cube).y[0]), (10_000, -10_000), atol=0.02)


MOSAIC_500 = (
    "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=45 +ellps=WGS84 +x_0=619652.07 +y_0=5262818.34 +datum=WGS84 +units=m"
)


def french_mosaic(path: Path, stated: tuple[str, ...], **where: object) -> Path:
    """The mosaic of 500 m, thinned to 25 km: its codes for nothing are the two highest."""
    grid = Grid.regular(MOSAIC_500, (69, 69), upper_left=(0.0, 0.0), pixel=(25_000.0, 25_000.0))
    ends = {"LL": (0, -1_725_000), "UL": (0, 0), "UR": (1_725_000, 0), "LR": (1_725_000, -1_725_000)}
    corners = {}
    for name in stated:
        corners[f"{name}_lon"], corners[f"{name}_lat"] = map(float, grid.lonlat(*map(np.array, ends[name])))
    size = {"xscale": 25_000.0, "yscale": 25_000.0, "xsize": 69, "ysize": 69}
    clock = {"startdate": "20240501", "starttime": "115500", "enddate": "20240501", "endtime": "120000"}
    return fixtures.odim(
        path,
        field((69, 69), 65535, 65534, 0, 1, 100, dtype=np.uint16),
        {
            "what": ROOT | {"date": "20240501", "time": "120000", "source": "ORG:85,CMT:Meteo-France"},
            "where": {"projdef": MOSAIC_500} | size | corners | where,
            "dataset1/what": {"product": "COMP"} | clock,
            "dataset1/data1/what": {
                "quantity": "ACRR",
                "gain": 0.01,
                "offset": 0.0,
                "nodata": 65535.0,
                "undetect": 65534.0,
            },
        },
    )


@pytest.mark.parametrize("stated", [("UL",), ("LR",), ("UL", "LR"), ("LL", "UR"), ("LL", "UL", "UR", "LR")])
def test_meteo_frances_mosaic_of_500_m_by_any_of_its_corners(tmp_path, stated):
    cube = odim.read(Item(french_mosaic(tmp_path / "T_IPRN20_C_LFPW_20240501120000.h5", stated)))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 5), [np.nan, 0, 0, 0.12, 12], rtol=1e-6)
    grid = Grid.of(cube)
    assert (grid.x[0], grid.y[0], grid.x[-1], grid.y[-1]) == pytest.approx((12_500, -12_500, 1_712_500, -1_712_500))
    # PROJ's own stereographic, outside the reader: its upper left corner lies over the Atlantic
    lon, lat = Proj(MOSAIC_500)(0, 0, inverse=True)
    assert grid.lonlat(grid.x[0] - 12_500, grid.y[0] + 12_500) == pytest.approx((lon, lat), abs=1e-6)


@pytest.mark.parametrize(("stated", "where"), [((), {}), (("UL",), {"xscale": -1.0})])
def test_a_grid_needs_a_corner_and_a_size(tmp_path, stated, where):
    path = french_mosaic(tmp_path / "T_IPRN20_C_LFPW_20240501120000.h5", stated, **where)
    with pytest.raises(BadInput, match="states neither four corners nor one and the size of a pixel"):
        odim.read(Item(path))


@pytest.mark.parametrize("lacking", ["gain offset", "nodata", "undetect", "gain offset nodata undetect"])
def test_meteoswiss_may_leave_attributes_out(tmp_path, lacking):
    what = {"quantity": "RATE", "gain": 1.0, "offset": 0.0, "nodata": np.nan, "undetect": np.inf}
    data = field((64, 71), np.nan, 0.0, 2.4)
    path = fixtures.odim(
        tmp_path / "RZC251001200VL.801.h5",
        data,
        {
            "what": ROOT | {"date": "20250410", "time": "120000", "source": "ORG:215"},
            "where": SWISS,
            "dataset1/what": {"product": "COMP"},
            "dataset1/data1/what": {key: value for key, value in what.items() if key not in lacking.split()},
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 3), [np.nan, 0, 2.4], rtol=1e-6)
    assert (cube.attrs["cadence_seconds"], str(cube["time"].values[0])[:16]) == (300, "2025-04-10T12:00")


@pytest.mark.parametrize("quantity", ["POH", "MESHS", "HGHT"])
def test_meteoswiss_hail_is_no_quantity_of_ours(tmp_path, quantity):
    path = fixtures.odyssey(tmp_path / "BZC251001200VL.845.h5", quantity=quantity)
    with pytest.raises(BadInput, match=rf"BZC251001200VL\.845\.h5: holds {quantity}; give one of RATE"):
        odim.read(Item(path))


def test_meteoswiss_states_kilometres_nan_and_infinity(tmp_path):
    what = {"quantity": "ACRR", "nodata": np.nan, "undetect": np.inf}  # gain and offset left out
    period = {"startdate": "20231221", "starttime": "123000", "enddate": "20231221", "endtime": "133000"}
    path = fixtures.odim(
        tmp_path / "CPC2335513304_00060.001.h5",
        field((64, 71), np.nan, np.inf, 2.4),
        {
            "what": ROOT | {"date": "20231221", "time": "133000", "source": "ORG:215"},
            "where": SWISS,
            "dataset1/what": period,
            "dataset1/data1/what": what,
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_allclose(start(cube, "rainfall_rate", 3), [np.nan, 0, 2.4], rtol=1e-6)
    grid = Grid.of(cube)
    assert np.unique(np.diff(grid.x)) == 10_000
    assert (grid.x[0] - 5000, grid.y[0] + 5000) == pytest.approx((2_255_000, 1_480_000), abs=300)
    assert cube.attrs["cadence_seconds"] == 0  # 600 until 2026, 300 since


@pytest.mark.parametrize(
    ("period", "nominal", "want"),
    [
        (("170000", "180000"), "180000", "18:00"),  # the usual
        (("175000", "180500"), "180000", "18:00"),  # the nominal time lies within: OPERA
        (("180000", "180500"), "180000", "18:05"),  # it is the start
    ],
)
def test_time_of_an_accumulation(tmp_path, period, nominal, want):
    path = fixtures.odyssey(tmp_path / "a.h5", time=nominal, quantity="ACRR", starttime=period[0], endtime=period[1])
    assert str(odim.read(Item(path))["time"].values[0])[11:16] == want


@pytest.mark.parametrize("quantity", ["RATE", "ACRR", "DBZH"])
@pytest.mark.parametrize(
    ("nominal", "fault"),
    [
        ("180000", r"is a forecast: made at 2018-08-24T18:00:00Z for 2018-08-24T18:10:00Z to 2018-08-24T18:15:00Z"),
        ("182000", r"is of 2018-08-24T18:20:00Z but covers 2018-08-24T18:10:00Z"),
    ],
)
def test_a_nominal_time_outside_of_the_period_is_refused(tmp_path, nominal, fault, quantity):
    path = fixtures.odyssey(tmp_path / "a.h5", time=nominal, quantity=quantity, starttime="181000", endtime="181500")
    with pytest.raises(BadInput, match=fault):
        odim.read(Item(path))


@pytest.mark.parametrize("seconds", [599, 600, 601])
def test_a_period_that_ends_with_its_last_second_is_what_is_meant(tmp_path, seconds):
    end = str(np.datetime64("2018-08-24T17:50", "s") + seconds)[11:].replace(":", "")
    path = fixtures.odyssey(
        tmp_path / "a.h5", time="175000", quantity="ACRR", starttime="175000", endtime=end, data=np.ones((44, 38))
    )
    cube = odim.read(Item(path))
    assert cube.attrs["accumulation_seconds"] == 600 and (cube["rainfall_rate"] == 6).all()
    if seconds <= 600:
        assert cube["time"].values[0] == np.datetime64("2018-08-24T18:00")


def several(folder) -> Item:
    """Quality, reflectivity, a rate and two sums on one grid."""
    path = fixtures.odim(
        folder / "a.h5",
        np.zeros((44, 38)),
        {"what": ROOT, "where": LAEA, "dataset1/what": PERIOD, "dataset1/data1/what": {"quantity": "QIND"}},
    )
    kinds = [("TH", "175000"), ("RATE", "175000"), ("ACRR", "170000"), ("ACRR", "120000")]
    with h5py.File(path, "a") as file:
        for number, (quantity, begin) in enumerate(kinds, start=2):
            file[f"dataset{number}/data1/data"] = np.full((44, 38), 20.0)
            period = PERIOD | {"starttime": begin, "endtime": "180000", "quantity": quantity, "product": "COMP"}
            what = file[f"dataset{number}"].create_group("what")
            for name, value in period.items():
                what.attrs[name] = np.bytes_(value)
    return Item(path)


def test_first_known_quantity_is_taken(tmp_path):
    assert (odim.read(several(tmp_path))["reflectivity"] == 20).all()


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        ("", "TH COMP, reflectivity"),
        ("RATE COMP", "RATE COMP, rainfall_rate"),
        ("rainfall_rate", "RATE COMP, rainfall_rate"),
        ("acrr comp", "ACRR COMP, rainfall_rate, sum of 60 min"),
        ("sum of 360 min", "ACRR COMP, rainfall_rate, sum of 360 min"),
        ("RW", "TH COMP, reflectivity"),  # none: left to whoever asked
    ],
)
def test_one_of_several_products_is_chosen(tmp_path, choice, want):
    assert str(identity(odim.read(replace(several(tmp_path), product=choice)))) == want


@pytest.mark.parametrize(
    ("name", "what", "want"),
    [
        ("composite_hx_20250909_0635-hd5", {"prodname": "HX_top_view", "product": "MAX"}, "RATE MAX HX_top_view HX"),
        ("composite_dmax_20250909_0635-hd5", {"product": "MAX"}, "RATE MAX DMAX"),
        ("CPC2335513304_00060.001.h5", {}, "RATE COMP CPC"),
        ("a.h5", {"prodname": "Rain of 24 August"}, "RATE COMP"),
        ("a.h5", {"prodname": "COMP_20180824"}, "RATE COMP"),
        ("a.h5", {"product": "CAPPI", "prodpar": 2000.0}, "RATE CAPPI"),
    ],
)
def test_a_product_is_named_by_what_stays_the_same(tmp_path, name, what, want):
    cube = odim.read(Item(fixtures.odyssey(tmp_path / name, **what)))
    assert cube.attrs["product"] == want
    assert cube.attrs["level"] == ("2000 m" if "prodpar" in what else "")


# --- where ----------------------------------------------------------------------------------------

DMI = {
    "projdef": "+proj=stere +ellps=WGS84 +lat_0=56 +lon_0=10.5666 +lat_ts=56",
    "LL_lon": 4.379082700525593,
    "LL_lat": 52.29427206432812,
    "UL_lon": 3.0,
    "UL_lat": 60.0,
    "UR_lon": 20.735140174892805,
    "UR_lat": 59.827708427801085,
    "LR_lon": 18.893280870398133,
    "LR_lat": 52.29427206432812,  # that of LL
    "xscale": 500.0,
    "yscale": 500.0,
    "xsize": 1984,
    "ysize": 1728,
}
"""As DMI writes it: corners that are centres of pixels, one of them 30 pixels off."""


def test_dmi(tmp_path):
    """The codes are in ``what`` of the root, the quantity is an attribute of the data group."""
    codes = {"product": "DBZH", "gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
    path = fixtures.odim(
        tmp_path / "dk.com.202608131535.500_max.h5",
        field((1728, 1984), 0, 255, 64, dtype=np.uint8),
        {
            "what": ROOT | {"date": "20260813", "time": "153500"} | codes,
            "where": DMI,
            "dataset1/data1": {"quantity": "DBZH"},
        },
    )
    cube = odim.read(Item(path))
    np.testing.assert_array_equal(start(cube, "reflectivity", 3), [-32, np.nan, 0])
    grid = Grid.of(cube)
    lon, lat = grid.lonlat(grid.x[0], grid.y[0])
    assert (lon, lat) == pytest.approx((3, 60), abs=1e-6)
    assert grid.lonlat(grid.x[-1], grid.y[0]) == pytest.approx((DMI["UR_lon"], DMI["UR_lat"]), abs=1e-6)
    np.testing.assert_allclose(np.diff(grid.x), 500, atol=1e-6)
    assert cube.attrs["outvoted"] == "the LR corner"
    assert cube.attrs["product"] == "DBZH"


@pytest.mark.parametrize("corner", ["LL", "UL", "UR", "LR"])
@pytest.mark.parametrize("axis", ["lon", "lat"])
@pytest.mark.parametrize("off", [-7.0, 7.0, 200.0, np.nan])
def test_three_corners_outvote_the_fourth(tmp_path, monkeypatch, corner, axis, off):
    name = f"{corner}_{axis}"
    right = Grid.of(odim.read(Item(fixtures.odyssey(tmp_path / "right.h5"))))
    monkeypatch.setattr(fixtures, "LAEA", LAEA | {name: LAEA[name] + off})
    cube = odim.read(Item(fixtures.odyssey(tmp_path / "a.h5")))
    assert Grid.of(cube).digest == right.digest
    assert cube.attrs.get("outvoted", "") == ("" if np.isnan(off) else f"the {corner} corner")


@pytest.mark.parametrize(
    ("wrong", "noted"),
    [
        ({"xsize": 37}, "44x37 pixels"),
        ({"xscale": 50_000.0}, "the size of a pixel"),
        ({"UL_x": 500_000.0, "UL_y": 0.0}, "the upper left corner in metres"),
        ({"UL_x": 0.0, "UL_y": 0.0}, ""),
        ({"xscale": None, "yscale": None}, ""),
        ({"xscale": 100.0, "yscale": 100.0}, ""),  # kilometres
    ],
)
def test_one_wrong_redundant_number_refuses_nothing(tmp_path, monkeypatch, wrong, noted):
    right = Grid.of(odim.read(Item(fixtures.odyssey(tmp_path / "right.h5"))))
    places = {key: value for key, value in (LAEA | wrong).items() if value is not None}
    monkeypatch.setattr(fixtures, "LAEA", places)
    cube = odim.read(Item(fixtures.odyssey(tmp_path / "a.h5")))
    assert Grid.of(cube).digest == right.digest
    assert cube.attrs.get("outvoted", "") == noted


@pytest.mark.parametrize(
    ("name", "kind", "seconds", "want"),
    [
        ("T_PAAH22_C_EUOC_20241126010000.hdf", "RATE", 0, 900),
        ("T_PASH22_C_EUOC_20241126010000.hdf", "ACRR", 3600, 900),
        ("OPERA@20240601T0000@0@RATE.h5", "RATE", 0, 900),
        ("OPERA@20240601T0000@0@ACRR.h5", "ACRR", 3600, 900),
        ("OPERA@20240601T0000@0@DBZH.h5", "DBZH", 599, 300),
        ("202406011200_ODIM_ng_radar_rainrate_composite_1km_UK.h5", "RATE", 0, 900),
        ("composite_rv_20250909_0635_000-hd5", "ACRR", 300, 300),
        ("x.h5", "ACRR", 600, 600),
        ("x.h5", "RATE", 600, 0),  # of its scans
        ("x.h5", "ACRR", 3600, 0),  # hourly sums overlap
        ("x.h5", "DBZH", 0, 0),
    ],
)
def test_a_hint_of_the_step(name, kind, seconds, want):
    assert odim._cadence(name, kind, seconds) == want


@pytest.mark.parametrize("code", [-9999.0, -9999000.0, 1e20, np.inf])
@pytest.mark.parametrize("quantity", ["RATE", "DBZH"])
def test_an_undeclared_code_is_no_data_and_not_dry(tmp_path, quantity, code):
    what = {"nodata": None, "undetect": None, "quantity": quantity}
    cube = odim.read(Item(fixtures.odyssey(tmp_path / "a.h5", data=field((44, 38), code, 3.0), **what)))
    np.testing.assert_array_equal(next(iter(cube.data_vars.values())).values[0, 0, :3], [np.nan, 3, 0])
    assert impossible(cube).tolist() == [1]


def test_the_decibels_of_nothing_are_no_echo(tmp_path):
    what = {"nodata": None, "undetect": None, "quantity": "DBZH"}
    cube = odim.read(Item(fixtures.odyssey(tmp_path / "a.h5", data=field((44, 38), -np.inf, -50.0), **what)))
    assert start(cube, "reflectivity", 2).tolist() == [-32, -32]


def test_half_dbz_steps_are_kept_for_packing(tmp_path):
    what = {"quantity": "DBZH", "gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
    path = fixtures.odim(
        tmp_path / "a.h5",
        field((44, 38), 0, 255, 64, dtype=np.uint8),
        {"what": ROOT, "where": LAEA, "dataset1/what": PERIOD, "dataset1/data1/what": what},
    )
    cube = odim.read(Item(path))
    assert cube["reflectivity"].encoding["quantum"] == 0.5
    np.testing.assert_array_equal(start(cube, "reflectivity", 3), [-32, np.nan, 0])


@pytest.mark.parametrize(
    ("change", "dtype", "packed"),
    [
        ({}, np.uint8, np.uint8),
        ({"nodata": 254.0}, np.uint8, np.int16),  # 255 is a value
        ({"offset": -31.5}, np.uint8, np.int16),  # -32, for no echo, lies below all values
        ({"gain": 0.3}, np.uint8, None),  # the offset is no multiple
        ({}, np.uint16, np.int16),
        ({"nodata": -1.0}, np.int16, np.int16),
        ({}, np.int32, np.int16),
        ({}, np.float32, None),
    ],
)
def test_every_code_survives_packing(tmp_path, change, dtype, packed):
    what = {"quantity": "DBZH", "gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0} | change
    codes = np.zeros((44, 38), dtype)
    codes.flat[:256] = np.arange(256)
    codes.flat[256] = what["nodata"]
    path = fixtures.odim(
        tmp_path / "a.h5", codes, {"what": ROOT, "where": LAEA, "dataset1/what": PERIOD, "dataset1/data1/what": what}
    )
    variable = odim.read(Item(path))["reflectivity"]
    want = np.maximum(codes * what["gain"] + what["offset"], -32.0)
    want[codes == 0], want[codes == what["nodata"]] = -32.0, np.nan
    np.testing.assert_allclose(variable.values[0], want, rtol=1e-6)
    packing = Packing.wanted(variable)
    assert packing is None if packed is None else packing.dtype == packed
    if packing:
        np.testing.assert_array_equal(packing.unpack(packing.pack(variable.values)), variable.values)


def test_a_raster_that_no_composite_has_is_refused_unread(tmp_path):
    path = fixtures.odyssey(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["dataset1/data1/data"]
        file["dataset1/data1"].create_dataset("data", shape=(2**20, 2**20), dtype=np.float64, chunks=(64, 64))
    with pytest.raises(BadInput, match=r"holds rainfall_rate of \(1048576, 1048576\)"):
        odim.read(Item(path))


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


@pytest.mark.parametrize(
    ("what", "root", "where", "fault"),
    [
        ({"quantity": "VRADH"}, {}, {}, "holds VRADH; give one of RATE"),
        ({}, {"object": "PVOL"}, {}, "holds a PVOL"),
        ({"quantity": "ACRR", "starttime": "180500"}, {}, {}, "over no time"),
        ({}, {}, {"xsize": 37, "LL_lat": 40.0}, "has 44x38 pixels but states 44x37"),
        ({}, {}, {"LL_lat": 40.0, "UR_lon": 40.0}, "corners that do not fit"),
        ({}, {}, {"LL_lat": 40.0, "xscale": 50_000.0}, "corners that do not fit"),
        ({}, {}, {"UR_lon": None, "LL_lat": None, "xscale": None}, "neither four corners nor"),
        ({"gain": None, "offset": None, "data": np.zeros((44, 38), np.uint8)}, {}, {}, "uint8 without gain or offset"),
        ({}, {}, {"projdef": None}, "names no projection"),
        ({}, {}, {"projdef": "+proj=atlantis"}, "damaged or not"),
    ],
)
def test_refuses(tmp_path, what, root, where, fault, monkeypatch):
    places = {key: value for key, value in (LAEA | where).items() if value is not None}
    monkeypatch.setattr(fixtures, "LAEA", places)
    with pytest.raises(BadInput, match=fault):
        odim.read(Item(fixtures.odyssey(tmp_path / "a.h5", root=root, **what)))


def _corners(projdef: str, left: float, bottom: float, right: float, top: float) -> list[float]:
    grid = Grid.regular(projdef, (2, 2), upper_left=(left, top), pixel=((right - left) / 2, (top - bottom) / 2))
    places = (left, bottom), (left, top), (right, top), (right, bottom)
    return [degree for place in places for degree in grid.lonlat(*place)]


real = needs_real("opera")


@real
def test_real_files():
    items = list(odim.find(REAL_DATA / "opera"))
    assert len(items) == 12
    times = [np.datetime64("2018-08-24T18:00") + np.timedelta64(15 * place, "m") for place in range(12)]
    for item, time in zip(items, times, strict=True):
        cube, raw = odim.read(item), _raw(item)
        rate = cube["rainfall_rate"].values[0]
        assert cube["time"].values[0] == time
        assert cube.attrs["cadence_seconds"] == 900
        assert rate.shape == (2200, 1900)
        np.testing.assert_array_equal(np.isnan(rate), raw == -9999000)
        np.testing.assert_array_equal(rate[raw == -8888000], 0)
        measured = raw >= 0
        assert (measured | (raw == -9999000) | (raw == -8888000)).all()
        np.testing.assert_allclose(rate[measured], raw[measured], rtol=1e-6)
        grid = Grid.of(cube)
        assert (grid.x[0], grid.y[0], grid.x[-1], grid.y[-1]) == (1000, -1000, 3_799_000, -4_399_000)
        assert grid.misfit(*_stated_corners(item)) < 1e-3


def _raw(item: Item) -> np.ndarray:
    with h5py.File(item.path) as file:
        return file["dataset1/data1/data"][()]


def _stated_corners(item: Item) -> np.ndarray:
    with h5py.File(item.path) as file:
        where = file["where"].attrs
        return np.array([[where[f"{corner}_{axis}"] for corner in ("LL", "UL", "UR", "LR")] for axis in ("lon", "lat")])


@real
def test_real_file_lies_where_pyproj_puts_it():
    """Of a few pixels: projected by hand from the string in the file, from the upper left corner on."""
    item = next(odim.find(REAL_DATA / "opera"))
    with h5py.File(item.path) as file:
        where = dict(file["where"].attrs)
    project = Proj(where["projdef"].decode())
    left, top = project(where["UL_lon"], where["UL_lat"])
    grid = Grid.of(odim.read(item))
    for row, column in ((0, 0), (1234, 567), (2199, 1899)):
        want = project(left + (column + 0.5) * 2000, top - (row + 0.5) * 2000, inverse=True)
        assert grid.lonlat(grid.x[column], grid.y[row]) == pytest.approx(want, abs=1e-6)
