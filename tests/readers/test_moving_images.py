import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.readers import moving_images
from nowcast.readers.moving_images import MovingImages, load_images
from tests import fixtures, sources_video
from tests.paths import REAL_DATA, needs_real

DIGITS = REAL_DATA / "mnist" / "t10k-images-idx3-ubyte.gz"


def pictures(count: int = 50, shape: tuple[int, int] = (28, 28)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)


def painted(made: MovingImages, index: int) -> np.ndarray:
    """A clip painted pixel by pixel over black, from the paths alone."""
    clip = np.zeros((made.frames, made.canvas, made.canvas), np.uint8)
    chosen, paths = made._drawn(np.array([index], np.uint64))
    rows, columns = made.images.shape[1:]
    for picture, path in zip(chosen[0], paths[0], strict=True):
        for frame, (row, column) in enumerate(path):
            top, left = int(row * (made.canvas - rows)), int(column * (made.canvas - columns))
            window = clip[frame, top : top + rows, left : left + columns]
            window[:] = np.where(window > made.images[picture], window, made.images[picture])
    return clip


def walked(place: list[float], velocity: list[float], frames: int) -> list[list[float]]:
    """The reference motion, axis by axis: whoever reaches a border stops at it and turns."""
    path = []
    for _ in range(frames):
        for axis in (0, 1):
            place[axis] += velocity[axis]
            if place[axis] <= 0 or place[axis] >= 1:
                place[axis] = min(max(place[axis], 0.0), 1.0)
                velocity[axis] = -velocity[axis]
        path.append(list(place))
    return path


# --- clips ----------------------------------------------------------------------------------------


def test_a_clip_has_the_shape_of_the_benchmark():
    clips = MovingImages(pictures(), seed=3).clips(range(5))
    assert clips.shape == (5, 20, 64, 64) and clips.dtype == np.uint8
    assert clips.any(axis=(2, 3)).all()


def test_the_number_of_objects_is_drawn_for_each_clip():
    made = MovingImages(np.full((5, 2, 2), 255, np.uint8), canvas=64, count=[1, 3], seed=4)
    clips, shown = made.clips(range(2000)), made.shown(np.arange(2000))
    assert set(shown) == {1, 3}
    assert 900 < (shown == 3).sum() < 1100
    bright = (clips[:, 0] > 0).sum(axis=(1, 2))
    assert (bright[shown == 1] == 4).all()
    assert (bright[shown == 3] > 4).mean() > 0.99
    one, three = (MovingImages(made.images, canvas=64, count=count, seed=4).clips(range(2000)) for count in (1, 3))
    np.testing.assert_array_equal(clips, np.where((shown == 1)[:, None, None, None], one, three))


def test_a_clip_follows_from_its_number_alone():
    made = MovingImages(pictures(), seed=3)
    together = made.clips([5, 0, 7, 5])
    np.testing.assert_array_equal(together[0], together[3])
    for place, index in enumerate((5, 0, 7)):
        np.testing.assert_array_equal(made.clip(index), together[place])
    np.testing.assert_array_equal(made.clips(range(40))[[5, 0, 7, 5]], together)  # whatever is painted beside it


def test_another_process_makes_the_same_clips():
    code = (
        "import numpy as np; from nowcast.readers.moving_images import MovingImages;"
        "images = np.arange(5 * 784).reshape(5, 28, 28).astype(np.uint8);"
        "print(MovingImages(images, seed=-7).clips([10**12, 1]).tobytes().hex()[:4000])"
    )
    command = [sys.executable, "-c", code]
    first = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "1"}).stdout
    images = np.arange(5 * 784).reshape(5, 28, 28).astype(np.uint8)
    assert MovingImages(images, seed=-7).clips([10**12, 1]).tobytes().hex()[:4000] == first.strip()


def test_clips_and_seeds_differ():
    clips = [MovingImages(pictures(), seed=seed).clips(range(20)) for seed in (0, 1, -1)]
    flat = np.concatenate(clips).reshape(60, -1)
    assert len(np.unique(flat, axis=0)) == 60


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("elastic", [False, True])
def test_is_painted_as_by_hand(count, elastic):
    made = MovingImages(pictures(), count=count, seed=5, elastic=elastic)
    for index in (0, 1, 17):
        np.testing.assert_array_equal(made.clip(index), painted(made, index))


