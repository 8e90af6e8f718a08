import csv
import os
import shutil

import h5py
import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import SOUTH_UP, Grid
from nowcast.core.units import get_quantity, level_from_vil, vil_from_level
from nowcast.readers import Item, sevir
from nowcast.readers.items import ITEM_BYTES
from nowcast.store.packing import Packing
from tests import fixtures
from tests.fixtures import sevir_catalog, sevir_file, sevir_row
from tests.sources_benchmarks import sevir_clips

DULUTH = (-92.1005, 46.7867)


def only(source):
    (item,) = sevir.find(source)
    return sevir.read(item)


def images(side: int = 16, fill: int = 0, dtype: type = np.int64) -> np.ndarray:
    return np.full((1, side, side, 49), fill, dtype)


def root_with(tmp_path, kind: str, stack: np.ndarray, **row: object):
    name = f"{kind}/2019/SEVIR_{kind.upper()}_STORMEVENTS_2019_0101_0630.h5"
    sevir_file(tmp_path / "data" / name, kind, stack, ["S858968"])
    sevir_catalog(tmp_path, [sevir_row("S858968", name, 0, kind, **row)])
    return tmp_path / "data" / kind


def test_event_lies_where_the_catalogue_says(tmp_path):
    stack = images(384)
    stack[0, 79, 200, :] = 200  # the pixel of Duluth: x = 200.0215, y = 79.0576 from the lower left corner
    cube = only(root_with(tmp_path, "vil", stack))
    grid = Grid.of(cube)
    assert grid.orientation == SOUTH_UP
    assert (grid.y[0], grid.y[-1], grid.x[0], grid.x[-1]) == (500, 383_500, 500, 383_500)
    x, y = grid.project(*map(np.array, DULUTH))
    local_x, local_y = x - cube["origin_x"].values[0], y - cube["origin_y"].values[0]
    assert (local_x / 1000, local_y / 1000) == pytest.approx((200.0215, 79.0576), abs=1e-3)
    here = cube["vil"].sel(x=local_x, y=local_y, method="nearest")
    np.testing.assert_allclose(here, vil_from_level(np.array(200)))
    assert (cube["vil"] > 0).sum() == 49


def test_origin_of_another_event(tmp_path):
    cube = only(root_with(tmp_path, "vil", images(), llcrnrlat=38.5301158, llcrnrlon=-95.44742733))
    assert (cube["origin_x"][0], cube["origin_y"][0]) == pytest.approx((222_000, 62_000), abs=0.01)
    right, top = Grid.of(cube).project(np.array(-90.68311036), np.array(41.79258704))  # its upper right corner
    assert (right - 222_000, top - 62_000) == pytest.approx((384_000, 384_000), abs=0.01)


def test_time_is_the_last_axis_and_offsets_start_where_they_do(tmp_path):
    stack = images()
    stack[0, 2, 3, :] = np.arange(10, 59)
    offsets = ":".join(str(minute) for minute in range(-119, 122, 5))
    cube = only(root_with(tmp_path, "vil", stack, minute_offsets=offsets))
    np.testing.assert_array_equal(np.rint(level_from_vil(cube["vil"].values[:, 2, 3])), np.arange(10, 59))
    assert cube["time"].values[0] == np.datetime64("2019-06-01T10:01")
    assert (np.diff(cube["time"].values) == np.timedelta64(5, "m")).all()
    assert set(cube["sequence"].values) == {"S858968"}
    assert "cadence_seconds" not in cube.attrs


def test_all_levels_survive_reading_packing_and_thresholding(tmp_path):
    stack = images()
    stack[0, :, :, 0] = np.arange(256).reshape(16, 16)
    variable = only(root_with(tmp_path, "vil", stack))["vil"]
    packing = Packing.wanted(variable)
    codes = packing.pack(variable.values)
    assert codes.dtype == np.uint8
    unpacked = packing.unpack(codes)
    np.testing.assert_array_equal(unpacked, variable.values)  # bit for bit
    values, level = unpacked[0].ravel()[:255], np.arange(255)
    assert np.isnan(unpacked[0, 15, 15]) and not np.isnan(values).any()
    np.testing.assert_array_equal(np.rint(level_from_vil(values)), np.where(level <= 5, 0, level))
    for threshold, limit in zip(get_quantity("vil").thresholds, (16, 74, 133, 160, 181, 219), strict=True):
        np.testing.assert_array_equal(values >= threshold, level >= limit)


