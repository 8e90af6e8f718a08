import json
import os
import pickle

import numpy as np
import pytest
import xarray as xr
import zarr
from numcodecs import Pickle
from pyproj import CRS

from nowcast.core.errors import BadInput
from nowcast.core.grid import SOUTH_UP, Grid
from nowcast.readers import Item, zarr_cf
from tests import sources_gridded as gridded
from tests.readers.test_netcdf import changed, degrees, filled
from tests.sources_gridded import MLCAST, floats, mosaic


def read(path, number: int = 0) -> xr.Dataset:
    """One item of a store."""
    return zarr_cf.read(list(zarr_cf.find(path))[number])


def expected() -> np.ndarray:
    raw = mosaic()["rain"][1]
    return np.where(raw == -1, np.nan, raw * 0.01)


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_versions_are_the_same(tmp_path, version, consolidated):
    variables = floats(mosaic())
    path = gridded.zarr_store(tmp_path / "a.zarr", variables, MLCAST, version=version, consolidated=consolidated)
    cube = read(path)
    np.testing.assert_allclose(cube["rainfall_rate"].values, expected(), rtol=1e-6)
    assert [str(time)[11:16] for time in cube["time"].values] == ["12:00", "12:05", "12:10"]
    assert cube["rainfall_rate"].encoding == {}
    assert cube.attrs == {
        "title": zarr_cf.TITLE,
        "source": "a.zarr",
        "licence": "CC-BY-4.0",
        "institution": "Institute of Examples",
        "product": "rain",
        "accumulation_seconds": 0,
        "level": "",
        "description": "rain rate",
        "cadence_seconds": 300,
    }
    grid = Grid.of(cube)
    assert (grid.x[0], grid.y[0], grid.crs) == (100_000, 900_000, gridded.LAEA)


def test_packed_integers(tmp_path):
    field = read(gridded.zarr_store(tmp_path / "a.zarr", mosaic()))["rainfall_rate"]
    np.testing.assert_allclose(field.values, expected(), rtol=1e-6)
    assert field.encoding == {"quantum": 0.01}


def test_rain_per_square_metre(tmp_path):
    variables = changed(floats(mosaic()), standard_name="precipitation_flux", units="kg m-2 h-1")
    np.testing.assert_allclose(
        read(gridded.zarr_store(tmp_path / "a.zarr", variables))["rainfall_rate"].values, expected(), rtol=1e-6
    )


def test_longitude_and_latitude(tmp_path):
    grid = Grid.of(read(gridded.zarr_store(tmp_path / "a.zarr", degrees(20.005))))
    assert (grid.crs.to_epsg(), grid.x[0], grid.y[0]) == (4326, 20.005, 54.995)


# --- chunks that are not there --------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("fill", [np.nan, 0.0, -9.0])
def test_what_was_never_written_is_missing(tmp_path, version, fill):
    path = gridded.zarr_store(tmp_path / "a.zarr", floats(mosaic()), version=version, frames=[1], fills={"rain": fill})
    values = read(path)["rainfall_rate"].values
    np.testing.assert_allclose(values[1], expected()[1], rtol=1e-6)
    assert np.isnan(values[[0, 2]]).all()


@pytest.mark.parametrize("version", [2, 3])
def test_integers_that_were_never_written_are_missing(tmp_path, version):
    values = read(gridded.zarr_store(tmp_path / "a.zarr", mosaic(), version=version, frames=[0]))[
        "rainfall_rate"
    ].values
    np.testing.assert_allclose(values[0], expected()[0], rtol=1e-6)
    assert np.isnan(values[1:]).all()


@pytest.mark.parametrize("frames", [None, [0, 2]])
def test_integers_without_a_missing_value_must_all_be_there(tmp_path, frames):
    variables = changed(filled(mosaic(), mosaic()["rain"][1] + 1), drop=("_FillValue",))
    path = gridded.zarr_store(tmp_path / "a.zarr", variables, frames=frames, fills={"rain": 7})
    if frames is None:
        assert not np.isnan(read(path)["rainfall_rate"].values).any()
    else:
        with pytest.raises(BadInput, match="lacks chunks of rain, which has no missing value; add a _FillValue"):
            read(path)


