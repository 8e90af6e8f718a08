import numpy as np
import pytest
import xarray as xr

from nowcast.cube import BadInput
from nowcast.grid import NORTH_UP, Grid
from nowcast.readers import Item, hko7
from nowcast.store import _in_order
from nowcast.units import rate_from_reflectivity
from tests import fixtures


def levels(*first: int) -> np.ndarray:
    field = np.zeros((480, 480), np.uint8)
    field[0, : len(first)] = first
    return field


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_levels_become_dbz(tmp_path, mode):
    cube = hko7.read(Item(fixtures.hko7(tmp_path, "1505100306", levels=levels(0, 51, 102, 255), mode=mode)))
    np.testing.assert_allclose(cube["reflectivity"].values[0, 0, :4], [-10, 4, 18, 60], atol=1e-5)  # 70 p - 10
    assert cube["time"].values[0] == np.datetime64("2015-05-10T03:06")
    assert cube.attrs["cadence_seconds"] == 360
    assert cube.attrs["tolerated_gap"] == 2
    assert cube.attrs["mask"] == "none"


def test_rate_by_the_observatory(tmp_path):
    # the pixel values that the benchmark gives for 0.5, 2, 5, 10, 30 mm/h, and 516.7 mm/h for 255
    dbz = 70 * np.array([83.70, 117.92, 140.53, 157.64, 184.75, 255]) / 255 - 10
    np.testing.assert_allclose(rate_from_reflectivity(dbz, zr=hko7.ZR), [0.5, 2, 5, 10, 30, 516.7], rtol=1e-3)


def test_mask_of_the_frame_is_no_data(tmp_path):
    mask = np.ones((480, 480), bool)
    mask[0, 1], mask[479, 0] = False, False
    cube = hko7.read(Item(fixtures.hko7(tmp_path, "1505100300", levels=levels(51, 51), mask=mask)))
    values = cube["reflectivity"].values[0]
    np.testing.assert_array_equal(np.argwhere(np.isnan(values)), [[0, 1], [479, 0]])
    assert cube.attrs["mask"] == "of the frame"


def test_common_mask_where_the_frame_has_none(tmp_path):
    exclude = np.zeros((480, 480), np.uint8)
    exclude[5, 7] = 1
    (tmp_path / "hko_data").mkdir()
    np.savez(tmp_path / "hko_data" / "mask_dat.npz", exclude_mask=exclude)
    cube = hko7.read(Item(fixtures.hko7(tmp_path, "1505100300")))
    np.testing.assert_array_equal(np.argwhere(np.isnan(cube["reflectivity"].values[0])), [[5, 7]])
    assert cube.attrs["mask"] == "exclude_mask of mask_dat.npz"


def test_grid_is_centred_on_the_radar(tmp_path):
    grid = Grid.of(hko7.read(Item(fixtures.hko7(tmp_path, "1505100300"))))
    assert grid.orientation == NORTH_UP
    assert grid.lonlat(0, 0) == pytest.approx((114.1242, 22.4117))
    assert (grid.x[0], grid.x[-1] - grid.x[0]) == pytest.approx((-256_000 + 512_000 / 960, 512_000 * 479 / 480))


def test_finds_by_root_day_and_file(tmp_path):
    for stamp in ("1505100312", "1505100300", "1505092354"):
        fixtures.hko7(tmp_path, stamp, mask=fixtures.hko7_circle())
    day = tmp_path / "radarPNG" / "2015" / "05" / "10"
    assert _stamps(tmp_path) == ["1505092354", "1505100300", "1505100312"]
    assert _stamps(day) == ["1505100300", "1505100312"]
    assert _stamps(day / "RAD150510030000.png") == ["1505100300"]


@pytest.mark.parametrize("place", ["", "samples", "samples/more"])
def test_finds_by_day_list(tmp_path, place):
    for stamp in ("1505100300", "1405090006", "1505110000"):
        fixtures.hko7(tmp_path, stamp)
    days = tmp_path / place / "hko7_rainy_test_days.txt"
    days.parent.mkdir(parents=True, exist_ok=True)
    days.write_text("20150510, 14.9\n20140509, 0.1\n20990101, 3.0\n\n")
    assert _stamps(days) == ["1405090006", "1505100300"]  # sorted; days that are not there are left out


def _stamps(source) -> list[str]:
    return [item.path.name[3:13] for item in hko7.find(source)]


@pytest.mark.parametrize(("text", "fault"), [
    ("hello\n", "not a list of days"), ("", "not a list of days"), ("20100101, 1\n", "lists no day"),
])  # fmt: skip
def test_refuses_a_list(tmp_path, text, fault):
    fixtures.hko7(tmp_path, "1505100300")
    (tmp_path / "days.txt").write_text(text)
    with pytest.raises(BadInput, match=fault):
        list(hko7.find(tmp_path / "days.txt"))


def test_refuses_a_list_without_pictures(tmp_path):
    (tmp_path / "days.txt").write_text("20150510, 14.9\n")
    with pytest.raises(BadInput, match="no folder radarPNG"):
        list(hko7.find(tmp_path / "days.txt"))


def test_refuses_another_size_name_and_mask(tmp_path):
    with pytest.raises(BadInput, match="has 128x128 pixels, not 480x480"):
        hko7.read(Item(fixtures.hko7(tmp_path, "1505100300", levels=np.zeros((128, 128)))))
    with pytest.raises(BadInput, match="carries no time"):
        hko7.read(Item(fixtures.png(tmp_path / "input1.png", np.zeros((480, 480)))))
    with pytest.raises(BadInput, match=r"RAD159910030000.png: is damaged"):
        hko7.read(Item(fixtures.hko7(tmp_path, "1599100300")))
    for mask in (np.ones((9, 9)), np.ones((481, 480))):
        with pytest.raises(BadInput, match=r"RAD150510030600\.mask: is damaged or not an HKO-7 mask"):
            hko7.read(Item(fixtures.hko7(tmp_path, "1505100306", mask=mask)))


def test_two_missing_frames_do_not_break_a_run_but_three_do(tmp_path):
    stamps = ["1505100300", "1505100312", "1505100330", "1505100354"]  # 1, 2 and 3 frames missing between them
    cubes = [hko7.read(Item(fixtures.hko7(tmp_path, stamp))) for stamp in stamps]
    runs = _in_order(xr.concat(cubes, "time", data_vars="minimal", combine_attrs="override"))["sequence"].values
    assert list(runs) == ["2015-05-10T03:00"] * 3 + ["2015-05-10T03:54"]


@pytest.mark.skipif(not (fixtures.SHARED / "hko7").is_dir(), reason="real files are not here")
def test_real_masks_and_lists(tmp_path):
    usable = ~hko7._excluded(fixtures.SHARED / "hko7" / "mask_dat.npz")
    assert usable.shape == (480, 480)
    assert usable.mean() == pytest.approx(0.7696, abs=1e-4)
    fixtures.hko7(tmp_path, "1505100300")
    for days, count in (("train", 812), ("valid", 50), ("test", 131)):
        text = (fixtures.SHARED / "hko7" / f"hko7_rainy_{days}_days.txt").read_text()
        assert len(text.split("\n")) - 1 == count
        (tmp_path / "days.txt").write_text(text)
        if days == "test":
            assert _stamps(tmp_path / "days.txt") == ["1505100300"] * ("20150510" in text)
