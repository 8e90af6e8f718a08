import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import Item, taxibj
from nowcast.readers.items import ITEM_BYTES
from tests import sources_video


def everything(source) -> list:
    return [taxibj.read(item) for item in taxibj.find(source)]


@pytest.mark.parametrize("packed", [False, True])
def test_inputs_and_outputs_are_one_sequence(tmp_path, packed):
    path = sources_video.taxibj(tmp_path / "taxibj" / "dataset.npz", packed=packed)
    train, test = everything(path)
    ramp = np.linspace(-1, 1, 3 * 8 * 2 * 32 * 32, dtype=np.float32).reshape(24, 2, 32, 32)
    np.testing.assert_array_equal(train["inflow"].values, ramp[:, 0])
    np.testing.assert_array_equal(train["outflow"].values, ramp[:, 1])
    assert train["sequence"].values.tolist() == [f"train/{number}" for number in range(3) for _ in range(8)]
    assert test["sequence"].values.tolist() == [f"test/{number}" for number in range(2) for _ in range(8)]
    assert (train["split"] == "train").all() and (test["split"] == "test").all()


def test_frames_are_half_hours(tmp_path):
    cube = everything(sources_video.taxibj(tmp_path / "dataset.npz"))[0]
    minutes = cube["time"].values[:9].astype("datetime64[m]").astype(int)
    assert minutes.tolist() == [0, 30, 60, 90, 120, 150, 180, 210, 0]


def test_floats_are_kept(tmp_path):
    cube = everything(sources_video.taxibj(tmp_path / "dataset.npz"))[0]
    assert cube["inflow"].dtype == np.float32 and not {"levels", "quantum"} & set(cube["inflow"].encoding)
    assert Grid.of(cube).shape == (32, 32) and not Grid.of(cube).on_earth


def test_missing_flows_are_missing(tmp_path):
    inputs = np.zeros((3, 4, 2, 32, 32), np.float32)
    inputs[1, 2, 0, 5, 6] = np.nan
    cube = everything(sources_video.taxibj(tmp_path / "dataset.npz", X_train=inputs))[0]
    assert np.argwhere(np.isnan(cube["inflow"].values)).tolist() == [[8 + 2, 5, 6]]
    assert cube["outflow"].notnull().all()


def test_a_large_file_is_read_in_parts(tmp_path):
    values = np.zeros((1500, 4, 2, 32, 32), np.float32)
    values[:, 0, 0, 0, 0] = np.arange(1500) / 1500
    path = sources_video.taxibj(tmp_path / "dataset.npz", packed=True, X_train=values, Y_train=-values)
    items = list(taxibj.find(path))
    assert [item.key for item in items] == ["train 0:1024", "train 1024:1500", "test 0:2"]
    cube = taxibj.read(items[1])
    assert sum(cube[name].nbytes for name in ("inflow", "outflow")) <= ITEM_BYTES
    assert cube["sequence"].values[0] == "train/1024"
    np.testing.assert_array_equal(cube["inflow"].values[::8, 0, 0], values[1024:, 0, 0, 0, 0])
    np.testing.assert_array_equal(cube["inflow"].values[4::8, 0, 0], -values[1024:, 0, 0, 0, 0])


def test_other_archives_are_not_taken(tmp_path):
    np.savez(tmp_path / "dataset.npz", X_train=np.zeros(3), y=np.zeros(3))
    assert not taxibj.recognises(tmp_path / "dataset.npz")
    (item,) = taxibj.find(tmp_path)
    with pytest.raises(BadInput, match=r"dataset\.npz.*has no array Y_train"):
        taxibj.read(item)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"Y_train": np.zeros((4, 4, 2, 32, 32), np.float32)}, r"holds \(3, 4, 2, 32, 32\) and \(4, 4, 2, 32, 32\)"),
        ({"Y_train": np.zeros((3, 4, 2, 32, 16), np.float32)}, r"holds \(3, 4, 2, 32, 32\) and \(3, 4, 2, 32, 16\)"),
        ({"X_train": np.zeros((3, 4, 32, 32), np.float32)}, r"holds \(3, 4, 32, 32\)"),
        ({"X_train": np.zeros((3, 4, 2, 32, 32), np.int16)}, "holds no floats"),
        ({"X_train": np.full((3, 4, 2, 32, 32), np.inf, np.float32)}, "infinite flows"),
        ({"X_train": np.array([{}])}, "as objects"),
    ],
)
def test_refuses(tmp_path, changes, fault):
    path = sources_video.taxibj(tmp_path / "dataset.npz", **changes)
    with pytest.raises(BadInput, match=rf"dataset\.npz.*: .*{fault}"):
        taxibj.read(Item(path, "train 0:1"))


@pytest.mark.parametrize("key", ["", "0:1", "valid 0:1", "train 2:4", "train x"])
def test_refuses_parts_that_are_not_there(tmp_path, key):
    path = sources_video.taxibj(tmp_path / "dataset.npz")
    with pytest.raises(BadInput, match="has no part"):
        taxibj.read(Item(path, key))
