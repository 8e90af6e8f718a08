import os
import pickle
import pickletools
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.core.units import rate_from_reflectivity
from nowcast.readers import Item, meteonet
from nowcast.readers.items import ITEM_BYTES
from nowcast.store.packing import Packing
from tests import sources_benchmarks
from tests.paths import REAL_DATA, needs_real
from tests.sources_benchmarks import dates

SHARED = REAL_DATA / "meteonet"
real = needs_real("meteonet")
RAIN, OLD, NEW = (f"{name}_NW_2018_03.1.npz" for name in ("rainfall", "reflectivity_old", "reflectivity_new"))


def one(folder: Path, name: str, *levels: int, **options: object) -> Path:
    """A part of one frame in a zone of 4 x 5 pixels; ``levels`` fill its first row."""
    data = np.zeros((1, 4, 5), np.int16)
    data[0, 0, : len(levels)] = levels
    sources_benchmarks.meteonet_coordinates(folder, "NW", (4, 5))
    return sources_benchmarks.meteonet(folder / name, data, dates(10), **options)


def only(source: Path):
    (item,) = meteonet.find(source)
    return meteonet.read(item)


@pytest.mark.parametrize("compressed", [True, False])
def test_rain_of_five_minutes_becomes_a_rate(tmp_path, compressed):
    cube = only(one(tmp_path, RAIN, -1, 0, 1, 250, compressed=compressed))
    # 0.01 mm in 5 minutes is 0.12 mm/h, 2.5 mm is 30 mm/h
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :4], [np.nan, 0, 0.12, 30], rtol=1e-6)
    assert cube["time"].values[0] == np.datetime64("2016-08-21T00:10")
    assert (cube.attrs["cadence_seconds"], set(cube["sequence"].values), "split" in cube.coords) == (300, {""}, False)
    assert (cube.attrs["zr_a"], cube.attrs["zr_b"], cube.attrs["product"]) == (200, 1.6, "rainfall NW")


def test_old_reflectivity_is_whole_dbz_from_eight_on(tmp_path):
    variable = only(one(tmp_path, OLD, 255, 0, 8, 16, 70))["reflectivity"]
    np.testing.assert_array_equal(variable.values[0, 0], [np.nan, 0, 8, 16, 70])
    packing = Packing.wanted(variable)
    assert packing.dtype == np.uint8
    np.testing.assert_array_equal(packing.unpack(packing.pack(variable.values)), variable.values)


def test_new_reflectivity_keeps_nothing_seen_and_no_data_apart(tmp_path):
    variable = only(one(tmp_path, NEW, -200, -100, -90, -85, 455))["reflectivity"]
    np.testing.assert_allclose(variable.values[0, 0], [np.nan, -10, -9, -8.5, 45.5], rtol=1e-6)
    packing = Packing.wanted(variable)
    np.testing.assert_array_equal(packing.unpack(packing.pack(variable.values)), variable.values)


def test_extra_arrays_are_left_alone(tmp_path):
    extra = {"prob": np.zeros((1, 4, 5), np.uint8), "height": np.zeros((1, 4, 5), np.int16)}
    assert only(one(tmp_path, NEW, 300, **extra))["reflectivity"].values[0, 0, 0] == 30


def test_lies_where_its_coordinates_say_and_row_0_is_north(tmp_path):
    sources_benchmarks.meteonet_coordinates(tmp_path, "SE", (4, 5), lon=2.005, lat=46.245)
    path = tmp_path / "SE" / "2016" / "rainfall_SE_2016_08.3.npz"  # the coordinates may lie above
    grid = Grid.of(only(sources_benchmarks.meteonet(path, np.zeros((1, 4, 5), np.int16), dates(0))))
    assert grid.orientation == NORTH_UP
    assert grid.crs.to_epsg() == 4326
    np.testing.assert_allclose(grid.y, [46.245, 46.235, 46.225, 46.215])
    np.testing.assert_allclose(grid.x, [2.005, 2.015, 2.025, 2.035, 2.045])