@settings(max_examples=30)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    canvas=st.integers(12, 20),
    frames=st.integers(1, 8),
    step=st.floats(0, 1),
    seed=st.integers(-(2**40), 2**40),
    elastic=st.booleans(),
)
def test_any_picture_on_any_canvas(rows, columns, canvas, frames, step, seed, elastic):
    made = MovingImages(
        pictures(3, (rows, columns)), canvas=canvas, frames=frames, step=step, seed=seed, elastic=elastic
    )
    paths = made.paths(range(4))
    assert paths.min() >= 0 and paths.max() <= 1
    for index, clip in enumerate(made.clips(range(4))):
        np.testing.assert_array_equal(clip, painted(made, index))


def test_the_larger_level_covers():
    # pictures as large as the canvas cannot move, so that every pixel is the maximum of the same two
    images = pictures(2, (8, 8))
    made = MovingImages(images, canvas=8, seed=0)
    chosen = made._drawn(np.arange(30, dtype=np.uint64))[0]
    mixed = int(np.flatnonzero(chosen[:, 0] != chosen[:, 1])[0])
    np.testing.assert_array_equal(made.clip(mixed), np.broadcast_to(images.max(axis=0), (20, 8, 8)))


def test_no_picture_is_cut_off():
    bright = np.full((1, 28, 28), 200, np.uint8)
    clips = MovingImages(bright, count=1, seed=0).clips(range(200))
    assert ((clips == 200).sum(axis=(2, 3)) == 28 * 28).all()


# --- motion ---------------------------------------------------------------------------------------


def test_moves_like_the_reference():
    made = MovingImages(pictures(), seed=2)
    counter = np.arange(50, dtype=np.uint64)
    bits = moving_images._mixed(
        moving_images._mixed(counter[:, None] * np.uint64(12) + np.arange(8, dtype=np.uint64)) ^ made.key
    )
    drawn = (bits >> np.uint64(11)) / 2**53
    for clip in range(50):
        for thing in (0, 1):
            _, row, column, turn = drawn[clip, 4 * thing : 4 * thing + 4].tolist()
            velocity = [0.1 * np.sin(2 * np.pi * turn), 0.1 * np.cos(2 * np.pi * turn)]
            np.testing.assert_array_equal(made.paths([clip])[0, thing], walked([row, column], velocity, 20))


def test_a_border_stops_and_turns():
    path = moving_images._stopping(np.array([0.95, 0.5]), np.array([0.1, 0.0]), 4)
    np.testing.assert_allclose(path, [[1, 0.5], [0.9, 0.5], [0.8, 0.5], [0.7, 0.5]])


def test_an_elastic_border_reflects():
    path = moving_images._reflected(np.array([0.95, 0.02]), np.array([0.1, -0.05]), 3)
    np.testing.assert_allclose(path, [[0.95, 0.03], [0.85, 0.08], [0.75, 0.13]])


@pytest.mark.parametrize("elastic", [False, True])
def test_speed_is_constant_and_no_border_is_crossed(elastic):
    paths = MovingImages(pictures(), seed=0, elastic=elastic).paths(range(2000))
    assert paths.min() >= 0 and paths.max() <= 1
    moves = np.diff(paths, axis=2)
    free = ((paths > 0.1) & (paths < 0.9)).all(axis=-1)
    free = free[:, :, 1:] & free[:, :, :-1]  # no border within a step
    np.testing.assert_allclose(np.hypot(*np.moveaxis(moves[free], -1, 0)), 0.1, rtol=1e-9)
    assert np.hypot(*np.moveaxis(moves, -1, 0)).max() < 0.1 + 1e-9
    # direction changes only where a border is within a step
    turned = np.sign(moves[:, :, 1:]) * np.sign(moves[:, :, :-1]) < 0
    middle = paths[:, :, 1:-1]
    assert (np.minimum(middle, 1 - middle)[turned] < 0.1).all() and turned.any()


def test_start_direction_and_picture_are_uniform():
    made = MovingImages(pictures(10), seed=0, elastic=True)
    chosen, paths = made._drawn(np.arange(20_000, dtype=np.uint64))

    def departure(values: np.ndarray, bins: int = 20) -> float:
        """Chi square per degree of freedom: 1 in the mean, above 2 once in hundred thousand times."""
        counts = np.histogram(values, bins, (0, 1))[0]
        return float(((counts - counts.mean()) ** 2 / counts.mean()).sum() / (bins - 1))

    for thing in (0, 1):
        assert departure((chosen[:, thing] + 0.5) / 10, 10) < 2.5
        for axis in (0, 1):
            assert departure(paths[:, thing, 0, axis]) < 2  # a reflected step leaves the uniform as it is
        row, column = np.moveaxis(np.diff(paths[:, thing, :2], axis=1)[:, 0], -1, 0)
        free = ((paths[:, thing, 0] > 0.1) & (paths[:, thing, 0] < 0.9)).all(axis=1)
        assert departure(np.arctan2(row, column)[free] / (2 * np.pi) + 0.5) < 2
    # nothing of one object tells anything of the other, nor one clip of the next
    first = paths[:, :, 0].reshape(20_000, 4)
    correlation = np.corrcoef(np.concatenate([first[:-1].T, first[1:].T]))
    assert np.abs(correlation - np.eye(8)).max() < 0.03


