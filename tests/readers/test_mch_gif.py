import numpy as np
import pytest
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, mch_gif
from nowcast.store.packing import Packing
from tests import sources_composites
from tests.paths import REAL_DATA, needs_real

NAME = "AQC151351545F_00005.801.gif"
REAL = REAL_DATA / "mch"


def picture(*first: int) -> np.ndarray:
    index = np.zeros((640, 710), np.uint8)
    index[0, : len(first)] = first
    return index


def test_levels_become_rates(tmp_path):
    index = picture(0, 1, 2, 72, 122, 150, 250, 251, 254, 255)
    rate = mch_gif.read(Item(sources_composites.mch_gif(tmp_path / NAME, index=index)))["rainfall_rate"].values[0, 0]
    # index 72: (10 ** (0.5 / 20) / 316) ** (2 / 3) = 0.022398 mm in 5 min; each 30 indices are ten times as much
    np.testing.assert_allclose(rate[3], 0.268776, rtol=1e-5)
    np.testing.assert_allclose(rate[4], 0.268776 * 10 ** (50 / 30), rtol=1e-5)
    np.testing.assert_allclose(rate[5], 107.0015, rtol=1e-5)
    np.testing.assert_array_equal(rate[[0, 1, 7, 8]], 0)  # measured, dry
    assert 0 < rate[2] < 0.002 and rate[6] > 200_000  # the ends of the source's own table
    assert np.isnan(rate[9])


def test_time_is_a_day_of_the_year(tmp_path):
    names = (NAME, "AQC160602355V_00005.801.gif", "AQC163660000F_00005.801.gif", "CPC1717900059_00005.801.gif")
    times = [mch_gif.read(Item(sources_composites.mch_gif(tmp_path / name)))["time"].values[0] for name in names]
    # 2016 has 366 days, of which the 60th is 29 February
    assert times == [
        np.datetime64(time) for time in ("2015-05-15T15:45", "2016-02-29T23:55", "2016-12-31T00:00", "2017-06-28T00:05")
    ]


def test_lies_on_the_swiss_grid(tmp_path):
    cube = mch_gif.read(Item(sources_composites.mch_gif(tmp_path / NAME)))
    grid = Grid.of(cube)
    assert (grid.orientation, grid.crs.to_epsg()) == (NORTH_UP, 21781)
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (255_500, 964_500, 479_500, -159_500)
    # the old observatory of Bern is the origin of LV03, 600 km east and 200 km north: column 345, row 280
    assert grid.lonlat(600_000, 200_000) == pytest.approx((7.4386, 46.9511), abs=1e-3)
    assert (grid.x[345], grid.y[280]) == (600_500, 199_500)
    assert (cube.attrs["cadence_seconds"], cube.attrs["product"]) == (300, "AQC")


def test_every_level_is_kept(tmp_path):
    index = picture(*range(256))
    variable = mch_gif.read(Item(sources_composites.mch_gif(tmp_path / NAME, index=index)))["rainfall_rate"]
    packing = Packing.wanted(variable)
    np.testing.assert_array_equal(packing.unpack(packing.pack(variable.values)), variable.values)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("RZC151351545F_00005.801.gif", "a table of RZC that it does not hold"),
        ("AZC151351545F_00005.801.gif", "a table of AZC that it does not hold"),
        ("CPC181790000F_00005.801.gif", "later than 28 June 2018"),
        ("AQC151351545F_00060.801.gif", "an accumulation over 60 minutes"),
        ("AQC153661545F_00005.801.gif", "names day 366 of the year 2015"),
        ("AQC150001545F_00005.801.gif", "names day 000 of the year 2015"),
        ("AQC151352545F_00005.801.gif", "is damaged"),
        ("picture.gif", "is not named like AQC151351545F"),
    ],
)
def test_refuses_by_name(tmp_path, name, fault):
    with pytest.raises(BadInput, match=fault):
        mch_gif.read(Item(sources_composites.mch_gif(tmp_path / name)))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"index": np.zeros((64, 71))}, "has 64x71 pixels, not 640x710"),
        ({"colours": range(256)}, "another palette"),
        ({"colours": [level for level in range(256) for _ in range(3)]}, "another palette"),
    ],
)
def test_refuses_by_content(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        mch_gif.read(Item(sources_composites.mch_gif(tmp_path / NAME, **change)))


def test_a_truncated_picture_is_refused(tmp_path):
    path = sources_composites.mch_gif(tmp_path / NAME)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadInput, match="damaged or not a MeteoSwiss"):
        mch_gif.read(Item(path))


def test_recognises_its_own_only(tmp_path):
    own = sources_composites.mch_gif(tmp_path / NAME)
    small = sources_composites.mch_gif(tmp_path / "small" / NAME, index=np.zeros((64, 71)))
    other = tmp_path / "AQC_00005.801.gif"
    other.write_bytes(own.read_bytes())
    assert [mch_gif.recognises(path) for path in (own, small, other)] == [True, False, False]


def test_leaves_other_products_alone(tmp_path):
    for name in (NAME, "RZC151351545F_00005.801.gif", "AQC151351545F_00060.801.gif", "CPC151351545F_00005.801.gif"):
        sources_composites.mch_gif(tmp_path / name)
    assert [item.path.name[:3] for item in mch_gif.find(tmp_path)] == ["AQC", "CPC"]


@needs_real("mch")
def test_real_files():
    items = list(mch_gif.find(REAL))
    assert len(items) == 80
    stamps = []
    for item in items:
        cube = mch_gif.read(item)
        with Image.open(item.path) as image:
            green = 255 - np.asarray(image.convert("RGB"))[..., 1].astype(int)  # Py-ART's way: by colour
            stated = image.info["comment"].decode()
        expected = np.where(green < 2, 0, (10 ** ((green - 71.5) / 20) / 316) ** (1 / 1.5) * 12)
        expected[green == 255] = np.nan
        np.testing.assert_allclose(cube["rainfall_rate"].values[0], expected, rtol=1e-5, atol=0)
        stamps.append(cube["time"].values[0])
        assert f"PRDT={item.path.name[:12]}" in stated and "ACCUm=000005" in stated
        assert Grid.of(cube).shape == (640, 710)
    assert (stamps[0], stamps[39]) == (np.datetime64("2015-05-15T15:45"), np.datetime64("2015-05-15T19:00"))
    assert (stamps[40], stamps[79]) == (np.datetime64("2017-01-31T09:45"), np.datetime64("2017-01-31T13:00"))
    assert set(np.diff(stamps[:40])) == set(np.diff(stamps[40:])) == {np.timedelta64(300, "s")}
