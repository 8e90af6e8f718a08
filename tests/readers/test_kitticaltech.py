import h5py
import numpy as np
import pytest
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import Item, kitticaltech
from tests import sources_video
from tests.sources_video import cached, coloured, film, hickled, hickled_texts, kitti

COLOURS = ("red", "green", "blue")


def noise(frames: int, shape: tuple[int, int] = (128, 160)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, *shape, 3), np.uint8)


def everything(source) -> list:
    return [kitticaltech.read(item) for item in kitticaltech.find(source)]


def colours(cube) -> np.ndarray:
    """(time, y, x, colour) uint8."""
    return np.rint(np.stack([cube[colour].values for colour in COLOURS], axis=-1) * 255).astype(np.uint8)


def seconds(cube) -> list[int]:
    return cube["time"].values.astype("datetime64[s]").astype(int).tolist()


# --- hickle ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 3, 5])
def test_a_sequence_ends_where_the_recording_changes(tmp_path, version):
    frames = noise(6)
    (cube,) = everything(kitti(tmp_path, frames=frames, version=version))
    np.testing.assert_array_equal(colours(cube), frames)
    assert cube["sequence"].values.tolist() == ["train/city-a"] * 4 + ["train/road-b"] * 2
    assert seconds(cube) == [0, 1, 2, 3, 0, 1]
    assert (cube["split"] == "train").all()
    assert Grid.of(cube).shape == (128, 160) and not Grid.of(cube).on_earth
    assert cube["red"].encoding["levels"].size == 256


def test_a_recording_that_comes_back_is_another_sequence(tmp_path):
    path = kitti(tmp_path, "val", frames=noise(5), sources=["a", "b", "b", "a", "a"])
    (cube,) = everything(path)
    assert cube["sequence"].values.tolist() == ["valid/a", "valid/b", "valid/b", "valid/a#2", "valid/a#2"]
    assert (cube["split"] == "valid").all()


@pytest.mark.parametrize(
    "sources",
    [
        ["city-2011_09_26_drive_0001_sync"] * 3 + ["road-2011_09_26_drive_0015_sync"] * 2,
        [f"recording {number}" for number in range(12)],
        ["a", "b", "a"],
        ["ü", "ü"],
    ],
)
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_what_hickle_writes_is_read(tmp_path, sources, kind):
    hickle = pytest.importorskip("hickle")  # the reader does without
    frames = noise(len(sources))
    hickle.dump(frames, tmp_path / "X_train.hkl", mode="w")
    hickle.dump(kind(sources), tmp_path / "sources_train.hkl", mode="w")
    (cube,) = everything(tmp_path / "X_train.hkl")
    np.testing.assert_array_equal(colours(cube), frames)
    labels = [label.removeprefix("train/").removesuffix("#2") for label in cube["sequence"].values]
    assert labels == sources


def test_lists_of_fixed_and_of_any_length_are_read(tmp_path):
    path = hickled(tmp_path / "X_train.hkl")  # six frames
    texts = ["a", "a", "bb", "bb", "bb", "c"]
    for data in (np.array(texts, "S2"), texts):
        with h5py.File(tmp_path / "sources_train.hkl", "w") as file:
            file["data_0"] = data
        (cube,) = everything(path)
        assert cube["sequence"].values.tolist() == [f"train/{text}" for text in texts]


def test_a_long_recording_keeps_its_label_and_counts_on(tmp_path):
    most = kitticaltech.MOST
    frames = np.zeros((most + 30, 128, 160, 3), np.uint8)
    frames[:, 0, 0, 0] = np.arange(most + 30) % 251
    path = kitti(tmp_path, frames=frames, sources=["a"] * (most + 10) + ["b"] * 20)
    items = list(kitticaltech.find(path))
    assert len(items) == 2
    first, second = map(kitticaltech.read, items)
    assert first.sizes["time"] == most and set(first["sequence"].values) == {"train/a"}
    assert second["sequence"].values.tolist() == ["train/a"] * 10 + ["train/b"] * 20
    assert seconds(second) == [*range(most, most + 10), *range(20)]
    np.testing.assert_array_equal(colours(second)[:, 0, 0, 0], frames[most:, 0, 0, 0])


