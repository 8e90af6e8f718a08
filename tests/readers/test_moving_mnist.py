import gzip
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import Item, arrays, moving_mnist
from nowcast.readers.items import ITEM_BYTES
from nowcast.readers.moving_images import MovingImages
from nowcast.store.packing import Packing
from tests import sources_video
from tests.paths import REAL_DATA, needs_real

DIGITS = REAL_DATA / "mnist" / "t10k-images-idx3-ubyte.gz"


def different(clips: int, frames: int = 20, shape: tuple[int, ...] = (64, 64)) -> np.ndarray:
    """(clip, frame, ...) uint8 without two equal frames."""
    return np.random.default_rng(0).integers(0, 256, (clips, frames, *shape), np.uint8)


def everything(source: Path) -> list:
    return [moving_mnist.read(item) for item in moving_mnist.find(source)]


# --- fixed test sets ------------------------------------------------------------------------------


def test_time_is_first_on_disk(tmp_path):
    clips = different(3)
    path = sources_video.fixed_set(tmp_path / "mnist_test_seq.npy", clips)
    assert np.load(path).shape == (20, 3, 64, 64)
    (cube,) = everything(path)
    np.testing.assert_array_equal(cube["intensity"].values.reshape(3, 20, 64, 64), (clips / 255).astype(np.float32))
    assert cube["sequence"].values.tolist() == [f"test/{clip}" for clip in range(3) for _ in range(20)]
    assert (cube["split"] == "test").all()
    seconds = cube["time"].values.astype("datetime64[s]").astype(int)
    assert seconds.tolist() == list(range(20)) * 3  # frames are numbered, not dated
    assert cube.attrs["source"] == "mnist_test_seq.npy"


def test_all_levels_are_kept(tmp_path):
    clips = np.arange(256, dtype=np.uint8).repeat(16).reshape(1, 1, 64, 64)
    (cube,) = everything(sources_video.fixed_set(tmp_path / "mnist_test_seq.npy", clips))
    packing = Packing.wanted(cube["intensity"])
    assert packing.missing is None and packing.levels.size == 256
    np.testing.assert_array_equal(packing.pack(cube["intensity"].values), clips[0])
    assert not Grid.of(cube).on_earth


def test_colour(tmp_path):
    clips = different(2, 4, (64, 64, 3))
    (cube,) = everything(sources_video.fixed_set(tmp_path / "mnist_cifar_test_seq.npy", clips))
    for place, colour in enumerate(("red", "green", "blue")):
        np.testing.assert_array_equal(
            cube[colour].values, (clips[..., place] / 255).astype(np.float32).reshape(8, 64, 64)
        )
    assert cube["sequence"].values[0] == "mnist_cifar_test/0"


def test_a_folder_gives_grey_or_colour(tmp_path):
    grey = sources_video.fixed_set(tmp_path / "mnist_test_seq.npy")
    fashion = sources_video.fixed_set(tmp_path / "fmnist_test_seq.npy")
    colour = sources_video.fixed_set(tmp_path / "mnist_cifar_test_seq.npy", different(1, 2, (64, 64, 3)))
    assert {item.path for item in moving_mnist.find(tmp_path)} == {grey, fashion}
    assert [item.path for item in moving_mnist.find(colour)] == [colour]
    labels = [label for cube in everything(tmp_path) for label in np.unique(cube["sequence"])]
    assert len(labels) == len(set(labels)) == 6