def test_random_numbers_are_those_of_splitmix64():
    first = moving_images._mixed(np.arange(3, dtype=np.uint64)).tolist()
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(
    ("images", "settings", "fault"),
    [
        (np.zeros((3, 28, 28)), {}, "of float64"),
        (np.zeros((28, 28), np.uint8), {}, "give .image, row, column. of uint8"),
        (np.zeros((0, 28, 28), np.uint8), {}, r"\(0, 28, 28\)"),
        (np.zeros((1, 65, 28), np.uint8), {}, "65x28 pixels do not fit a canvas of 64"),
        (np.zeros((1, 28, 28), np.uint8), {"count": 4}, "1 to 3 objects"),
        (np.zeros((1, 28, 28), np.uint8), {"frames": 0}, "1 to 3 objects"),
        (np.zeros((1, 28, 28), np.uint8), {"step": 1.5}, "1 to 3 objects"),
    ],
)
def test_refuses(images, settings, fault):
    with pytest.raises(ValueError, match=fault):
        MovingImages(images, seed=0, **settings)


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_of_every_form(tmp_path: Path):
    images = pictures(12, (9, 7))
    np.save(tmp_path / "images.npy", images)
    for number, image in enumerate(images):
        path = tmp_path / "folder" / f"{number}.png"
        fixtures.png(path, image)
    sources = [sources_video.idx(tmp_path / name, images) for name in ("images-idx3-ubyte", "images-idx3-ubyte.gz")]
    for source in (*sources, tmp_path / "images.npy", tmp_path / "folder"):
        np.testing.assert_array_equal(load_images(source), images)


def test_coloured_pictures_become_grey(tmp_path: Path):
    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / "red.png")
    np.testing.assert_array_equal(load_images(tmp_path), np.full((1, 4, 5), 76))  # 0.299 of 255


def _idx(tmp_path: Path, **changes: int) -> Path:
    return sources_video.idx(tmp_path / "images-idx3-ubyte", **changes)


def _gzipped(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(content)
    return path


def _saved(tmp_path: Path, values: np.ndarray) -> Path:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    return tmp_path / "a.npy"


def _sizes(tmp_path: Path) -> Path:
    for side in (3, 4):
        fixtures.png(tmp_path / "folder" / f"{side}.png", np.zeros((side, side), np.uint8))
    return tmp_path / "folder"


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: path / "nowhere.npy", "does not exist"),
        (lambda path: path, "holds no file named"),
        (lambda path: _idx(path, magic=0x801), "begins with 0x801"),
        (lambda path: _idx(path, declared=6), "does not hold 6 pictures of 28x28"),
        (lambda path: _idx(path, declared=4), "does not hold 4 pictures of 28x28"),
        (lambda path: _idx(path, declared=2**31), "holds 2147483648 x 28 x 28 pixels; give 1 to 268,435,456"),
        (lambda path: _idx(path, declared=0), "holds 0 x 28 x 28"),
        (lambda path: _gzipped(path, b"no gzip"), "damaged or not a set of pictures"),
        (lambda path: _gzipped(path, gzip.compress(bytes(16))[:-4]), "begins with 0x0"),
        (lambda path: _saved(path, np.zeros((2, 3))), "of float64"),
        (lambda path: _saved(path, np.array([{}, {}], object)), "as objects"),
        (_sizes, "4.png: has 4x4 pixels, not 3x3"),
    ],
)
def test_refuses_pictures(tmp_path, make, fault):
    with pytest.raises(BadInput, match=fault):
        load_images(make(tmp_path))


@needs_real("mnist")
def test_real_digits():
    raw = gzip.decompress(DIGITS.read_bytes())
    assert raw[:16].hex() == "00000803000027100000001c0000001c"
    digits = load_images(DIGITS)
    np.testing.assert_array_equal(digits, np.frombuffer(raw, np.uint8, offset=16).reshape(10_000, 28, 28))
    made = MovingImages(digits, seed=0)
    clips = made.clips(range(200))
    for index in (0, 99, 199):
        np.testing.assert_array_equal(clips[index], painted(made, index))
    # two digits of some 100 bright pixels each: the mean level of the published test set is 0.05 of white
    assert clips.mean() / 255 == pytest.approx(0.05, abs=0.01)
