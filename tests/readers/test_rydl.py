import h5py
import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import Item, detect, radolan, rydl
from tests import sources_services


def frame(value: float = 0.0) -> np.ndarray:
    return np.full((900, 900), value, np.float32)


def test_depths_of_five_minutes_become_rates(tmp_path):
    depth = frame(0.01)
    depth[-1, :4] = [np.nan, -1, 0, 2.5]
    (item,) = rydl.find(sources_services.rydl(tmp_path / "RYDL.hdf5", {"200605010005": depth}))
    cube = rydl.read(item)
    # the last row of the file lies in the north; 0.01 mm in five minutes are 0.12 mm/h
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :5], [np.nan, np.nan, 0, 30, 0.12], rtol=1e-6)
    assert cube["time"].values[0] == np.datetime64("2006-05-01T00:05")
    assert [cube.attrs[key] for key in ("product", "accumulation_seconds", "cadence_seconds")] == ["RY", 300, 300]
    assert Grid.of(cube).digest == radolan.national_grid(False, 900, 900).digest


def test_an_item_is_an_hour(tmp_path):
    path = sources_services.rydl(tmp_path / "RYDL.hdf5")
    assert detect(path) == "rydl"
    items = list(rydl.find(tmp_path))
    assert [item.key for item in items] == ["2006050100", "2006050101"]
    minutes = [str(time)[14:16] for time in rydl.read(items[1])["time"].values]
    assert minutes == ["00", "05"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(tmp_path, dtype):
    path = sources_services.rydl(tmp_path / "RYDL.hdf5", {"200605010005": frame(0.5).astype(dtype)})
    assert (rydl.read(Item(path, "2006050100"))["rainfall_rate"].values == 6).all()


def test_refuses(tmp_path):
    path = sources_services.rydl(tmp_path / "RYDL.hdf5", {"200605010005": frame()[:800], "x": frame()})
    with pytest.raises(BadInput, match=r"holds no 900x900 numbers in /200605010005"):
        rydl.read(Item(path, "2006050100"))
    for key in ("2006050102", "", "/x"):
        with pytest.raises(BadInput, match="has no hour"):
            rydl.read(Item(path, key))
    with h5py.File(tmp_path / "RYDL_other.hdf5", "w") as file:
        file["image"] = frame()
    with pytest.raises(BadInput, match="has no data set named by its time"):
        list(rydl.find(tmp_path / "RYDL_other.hdf5"))