@pytest.mark.parametrize(
    ("kind", "name", "raw", "value"),
    [
        ("vis", "visible_reflectance", 4321, 0.4321),
        ("ir069", "brightness_temperature_069", -3683, -36.83),
        ("ir107", "brightness_temperature_107", 2550, 25.5),
    ],
)
def test_satellite_kinds(tmp_path, kind, name, raw, value):
    stack = images(fill=raw)
    stack[0, 0, 1, 2] = -32768
    cube = only(root_with(tmp_path, kind, stack))
    assert float(cube[name][0, 0, 0]) == pytest.approx(value, rel=1e-6)
    np.testing.assert_array_equal(np.argwhere(np.isnan(cube[name].values)), [[2, 0, 1]])


def test_lightning_is_binned_to_the_frame_that_ends_after_it(tmp_path):
    flashes = np.array(
        [
            # seconds, lat, lon, x, y (cells of 8 km)
            [0.0, 0, 0, 3.7, 5.2],
            [-1.0, 0, 0, 3.0, 5.9],
            [1.0, 0, 0, 3.7, 5.2],
            [-7200.0, 0, 0, 47.9, 0.0],
            [7200.0, 0, 0, 0.0, 47.9],
            [7201.0, 0, 0, 0.0, 0.0],  # after the event
            [0.0, 0, 0, 48.0, 0.0],  # outside the square
            [0.0, 0, 0, -0.1, 0.0],
        ]
    )
    name = "lght/2019/SEVIR_LGHT_ALLEVENTS_2019_0601_0701.h5"
    (tmp_path / "data" / name).parent.mkdir(parents=True)
    with h5py.File(tmp_path / "data" / name, "w") as file:
        file["S1"], file["S2"] = flashes, np.zeros((0, 5))
    rows = [sevir_row(event, name, 0, "lght", minute_offsets=offsets) for event, offsets in (("S1", ""), ("S2", "nan"))]
    sevir_catalog(tmp_path, rows)
    first, second = (sevir.read(item)["lightning_flashes"] for item in sevir.find(tmp_path / "data" / "lght"))
    assert first.shape == (49, 48, 48)
    counts = first.values
    assert (counts[24, 5, 3], counts[25, 5, 3], counts[0, 0, 47], counts[48, 47, 0]) == (2, 1, 1, 1)
    assert counts.sum() == 5
    assert second.sum() == 0
    assert first["time"].values[24] == np.datetime64("2019-06-01T12:00")


def test_lower_resolution_release_has_no_ids_and_every_second_frame(tmp_path):
    root = tmp_path / "sevir_lr"
    name = "vil/2018/SEVIR_VIL_STORMEVENTS_2018_0101_0630.h5"
    offsets = ":".join(str(minute) for minute in range(-118, 123, 5))
    days = ("2018-05-01 12:00:00", "2018-05-02 12:00:00")
    sevir_catalog(
        root, [sevir_row(f"S{row}", name, row, time_utc=day, minute_offsets=offsets) for row, day in enumerate(days)]
    )
    stack = np.zeros((2, 128, 128, 25), np.uint8)
    stack[1, 26, 66, :] = np.arange(20, 45)  # a third of Duluth's pixel
    (root / "data" / name).parent.mkdir(parents=True)
    with h5py.File(root / "data" / name, "w") as file:
        file.create_dataset("vil", data=stack, chunks=(1, 128, 128, 25), compression="gzip")
    first, second = (sevir.read(item) for item in sevir.find(root))
    assert first.sizes == {"time": 25, "y": 128, "x": 128}
    assert second["time"].values[0] == np.datetime64("2018-05-02T10:02")
    assert (np.diff(second["time"].values) == np.timedelta64(10, "m")).all()
    assert (np.diff(second["x"].values) == 3000).all() and second["x"].values[0] == 1500
    np.testing.assert_array_equal(np.rint(level_from_vil(second["vil"].values[:, 26, 66])), np.arange(20, 45))
    x, y = Grid.of(second).project(*map(np.array, DULUTH))
    here = second["vil"].sel(x=x - second["origin_x"].values[0], y=y - second["origin_y"].values[0], method="nearest")
    assert (here > 0).all()
    assert not first["vil"].values.any()


