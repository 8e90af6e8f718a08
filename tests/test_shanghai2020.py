import numpy as np
import pytest

from nowcast.cube import BadInput
from nowcast.grid import Grid
from nowcast.readers import Item, shanghai2020
from tests import fixtures


def test_an_example_is_a_sequence_whose_step_doubles(tmp_path):
    cube = shanghai2020.read(Item(fixtures.shanghai(tmp_path, "12345")))
    assert cube.sizes == {"time": 20, "y": 460, "x": 460}
    assert set(cube["sequence"].values) == {"train/12345"}
    assert cube["time"].values[0] == np.datetime64("2015-06-17T03:11:09")
    seconds = np.diff(cube["time"].values) / np.timedelta64(1, "s")
    np.testing.assert_array_equal(seconds, [345] * 9 + [690] * 10)
    assert "cadence_seconds" not in cube.attrs


def test_levels_become_dbz(tmp_path):
    levels = np.zeros((460, 460))
    levels[0, :4] = [0, 55, 240, 255]
    path = fixtures.png(tmp_path / fixtures.shanghai_name(np.datetime64("2015-06-17T03:11:09")), levels)
    cube = shanghai2020.read(Item(path))
    np.testing.assert_allclose(cube["reflectivity"].values[0, 0, :4], [0, 15.098, 65.882, 70], atol=1e-3)  # 70 p
    assert cube.attrs["cadence_seconds"] == 345
    grid = Grid.of(cube)
    assert (grid.x[0], grid.y[0]) == (-229_500, 229_500)
    assert grid.lonlat(0, 0) == pytest.approx((121.885, 31.007))


def test_finds_by_root_part_example_picture_and_folder_of_pictures(tmp_path):
    folders = [
        fixtures.shanghai(tmp_path, example, start=f"2015-06-17T0{example[-1]}:00:00") for example in ("10", "2")
    ]

    def found(source) -> list:
        return [item.path for item in shanghai2020.find(source)]

    assert found(tmp_path) == found(tmp_path / "train") == found(tmp_path / "train" / "examples") == folders[::-1]
    assert found(folders[0]) == folders[:1]
    pictures = found(tmp_path / "train" / "data")
    assert len(pictures) == 40 and pictures == sorted(pictures)
    assert found(pictures[3]) == [pictures[3]]


def test_finds_by_published_list(tmp_path):
    folders = [fixtures.shanghai(tmp_path, example) for example in ("7", "8")]
    listing = tmp_path / "Shanghai_2020_train_examples.txt"
    listing.write_text("E:\\data\\Shanghai_2020\\train\\examples\\8\r\nE:\\data\\Shanghai_2020\\train\\examples\\7\n")
    items = list(shanghai2020.find(listing))
    assert [item.path for item in items] == folders[::-1]  # in the order of the list
    assert shanghai2020.read(items[0])["sequence"].values[0] == "train/8"


@pytest.mark.parametrize(("text", "fault"), [
    ("hello\n", "not a list of examples"), ("", "not a list of examples"),
    ("test\\examples\\1\n", "no folder test/examples"),
])  # fmt: skip
def test_refuses_a_list(tmp_path, text, fault):
    fixtures.shanghai(tmp_path)
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(BadInput, match=fault):
        list(shanghai2020.find(tmp_path / "list.txt"))


def test_refuses_a_broken_example(tmp_path):
    folder = fixtures.shanghai(tmp_path)
    targets = folder / "7-targets-train.txt"
    names = targets.read_text().split()
    targets.write_text("\n".join([*names[:9], names[8]]))
    with pytest.raises(BadInput, match="time does not increase"):
        shanghai2020.read(Item(folder))
    targets.write_text("\n".join([*names[:9], names[9].replace("2015", "2016")]))
    with pytest.raises(BadInput, match=r"Z9210_2016.*does not exist"):
        shanghai2020.read(Item(folder))
    targets.write_text("photo.png")
    with pytest.raises(BadInput, match=r"photo\.png"):
        shanghai2020.read(Item(folder))
    targets.unlink()
    with pytest.raises(BadInput, match="has 0 lists of targets"):
        shanghai2020.read(Item(folder))