def test_shards(tmp_path):
    path = gridded.zarr_store(
        tmp_path / "a.zarr", floats(mosaic()), shards=(3, 12, 10), frames=[0, 2], fills={"rain": 0.0}
    )
    values = read(path)["rainfall_rate"].values
    np.testing.assert_allclose(values[[0, 2]], expected()[[0, 2]], rtol=1e-6)
    assert np.isnan(values[1]).all()


def test_fill_value_is_a_missing_value_in_version_2(tmp_path):
    rates = np.full((3, 12, 10), 1, np.float32)
    rates[:, 0, 0] = 9
    variables = filled(floats(mosaic()), rates)
    old, new = (
        read(gridded.zarr_store(tmp_path / f"{version}.zarr", variables, version=version, fills={"rain": 9.0}))
        for version in (2, 3)
    )
    np.testing.assert_array_equal(old["rainfall_rate"].values[0, 0, :2], [np.nan, 1])
    np.testing.assert_array_equal(new["rainfall_rate"].values[0, 0, :2], [9, 1])  # there only _FillValue is one


def test_zero_stays_zero_in_version_2(tmp_path):
    dry = np.zeros((3, 12, 10), np.float32)
    dry[:, 0, 0] = 1  # a chunk of nothing but zeros would not be written
    path = gridded.zarr_store(tmp_path / "a.zarr", filled(floats(mosaic()), dry), version=2, fills={"rain": 0.0})
    np.testing.assert_array_equal(read(path)["rainfall_rate"].values, dry)


def test_missing_value_in_base_64(tmp_path):
    variables = floats(mosaic())
    rates = np.asarray(variables["rain"][1]).copy()
    rates[0, 5, 5] = -9
    variables = changed(filled(variables, rates), _FillValue="AAAAAAAAIsA=")  # how xarray writes -9.0
    path = gridded.zarr_store(tmp_path / "a.zarr", variables)
    assert np.isnan(read(path)["rainfall_rate"].values[0, 5, 5])


# --- as others write it ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("encoding", [{}, {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -32768}])
def test_as_xarray_writes_it(tmp_path, version, encoding):
    rate = np.round(np.random.default_rng(0).gamma(0.5, 4, (4, 20, 30)), 2).astype(np.float32)
    rate[0, :5] = np.nan
    times = np.datetime64("2024-06-01T00:00", "ns") + np.arange(4) * np.timedelta64(10, "m")
    coords = {"time": times, "y": ("y", np.arange(20.0) * 500 + 5e5), "x": ("x", np.arange(30.0) * 500 - 2e5)}
    about = {"units": "mm h-1", "standard_name": "rainfall_rate", "grid_mapping": "crs"}
    dataset = xr.Dataset({"rr": (("time", "y", "x"), rate, about)}, coords=coords)
    dataset["crs"] = xr.DataArray(0, attrs=CRS(3035).to_cf())
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=version, encoding={"rr": encoding | {"chunks": (1, 20, 30)}})
    cube = read(tmp_path / "a.zarr")
    np.testing.assert_allclose(cube["rainfall_rate"].values, rate, atol=1e-6)
    assert (cube["time"].values == times).all()
    assert (Grid.of(cube).crs.to_epsg(), Grid.of(cube).orientation) == (3035, SOUTH_UP)
    assert cube["rainfall_rate"].encoding == ({"quantum": 0.01} if encoding else {})