@pytest.mark.parametrize(
    ("time_utc", "split"),
    [
        ("2017-06-15 08:00:00", "train"),
        ("2019-01-01 00:00:00", "train"),
        ("2019-01-01 00:00:01", "valid"),
        ("2019-06-01 00:00:00", "valid"),
        ("2019-06-01 00:01:00", "test"),
        ("2019-11-30 12:00:00", "test"),
    ],
)
def test_events_carry_the_split_of_the_benchmark(tmp_path, time_utc, split):
    """Training ends with 2018, validation with May 2019: the first moment belongs to the one before."""
    cube = only(root_with(tmp_path, "vil", images(), time_utc=time_utc))
    assert set(cube["split"].values) == {split}


# --- finding --------------------------------------------------------------------------------------


def test_finds_by_root_catalogue_kind_year_and_file(tmp_path):
    names = [
        f"{kind}/{year}/SEVIR_{kind.upper()}_STORMEVENTS_{year}_0101_0630.h5"
        for kind in ("vil", "vis")
        for year in (2018, 2019)
    ]
    rows = []
    for name in names:
        kind, year = name[:3], name[4:8]
        sevir_file(tmp_path / "data" / name, kind, images(), [f"S{year}"])
        rows.append(sevir_row(f"S{year}", name, 0, kind, time_utc=f"{year}-06-01 12:00:00"))
    sevir_catalog(tmp_path, rows[::-1])

    def found(source) -> list[str]:
        return [str(item) for item in sevir.find(source)]

    vil = [f"{name.rsplit('/', 1)[1]}[S{name[4:8]}]" for name in names[:2]]
    vis = [f"{name.rsplit('/', 1)[1]}[S{name[4:8]}]" for name in names[2:]]
    data = tmp_path / "data"
    assert found(tmp_path) == found(tmp_path / "CATALOG.csv") == found(data) == found(data / "vil") == vil
    assert found(data / "vis") == vis
    assert found(data / "vis" / "2019") == found(data / names[3]) == vis[1:]


def test_finds_from_the_working_directory(tmp_path, monkeypatch):
    root = fixtures.sevir(tmp_path)
    monkeypatch.chdir(root / "data" / "vil")
    assert len(list(sevir.find(fixtures.Path()))) == 2


def test_events_are_in_order_of_time_and_listed_once(tmp_path):
    def change(rows: list[dict]) -> list[dict]:
        rows[0]["time_utc"] = "2019-06-02 00:00:00"
        return [*rows, dict(rows[1]), rows[2] | {"img_type": "vis", "file_name": "vis/2019/absent.h5"}]

    root = fixtures.sevir(tmp_path, ids=["S1", "S2", "R18010112345678"], rows=change)
    assert [item.key for item in sevir.find(root)] == ["R18010112345678", "S1"]  # S2 is there twice


@pytest.mark.parametrize(("text", "share"), [(0.2, 0.2), ("", 0.0), (1.0, 1.0)])
def test_share_of_missing_pixels_is_kept(tmp_path, text, share):
    assert set(only(root_with(tmp_path, "vil", images(), pct_missing=text))["pct_missing"].values) == {share}


def test_gaps_of_the_catalogue_do_no_harm(tmp_path):
    """Extremes may be empty, ids of random events are, and offsets of images may be missing too."""
    row = {"data_min": "", "data_max": "", "episode_id": "", "event_id": "", "event_type": "", "minute_offsets": "nan"}
    cube = only(root_with(tmp_path, "vil", images(), **row))
    assert cube["time"].values[0] == np.datetime64("2019-06-01T10:00")


