import os

import numpy as np
import pytest
import xarray as xr

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.core.units import rate_from_reflectivity
from nowcast.readers import Item, hko7
from nowcast.store.decode import in_order
from nowcast.store.packing import Packing
from tests import fixtures
from tests.paths import REAL_DATA, needs_real


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
    # ... and as shares of 255, to four digits; a pixel of 0 would be 0.01683 mm/h
    dbz = 70 * np.array([0.3283, 0.4624, 0.5511, 0.6182, 0.7245, 0, 1]) - 10
    np.testing.assert_allclose(rate_from_reflectivity(dbz, zr=hko7.ZR), [0.5, 2, 5, 10, 30, 0.01683, 516.7], rtol=1e-3)


def test_every_level_survives_packing(tmp_path):
    field = levels()
    field.flat[:256] = np.arange(256)
    variable = hko7.read(Item(fixtures.hko7(tmp_path, "1505100306", levels=field, mask=field < 255)))["reflectivity"]
    packing = Packing.wanted(variable)
    np.testing.assert_array_equal(packing.unpack(packing.pack(variable.values)), variable.values)
    np.testing.assert_allclose(variable.values.flat[:255], 70 * np.arange(255) / 255 - 10, atol=1e-5)


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
    # the benchmark's rule: neither excluded nor 0 < level < 71; nothing seen is a value
    cube = hko7.read(Item(fixtures.hko7(tmp_path, "1505100300", levels=levels(0, 1, 70, 71, 255))))
    np.testing.assert_array_equal(np.argwhere(np.isnan(cube["reflectivity"].values[0])), [[0, 1], [0, 2], [5, 7]])
    assert cube.attrs["mask"] == "by the rule, with mask_dat.npz"


def test_the_rule_gives_what_the_masks_of_the_frames_give(tmp_path):
    field = np.round(fixtures.blob((480, 480), 255)).astype(np.uint8)
    exclude = ~fixtures.hko7_circle()
    mask = ~exclude & ~((field > 0) & (field < round(0.28 * 255)))
    by_mask = hko7.read(Item(fixtures.hko7(tmp_path / "a", "1505100300", levels=field, mask=mask)))
    np.savez(tmp_path / "mask_dat.npz", exclude_mask=exclude.astype(np.uint8))
    by_rule = hko7.read(Item(fixtures.hko7(tmp_path / "b", "1505100300", levels=field)))
    np.testing.assert_array_equal(by_rule["reflectivity"], by_mask["reflectivity"])
    assert (by_mask.attrs["mask"], by_rule.attrs["mask"]) == ("of the frame", "by the rule, with mask_dat.npz")


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


def test_finds_by_a_list_with_statistics(tmp_path):
    for stamp in ("1505100300", "1405090006"):
        fixtures.hko7(tmp_path, stamp)
    days = tmp_path / "hko7_rainy_test_days_statistics.txt"
    days.write_text("20150510, 7123.4, 3.21, 55.5\n")
    assert _stamps(days) == ["1505100300"]


@pytest.mark.parametrize("place", ["", "hko_data", ".."])
def test_frames_carry_the_split_of_their_day(tmp_path, place):
    root = tmp_path / "HKO-7"
    days = {"train": "20130510, 3.0\n20140509, 1.0\n", "valid": "20120101, 0.5\n", "test": "20150510, 14.9\n"}
    (root / place).mkdir(parents=True, exist_ok=True)
    for split, text in days.items():
        (root / place / f"hko7_rainy_{split}_days.txt").write_text(text)
    stamps = {"1505100300": "test", "1405090006": "train", "1201012354": "valid", "1201020000": ""}
    for stamp, split in stamps.items():
        cube = hko7.read(Item(fixtures.hko7(root, stamp)))
        assert cube["split"].values.tolist() == [split]
        assert cube["sequence"].values.tolist() == [""]


def test_without_lists_there_are_no_splits(tmp_path):
    (tmp_path / "hko7_rainy_test_days_statistics.txt").write_text("20150510, 7123.4, 3.21, 55.5\n")
    assert "split" not in hko7.read(Item(fixtures.hko7(tmp_path, "1505100300"))).coords


