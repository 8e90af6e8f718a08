from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from nowcast.cube import BadInput, make
from nowcast.grid import Grid
from nowcast.quality import FLAGS, RANGES, inspect_frames
from nowcast.units import QUANTITIES

GRID = Grid.regular("EPSG:28992", (4, 5), upper_left=(0, 0), pixel=(1000, 1000))
START = np.datetime64("2020-01-01T00:00")
NOW = datetime(2020, 1, 1, 12, tzinfo=UTC)


def cube(*frames: np.ndarray, **more: list[np.ndarray]):
    times = [START + np.timedelta64(5 * index, "m") for index in range(len(frames))]
    fields = {"rainfall_rate": np.stack(frames)} | {name: np.stack(values) for name, values in more.items()}
    return make(fields, times, GRID)


def frame(*first: float) -> np.ndarray:
    field = np.zeros((4, 5), np.float32)
    field.flat[: len(first)] = first
    return field


def status(*frames: np.ndarray, **options: object) -> list[int]:
    return inspect_frames(cube(*frames), now=NOW, **options).values.tolist()


def test_flags():
    nothing = np.full((4, 5), np.nan)
    assert status(frame(1.0)) == [0]
    assert status(frame()) == [FLAGS["dry"]]
    assert status(frame(0.09)) == [FLAGS["dry"]]
    assert status(frame(0.1)) == [0]
    assert status(frame(501.0)) == [FLAGS["out_of_range"]]
    assert status(frame(-0.1, 1.0)) == [FLAGS["out_of_range"]]
    assert status(frame(np.inf)) == [FLAGS["out_of_range"]]
    assert status(frame(2.0), nothing) == [0, FLAGS["mostly_missing"]]


def test_mostly_missing_is_a_share():
    half = frame(*[np.nan] * 10, 3.0)
    assert status(half) == [0]
    assert status(half, most=0.49) == [FLAGS["mostly_missing"]]
    assert status(frame(*[np.nan] * 19), most=0.9) == [FLAGS["mostly_missing"] | FLAGS["dry"]]


def test_values_are_never_altered():
    before = cube(frame(-1, np.nan, 9999))
    after = before.copy(deep=True)
    inspect_frames(after, now=NOW)
    assert after.identical(before)


def test_channels_add_up():
    both = cube(frame(1.0), frame(), visible_reflectance=[frame(0.5), frame(3.0)])
    assert inspect_frames(both, now=NOW).values.tolist() == [0, FLAGS["out_of_range"]]  # a picture is never dry


def test_is_a_cf_status_flag():
    flags = inspect_frames(cube(frame()), now=NOW)
    assert (flags.dtype, flags.dims, flags.name) == (np.int8, ("time",), "status")
    assert flags.attrs["flag_meanings"].split() == list(FLAGS)
    np.testing.assert_array_equal(flags.attrs["flag_masks"], list(FLAGS.values()))


def test_refuses_a_frame_without_a_measured_pixel():
    with pytest.raises(BadInput, match=r"a\.h5: has no measured pixel"):
        inspect_frames(cube(np.full((4, 5), np.nan)), now=NOW, where="a.h5")


def test_refuses_the_future():
    soon = datetime(2020, 1, 1, tzinfo=UTC) - timedelta(minutes=10)
    assert inspect_frames(cube(frame()), now=soon).size == 1
    with pytest.raises(BadInput, match=r"is from the future \(2020-01-01T00:00:00 UTC\)"):
        inspect_frames(cube(frame()), now=soon - timedelta(seconds=1))
    assert inspect_frames(cube(frame())).size == 1  # the clock has passed 2020


def test_every_quantity_has_a_range():
    assert set(RANGES) == set(QUANTITIES)