@pytest.mark.parametrize(
    "change",
    [
        {"file_index": "x"},
        {"time_utc": "yesterday"},
        {"minute_offsets": "0:x"},
        {"height_m": ""},
        {"proj": "+proj=atlantis"},
    ],
)
def test_refuses_a_row_that_is_none(tmp_path, change):
    with pytest.raises(BadInput, match=r"SEVIR_VIL_STORMEVENTS_2019_0101_0630\.h5: is damaged or not"):
        only(root_with(tmp_path, "vil", images(), **change))


def test_the_catalogue_is_read_once_for_each_version(tmp_path):
    root = fixtures.sevir(tmp_path)
    sevir._events_of.cache_clear()
    for item in sevir.find(root):
        sevir.read(item)
    assert sevir._events_of.cache_info().misses == 1


# --- chunks of many events ------------------------------------------------------------------------


def banded(tmp_path, chunks: tuple[int, ...] | None, count: int = 7):
    """A file whose events differ by their level and are not in order of time."""
    name = "vil/2018/SEVIR_VIL_RANDOMEVENTS_2018_0101_0430.h5"
    stack = np.broadcast_to(np.arange(20, 20 + count)[:, None, None, None], (count, 16, 16, 49))
    ids = [f"R{row}" for row in range(count)]
    sevir_file(tmp_path / "data" / name, "vil", stack, ids, chunks=chunks, compression="gzip" if chunks else None)
    sevir_catalog(
        tmp_path,
        [sevir_row(event, name, row, time_utc=f"2018-01-{28 - row * 5 % 7} 00:00:00") for row, event in enumerate(ids)],
    )
    return tmp_path


def levels_of(root) -> list[int]:
    return [round(float(level_from_vil(sevir.read(item)["vil"].values[0, 0, 0]))) for item in sevir.find(root)]


def test_events_of_one_chunk_come_in_its_order_others_in_order_of_time(tmp_path):
    rows = [int(item.key[1:]) for item in sevir.find(banded(tmp_path / "a", (7, 16, 16, 1)))]
    assert rows == list(range(7))
    rows = [int(item.key[1:]) for item in sevir.find(banded(tmp_path / "b", (1, 16, 16, 49)))]
    assert rows == sorted(range(7), key=lambda row: 28 - row * 5 % 7)
    assert [int(item.key[1:]) for item in sevir.find(banded(tmp_path / "c", None))] == rows