@pytest.mark.parametrize(
    ("zone", "shape", "corners"),
    [
        ("NW", (565, 784), (51.891, 46.251, -5.837, 1.993)),
        ("SE", (515, 784), (46.245, 41.105, 2.005, 9.835)),
    ],
)
def test_documented_grid_where_there_are_no_coordinates(tmp_path, zone, shape, corners):
    path = tmp_path / f"rainfall_{zone}_2016_08.3.npz"
    cube = only(sources_benchmarks.meteonet(path, np.zeros((1, *shape), np.int16), dates(0)))
    grid = Grid.of(cube)
    np.testing.assert_allclose((grid.y[0], grid.y[-1], grid.x[0], grid.x[-1]), corners, atol=1e-9)
    sources_benchmarks.meteonet_coordinates(tmp_path, zone, shape, lon=corners[2], lat=corners[0])
    again = Grid.of(only(path))
    assert again.digest == grid.digest
    np.testing.assert_array_equal(again.y, grid.y)


def test_frames_are_in_order_and_of_two_of_one_date_the_last_counts(tmp_path):
    data = np.zeros((5, 4, 5), np.int16)
    data[:, 0, 0] = range(1, 6)
    sources_benchmarks.meteonet_coordinates(tmp_path, "NW", (4, 5))
    path = sources_benchmarks.meteonet(tmp_path / RAIN, data, dates(5, 5, 20, 15, 10))
    cube = only(path)
    np.testing.assert_array_equal(np.diff(cube["time"].values) / np.timedelta64(1, "m"), [5, 5, 5])
    np.testing.assert_allclose(cube["rainfall_rate"].values[:, 0, 0], np.array([2, 5, 4, 3]) * 0.12, rtol=1e-6)


def test_a_date_may_be_the_same_object_twice(tmp_path):
    sources_benchmarks.meteonet_coordinates(tmp_path, "NW", (4, 5))
    moments = dates(0)
    path = sources_benchmarks.meteonet(tmp_path / RAIN, np.zeros((2, 4, 5), np.int16), moments * 2)
    assert only(path).sizes["time"] == 1


def test_a_part_of_a_month_without_frames_holds_nothing(tmp_path):
    sources_benchmarks.meteonet(tmp_path / RAIN, np.zeros((0, 565, 784), np.int16), [])
    assert list(meteonet.find(tmp_path)) == []


# --- large files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_items_are_slices_and_need_the_memory_of_one(tmp_path, compressed):
    rng = np.random.default_rng(0)
    data = np.zeros((120, 565, 784), np.int16)
    data[:, ::20, ::20] = rng.integers(0, 1000, (120, 29, 40))
    path = sources_benchmarks.meteonet(tmp_path / RAIN, data, dates(*range(0, 600, 5)), compressed=compressed)
    items = list(meteonet.find(path))
    assert [item.key for item in items] == ["0:37", "37:74", "74:111", "111:120"]
    tracemalloc.start()
    for item in (items[2], items[0], items[3]):  # in any order
        first, last = map(int, item.key.split(":"))
        tracemalloc.reset_peak()
        cube = meteonet.read(item)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * ITEM_BYTES  # the file unpacks to 106 MB, as floats to 213
        np.testing.assert_array_equal(cube["rainfall_rate"].values, data[first:last] * np.float32(0.12))
        assert cube["time"].values[0] == np.datetime64("2016-08-21") + np.timedelta64(5 * first, "m")
        del cube
    tracemalloc.stop()


# --- finding --------------------------------------------------------------------------------------


def test_finds_in_order_of_time_and_leaves_quality_codes_out(tmp_path):
    names = ["rainfall_NW_2016_08.3.npz", "rainfall_NW_2016_08.1.npz", "rainfall_NW_2016_02.2.npz"]
    for name in names:
        one(tmp_path / name[12:16], name, 1)
    sources_benchmarks.meteonet(tmp_path / "rainfall_mean_quality_code_NW_2016_08.1.npz", np.zeros((1, 4, 5)), dates(0))
    assert [item.path.name for item in meteonet.find(tmp_path)] == names[::-1]