def test_test_part_of_kitti_has_labels_of_its_own(tmp_path):
    (cube,) = everything(kitti(tmp_path, "test"))
    assert cube["sequence"].values[0] == "kitti-test/city-a" and (cube["split"] == "test").all()


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: hickled(path / "X_train.hkl"), r"sources_train\.hkl: does not exist"),
        (lambda path: kitti(path, sources=["a"]), r"sources_train\.hkl: names 1 recordings for 6 frames"),
        (lambda path: kitti(path, frames=np.zeros((6, 128, 160), np.uint8)), r"holds \(6, 128, 160\) of uint8"),
        (lambda path: kitti(path, frames=np.zeros((6, 128, 160, 3))), "of float64; give uint8 frames"),
    ],
)
def test_refuses_hickles(tmp_path, make, fault):
    path = make(tmp_path)
    (item,) = kitticaltech.find(path)
    with pytest.raises(BadInput, match=fault):
        kitticaltech.read(item)


def _lists(path, **datasets: object):
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file[name] = data


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        ({"other": [1]}, "has neither data_0 nor data"),
        ({"data": np.zeros(6)}, "holds float64 where a text should be"),
        ({"data": np.zeros(2**20 + 1, "S1")}, "list or a text of 1048577 bytes"),
        ({"data/data0": np.array([list("y" * 5000)], "S1")}, "list or a text of 5000 bytes"),
        ({"data/data0": "z" * 5000}, "list or a text of 5000 bytes"),
        ({"data/data0/deeper": [1]}, "damaged or not a list of recordings"),
    ],
)
def test_refuses_lists(tmp_path, contents, fault):
    path = hickled(tmp_path / "X_train.hkl")
    _lists(tmp_path / "sources_train.hkl", **contents)
    with pytest.raises(BadInput, match=rf"sources_train\.hkl: .*{fault}"):
        kitticaltech.read(Item(path, "0:1"))


def test_nothing_is_unpickled(tmp_path):
    path = hickled(tmp_path / "X_train.hkl")
    with h5py.File(tmp_path / "sources_train.hkl", "w") as file:
        file.create_dataset("data_0", data=[b"cos\nsystem\n(S'false'\ntR."]).attrs["type"] = [b"pickle"]
    with pytest.raises(BadInput, match="names 1 recordings for 6 frames"):
        kitticaltech.read(Item(path, "0:1"))


def test_refuses_chunks_that_fill_the_memory(tmp_path):
    count = 1100
    with h5py.File(tmp_path / "X_train.hkl", "w") as file:
        file.create_dataset("data_0", (count, 128, 160, 3), np.uint8, chunks=(count, 128, 160, 3), compression="gzip")
    hickled_texts(tmp_path / "sources_train.hkl", ["a"] * count)
    with pytest.raises(BadInput, match="is stored in chunks of"):
        kitticaltech.read(Item(tmp_path / "X_train.hkl", "0:1"))


# --- cached arrays --------------------------------------------------------------------------------


def test_cached_clips_are_sequences(tmp_path):
    frames = noise(40)
    # as the benchmark lists them: from the end, 11 frames a clip, a film that ends after 25 frames
    (cube,) = everything(cached(tmp_path / "data_cache.npy", frames, [28, 14, 3]))
    wanted = [*range(3, 25), *range(28, 39)]
    np.testing.assert_array_equal(colours(cube), frames[wanted][..., ::-1])  # blue comes first in the file
    assert cube["sequence"].values.tolist() == [f"test/{start}" for start in (3, 14, 28) for _ in range(11)]
    assert seconds(cube) == list(range(11)) * 3
    assert (cube["split"] == "test").all()


def test_floats_of_training_begin_with_red(tmp_path):
    frames = noise(24)
    (cube,) = everything(cached(tmp_path / "kitticaltech_npy" / "train_data.npy", frames / 255, [0, 12]))
    np.testing.assert_array_equal(colours(cube), frames)  # clips of 12: the closest two are 12 apart
    assert set(cube["sequence"].values) == {"train/0", "train/12"}
    assert "levels" in cube["red"].encoding and (cube["split"] == "train").all()


def test_floats_between_the_levels_stay(tmp_path):
    frames = np.random.default_rng(0).random((11, 128, 160, 3), np.float32)
    (cube,) = everything(cached(tmp_path / "test_data.npy", frames, [0]))
    np.testing.assert_array_equal(cube["blue"].values, frames[..., 0])
    assert "levels" not in cube["red"].encoding


