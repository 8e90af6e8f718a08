import h5py
import numpy as np
import pytest
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, shanghai_radar
from nowcast.readers.items import ITEM_BYTES
from nowcast.store.packing import Packing
from tests import fixtures
from tests.sources_benchmarks import shanghai_clips, shanghai_event


def dated(count: int, *missing: int) -> list[str]:
    """Names every six minutes, without those of some places."""
    start = np.datetime64("2016-05-27T22:00")
    stamps = [str(start + np.timedelta64(6 * place, "m")) for place in range(count) if place not in missing]
    return ["".join(filter(str.isdigit, stamp)) for stamp in stamps]


def joined(source) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Numbers of the frames, their sequences and times, over all items."""
    cubes = [shanghai_radar.read(item) for item in shanghai_radar.find(source)]
    numbers = np.concatenate([cube["reflectivity"].values[:, 0, 0] for cube in cubes]) * 255 / 90
    labels = [label for cube in cubes for label in cube["sequence"].values]
    return np.rint(numbers).astype(int), labels, np.concatenate([cube["time"].values for cube in cubes])


def test_levels_become_dbz_and_survive_packing(tmp_path):
    (path,) = shanghai_event(tmp_path, "a", ["1"], (16, 16))
    fixtures.png(path, np.arange(256).reshape(16, 16))
    variable = shanghai_radar.read(next(shanghai_radar.find(path)))["reflectivity"]
    np.testing.assert_allclose(variable.values.ravel(), np.arange(256) * 90 / 255, atol=1e-5)
    packing = Packing.wanted(variable)
    assert packing.dtype == np.uint8
    np.testing.assert_array_equal(packing.pack(variable.values).ravel(), np.arange(256))
    np.testing.assert_array_equal(packing.unpack(packing.pack(variable.values)), variable.values)


def test_an_event_is_one_sequence_over_its_items(tmp_path):
    shanghai_event(tmp_path, "20160527", dated(70))
    items = list(shanghai_radar.find(tmp_path))
    assert [item.key for item in items] == ["0:32", "32:64", "64:70"]
    numbers, labels, times = joined(tmp_path)
    np.testing.assert_array_equal(numbers, range(70))
    assert set(labels) == {"20160527"}
    assert times[0] == np.datetime64("2016-05-27T22:00")
    assert (np.diff(times) == np.timedelta64(6, "m")).all()  # over midnight too
    cube = shanghai_radar.read(items[0])
    assert "cadence_seconds" not in cube.attrs and "split" not in cube.coords


def test_a_gap_begins_a_new_sequence_wherever_items_end(tmp_path):
    names = dated(80, 20, 40, 41)
    shanghai_event(tmp_path, "e", names)
    _, labels, times = joined(tmp_path)
    gaps = np.flatnonzero(np.diff(times) > np.timedelta64(6, "m"))
    assert [labels[gap] == labels[gap + 1] for gap in gaps] == [False, False]
    assert list(dict.fromkeys(labels)) == ["e", "e/201605280006", "e/201605280212"]
    assert [labels.count(label) for label in dict.fromkeys(labels)] == [20, 19, 38]


@pytest.mark.parametrize(
    "names",
    [
        ["frame10", "frame2", "frame1"],  # numbers
        ["20160527_220000", "20160527_220600", "extra"],  # one that is not dated
        ["20160527220000", "20169927220600", "20160527221200"],  # no date
        ["20160527220000a", "20160527220000b", "20160527221200"],  # one time twice
    ],
)
def test_frames_without_times_count_from_1970(tmp_path, names):
    shanghai_event(tmp_path, "e", names)
    numbers, labels, times = joined(tmp_path)
    order = sorted(range(3), key=lambda place: shanghai_radar.natural(names[place]))
    assert list(numbers) == order  # natural order: frame1, frame2, frame10
    assert set(labels) == {"e"}
    np.testing.assert_array_equal(times, np.datetime64(0, "s") + np.arange(3) * np.timedelta64(6, "m"))


@pytest.mark.parametrize("name", ["cappi_20160527220011.ref", "20160527-220011", "x_20160527_2200", "20160527T2200"])
def test_times_in_names(tmp_path, name):
    shanghai_event(tmp_path, "e", [name])
    assert str(joined(tmp_path)[2][0]).startswith("2016-05-27T22:00")


def test_events_are_in_natural_order_and_named_from_the_archive_on(tmp_path):
    for event in ("10", "9", "2015/x"):
        shanghai_event(tmp_path, event, ["1", "2"])
    _, labels, _ = joined(tmp_path)
    assert list(dict.fromkeys(labels)) == ["9", "10", "2015/x"]
    assert joined(tmp_path / "nh_radar_comp_echo" / "10")[1] == ["10", "10"]


def test_one_picture_keeps_its_place_in_the_event(tmp_path):
    paths = shanghai_event(tmp_path, "e", ["1", "2", "3"])
    cube = shanghai_radar.read(*shanghai_radar.find(paths[2]))
    assert cube["time"].values[0] == np.datetime64("1970-01-01T00:12")
    assert cube.sizes["time"] == 1


def test_grid_is_centred_on_the_radar(tmp_path):
    shanghai_event(tmp_path, "e", ["1"], (50, 60))
    grid = Grid.of(shanghai_radar.read(*shanghai_radar.find(tmp_path)))
    assert grid.orientation == NORTH_UP
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (-29_500, 29_500, 24_500, -24_500)
    assert grid.lonlat(0, 0) == pytest.approx((121.885, 31.007))


def test_recognises_the_archive_and_not_other_pictures(tmp_path):
    (path,) = shanghai_event(tmp_path, "e", ["1"])
    assert shanghai_radar.recognises(path)
    assert not shanghai_radar.recognises(fixtures.png(tmp_path / "e" / "1.png", np.zeros((4, 4))))


# --- clips ----------------------------------------------------------------------------------------


def test_clips_are_sequences_with_a_split(tmp_path):
    clip = np.zeros((25, 40, 50), np.uint8)
    clip[:, 0, 0] = np.arange(25) * 10
    names = ("train/10", "train/0", "train/9", "test/0")
    path = shanghai_clips(tmp_path / "shanghai.h5", dict.fromkeys(names, clip))
    assert shanghai_radar.recognises(path)
    items = list(shanghai_radar.find(tmp_path))
    assert [item.key for item in items] == ["train/0", "train/9", "train/10", "test/0"]
    cube = shanghai_radar.read(items[2])
    assert (set(cube["sequence"].values), set(cube["split"].values)) == ({"train/10"}, {"train"})
    np.testing.assert_allclose(cube["reflectivity"].values[:, 0, 0], np.arange(25) * 10 * 90 / 255, rtol=1e-5)
    assert (np.diff(cube["time"].values) == np.timedelta64(6, "m")).all()


@pytest.mark.parametrize(
    ("clip", "fault"),
    [
        (np.zeros((25, 40)), r"as float64 of \(25, 40\)"),
        (np.zeros((25, 40, 50)), r"as float64 of \(25, 40, 50\)"),
        (np.zeros((65, 4, 4), np.uint8), r"as uint8 of \(65, 4, 4\)"),
        (np.zeros((2, 1, 4), np.uint8), r"as uint8 of \(2, 1, 4\)"),
        (np.zeros((1, 2048, 1024), np.uint8), r"as uint8 of \(1, 2048, 1024\)"),
    ],
)
def test_refuses_clips(tmp_path, clip, fault):
    path = shanghai_clips(tmp_path / "shanghai.h5", {"train/0": clip})
    with pytest.raises(BadInput, match=rf"shanghai\.h5: holds train/0 {fault}"):
        shanghai_radar.read(*shanghai_radar.find(path))
    for key in ("", "train", "train/../test/0"):
        with pytest.raises(BadInput, match="has no clip"):
            shanghai_radar.read(Item(path, key))


def test_clips_of_other_sources_are_not_recognised(tmp_path):
    with h5py.File(tmp_path / "meteo_radar.h5", "w") as file:
        file["train/0"], file["train_len"] = np.zeros((25, 565, 784), np.uint8), 1
    assert not shanghai_radar.recognises(tmp_path / "meteo_radar.h5")
    with pytest.raises(BadInput, match="holds no picture and no clip"):
        list(shanghai_radar.find(tmp_path))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["vil"] = np.zeros(3)
    with pytest.raises(BadInput, match="holds no clips in train and test"):
        list(shanghai_radar.find(tmp_path / "x.h5"))


def test_pictures_and_clips_are_not_mixed(tmp_path):
    shanghai_event(tmp_path, "e", ["1"])
    shanghai_clips(tmp_path / "shanghai.h5", {"train/0": np.zeros((25, 50, 60), np.uint8)})
    with pytest.raises(BadInput, match="holds pictures and clips cut from them"):
        list(shanghai_radar.find(tmp_path))


# --- refusals -------------------------------------------------------------------------------------


def test_refuses_a_picture_of_another_size_mode_and_format(tmp_path):
    paths = shanghai_event(tmp_path, "e", ["1", "2"])
    fixtures.png(paths[1], np.zeros((40, 60)))
    (item,) = shanghai_radar.find(tmp_path)
    with pytest.raises(BadInput, match=r"2\.png: has 40x60 pixels, not 50x60"):
        shanghai_radar.read(item)
    fixtures.png(paths[0], np.zeros((1100, 1000)))
    with pytest.raises(BadInput, match=r"1\.png: has 1100x1000 pixels"):
        shanghai_radar.read(item)
    Image.new("RGB", (60, 50), (255, 0, 0)).save(paths[0])
    with pytest.raises(BadInput, match="coloured picture"):
        shanghai_radar.read(item)
    paths[0].write_bytes(b"radar")
    with pytest.raises(BadInput, match=r"1\.png: is damaged or not a PNG image"):
        shanghai_radar.read(item)
    with pytest.raises(BadInput, match="has no part"):
        shanghai_radar.read(Item(paths[0]))


def test_frames_that_come_or_go_do_not_shift_an_item(tmp_path):
    paths = shanghai_event(tmp_path, "e", dated(40))
    _, second = shanghai_radar.find(tmp_path)
    paths[3].unlink()
    cube = shanghai_radar.read(second)
    assert np.rint(cube["reflectivity"].values[:, 0, 0] * 255 / 90).tolist() == list(range(32, 40))
    paths[32].unlink()
    with pytest.raises(BadInput, match=r"201605280112\.png: does not exist"):
        shanghai_radar.read(second)


def test_an_item_is_small(tmp_path):
    shanghai_event(tmp_path, "e", [str(number) for number in range(40)], (501, 501))
    cube = shanghai_radar.read(next(shanghai_radar.find(tmp_path)))
    assert cube["reflectivity"].nbytes <= ITEM_BYTES