@pytest.mark.parametrize("held", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("chunks", [(7, 16, 16, 1), (3, 8, 8, 7), (2, 16, 16, 49)])
def test_events_of_one_chunk_are_read_together(tmp_path, monkeypatch, chunks, held):
    root = banded(tmp_path, chunks)
    monkeypatch.setattr(sevir, "BLOCK_BYTES", held * 16 * 16 * 49)
    sevir._kept.clear()
    read = []
    getitem = h5py.Dataset.__getitem__

    def counting(stack, key):
        if stack.name == "/vil":
            read.append(key)
        return getitem(stack, key)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    assert levels_of(root) == list(range(20, 27))
    assert len(read) == sum(-(-min(chunks[0], 7 - band) // held) for band in range(0, 7, chunks[0]))
    assert all(key.stop - key.start <= held for key in read)
    assert sum(block.nbytes for block in sevir._kept.values()) <= sevir.BLOCK_BYTES
    items = list(sevir.find(root))
    assert float(level_from_vil(sevir.read(items[0])["vil"].values[0, 0, 0])) == 20  # out of order too


def test_a_changed_file_is_read_again(tmp_path):
    root = banded(tmp_path, (7, 16, 16, 1))
    assert levels_of(root)[0] == 20
    path = next(root.rglob("*.h5"))
    with h5py.File(path, "a") as file:
        file["vil"][0] = 99
    os.utime(path, ns=(10**18, 10**18))
    assert levels_of(root)[0] == 99


# --- clips without catalogue ----------------------------------------------------------------------


def clip_stack(count: int, frames: int, first: int, dtype: type = np.uint8, side: int = 16) -> np.ndarray:
    """Levels that count clips by tens and frames by ones."""
    numbers = 20 + 30 * np.arange(count)[:, None] + first + np.arange(frames)
    return np.broadcast_to(numbers[:, None, None, :], (count, side, side, frames)).astype(dtype)


@pytest.mark.parametrize("kind", ["", "vil"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16])
def test_clips_are_sequences_named_by_file_and_row(tmp_path, kind, dtype):
    path = tmp_path / "interim" / "nowcast_testing_003.h5"
    sevir_clips(path, clip_stack(3, 13, 0, dtype), clip_stack(3, 12, 13, dtype), kind)
    assert sevir.recognises(path)
    cube = only(path)
    assert cube.sizes == {"time": 75, "y": 16, "x": 16}
    names = [f"nowcast_testing_003/{row}" for row in range(3)]
    assert cube["sequence"].values.tolist() == [name for name in names for _ in range(25)]
    assert set(cube["split"].values) == {"test"}
    levels = np.rint(level_from_vil(cube["vil"].values[:, 3, 4]))
    np.testing.assert_array_equal(levels, [20 + 30 * clip + frame for clip in range(3) for frame in range(25)])
    assert (np.diff(cube["time"].values[:25]) == np.timedelta64(5, "m")).all()
    assert cube["time"].values[25] == cube["time"].values[0]
    grid = Grid.of(cube)
    assert (grid.orientation, grid.x[0], grid.x[-1]) == (SOUTH_UP, 12_000, 372_000)
    packing = Packing.wanted(cube["vil"])
    np.testing.assert_array_equal(packing.unpack(packing.pack(cube["vil"].values)), cube["vil"].values)


def test_clips_are_cut_into_items_by_rows(tmp_path, monkeypatch):
    path = tmp_path / "nowcast_training.h5"
    sevir_clips(path, clip_stack(7, 13, 0, side=384), clip_stack(7, 12, 13, side=384), chunks=(5, 96, 96, 3))
    sevir._kept.clear()
    items = list(sevir.find(tmp_path))
    assert [item.key for item in items] == ["0:4", "4:7"]  # a clip is 15 MB of floats
    cubes = [sevir.read(item) for item in items]
    assert cubes[1]["sequence"].values[-1] == "nowcast_training/6"
    assert set(cubes[1]["split"].values) == {"train"}
    np.testing.assert_array_equal(np.rint(level_from_vil(cubes[1]["vil"].values[:25, 0, 0])), np.arange(140, 165))
    assert all(cube["vil"].nbytes <= ITEM_BYTES for cube in cubes)
    assert sum(block.nbytes for block in sevir._kept.values()) <= sevir.BLOCK_BYTES


def test_clips_of_other_kinds_where_there_is_no_vil(tmp_path):
    path = tmp_path / "nowcast_training_000.h5"
    sevir_clips(path, np.full((2, 8, 8, 13), -3683, np.int16), kind="ir069")
    cube = only(path)
    assert cube["brightness_temperature_069"].shape == (26, 8, 8)
    assert float(cube["brightness_temperature_069"][0, 0, 0]) == pytest.approx(-36.83)
    sevir_clips(path, clip_stack(2, 13, 0), clip_stack(2, 12, 13), kind="vil")
    assert "vil" in only(path)


def test_clips_are_found_in_their_folder_and_events_in_the_root(tmp_path):
    root = fixtures.sevir(tmp_path)
    for name in ("nowcast_training_10.h5", "nowcast_training_9.h5", "nowcast_testing.h5", "synrad_testing.h5"):
        sevir_clips(root / "data" / "interim" / name, clip_stack(1, 13, 0))
    (root / "data" / "interim" / "nowcast_testing_META.csv").write_text("id\n")
    found = [item.path.name for item in sevir.find(root / "data" / "interim")]
    assert found == ["nowcast_testing.h5", "nowcast_training_9.h5", "nowcast_training_10.h5"]
    assert {item.path.name for item in sevir.find(root)} == {"SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5"}


@pytest.mark.parametrize(
    ("past", "future", "fault"),
    [
        (np.zeros((2, 16, 16), np.uint8), None, r"has no event in row 0 of \(2, 16, 16\)"),
        (np.zeros((2, 16, 16, 13), np.uint8), np.zeros((1, 16, 16, 12), np.uint8), "has IN of .* and OUT of"),
        (np.full((1, 16, 16, 13), 0.5), None, "holds vil that is no level"),
        (np.full((1, 16, 16, 13), -7.0), None, "holds vil that is no level"),
        (np.full((1, 16, 16, 13), np.nan), None, "holds vil that is no level"),
    ],
)
def test_refuses_clips(tmp_path, past, future, fault):
    with pytest.raises(BadInput, match=rf"nowcast_testing\.h5.*{fault}"):
        only(sevir_clips(tmp_path / "nowcast_testing.h5", past, future))


def test_refuses_clips_of_something_else(tmp_path):
    path = tmp_path / "nowcast_testing.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    assert not sevir.recognises(path)
    with pytest.raises(BadInput, match="has no IN, IN_vil or the like"):
        list(sevir.find(path))
    (item,) = sevir.find(tmp_path)  # one bad file in a folder is told of when it is read
    with pytest.raises(BadInput, match="has no IN, IN_vil or the like"):
        sevir.read(item)
    sevir_clips(path, clip_stack(2, 13, 0))
    for key, fault in (("5:9", "has no clips 5:9"), ("", "has no part")):
        with pytest.raises(BadInput, match=fault):
            sevir.read(Item(path, key))


# --- refusals -------------------------------------------------------------------------------------


def test_refuses_a_file_without_catalogue(tmp_path):
    root = fixtures.sevir(tmp_path)
    (root / "CATALOG.csv").unlink()
    for source in (root, next(root.rglob("*.h5"))):
        with pytest.raises(BadInput, match=r"no CATALOG\.csv in it or above it; download s3://sevir/CATALOG\.csv"):
            list(sevir.find(source))


def test_refuses_a_catalogue_of_something_else(tmp_path):
    (tmp_path / "CATALOG.csv").write_text("id,name\n1,a\n")
    with pytest.raises(BadInput, match="has no column file_index"):
        list(sevir.find(tmp_path))


def test_refuses_a_catalogue_without_its_files(tmp_path):
    root = fixtures.sevir(tmp_path)
    shutil.rmtree(root / "data" / "vil")
    (root / "data" / "vis").mkdir()
    for source in (root, root / "data" / "vis"):
        with pytest.raises(BadInput, match=r"holds no event that CATALOG\.csv lists"):
            list(sevir.find(source))


@pytest.mark.parametrize(("index", "fault"), [(7, "has no event in row 7"), (0, "holds S100001 in row 0, not S100002")])
def test_refuses_a_catalogue_of_another_release(tmp_path, index, fault):
    root = fixtures.sevir(tmp_path, rows=lambda rows: [rows[1] | {"file_index": index}])
    with pytest.raises(BadInput, match=fault):
        only(root)


def test_refuses_missing_dataset_and_frames(tmp_path):
    root = fixtures.sevir(tmp_path, ids=["S1"])
    path = next(root.rglob("*.h5"))
    with h5py.File(path, "a") as file:
        del file["vil"]
    with pytest.raises(BadInput, match="has no vil"):
        only(root)
    with h5py.File(path, "a") as file:
        file["vil"] = np.zeros((1, 16, 16, 40), np.uint8)
    with pytest.raises(BadInput, match="holds 40 frames for 49 offsets"):
        only(root)


def test_refuses_an_item_without_event(tmp_path):
    path = next(fixtures.sevir(tmp_path).rglob("*.h5"))
    with pytest.raises(BadInput, match=r"holds no event \(none named\)"):
        sevir.read(Item(path))


def test_columns_are_those_of_the_real_catalogue(tmp_path):
    root = fixtures.sevir(tmp_path)
    with (root / "CATALOG.csv").open() as stream:
        assert len(next(csv.reader(stream))) == 21