def test_clips_that_overlap_are_one_sequence(tmp_path):
    (cube,) = everything(cached(tmp_path / "train_data.npy", noise(40), [0, 1, 2, 3, 20, 21]))
    assert cube["sequence"].values.tolist() == ["train/0"] * 14 + ["train/20"] * 12


def test_clips_far_apart_are_not_stretched(tmp_path):
    (cube,) = everything(cached(tmp_path / "data_cache.npy", noise(60), [0, 40]))
    assert cube["sequence"].values.tolist() == ["test/0"] * 11 + ["test/40"] * 11


def test_a_large_cache_is_read_in_parts(tmp_path):
    frames = np.zeros((330, 128, 160, 3), np.uint8)
    frames[:, 0, 0, 2] = np.arange(330) % 251
    items = list(kitticaltech.find(cached(tmp_path / "data_cache.npy", frames, range(0, 330, 11))))
    assert [item.key for item in items] == ["0:24", "24:30"]
    cube = kitticaltech.read(items[1])
    np.testing.assert_array_equal(colours(cube)[:, 0, 0, 0], frames[264:, 0, 0, 2])
    assert cube["sequence"].values[0] == "test/264"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda path: (path / "indices_cache.npy").unlink(), "indices_cache.npy: does not exist"),
        (lambda path: np.save(path / "indices_cache.npy", [20]), "lists clips beyond 22 frames"),
        (lambda path: np.save(path / "indices_cache.npy", [-1, 0]), "lists clips beyond 22 frames"),
        (lambda path: np.save(path / "indices_cache.npy", np.zeros(0, int)), "lists clips beyond 22 frames"),
        (lambda path: np.save(path / "indices_cache.npy", [0.5]), "of float64, not where clips begin"),
        (
            lambda path: np.save(path / "data_cache.npy", np.zeros((22, 64, 64, 3), np.uint8)),
            r"holds \(22, 64, 64, 3\)",
        ),
        (lambda path: np.save(path / "data_cache.npy", np.full((22, 128, 160, 3), 1.5)), "holds values from 0 to 1.5"),
        (lambda path: np.save(path / "data_cache.npy", np.zeros((22, 128, 160, 3), int)), "of int64; give frames of"),
    ],
)
def test_refuses_caches(tmp_path, change, fault):
    path = cached(tmp_path / "data_cache.npy")
    change(tmp_path)
    with pytest.raises(BadInput, match=fault):
        kitticaltech.read(Item(path, "0:1"))


# --- films ----------------------------------------------------------------------------------------


def smooth(frames: int, shape: tuple[int, int] = (480, 640)) -> np.ndarray:
    """Pictures that JPEG keeps nearly as they are."""
    return coloured(frames, shape)


def benchmark(picture: np.ndarray) -> np.ndarray:
    """The benchmark's own scaling, floats."""
    from skimage.transform import resize

    height, width = picture.shape[:2]
    scaled = resize(picture, (128, int(np.round(128 / height * width))), preserve_range=True)
    margin = int((scaled.shape[1] - 160) / 2)
    return scaled[:, margin : margin + 160]


@pytest.mark.parametrize("gap", [8, 16])
def test_every_third_picture_is_scaled(tmp_path, gap):
    path = film(tmp_path / "caltech" / "set06" / "V000.seq", smooth(8), gap=gap)
    (cube,) = everything(path)
    assert cube.sizes["time"] == 2 and seconds(cube) == [0, 1]  # the third and the sixth of eight
    assert set(cube["sequence"].values) == {"test/set06/V000"} and (cube["split"] == "test").all()
    for place, frame in zip((2, 5), colours(cube), strict=True):
        jpeg = _jpeg_of(path, place, gap)
        assert np.abs(frame - benchmark(jpeg)).max() <= 0.5 + 1e-3  # rounded to levels
        assert np.abs(frame - benchmark(smooth(8)[place])).mean() < 2


def _jpeg_of(path, place: int, gap: int) -> np.ndarray:
    """One picture, by hand."""
    content, at = path.read_bytes(), 1024
    for _ in range(place):
        at += int.from_bytes(content[at : at + 4], "little") + gap
    length = int.from_bytes(content[at : at + 4], "little")
    picture = path.with_suffix(".jpg")
    picture.write_bytes(content[at + 4 : at + length])
    return np.asarray(Image.open(picture).convert("RGB"))