def test_a_large_file_is_read_in_parts(tmp_path):
    clips = np.zeros((500, 20, 64, 64), np.uint8)
    clips[:, :, 0, 0] = np.arange(500)[:, None] % 251
    clips[:, :, 0, 1] = np.arange(20)
    path = sources_video.fixed_set(tmp_path / "mnist_test_seq.npy", clips)
    items = list(moving_mnist.find(path))
    assert [item.key for item in items] == ["0:204", "204:408", "408:500"]
    cube = moving_mnist.read(items[1])
    assert cube["intensity"].nbytes <= ITEM_BYTES
    corner = np.rint(cube["intensity"].values[:, 0, :2] * 255).astype(int).reshape(204, 20, 2)
    np.testing.assert_array_equal(corner[:, 0, 0], np.arange(204, 408) % 251)
    np.testing.assert_array_equal(corner[0, :, 1], np.arange(20))
    assert cube["sequence"].values[0] == "test/204"


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.zeros((20, 2, 64, 64)), "of float64; give .frame, clip, row, column. of uint8"),
        (np.zeros((20, 64, 64), np.uint8), r"holds \(20, 64, 64\)"),
        (np.zeros((20, 2, 64, 64, 2), np.uint8), r"holds \(20, 2, 64, 64, 2\)"),
        (np.zeros((20, 0, 64, 64), np.uint8), r"holds \(20, 0, 64, 64\)"),
        (np.zeros((20, 2, 64, 64), np.uint8, order="F"), "by columns"),
        (np.array([None, {}]), "as objects"),
        (np.zeros((5000, 1, 64, 64), np.uint8), "clips of 5000 frames"),
    ],
)
def test_refuses_a_test_set(tmp_path, values, fault):
    path = tmp_path / "mnist_test_seq.npy"
    np.save(path, values, allow_pickle=True)
    assert [item.key for item in moving_mnist.find(path)] == [""]  # one item, refused by name
    with pytest.raises(BadInput, match=f"mnist_test_seq.npy: .*{fault}"):
        moving_mnist.read(Item(path, "0:1"))


def test_refuses_a_file_that_ends_early(tmp_path):
    path = sources_video.fixed_set(tmp_path / "mnist_test_seq.npy")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"holds fewer values of mnist_test_seq\.npy than it declares"):
        moving_mnist.read(Item(path, "0:1"))


@pytest.mark.parametrize("key", ["", "0:4", "2:2", "clip 1"])
def test_refuses_parts_that_are_not_there(tmp_path, key):
    path = sources_video.fixed_set(tmp_path / "mnist_test_seq.npy")
    with pytest.raises(BadInput, match=r"has no (part|clips)"):
        moving_mnist.read(Item(path, key))


# --- archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_archive(tmp_path, packed):
    clips = different(3)
    (cube,) = everything(sources_video.archive(tmp_path / "moving-mnist-valid.npz", clips, packed=packed))
    np.testing.assert_array_equal(cube["intensity"].values.reshape(clips.shape), (clips / 255).astype(np.float32))
    assert np.unique(cube["sequence"]).tolist() == [f"moving-mnist-valid/{clip}" for clip in range(3)]
    assert (cube["split"] == "valid").all()
    assert "levels" in cube["intensity"].encoding  # these floats are levels of 8 bits


