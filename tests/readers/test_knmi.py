import h5py
import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, knmi
from tests import fixtures
from tests.paths import REAL_DATA, needs_real

CORNERS = np.reshape(fixtures.KNMI_CORNERS, (4, 2)).T


def raw(**pixels: int) -> np.ndarray:
    """Levels of 7 everywhere but in the first pixels of row 3."""
    levels = np.full((153, 140), 7, np.uint16)
    for column, value in enumerate(pixels.values()):
        levels[3, column] = value
    return levels


def test_accumulation_becomes_rate(tmp_path):
    cube = knmi.read(Item(fixtures.knmi(tmp_path / "a.h5", raw=raw(dry=0, one=1, much=250, nothing=65535))))
    # 0.01 mm in 5 min is 0.12 mm/h; 2.5 mm is 30 mm/h
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 3, :5], [0, 0.12, 30, np.nan, 0.84], rtol=1e-6)
    assert cube["rainfall_rate"].encoding["quantum"] == 0.12
    assert cube.attrs["cadence_seconds"] == 300
    assert cube["time"].values[0] == np.datetime64("2010-08-26T00:05")


def test_period_is_taken_from_the_file(tmp_path):
    cube = knmi.read(Item(fixtures.knmi(tmp_path / "a.h5", raw=raw(x=300), end="2010-08-26T03:00", minutes=180)))
    assert cube["rainfall_rate"].values[0, 3, 0] == 1.0  # 3 mm in 3 h
    assert cube.attrs["cadence_seconds"] == 3 * 3600


def test_both_codes_are_no_data(tmp_path):
    path = fixtures.knmi(tmp_path / "a.h5", raw=raw(missing=65534, outside=65535), missing=65534)
    assert np.isnan(knmi.read(Item(path))["rainfall_rate"].values[0, 3, :2]).all()


@pytest.mark.parametrize(
    ("formula", "floor"), [("GEO = 0.500000 * PV + -32.000000", -32.0), ("GEO=0.5*PV-31.5", -31.5)]
)
def test_reflectivity(tmp_path, formula, floor):
    levels = raw(none=0, one=1, strong=160, outside=255).astype(np.uint8)
    path = fixtures.knmi(
        tmp_path / "a.h5",
        raw=levels,
        formula=formula,
        geo_parameter="REFLECTIVITY_[DBZ]",
        missing=0,
        outside=255,
        minutes=4,
    )
    cube = knmi.read(Item(path))
    # level 0, "missing" to KNMI, is a scanned pixel without echo
    np.testing.assert_array_equal(cube["reflectivity"].values[0, 3, :4], [floor, floor + 0.5, floor + 80, np.nan])
    assert cube["time"].values[0] == np.datetime64("2010-08-26T00:01")  # named after the lowest scan
    assert cube.attrs["cadence_seconds"] == 300


@pytest.mark.parametrize("place", range(8))
def test_three_corners_outvote_the_fourth(tmp_path, place):
    corners = np.array(fixtures.KNMI_CORNERS)
    right = Grid.of(knmi.read(Item(fixtures.knmi(tmp_path / "right.h5"))))
    corners[place] += 3
    assert Grid.of(knmi.read(Item(fixtures.knmi(tmp_path / "a.h5", corners=corners)))).digest == right.digest


def test_lies_where_its_corners_say(tmp_path):
    grid = Grid.of(knmi.read(Item(fixtures.knmi(tmp_path / "a.h5"))))
    assert grid.orientation == NORTH_UP
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (2500, 697_500, -3_652_500, -4_412_500)
    assert grid.misfit(*CORNERS) < 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.388 +b=6356.906 +x_0=0 +y_0=0",  # seen in files
        "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=637.8 +b=635.6",
        "+proj=merc +lon_0=3",
        "+proj=nonsense",
        "",
    ],
)
def test_a_wrong_projection_is_replaced(tmp_path, wrong):
    right, patched = (
        Grid.of(knmi.read(Item(fixtures.knmi(tmp_path / "a.h5", projection=projection))))
        for projection in (fixtures.KNMI_PROJECTION, wrong)
    )
    assert patched.digest == right.digest


def test_another_sphere_is_kept_where_nothing_contradicts_it(tmp_path):
    older = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=0 y_0=0"
    cube = knmi.read(Item(fixtures.knmi(tmp_path / "c.h5", projection=older, corners=None)))
    assert Grid.of(cube).crs.ellipsoid.semi_major_metre == 6_378_140


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"geo_parameter": "HEIGHT_[KM]"}, "holds HEIGHT_"),
        ({"formula": "GEO=log(PV)"}, "has the formula 'GEO=log"),
        ({"minutes": 0}, "over no time"),
        ({"images": 25}, "holds a forecast"),
        ({"raw": np.zeros((9, 9), np.uint16)}, "on a grid of"),
        ({"corners": np.array(fixtures.KNMI_CORNERS) + 1}, "corners"),
    ],
)
def test_refuses(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        knmi.read(Item(fixtures.knmi(tmp_path / "a.h5", **change)))


def test_refuses_a_polar_volume(tmp_path):
    path = fixtures.knmi(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["image1"]
    with pytest.raises(BadInput, match="has no image1"):
        knmi.read(Item(path))


def test_refuses_an_image_that_is_not_of_codes(tmp_path):
    path = fixtures.knmi(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        image = file["image1/image_data"][()]
        del file["image1/image_data"]
        file["image1/image_data"] = image.astype(np.float32)
    with pytest.raises(BadInput, match="holds an image of float32; give one of 8 or 16 bits"):
        knmi.read(Item(path))


@needs_real("knmi")
def test_real_files():
    items = list(knmi.find(REAL_DATA / "knmi"))
    assert len(items) == 92
    first, wettest = knmi.read(items[0]), knmi.read(items[40])
    assert str(first["time"].values[0]).startswith("2010-08-26T00:00")
    assert str(wettest["time"].values[0]).startswith("2010-08-26T03:20")
    rate = wettest["rainfall_rate"].values
    with h5py.File(items[40].path) as file:
        levels = file["image1/image_data"][()]
    np.testing.assert_allclose(rate[0][levels != 65535], levels[levels != 65535] * 0.12, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(rate[0]), levels == 65535)
    grid = Grid.of(wettest)
    assert (grid.shape, grid.misfit(*CORNERS) < 0.1) == ((765, 700), True)
    lon, lat = grid.lonlat(grid.x[0] - 500, grid.y[0] + 500)
    assert (lon, lat) == pytest.approx((0.0, 55.974), abs=0.005)
