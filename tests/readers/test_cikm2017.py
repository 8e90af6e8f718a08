import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.readers import Item, cikm2017
from nowcast.readers.items import ITEM_BYTES
from nowcast.store.packing import Packing
from tests import sources_benchmarks
from tests.sources_benchmarks import cikm, cikm_clips, cikm_levels


def levels(*first: int) -> np.ndarray:
    """A sample that is dry but for the first pixels at 3.5 km."""
    field = np.zeros((15, 4, 101, 101), int)
    field[0, 3, 0, : len(first)] = first
    return field


def only(source: Path):
    (item,) = cikm2017.find(source)
    return cikm2017.read(item)


@pytest.mark.parametrize("separator", [" ", ","])
def test_levels_become_dbz(tmp_path, separator):
    cube = only(cikm(tmp_path / "train.txt", {"train_1": levels(-1, 0, 51, 102, 255)}, separator=separator))
    # 95/255 v - 10: 51 levels are 19 dBZ
    np.testing.assert_allclose(cube["reflectivity"].values[0, 0, :5], [np.nan, -10, 9, 28, 85], rtol=1e-6)
    assert cube.sizes == {"time": 15, "y": 101, "x": 101}
    assert (np.diff(cube["time"].values) == np.timedelta64(6, "m")).all()
    assert "cadence_seconds" not in cube.attrs


def test_every_level_and_no_data_survive_packing(tmp_path):
    sample = levels()
    sample[0, 3, :3].flat[:257] = np.arange(-1, 256)
    variable = only(cikm(tmp_path / "train.txt", {"train_1": sample}))["reflectivity"]
    packing = Packing.wanted(variable)
    np.testing.assert_array_equal(packing.unpack(packing.pack(variable.values)), variable.values)
    assert np.unique(variable.values[0, :3].ravel()[1:257]).size == 256
    np.testing.assert_allclose(variable.values[0, :3].ravel()[1:257], np.arange(256) * 95 / 255 - 10, atol=1e-5)


def test_the_order_is_time_height_row_column_and_the_top_is_taken(tmp_path):
    sample = np.zeros((15, 4, 101, 101), int)
    sample[:, :3] = 255
    sample[7, 3, 60, 20] = 51
    values = only(cikm(tmp_path / "train.txt", {"train_1": sample}))["reflectivity"].values
    np.testing.assert_array_equal(np.argwhere(values > -10), [[7, 60, 20]])


def test_the_first_clip_of_diffcast_scale_thresholds(tmp_path):
    """The docstring's thresholds: what DiffCast calls 20, 30, 35 and 40 dBZ."""
    level = np.array([20, 30, 35, 40]) / 90 * 255
    np.testing.assert_allclose(level * 95 / 255 - 10, [11.1, 21.7, 26.9, 32.2], atol=0.05)


def test_samples_are_sequences_and_files_are_splits(tmp_path):
    samples = {f"{name}_{number}": levels(number) for name in ("train", "testA", "testB") for number in (1, 2)}
    for name in ("train", "testA", "testB"):
        path = tmp_path / (f"{name}.txt" if name != "testB" else name)
        cikm(path, {key: sample for key, sample in samples.items() if key.startswith(name)})
    cubes = [cikm2017.read(item) for item in cikm2017.find(tmp_path)]
    assert [cube["split"].values[0] for cube in cubes] == ["test", "test", "train"]
    assert [list(dict.fromkeys(cube["sequence"].values)) for cube in cubes] == [
        ["testA/testA_1", "testA/testA_2"],
        ["testB/testB_1", "testB/testB_2"],
        ["train/train_1", "train/train_2"],
    ]
    assert all((cube["sequence"].values[:15] == cube["sequence"].values[0]).all() for cube in cubes)
    assert cubes[2]["time"].values[15] == cubes[2]["time"].values[0]