def test_zones_and_products_need_a_store_each(tmp_path):
    for name in (RAIN, OLD, NEW, RAIN.replace("NW", "SE")):
        one(tmp_path, name, 1)
    with pytest.raises(
        BadInput,
        match="holds rainfall NW, rainfall SE, reflectivity_new NW, reflectivity_old NW, "
        "which need a store each; name the files of one",
    ):
        list(meteonet.find(tmp_path))
    assert len(list(meteonet.find(tmp_path / NEW))) == 1


def test_one_bad_file_does_not_hide_the_others(tmp_path):
    for third in "123":
        one(tmp_path, f"rainfall_NW_2016_08.{third}.npz", 1)
    bad = tmp_path / "rainfall_NW_2016_08.2.npz"
    bad.write_bytes(bad.read_bytes()[:300])
    good, item, other = meteonet.find(tmp_path)
    assert meteonet.read(good) and meteonet.read(other)
    with pytest.raises(BadInput, match=r"rainfall_NW_2016_08\.2\.npz: is damaged or not a MeteoNet file"):
        meteonet.read(item)
    with pytest.raises(BadInput, match="is damaged or not a MeteoNet file"):
        list(meteonet.find(bad))


def test_a_file_is_recognised_by_name_and_arrays(tmp_path):
    assert meteonet.recognises(one(tmp_path, RAIN, 1))
    other = tmp_path / "rainfall_SE_2016_08.1.npz"
    np.savez(other, clips=np.zeros(3))
    assert not meteonet.recognises(other)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["train/sample_1"] = np.zeros((15, 101, 101))
        file["train_len"] = 1
    assert not meteonet.recognises(tmp_path / "x.h5")


# --- refusals -------------------------------------------------------------------------------------


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_a_pickle_that_would_run_something_is_refused_unrun(tmp_path, protocol):
    sources_benchmarks.meteonet_coordinates(tmp_path, "NW", (4, 5))
    trap = tmp_path / "trap"
    bad = np.array([Malicious(trap)], object)
    path = sources_benchmarks.meteonet_pickled(tmp_path / RAIN, pickle.dumps(bad, protocol))
    with pytest.raises(BadInput, match=r"1\.npz: (names (posix\.system|_codecs\.encode)|holds \w+) among its dates"):
        only(path)
    assert not trap.exists()
    with np.load(path, allow_pickle=True) as archive:  # it does run where it is let
        assert archive["dates"] is not None
    assert trap.exists()


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("builtins.eval", pickle.GLOBAL + b"builtins\neval\n" + b"."),
        ("numpy.load", pickle.GLOBAL + b"numpy\nload\n" + b"."),
        ("numpy.testing.rundocs", pickle.GLOBAL + b"numpy.testing\nrundocs\n" + b"."),
        ("datetime.timedelta", pickle.GLOBAL + b"datetime\ntimedelta\n" + b"."),
        ("copyreg._reconstructor", pickle.GLOBAL + b"copyreg\n_reconstructor\n" + b"."),
        ("datetime.datetime.__mro__", b"\x80\x04\x8c\x08datetime\x8c\x10datetime.__mro__\x93."),
    ],
)
def test_only_arrays_of_dates_may_be_named(tmp_path, name, program):
    assert list(pickletools.genops(program))
    sources_benchmarks.meteonet_coordinates(tmp_path, "NW", (4, 5))
    with pytest.raises(BadInput, match=f"names {name} among its dates; do not open it"):
        only(sources_benchmarks.meteonet_pickled(tmp_path / RAIN, program))