def test_times_without_units(tmp_path):
    """Some MLCast stores keep datetime64, with or without a unit that has no meaning then."""
    times = np.datetime64("2024-06-01T00:00", "ns") + np.arange(3) * np.timedelta64(5, "m")
    for number, about in enumerate(({"standard_name": "time"}, {"axis": "T", "units": "minutes since 2020-01-01"})):
        variables = floats(mosaic()) | {"time": (("time",), times, about)}
        cube = read(gridded.zarr_store(tmp_path / f"{number}.zarr", variables, version=2))
        assert (cube["time"].values == times).all()


def test_first_time_is_no_fill_value(tmp_path):
    cube = read(gridded.zarr_store(tmp_path / "a.zarr", floats(mosaic()), version=2, fills={"time": 0}))
    assert not np.isnat(cube["time"].values).any()


# --- items ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_many_stores(tmp_path, version):
    for name in ("b", "a"):
        gridded.zarr_store(tmp_path / "deep" / f"{name}.zarr", mosaic(), version=version, consolidated=True)
    items = list(zarr_cf.find(tmp_path))
    assert [item.key for item in items] == ["a.zarr 0:3", "b.zarr 0:3"]
    assert {item.path.name for item in items} == {"zarr.json" if version == 3 else ".zmetadata"}
    assert len({item.signature for item in items}) == 2  # though they may be alike in size and age
    assert zarr_cf.read(items[1]).attrs["source"] == "b.zarr"


@pytest.mark.parametrize("inside", ["", "zarr.json", "rain/zarr.json"])
def test_a_store_is_found_by_what_is_in_it(tmp_path, inside):
    path = gridded.zarr_store(tmp_path / "a.zarr", mosaic())
    assert [item.key for item in zarr_cf.find(path / inside)] == ["a.zarr 0:3"]
    if inside:
        assert zarr_cf.recognises(path / inside)


def test_many_frames_are_cut_into_items(tmp_path, monkeypatch):
    path = gridded.zarr_store(tmp_path / "a.zarr", mosaic(frames=10))
    monkeypatch.setattr("nowcast.readers.cf.ITEM_BYTES", 4 * 4 * 120)  # of four frames
    items = list(zarr_cf.find(path))
    assert [item.key for item in items] == ["a.zarr 0:4", "a.zarr 4:8", "a.zarr 8:10"]
    cubes = [zarr_cf.read(item) for item in items]
    values = np.concatenate([cube["rainfall_rate"].values for cube in cubes])
    raw = mosaic(frames=10)["rain"][1]
    np.testing.assert_allclose(values, np.where(raw == -1, np.nan, raw * 0.01), rtol=1e-6)
    assert {cube.attrs["cadence_seconds"] for cube in cubes} == {300}


def test_a_single_frame(tmp_path):
    path = gridded.zarr_store(tmp_path / "a.zarr", mosaic(frames=1), MLCAST | {"time_coverage_resolution": "PT15M"})
    cube = read(path)
    assert (cube.sizes["time"], cube.attrs["cadence_seconds"]) == (1, 900)


def test_frames_to_come_are_not_there_yet(tmp_path):
    attrs = MLCAST | {"last_valid_timestep": "2024-06-01T12:10:00"}
    path = gridded.zarr_store(tmp_path / "a.zarr", mosaic(frames=8), attrs)
    assert [item.key for item in zarr_cf.find(path)] == ["a.zarr 0:3"]


def test_nor_are_frames_of_the_future(tmp_path):
    since = {"units": f"days since {np.datetime64('now') - np.timedelta64(36, 'h')}"}
    path = gridded.zarr_store(
        tmp_path / "a.zarr",
        changed(mosaic(frames=8), "time", **since) | {"time": (("time",), np.arange(8), mosaic()["time"][2] | since)},
    )
    assert [item.key for item in zarr_cf.find(path)] == ["a.zarr 0:2"]


