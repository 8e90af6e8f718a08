import netCDF4
import numpy as np
import pytest
from pyproj import Transformer

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, bom
from tests import sources_gridded as gridded
from tests.paths import REAL_DATA, needs_real

BRISBANE = "+proj=aea +lat_1=-26.2 +lat_2=-29.3 +lat_0=-27.7178 +lon_0=153.24 +a=6378137 +b=6356752.31414 +x_0=0 +y_0=0"


def raw(*first: int) -> np.ndarray:
    field = np.full((16, 16), 2, np.int16)
    field[0, : len(first)] = first
    return field


def test_accumulation_becomes_rate(tmp_path):
    cube = bom.read(Item(gridded.bom(tmp_path / "66_x.prcp-c10.nc", raw=raw(0, 1, 20, 2000, -1))))
    # 0.05 mm in 10 min is 0.3 mm/h
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :6], [0, 0.3, 6, 600, np.nan, 0.6], rtol=1e-6)
    assert cube["rainfall_rate"].encoding == {"quantum": 0.3}
    assert cube["time"].values[0] == np.datetime64("2020-10-31T00:10")  # the end
    assert cube.attrs["cadence_seconds"] == 600


def test_six_minutes(tmp_path):
    cube = bom.read(Item(gridded.bom(tmp_path / "2_x.prcp-cscn.nc", raw=raw(0, 1, 20), minutes=6)))
    np.testing.assert_array_equal(cube["rainfall_rate"].values[0, 0, :3], [0, 0.5, 10])
    assert (cube["rainfall_rate"].encoding, cube.attrs["cadence_seconds"]) == ({"quantum": 0.5}, 360)


@pytest.mark.parametrize("fill", [-1, -32768])
def test_both_codes_are_no_data(tmp_path, fill):
    cube = bom.read(Item(gridded.bom(tmp_path / "a.prcp-c10.nc", raw=raw(-1, -32768, 0), fill=fill)))
    np.testing.assert_array_equal(cube["rainfall_rate"].values[0, 0, :3], [np.nan, np.nan, 0])


def test_lies_where_its_axes_say(tmp_path):
    grid = Grid.of(bom.read(Item(gridded.bom(tmp_path / "a.prcp-c10.nc"))))
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (-3750, 3750, 3750, -3750)  # from km
    assert grid.orientation == NORTH_UP
    assert grid.lonlat(0, 0) == pytest.approx((153.24, -27.7178))


def test_attributes_hold_for_all_files(tmp_path):
    first, second = (
        bom.read(Item(gridded.bom(tmp_path / f"{end[-2:]}.prcp-c10.nc", end=end)))
        for end in ("2020-10-31T00:10", "2020-10-31T00:20")
    )
    assert (first.attrs.pop("source"), second.attrs.pop("source")) == ("10.prcp-c10.nc", "20.prcp-c10.nc")
    assert first.attrs == second.attrs
    assert first.attrs["licence"] == "http://www.bom.gov.au/other/copyright.shtml"
    assert first.attrs["station"] == "MtStapl"


def test_licence_without_the_attribute(tmp_path):
    cube = bom.read(Item(gridded.bom(tmp_path / "a.prcp-c10.nc", licence=None)))
    assert cube.attrs["licence"] == bom.LICENCE


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"minutes": 0}, "over no time"),
        ({"minutes": -5}, "over no time"),
        ({"units": "m"}, "holds int16 in m"),
        ({"epoch": "minutes since 1970-01-01 00:00:00 UTC"}, "does not count start_time in seconds since 1970"),
        ({"without": ["start_time"]}, "has no start_time"),
        ({"without": ["precipitation"]}, "has no precipitation"),
        ({"without": ["proj"]}, "has no proj"),
    ],
)
def test_refuses(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        bom.read(Item(gridded.bom(tmp_path / "a.prcp-c10.nc", **change)))


def test_recognises_by_its_contents(tmp_path):
    assert bom.recognises(gridded.bom(tmp_path / "a.prcp-c10.nc"))
    assert not bom.recognises(gridded.netcdf(tmp_path / "b.prcp-c10.nc", gridded.mosaic()))


REAL = REAL_DATA / "bom"


@needs_real("bom")
def test_real_files():
    items = list(bom.find(REAL))
    assert len(items) == 144
    grids, attrs, below = set(), [], 0
    for number, item in enumerate(items):
        cube = bom.read(item)
        with netCDF4.Dataset(item.path) as file:
            millimetres = file["precipitation"][:]
            start, end = (int(file[name][...]) for name in ("start_time", "valid_time"))
        assert end - start == 600
        assert cube["time"].values[0] == np.datetime64(end, "s")
        assert cube["time"].values[0] == np.datetime64("2020-10-31") + np.timedelta64(10 * number, "m")
        expected = np.ma.filled(millimetres.astype(float), np.nan) * 6
        below += int((expected < 0).sum())
        expected[expected < 0] = np.nan
        np.testing.assert_allclose(cube["rainfall_rate"].values[0], expected, rtol=1e-6)
        grids.add(Grid.of(cube).digest)
        attrs.append({key: value for key, value in cube.attrs.items() if key != "source"})
    assert (len(grids), below) == (1, 17)
    assert all(each == attrs[0] for each in attrs)
    grid = Grid.of(cube)
    assert (grid.shape, grid.orientation, np.diff(grid.x).mean()) == ((512, 512), NORTH_UP, 500)
    back = Transformer.from_crs(BRISBANE, "EPSG:4326", always_xy=True)
    for x in (-127_750, 127_750):
        for y in (-127_750, 127_750):
            assert grid.lonlat(x, y) == pytest.approx(back.transform(x, y), abs=1e-9)
    assert (grid.x[0], grid.y[0]) == (-127_750, 127_750)