def test_archive_is_cut_as_it_lists(tmp_path):
    frames = different(1, 40)
    # clips overlap, lie apart, and see 3 frames of 5
    lists = np.array([[(30, 3), (0, 3), (2, 3)], [(33, 2), (10, 2), (5, 2)]])
    (cube,) = everything(sources_video.archive(tmp_path / "moving-mnist-test.npz", frames, lists=lists))
    wanted = [30, 31, 32, 33, 34, 0, 1, 2, 10, 11, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(cube["intensity"].values, (frames[0, wanted] / 255).astype(np.float32))
    assert (cube["split"] == "test").all()


def test_archive_with_outputs_of_its_own(tmp_path):
    seen, foreseen = different(2, 4), 255 - different(2, 4)
    outputs = (foreseen / 255).astype(np.float32).reshape(8, 1, 64, 64)
    lists = np.array([[(0, 4), (4, 4)], [(0, 4), (4, 4)]])
    dims = np.array([[1, 64, 64], [1, 64, 64]], np.int32)
    path = sources_video.archive(
        tmp_path / "moving-mnist-train.npz", seen, lists=lists, dims=dims, output_raw_data=outputs
    )
    (cube,) = everything(path)
    clips = np.concatenate([seen, foreseen], axis=1)
    np.testing.assert_array_equal(cube["intensity"].values.reshape(clips.shape), (clips / 255).astype(np.float32))


def test_floats_between_the_levels_stay(tmp_path):
    frames = np.random.default_rng(0).random((40, 1, 64, 64), np.float32)
    path = sources_video.archive(tmp_path / "moving-mnist-train.npz", different(2), input_raw_data=frames)
    (cube,) = everything(path)
    np.testing.assert_array_equal(cube["intensity"].values, frames[:, 0])
    assert not {"levels", "quantum"} & set(cube["intensity"].encoding)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"clips": np.zeros((2, 3), np.int32)}, r"clips of shape \(2, 3\)"),
        ({"clips": np.zeros((2, 3, 2))}, "lists clips as float64"),
        ({"clips": np.array([[(0, 10)], [(31, 10)]])}, "beyond its 40 frames"),
        ({"clips": np.array([[(-1, 10)], [(10, 10)]])}, "beyond its 40 frames"),
        ({"clips": np.array([[(2**62, 2**62)], [(2**63 - 1, 2**63 - 1)]])}, "beyond its 40 frames"),
        ({"input_raw_data": np.zeros((40, 2, 8, 8), np.float32)}, r"frames of shape \(40, 2, 8, 8\)"),
        ({"input_raw_data": np.full((40, 1, 8, 8), 2, np.float32)}, "values from 0 to 2"),
        ({"input_raw_data": np.full((40, 1, 8, 8), np.nan, np.float32)}, "values from nan to nan"),
        ({"input_raw_data": np.zeros((40, 1, 8, 8), np.int64)}, "frames as int64"),
        ({"dims": np.zeros((2, 3), np.int32)}, "has no array output_raw_data"),
    ],
)
def test_refuses_an_archive(tmp_path, changes, fault):
    path = tmp_path / "moving-mnist-train.npz"
    contents = {
        "clips": np.array([[(0, 10)], [(10, 10)]]),
        "dims": np.array([[1, 8, 8]]),
        "input_raw_data": np.zeros((40, 1, 8, 8), np.float32),
    }
    np.savez(path, **contents | changes)
    with pytest.raises(BadInput, match=f"moving-mnist-train.npz.*: .*{fault}"):
        moving_mnist.read(Item(path, "0:1"))


def test_parameters_of_a_generator_are_not_frames(tmp_path):
    path = tmp_path / "moving-mnist-x.npz"
    np.savez(path, digit_indices=np.zeros(3), angles=np.zeros(3))  # as in movingmnist_10000_nodistr.npz
    assert not moving_mnist.recognises(path)


# --- slices of archives ---------------------------------------------------------------------------


def test_a_packed_member_is_unpacked_once(tmp_path, monkeypatch):
    clips = different(60, 20, (32, 32))
    path = sources_video.archive(tmp_path / "moving-mnist-train.npz", clips, packed=True)
    opened = []
    real = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *arguments: opened.append(arguments) or real(*arguments))
    table = arrays.npz(path, ["input_raw_data"])[0]
    frames, size = clips.reshape(-1, 32 * 32), 32 * 32
    opened.clear()
    for first in (*range(0, 1200, 100), 700, 0, 350):  # in order, then back
        values = arrays.read(table, first * size, 100 * size)
        np.testing.assert_array_equal(np.rint(values * 255), frames[first : first + 100].ravel())
    assert len(opened) == 3  # in order; to 700 and then to 0, of which the first is nearest to no other; 350 follows 0