def test_lines_that_begin_in_a_block_are_its_own(tmp_path, monkeypatch):
    names = [f"train_{number}" for number in range(1, 8)]
    path = cikm(tmp_path / "train.txt", {name: levels(number) for number, name in enumerate(names)})
    line = path.stat().st_size // 7
    for block in (line // 2 + 1, line - 3, line, line + 1, 3 * line, 100 * line):
        monkeypatch.setattr(cikm2017, "BLOCK", block)
        monkeypatch.setattr(cikm2017, "LONGEST", line + 10)
        found = []
        for item in cikm2017.find(path):
            try:
                found += cikm2017.read(item)["sequence"].values[::15].tolist()
            except BadInput as refusal:  # blocks shorter than a line may hold none: not so in earnest
                assert block < line + 10 and "holds no sample" in str(refusal)
        assert found == [f"train/{name}" for name in names]


def test_blocks_always_hold_the_beginning_of_a_line():
    longest = 5 * 15 * 4 * 101 * 101
    assert longest < cikm2017.LONGEST
    assert cikm2017.BLOCK > 2 * cikm2017.LONGEST
    for size in (0, 1, 2**24, 2**24 + 1, 2**24 + 2**22, 2**24 + 2**22 + 1, 2**26 - 5, 17_100_000_000):
        spans = [tuple(map(int, key.split(":"))) for key in cikm2017._blocks(size)]
        assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
        assert (spans[0][0], spans[-1][1]) == (0, size)
        assert all(stop - start > cikm2017.LONGEST for start, stop in spans[1:])
        assert all(stop - start <= cikm2017.BLOCK + cikm2017.LONGEST for start, stop in spans)


def test_windows_line_ends_and_blank_lines(tmp_path):
    path = cikm(tmp_path / "train.txt", {"train_1": levels(1)})
    path.write_bytes(b"\r\n" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert only(path).sizes["time"] == 15


def test_an_item_needs_the_memory_of_its_block(tmp_path):
    text = "".join(sources_benchmarks.cikm_line(f"train_{number}", levels(number)) for number in range(20))
    path = tmp_path / "train.txt"
    path.write_text(text)
    items = list(cikm2017.find(path))
    assert len(items) == 2
    tracemalloc.start()
    cubes = [cikm2017.read(item) for item in items]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(cube.sizes["time"] for cube in cubes) == 20 * 15
    assert peak < ITEM_BYTES


# --- DiffCast's division --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_clips_count_from_one(tmp_path, dtype):
    clip = np.zeros((15, 101, 101), dtype)
    clip[:, 0, :3] = [0, 51, 255]
    names = [f"train/sample_{number}" for number in (10, 2, 1, 70)] + ["valid/sample_1", "test/sample_1"]
    path = cikm_clips(tmp_path / "cikm.h5", dict.fromkeys(names, clip))
    assert cikm2017.recognises(path)
    items = list(cikm2017.find(tmp_path))
    assert [item.key for item in items] == ["train/1:65", "train/65:129", "valid/1:65", "test/1:65"]
    cubes = [cikm2017.read(item) for item in items]
    assert list(cubes[0]["sequence"].values[::15]) == ["train/sample_1", "train/sample_2", "train/sample_10"]
    assert [cube["split"].values[0] for cube in cubes] == ["train", "train", "valid", "test"]
    # 255 is -1 in 8 bits
    np.testing.assert_allclose(cubes[0]["reflectivity"].values[3, 0, :3], [-10, 9, np.nan], rtol=1e-6)


@pytest.mark.parametrize(
    ("clip", "fault"),
    [
        (np.zeros((15, 128, 128), np.uint8), r"holds /train/sample_1 of \(15, 128, 128\)"),
        (np.full((15, 101, 101), 0.5), "which is no grey level"),
        (np.full((15, 101, 101), np.nan), "which is no grey level"),
        (np.full((15, 101, 101), 256), "which is no grey level"),
        (np.full((15, 101, 101), -2), "which is no grey level"),
    ],
)
def test_refuses_clips(tmp_path, clip, fault):
    with pytest.raises(BadInput, match=rf"cikm\.h5: .*{fault}"):
        only(cikm_clips(tmp_path / "cikm.h5", {"train/sample_1": clip}))


def test_refuses_hdf5_of_something_else_and_keys(tmp_path):
    path = cikm_clips(tmp_path / "cikm.h5", {"train/sample_1": np.zeros((15, 101, 101), np.uint8)})
    for key in ("", "train/sample_1", "1:65"):
        with pytest.raises(BadInput, match="has no part"):
            cikm2017.read(Item(path, key))
    with pytest.raises(BadInput, match="holds no sample"):
        cikm2017.read(Item(path, "train/65:129"))
    with pytest.raises(BadInput, match="has no valid"):
        cikm2017.read(Item(path, "valid/1:65"))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["train/0"] = np.zeros(3)
    assert not cikm2017.recognises(tmp_path / "other.h5")
    with pytest.raises(BadInput, match="holds no samples in train, valid and test"):
        list(cikm2017.find(tmp_path / "other.h5"))


# --- refusals -------------------------------------------------------------------------------------


def test_text_of_something_else_is_not_recognised(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("images/S1_Directions.54138969_,226,296\n")  # Human3.6M
    assert not cikm2017.recognises(path)
    with pytest.raises(BadInput, match=r"holds no file of CIKM 2017"):
        list(cikm2017.find(tmp_path))
    with pytest.raises(BadInput, match=r"holds the line 'images/S1_Directions"):
        only(path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda line: line[:-3] + "\n", "holds 612059 levels of train_1"),
        (lambda line: line[: len(line) // 2], r"holds \d+ levels of train_1"),
        (lambda line: line.replace("\n", " 0\n"), "holds 612061 levels of train_1"),
        (lambda line: line[:-2] + "x\n", "damaged or not a CIKM 2017 file"),
        (lambda line: line[:-2] + "256\n", "holds levels 0 to 256 of train_1"),
        (lambda line: line[:-2] + "-2\n", "holds levels -2 to 0 of train_1"),
        (lambda line: " " * 2**23 + line, "holds a line longer than any sample"),
        (lambda line: "\n", "holds no sample"),
    ],
)
def test_refuses_a_line(tmp_path, change, fault):
    path = tmp_path / "train.txt"
    path.write_text(change(sources_benchmarks.cikm_line("train_1", levels())))
    with pytest.raises(BadInput, match=rf"train\.txt.*{fault}"):
        only(path)


def test_text_and_division_are_not_mixed(tmp_path):
    cikm(tmp_path / "train.txt", {"train_1": cikm_levels()})
    cikm_clips(tmp_path / "cikm.h5", {"train/sample_1": np.zeros((15, 101, 101), np.uint8)})
    with pytest.raises(BadInput, match="holds the contest's text and a division of it"):
        list(cikm2017.find(tmp_path))