def test_scaling_is_that_of_the_benchmark():
    for shape in ((480, 640), (375, 1242), (100, 200), (128, 160)):
        picture = noise(1, shape)[0]
        assert np.abs(kitticaltech._scaled(picture) - benchmark(picture)).max() <= 0.5 + 1e-3


def test_films_are_taken_in_order(tmp_path):
    for place in ("set10/V000", "set06/V010", "set06/V002", "set00/V000"):
        film(tmp_path / f"{place}.seq", smooth(3, (64, 80)))
    labels = [cube["sequence"].values[0] for cube in everything(tmp_path)]
    assert labels == ["test/set06/V002", "test/set06/V010", "test/set10/V000"]  # set00 to set05 are not the test set


def test_a_film_of_unknown_length_is_read_to_its_end(tmp_path):
    path = film(tmp_path / "set06" / "V000.seq", smooth(7, (64, 80)), stated=0)
    assert everything(path)[0].sizes["time"] == 2


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"magic": 0xBEEF}, "not a film of Norpix"),
        ({"form": 100}, "in format 100, not JPEG"),
        ({"size": (64, 100)}, "a picture of 64x80 pixels, not 64x100"),
        ({"size": (5000, 80)}, "holds 5000x80 pixels"),
        ({"stated": 4}, "holds 3 of 4 pictures"),
        ({"frames": smooth(3, (64, 40))}, "damaged or not a file of KITTI or Caltech"),
    ],
)
def test_refuses_films(tmp_path, changes, fault):
    path = film(tmp_path / "set06" / "V000.seq", **{"frames": smooth(3, (64, 80))} | changes)
    with pytest.raises(BadInput, match=rf"V000\.seq.*: .*{fault}"):
        kitticaltech.read(Item(path, "0:1"))


def test_refuses_a_film_that_ends_early(tmp_path):
    path = film(tmp_path / "set06" / "V000.seq", smooth(3, (64, 80)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInput, match="holds 2 of 3 pictures"):
        kitticaltech.read(Item(path, "0:1"))


# --- folders --------------------------------------------------------------------------------------


def test_each_frame_is_taken_once(tmp_path):
    root = sources_video.SOURCES["kitticaltech"](tmp_path)
    film(root / "caltech" / "set06" / "V000.seq", smooth(3, (64, 80)))
    for part in ("train", "test"):
        cached(root / "kitticaltech_npy" / f"{part}_data.npy")
    kitti(root / "kitti_hkl", "test")
    names = [item.path.name for item in kitticaltech.find(root)]
    assert names == ["X_train.hkl", "X_val.hkl", "data_cache.npy"]
    (root / "caltech" / "data_cache.npy").unlink()
    assert [item.path.name for item in kitticaltech.find(root)][2:] == ["V000.seq"]
    assert [item.path.name for item in kitticaltech.find(root / "kitticaltech_npy")] == [
        "train_data.npy",
        "test_data.npy",
    ]
    (root / "caltech" / "set06" / "V000.seq").unlink()
    assert [item.path.name for item in kitticaltech.find(root)][2:] == ["test_data.npy"]
    (root / "kitticaltech_npy" / "test_data.npy").unlink()
    assert [item.path.name for item in kitticaltech.find(root)][2:] == ["X_test.hkl"]


def test_a_folder_of_other_films_is_refused(tmp_path):
    film(tmp_path / "set00" / "V000.seq", smooth(3, (64, 80)))
    with pytest.raises(BadInput, match="holds no frames of KITTI and no test set"):
        list(kitticaltech.find(tmp_path))


def test_recognises_its_own(tmp_path):
    root = sources_video.SOURCES["kitticaltech"](tmp_path)
    assert kitticaltech.recognises(film(root / "set06" / "V000.seq", smooth(1, (64, 80))))
    assert kitticaltech.recognises(root / "kitti_hkl" / "X_train.hkl")
    assert kitticaltech.recognises(root / "caltech" / "data_cache.npy")
    (root / "caltech" / "indices_cache.npy").unlink()
    assert not kitticaltech.recognises(root / "caltech" / "data_cache.npy")
    with pytest.raises(BadInput):
        kitticaltech.recognises(hickled(root / "X_other.hkl", np.zeros((3, 4))))


@pytest.mark.parametrize("key", ["", "0:9", "1:1", "7:8"])
def test_refuses_parts_that_are_not_there(tmp_path, key):
    path = kitti(tmp_path)
    with pytest.raises(BadInput, match="has no part"):
        kitticaltech.read(Item(path, key))