def test_few_streams_stay_open(tmp_path):
    values = np.random.default_rng(0).integers(0, 9, 50_000, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", a=values)
    (array,) = arrays.npz(tmp_path / "a.npz", ["a"])
    for first in range(49_000, -1, -1000):
        np.testing.assert_array_equal(arrays.read(array, first, 1000), values[first : first + 1000])
    stat = array.path.stat()
    assert len(arrays._streams(array.path, stat.st_size, stat.st_mtime_ns, "a.npy").idle) == arrays.STREAMS
    np.testing.assert_array_equal(arrays.read(array, 0, 50_000), values)
    with pytest.raises(BadInput, match="has no values"):
        arrays.read(array, 49_999, 2)


def test_threads_read_one_member(tmp_path):
    values = np.random.default_rng(0).integers(0, 9, 400_000, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", a=values)
    (array,) = arrays.npz(tmp_path / "a.npz", ["a"])
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda first: arrays.read(array, first, 1000), range(0, 400_000, 1000)))
    np.testing.assert_array_equal(np.concatenate(parts), values)


def test_a_stream_that_ends_early_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(10_000))
    (array,) = arrays.npz(path, ["a"])
    short = zlib.compressobj(wbits=-15)
    content = bytearray(path.read_bytes())
    stream = short.compress(bytes(200)) + short.flush()  # a whole stream of 200 bytes in place of 80,000
    begin = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    content[begin : begin + len(stream)] = stream
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is damaged inside a"):
        arrays.read(array, 0, 10_000)


# --- digits ---------------------------------------------------------------------------------------


def test_digits_become_the_nominal_clips(tmp_path):
    path = sources_video.idx(tmp_path / "moving_mnist" / "train-images-idx3-ubyte.gz")
    items = list(moving_mnist.find(path))
    assert items[0].key == "0:204" and items[-1].key == "9996:10000"
    cube = moving_mnist.read(items[-1])
    assert cube.sizes["time"] == 80 and (cube["split"] == "train").all()
    assert cube["sequence"].values[-1] == "train-images/9999"
    images = np.stack([np.eye(28, dtype=np.uint8) * (number + 1) for number in range(5)])
    clips = MovingImages(images, seed=0).clips(range(9996, 10_000))
    np.testing.assert_array_equal(cube["intensity"].values.reshape(clips.shape), (clips / 255).astype(np.float32))
    assert cube.identical(moving_mnist.read(items[-1]))


@pytest.mark.parametrize(
    ("place", "label", "split"),
    [
        ("moving_mnist/train-images-idx3-ubyte", "train-images/0", "train"),
        ("moving_fmnist/train-images-idx3-ubyte.gz", "fashion-train-images/0", "train"),
        ("MNIST/raw/t10k-images.idx3-ubyte", "t10k-images/0", "test"),
    ],
)
def test_every_file_has_labels_of_its_own(tmp_path, place, label, split):
    path = sources_video.idx(tmp_path / place)
    assert moving_mnist.recognises(path)
    cube = moving_mnist.read(Item(path, "0:1"))
    assert (cube["sequence"].values[0], cube["split"].values[0]) == (label, split)


def test_refuses_labels_of_digits(tmp_path):
    path = sources_video.idx(tmp_path / "train-images-idx3-ubyte.gz", magic=0x801)
    with pytest.raises(BadInput, match="begins with 0x801"):
        moving_mnist.read(next(moving_mnist.find(path)))


@needs_real("mnist")
def test_real_digits():
    (*_, last) = items = list(moving_mnist.find(DIGITS.parent))
    assert [item.path for item in items] == [DIGITS] * 50
    cube = moving_mnist.read(last)
    digits = np.frombuffer(gzip.decompress(DIGITS.read_bytes())[16:], np.uint8).reshape(-1, 28, 28)
    made = MovingImages(digits, seed=0)
    frames = np.rint(cube["intensity"].values * 255).astype(np.uint8).reshape(4, 20, 64, 64)
    for number, clip in enumerate(frames):
        chosen, paths = made._drawn(np.array([9996 + number], np.uint64))
        for picture, path in zip(chosen[0], paths[0], strict=True):
            for frame, (top, left) in zip(clip, (path * 36).astype(int), strict=True):
                assert (frame[top : top + 28, left : left + 28] >= digits[picture]).all()
    assert cube["sequence"].values[0] == "t10k-images/9996"
