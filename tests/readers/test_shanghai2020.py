import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import Item, shanghai2020
from nowcast.store.packing import Packing
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


def test_every_level_survives_packing(tmp_path):
    name = fixtures.shanghai_name(np.datetime64("2015-06-17T03:11:09"))
    path = fixtures.png(tmp_path / name, np.resize(np.arange(256), (460, 460)))
    variable = shanghai2020.read(Item(path))["reflectivity"]
    packing = Packing.wanted(variable)
    assert packing.dtype == np.uint8
    np.testing.assert_array_equal(packing.unpack(packing.pack(variable.values)), variable.values)


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


def test_the_list_that_is_the_source_is_the_split(tmp_path):
    folders = [fixtures.shanghai(tmp_path, example) for example in ("7", "8")]
    for split, folder in (("valid", folders[0]), ("test", folders[1])):
        listing = tmp_path / "lists" / f"Shanghai_2020_{split}_examples.txt"
        listing.parent.mkdir(exist_ok=True)
        listing.write_text(f"E:\\Shanghai_2020\\train\\examples\\{folder.name}\n")
        cube = shanghai2020.read(*shanghai2020.find(listing))
        assert (set(cube["split"].values), set(cube["sequence"].values)) == ({split}, {f"train/{folder.name}"})


@pytest.mark.parametrize("place", ["", ".."])
def test_lists_beside_the_examples_divide_them(tmp_path, place):
    root = tmp_path / "Shanghai_2020"
    folders = {example: fixtures.shanghai(root, example) for example in ("1", "2", "3", "4")}
    for split, example in (("train", "1"), ("valid", "2"), ("test", "3")):
        (root / place / f"Shanghai_2020_{split}_examples.txt").write_text(f"D:\\train\\examples\\{example}\r\n")
    splits = {item.path.name: shanghai2020.read(item)["split"].values.tolist() for item in shanghai2020.find(root)}
    assert splits == {"1": ["train"] * 20, "2": ["valid"] * 20, "3": ["test"] * 20, "4": [""] * 20}
    assert {item.key for item in shanghai2020.find(folders["2"])} == {""}


def test_without_lists_the_folder_is_the_split(tmp_path):
    for part in ("train", "test"):
        cube = shanghai2020.read(Item(fixtures.shanghai(tmp_path, part=part)))
        assert (set(cube["split"].values), set(cube["sequence"].values)) == ({part}, {f"{part}/7"})
    (picture, *_) = sorted((tmp_path / "train" / "data").iterdir())
    assert "split" not in shanghai2020.read(Item(picture)).coords


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hello\n", "not a list of examples"),
        ("", "not a list of examples"),
        ("test\\examples\\1\n", "no folder test/examples"),
    ],
)
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