@pytest.mark.parametrize(
    "program",
    [
        b"]r\xff\xff\xff\x7f.",  # a memo of 2 thousand million places
        b"\x80\x05\x96\x00\x00\x00\x00\xff\x00\x00\x00.",  # a byte array of 1 TB
        b"\x80\x04\x8e\x00\x00\x00\x00\xff\x00\x00\x00.",
        b"\x8b\xff\xff\xff\x7f.",
        b"N" * 3,
        b"",
        b".",
        b"(" * 1000,
        pickle.dumps([1]),
        pickle.dumps(np.arange(3)),
        pickle.dumps(np.array(["2016-08-21"], object)),
        pickle.dumps(np.array([None], object)),
        pickle.dumps({}),
    ],
)
def test_a_pickle_of_anything_else_is_refused(tmp_path, program):
    sources_benchmarks.meteonet_coordinates(tmp_path, "NW", (4, 5))
    tracemalloc.start()
    with pytest.raises(BadInput, match=r"rainfall_NW_2018_03\.1\.npz"):
        only(sources_benchmarks.meteonet_pickled(tmp_path / RAIN, program))
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_dates_with_a_zone_are_refused(tmp_path):
    sources_benchmarks.meteonet_coordinates(tmp_path, "NW", (4, 5))
    with pytest.raises(BadInput, match=r"names datetime\.timezone|holds \w+ among"):
        only(
            sources_benchmarks.meteonet(
                tmp_path / RAIN, np.zeros((1, 4, 5), np.int16), [datetime(2016, 8, 21, tzinfo=UTC)]
            )
        )


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (np.zeros((2, 4, 5), np.int16), "holds 2 frames and 1 dates"),
        (np.zeros((1, 4, 5)), "holds float64 of"),
        (np.zeros((4, 5), np.int16), r"holds int16 of \(4, 5\) as data"),
        (np.zeros((1, 4, 6), np.int16), "has 4x6 pixels, not the 4x5 of zone NW"),
        (np.zeros((1, 1, 5), np.int16), r"holds int16 of \(1, 1, 5\) as data"),
    ],
)
def test_refuses_data(tmp_path, data, fault):
    sources_benchmarks.meteonet_coordinates(tmp_path, "NW", (4, 5))
    with pytest.raises(BadInput, match=fault):
        only(sources_benchmarks.meteonet(tmp_path / RAIN, data, dates(0)))


def test_refuses_names_keys_and_arrays(tmp_path):
    path = one(tmp_path, RAIN, 1)
    for key in ("", "train/0", "0:9"):
        with pytest.raises(BadInput, match=r"has no part|has no values"):
            meteonet.read(Item(path, key))
    renamed = path.rename(tmp_path / "rain.npz")
    with pytest.raises(BadInput, match="carries no product and zone"):
        list(meteonet.find(renamed))
    np.savez(path, data=np.zeros((1, 4, 5), np.int16))
    with pytest.raises(BadInput, match="has no array dates"):
        only(path)
    np.savez(path, dates=np.zeros(3))
    with pytest.raises(BadInput, match="has no array data"):
        only(path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"step": 0.02}, "is no grid of 0.01 degrees"),
        ({"step": -0.01}, "is no grid of 0.01 degrees"),
        ({"lat": np.nan}, "is no grid of 0.01 degrees"),
    ],
)
def test_refuses_coordinates(tmp_path, change, fault):
    path = one(tmp_path, RAIN, 1)
    sources_benchmarks.meteonet_coordinates(tmp_path, "NW", (4, 5), **change)
    with pytest.raises(BadInput, match=rf"radar_coords_NW\.npz: {fault}"):
        only(path)
    (tmp_path / "radar_coords_NW.npz").write_bytes(b"PK")
    with pytest.raises(BadInput, match=r"radar_coords_NW\.npz: is damaged or not MeteoNet's file of coordinates"):
        only(path)


# --- clips ----------------------------------------------------------------------------------------


def test_clips_are_sequences_with_a_split(tmp_path):
    clip = np.zeros((25, 565, 784), np.uint8)
    clip[:, 0, 0], clip[:, 0, 1] = np.arange(25), 255
    path = tmp_path / "meteo_radar.h5"
    sources_benchmarks.meteonet_clips(path, {"train/0": clip, "train/10": clip, "train/2": clip, "test/0": clip})
    items = list(meteonet.find(tmp_path))
    assert [item.key for item in items] == ["train/0", "train/2", "train/10", "test/0"]
    assert meteonet.recognises(path)
    cube = meteonet.read(items[-1])
    assert (set(cube["sequence"].values), set(cube["split"].values)) == ({"test/0"}, {"test"})
    np.testing.assert_array_equal(cube["reflectivity"].values[:, 0, 0], np.arange(25))
    assert cube["reflectivity"][:, 0, 1].isnull().all()
    assert (np.diff(cube["time"].values) == np.timedelta64(5, "m")).all()
    assert "cadence_seconds" not in cube.attrs
    grid = Grid.of(cube)
    np.testing.assert_allclose((grid.y[0], grid.x[-1]), (51.891, 1.993))
    assert cube["reflectivity"].nbytes <= ITEM_BYTES