def test_a_changed_list_is_read_again(tmp_path):
    path = fixtures.hko7(tmp_path, "1505100300")
    days = tmp_path / "hko7_rainy_test_days.txt"
    days.write_text("20150511, 1.0\n")
    assert hko7.read(Item(path))["split"].values[0] == ""
    days.write_text("20150510, 1.0\n")
    os.utime(days, ns=(10**18, 10**18))
    assert hko7.read(Item(path))["split"].values[0] == "test"


def test_a_list_that_is_none_is_refused_by_name(tmp_path):
    path = fixtures.hko7(tmp_path, "1505100300")
    (tmp_path / "hko7_rainy_test_days.txt").write_text("hello\n")
    with pytest.raises(BadInput, match=r"hko7_rainy_test_days\.txt: is not a list of days"):
        hko7.read(Item(path))


def test_frame_indices_pickled_by_an_old_pandas_are_left_alone(tmp_path):
    fixtures.hko7(tmp_path, "1505100300")
    (tmp_path / "pd").mkdir()
    (tmp_path / "pd" / "hko7_rainy_test.pkl").write_bytes(b"cpandas.indexes.base\n_new_Index\n.")
    assert _stamps(tmp_path) == ["1505100300"]
    assert "split" not in hko7.read(*hko7.find(tmp_path)).coords


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hello\n", "not a list of days"),
        ("", "not a list of days"),
        ("20100101, 1\n", "lists no day"),
    ],
)
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
    runs = in_order(xr.concat(cubes, "time", data_vars="minimal", combine_attrs="override"))["sequence"].values
    assert list(runs) == ["2015-05-10T03:00"] * 3 + ["2015-05-10T03:54"]


real = needs_real("hko7")


@real
def test_real_masks_and_lists(tmp_path):
    mask = REAL_DATA / "hko7" / "mask_dat.npz"
    usable = ~hko7._excluded(mask, 0)
    assert usable.shape == (480, 480)
    assert usable.mean() == pytest.approx(0.7696, abs=1e-4)  # 23.0 % are excluded
    with np.load(mask) as masks, pytest.warns(UserWarning, match="Python 2"):
        np.testing.assert_array_equal(~usable, (masks["out_boundary_mask"] | masks["outlier_mask"]) > 0)
        assert masks["out_boundary_mask"].mean() == pytest.approx(0.218, abs=1e-3)
    for split, text in _real_lists().items():
        fixtures.hko7(tmp_path, "1505100300")
        (tmp_path / "days.txt").write_text(text)
        if split == "test":
            assert _stamps(tmp_path / "days.txt") == ["1505100300"] * ("20150510" in text)


def _real_lists() -> dict[str, str]:
    return {split: (REAL_DATA / "hko7" / f"hko7_rainy_{split}_days.txt").read_text() for split in hko7.SPLITS}


@real
def test_real_lists_divide_812_50_and_131_days(tmp_path):
    days = {split: [line.split(",")[0] for line in text.split()[::2]] for split, text in _real_lists().items()}
    assert {split: len(set(named)) for split, named in days.items()} == {"train": 812, "valid": 50, "test": 131}
    assert {split: len(named) for split, named in days.items()} == {"train": 812, "valid": 50, "test": 131}
    assert not set(days["train"]) & set(days["valid"]) and {day[:4] for day in days["test"]} == {"2015"}
    years = [sum(day.startswith(f"20{year:02}") for day in days["train"]) for year in range(9, 15)]
    assert years == [122, 134, 114, 151, 151, 140]
    for split, text in _real_lists().items():
        path = tmp_path / f"hko7_rainy_{split}_days.txt"
        path.write_text(text)
        assert hko7._days(path, 0) == frozenset(days[split])
    for split, named in days.items():
        path = tmp_path / "radarPNG" / named[7][:4] / named[7][4:6] / named[7][6:] / f"RAD{named[7][2:]}000000.png"
        assert {hko7._split(path, day) for day in named} == {split}