def test_step_from_where_it_is_regular(tmp_path):
    times = np.array([0, 15, 30, 45, 60, 75, 80, 85])
    attrs = MLCAST | {"consistent_timestep_start": "2024-06-01T13:15:00"}
    path = gridded.zarr_store(tmp_path / "a.zarr", filled(mosaic(frames=8), times, "time"), attrs)
    assert read(path).attrs["cadence_seconds"] == 300


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rain", "x"])
@pytest.mark.parametrize("place", ["compressor", "filters"])
@pytest.mark.parametrize("dtype", ["<f4", "|O"])
def test_refuses_a_codec_that_could_run_anything(tmp_path, name, place, dtype):
    fired = tmp_path / "fired"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(fired),)

    path = gridded.zarr_store(tmp_path / "a.zarr", floats(mosaic()), version=2)
    about = json.loads((path / name / ".zarray").read_text())
    about |= {"dtype": dtype, "compressor": None, "filters": None, "fill_value": None}
    about[place] = Pickle().get_config() if place == "compressor" else [Pickle().get_config()]
    (path / name / ".zarray").write_text(json.dumps(about))
    for chunk in (path / name).glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadInput, match="is damaged or not a Zarr store"):
        read(path)
    assert not fired.exists()


def test_refuses_giant_chunks(tmp_path):
    path = gridded.zarr_store(tmp_path / "a.zarr", mosaic())
    for name, shape in (("x", [10**12]), ("rain", [1, 10**6, 10**6])):
        place = path / name / "zarr.json"
        good = place.read_text()
        about = json.loads(good)
        about["chunk_grid"]["configuration"]["chunk_shape"] = shape
        place.write_text(json.dumps(about))
        with pytest.raises(BadInput, match=f"keeps {name} in (chunks|pieces) of 1"):
            read(path)
        place.write_text(good)


def test_refuses_giant_grids(tmp_path):
    path = gridded.zarr_store(tmp_path / "a.zarr", mosaic())
    for name, shape in (("x", [10**9]), ("rain", [3, 12, 10**9])):
        about = json.loads((path / name / "zarr.json").read_text())
        about["shape"] = shape
        (path / name / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match="states 3 frames of 12x1000000000 pixels"):
        read(path)


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        (changed(mosaic(), units="K"), "states the unit 'K' for rain"),
        (changed(mosaic(), standard_name="air_temperature"), "holds no rain or reflectivity"),
        (changed(mosaic(), "time", calendar="noleap"), "in the calendar 'noleap'"),
        ({name: entry for name, entry in mosaic().items() if name != "crs"}, "names no projection"),
    ],
)
def test_refuses(tmp_path, variables, fault):
    path = gridded.zarr_store(tmp_path / "a.zarr", variables)
    with pytest.raises(BadInput, match=f"zarr.json: .*{fault}"):
        read(path)


def test_refuses_a_folder_without_stores(tmp_path):
    (tmp_path / "refs").mkdir()  # of an Icechunk repository, which is not read here
    with pytest.raises(BadInput, match=r"holds no Zarr store \(zarr.json or .zmetadata or .zgroup\)"):
        list(zarr_cf.find(tmp_path))


def test_a_damaged_store_is_refused_when_read(tmp_path):
    path = gridded.zarr_store(tmp_path / "a.zarr", mosaic())
    (path / "rain" / "zarr.json").write_text("{")
    (item,) = zarr_cf.find(path)
    with pytest.raises(BadInput, match=r"zarr\.json: is damaged or not a Zarr store"):
        zarr_cf.read(item)
    with pytest.raises(BadInput, match="has no part"):
        zarr_cf.read(Item(gridded.zarr_store(tmp_path / "b.zarr", mosaic()) / "zarr.json", "b.zarr"))


def test_recognises_by_its_contents(tmp_path):
    good = gridded.zarr_store(tmp_path / "a.zarr", mosaic())
    other = gridded.zarr_store(tmp_path / "b.zarr", changed(mosaic(), standard_name="air_temperature"))
    assert zarr_cf.recognises(good / "zarr.json") and not zarr_cf.recognises(other / "zarr.json")
    assert zarr.open_group(good, mode="r").metadata.zarr_format == 3