@pytest.mark.parametrize(
    ("clip", "fault"),
    [
        (np.zeros((25, 128, 128), np.uint8), "has frames of 128x128 pixels, which is no zone"),
        (np.zeros((25, 565), np.uint8), r"holds train/0 as uint8 of \(25, 565\)"),
        (np.zeros((65, 2, 2), np.uint8), r"holds train/0 as uint8 of \(65, 2, 2\)"),
    ],
)
def test_refuses_clips(tmp_path, clip, fault):
    path = sources_benchmarks.meteonet_clips(tmp_path / "meteo_radar.h5", {"train/0": clip})
    with pytest.raises(BadInput, match=fault):
        only(path)
    with pytest.raises(BadInput, match="has no clip"):
        meteonet.read(Item(path, "../train"))
    with pytest.raises(BadInput, match="has no test/7"):
        meteonet.read(Item(path, "test/7"))


def test_refuses_hdf5_without_clips(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image1/image_data"] = np.zeros(3)
    with pytest.raises(BadInput, match="holds no clips in train and test"):
        list(meteonet.find(tmp_path / "x.h5"))
    with pytest.raises(BadInput, match="holds no file of MeteoNet"):
        list(meteonet.find(tmp_path))


# --- real files -----------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("name", "kind", "count", "step", "missing"),
    [
        ("rainfall_NW_2016_08.3.npz", "rainfall_rate", 45, 0.12, -1),
        ("rainfall_SE_2016_08.3.npz", "rainfall_rate", 45, 0.12, -1),
        ("reflectivity_old_NW_2016_08.3.npz", "reflectivity", 29, 1, 255),
    ],
)
def test_real_files(name, kind, count, step, missing):
    cubes = [meteonet.read(item) for item in meteonet.find(SHARED / name)]
    with np.load(SHARED / name, allow_pickle=True) as archive:
        raw, stamps, absent = archive["data"], archive["dates"], archive["miss_dates"]
    assert raw.shape[0] == count
    assert count + len(absent) == 3168
    values = np.concatenate([cube[kind].values for cube in cubes])
    np.testing.assert_array_equal(np.isnan(values), raw == missing)
    known = raw != missing
    np.testing.assert_allclose(values[known], raw[known] * step, rtol=1e-6)
    times = np.concatenate([cube["time"].values for cube in cubes])
    np.testing.assert_array_equal(times, stamps.astype("datetime64[ns]"))
    zone = name.split("_")[-3]
    with np.load(SHARED / f"radar_coords_{zone}.npz") as archive:
        np.testing.assert_allclose(cubes[0]["y"], archive["lats"][:, 0], atol=1e-9)
        np.testing.assert_allclose(cubes[0]["x"], archive["lons"][0], atol=1e-9)
    for cube in cubes:
        assert Grid.of(cube).digest == Grid.of(cubes[0]).digest
        packing = Packing.wanted(cube[kind])
        np.testing.assert_array_equal(packing.unpack(packing.pack(cube[kind].values)), cube[kind].values)


@real
def test_real_reflectivity_agrees_with_the_rain(tmp_path):
    """Z = 200 R^1.6 of the levels brackets the rain of the same five minutes at most wet pixels."""
    (rain,) = [item for item in meteonet.find(SHARED / "rainfall_NW_2016_08.3.npz") if item.key.startswith("0:")]
    (echo,) = meteonet.find(SHARED / "reflectivity_old_NW_2016_08.3.npz")
    wet, seen = meteonet.read(rain)["rainfall_rate"], meteonet.read(echo)["reflectivity"]
    common = np.intersect1d(wet["time"], seen["time"])
    assert common.size
    wet, seen = wet.sel(time=common).values, seen.sel(time=common).values
    strong = (seen >= 25) & (wet > 0)
    ratio = wet[strong] / rate_from_reflectivity(seen[strong])
    assert 0.5 < np.median(ratio) < 2
