import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS

from nowcast.core.grid import NORTH_UP, SOUTH_UP, Grid

DUTCH = Grid.regular("EPSG:28992", (3, 4), upper_left=(100_000, 500_000), pixel=(1000, 2000))


def test_regular_by_hand():
    np.testing.assert_array_equal(DUTCH.x, [100_500, 101_500, 102_500, 103_500])
    np.testing.assert_array_equal(DUTCH.y, [499_000, 497_000, 495_000])
    assert (DUTCH.shape, DUTCH.orientation) == ((3, 4), NORTH_UP)
    assert Grid(DUTCH.crs, DUTCH.y[::-1], DUTCH.x).orientation == SOUTH_UP


def test_coordinates_are_cf():
    coordinates = DUTCH.coordinates()
    assert coordinates["x"].attrs["standard_name"] == "projection_x_coordinate"
    assert (coordinates["y"].attrs["units"], coordinates["y"].attrs["axis"]) == ("m", "Y")
    assert coordinates["crs"].attrs["crs_wkt"] == coordinates["crs"].attrs["spatial_ref"]
    degrees = Grid.regular("EPSG:4326", (2, 2), upper_left=(5, 50), pixel=(1, 1)).coordinates()
    assert (degrees["y"].attrs["standard_name"], degrees["x"].attrs["units"]) == ("latitude", "degrees_east")


@pytest.mark.parametrize(
    "projection",
    [
        "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +R=6371000",
        "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +units=m +ellps=WGS84",
        "+proj=aeqd +lat_0=22.4 +lon_0=114.1 +ellps=WGS84",
        "+proj=somerc +lat_0=46.95 +lon_0=7.44 +k_0=1 +x_0=2600000 +y_0=1200000 +ellps=bessel +towgs84=674,15,405",
        "EPSG:4326",
    ],
)
def test_a_dataset_gives_its_grid_back(projection):
    grid = Grid.regular(projection, (2, 3), upper_left=(10, 20), pixel=(2, 3))
    again = Grid.of(xr.Dataset(coords=grid.coordinates()))
    assert again.digest == grid.digest
    assert again.lonlat(11.0, 12.0) == pytest.approx(grid.lonlat(11.0, 12.0))


def test_polar_stereographic_names_its_pole():
    for hemisphere in (1, -1):
        crs = f"+proj=stere +lat_0={90 * hemisphere} +lat_ts={60 * hemisphere} +lon_0=10 +R=6371000"
        attrs = Grid.regular(crs, (2, 2), upper_left=(0, 0), pixel=(1, 1)).coordinates()["crs"].attrs
        assert attrs["grid_mapping_name"] == "polar_stereographic"
        assert attrs["latitude_of_projection_origin"] == 90 * hemisphere


def test_lonlat_by_hand():
    # the Dutch grid's origin of 155 000, 463 000 m is the tower of Amersfoort
    lon, lat = DUTCH.lonlat(155_000, 463_000)
    assert (lon, lat) == pytest.approx((5.38720621, 52.15517440), abs=2e-3)
    assert DUTCH.project(lon, lat) == pytest.approx((155_000, 463_000), abs=0.01)


@given(lon=st.floats(-10, 30), lat=st.floats(35, 70))
def test_project_there_and_back(lon: float, lat: float):
    grid = Grid.regular("+proj=laea +lat_0=55 +lon_0=10 +ellps=WGS84", (2, 2), upper_left=(0, 0), pixel=(1, 1))
    assert grid.lonlat(*grid.project(lon, lat)) == pytest.approx((lon, lat), abs=1e-7)


def test_digest():
    same = Grid(CRS.from_user_input("EPSG:28992"), DUTCH.y + 0.001, DUTCH.x)
    assert same.digest == DUTCH.digest
    assert Grid(DUTCH.crs, DUTCH.y + 0.02, DUTCH.x).digest != DUTCH.digest
    assert Grid(CRS.from_epsg(3857), DUTCH.y, DUTCH.x).digest != DUTCH.digest
    zero, below = (Grid(DUTCH.crs, np.array([1.0, least]), DUTCH.x) for least in (0.0, -0.001))
    assert zero.digest == below.digest


@pytest.mark.parametrize("south_up", [False, True])
def test_misfit_is_in_pixels(south_up):
    grid = Grid(DUTCH.crs, DUTCH.y[::-1], DUTCH.x) if south_up else DUTCH
    x, y = np.array([100e3, 100e3, 104e3, 104e3]), np.array([494e3, 500e3, 500e3, 494e3])
    lon, lat = grid.lonlat(x, y)
    assert grid.misfit(lon, lat) == pytest.approx(0, abs=1e-4)
    assert grid.misfit(*grid.lonlat(x + np.array([0, 500, 0, 0]), y)) == pytest.approx(0.5, abs=1e-3)
    assert grid.misfit(*grid.lonlat(x, y - np.array([0, 0, 0, 3000]))) == pytest.approx(1.5, abs=1e-3)
