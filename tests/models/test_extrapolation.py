"""Extrapolation: known motion comes back, missing data stay honest, odd input does no harm."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast import readers
from nowcast.core.units import QUANTITIES, convert
from nowcast.models import build
from nowcast.models.extrapolation import Extrapolation, advect, motion
from tests.paths import REAL_DATA, needs_real


def extrapolate(frames_THW: np.ndarray, *, steps: int = 3) -> np.ndarray:
    frames = np.asarray(frames_THW, np.float32)
    model = Extrapolation(in_steps=len(frames), out_steps=steps)
    return model(torch.from_numpy(frames)[None, :, None])[0, :, 0].numpy()


def rain(shape: tuple[int, int], *, steps: int, velocity: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Round showers of several sizes moving by ``velocity`` (columns, rows) per step, drawn exactly at sub-pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    places = np.random.default_rng(3).uniform(-0.2, 1.2, (60, 2)) * shape
    radii = np.random.default_rng(4).uniform(0.02, 0.06, 60) * min(shape)
    frames = np.zeros((steps, *shape))
    for step, (row, column), radius in (
        (t, *shower) for t in range(steps) for shower in zip(places, radii, strict=True)
    ):
        distance = np.hypot(x - column - velocity[0] * step, y - row - velocity[1] * step)
        frames[step] = np.maximum(frames[step], 0.8 * np.exp(-0.5 * (distance / radius) ** 2))
    return np.where(frames < 0.05, 0, frames).astype(np.float32)


def uniform(shape: tuple[int, int], *, velocity: tuple[float, float]) -> np.ndarray:
    return np.broadcast_to(np.float32(velocity)[:, None, None], (2, *shape))


def shifted(frame: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """The frame moved by whole pixels, NaN where nothing is known."""
    height, width = frame.shape
    moved = np.full_like(frame, np.nan)
    for y, x in np.ndindex(height, width):
        if 0 <= y - rows < height and 0 <= x - columns < width:
            moved[y, x] = frame[y - rows, x - columns]
    return moved


@pytest.mark.parametrize(
    ("shape", "velocity"),
    [
        ((160, 200), (3, -2)),
        ((160, 200), (-1.5, 2.5)),
        ((300, 260), (6, 4.3)),
        ((301, 203), (0, -5)),
        ((64, 64), (1, 2)),
    ],
)
def test_known_motion_comes_back(shape: tuple[int, int], velocity: tuple[float, float]) -> None:
    frames = rain(shape, steps=7, velocity=velocity)
    found = motion(frames[:4])
    assert found.shape == (2, *shape) and found.dtype == np.float32
    # The outermost rain enters and leaves between frames and cannot be tracked to a fifth of a pixel.
    inside = np.s_[:, 12:-12, 12:-12]
    error = found[inside] - np.float32(velocity)[:, None, None]
    assert np.abs(error.mean(axis=(1, 2))).max() < 0.2
    wet = frames[3][inside[1:]] > 0.1
    assert np.percentile(np.abs(error[:, wet]), 90) < 0.2
    future, truth = extrapolate(frames[:4]), frames[4:]
    both = np.isfinite(future)
    assert both.mean() > 0.8
    assert np.abs(future - truth)[both].mean() < 0.1 * np.abs(frames[3] - truth)[both].mean()


def test_runs_repeat_bit_for_bit() -> None:
    frames = rain((240, 200), steps=4, velocity=(2, 1))
    first = extrapolate(frames)
    for offset in range(1, 6):
        elsewhere = np.empty(frames.size + offset, np.float32)[offset:].reshape(frames.shape)
        elsewhere[:] = frames
        np.testing.assert_array_equal(extrapolate(elsewhere), first)


def test_edge_of_coverage_does_not_hold_the_motion_back() -> None:
    frames = rain((240, 240), steps=4, velocity=(5, 0))
    y, x = np.mgrid[:240, :240]
    covered = np.hypot(x - 120, y - 120) < 100
    found = motion(np.where(covered, frames, np.nan))
    assert np.abs(found[0][covered] - 5).mean() < 0.2
    assert np.abs(found[1][covered]).mean() < 0.2


def test_only_the_last_four_frames_count() -> None:
    frames = rain((96, 96), steps=6, velocity=(2, 1))
    np.testing.assert_array_equal(motion(frames), motion(frames[-4:]))


def test_inflow_border_is_no_data() -> None:
    frame = np.arange(20, dtype=np.float32).reshape(4, 5) / 20
    future = advect(frame, uniform((4, 5), velocity=(2, 0)), steps=3)
    np.testing.assert_allclose(future[0], shifted(frame, 2, 0), rtol=1e-6)
    np.testing.assert_allclose(future[1], shifted(frame, 4, 0), rtol=1e-6)
    assert np.isnan(future[2]).all()


def test_hole_moves_and_harms_no_neighbour() -> None:
    frame = np.full((9, 12), 0.5, np.float32)
    frame[4, 3] = np.nan
    for step, field in enumerate(advect(frame, uniform((9, 12), velocity=(1, 0)), steps=3), start=1):
        known = np.ones((9, 12), bool)
        known[:, :step] = known[4, 3 + step] = False
        np.testing.assert_array_equal(np.isfinite(field), known)
        assert (field[known] == 0.5).all()
    # 0.6 of the weight of the pixel to its left falls into the hole, 0.4 of that to its right.
    field = advect(frame, uniform((9, 12), velocity=(0.6, 0)), steps=1)[0]
    assert np.flatnonzero(np.isnan(field[4, 1:])).tolist() == [3]
    assert (field[np.isfinite(field)] == 0.5).all()


def test_trajectories_follow_a_rotation() -> None:
    y, x = np.mgrid[:160, :160].astype(np.float32)
    turn = np.pi / 2 / 12
    frame = np.exp(-0.5 * (np.hypot(x - 125, y - 80) / 5) ** 2)
    field = advect(frame, np.stack([-(y - 80) * turn, (x - 80) * turn]), steps=12)[-1]
    # A quarter turn carries (125, 80) to (80, 125); the start of each step alone would miss it by 3 pixels.
    weight = np.nan_to_num(field)
    assert (weight * x).sum() / weight.sum() == pytest.approx(80, abs=0.5)
    assert (weight * y).sum() / weight.sum() == pytest.approx(125, abs=0.5)


def test_dry_stays_dry_and_missing_stays_missing() -> None:
    frames = np.zeros((4, 50, 60), np.float32)
    frames[:, 10:20, 5:9] = np.nan
    np.testing.assert_array_equal(extrapolate(frames), frames[:3])


def test_one_frame_is_persistence() -> None:
    frame = rain((70, 50), steps=1)
    frame[0, 30, 20] = np.nan
    np.testing.assert_array_equal(extrapolate(frame), np.repeat(frame, 3, axis=0))


def test_flat_rain_is_persistence() -> None:
    frames = np.full((4, 40, 40), 0.3, np.float32)
    np.testing.assert_allclose(extrapolate(frames), frames[:3], rtol=1e-6)


def speck(frames: np.ndarray) -> None:
    frames[:] = 0
    frames[-1, 40, 40] = 0.4


def dry_newest(frames: np.ndarray) -> None:
    frames[-1] = 0


def missing_older(frames: np.ndarray) -> None:
    frames[1] = np.nan


def only_newest_known(frames: np.ndarray) -> None:
    frames[:-1] = np.nan


@pytest.mark.parametrize("spoil", [speck, dry_newest, missing_older, only_newest_known])
def test_odd_input_gives_a_finite_forecast(spoil: Callable[[np.ndarray], None]) -> None:
    frames = rain((96, 120), steps=4, velocity=(2, 0))
    spoil(frames)
    future = extrapolate(frames)
    assert np.isfinite(future).mean() > 0.85
    assert np.nanmin(future) >= 0 and np.nanmax(future) <= frames[-1].max() + 1e-6


def test_missing_older_frame_leaves_the_motion_to_the_others() -> None:
    frames = rain((160, 160), steps=4, velocity=(4, 0))
    frames[1] = np.nan
    assert motion(frames)[0].mean() == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("missing", [np.s_[:], np.s_[-1]])
def test_no_newest_frame_is_no_forecast(missing: object) -> None:
    frames = rain((64, 80), steps=4, velocity=(2, 0))
    frames[missing] = np.nan
    assert np.isnan(extrapolate(frames)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (5, 7), (31, 33), (400, 9)])
def test_any_size(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).random((4, *shape), np.float32)
    assert extrapolate(frames).shape == (3, *shape)


def test_batch_members_and_channels_are_independent() -> None:
    fields = [rain((64, 72), steps=4, velocity=velocity) for velocity in ((2, 0), (0, -2), (-1, 1), (0, 0))]
    past = torch.from_numpy(np.stack(fields)).reshape(2, 2, 4, 64, 72).transpose(1, 2)
    assert not past.is_contiguous()
    before = past.clone()
    future = build("extrapolation", in_steps=4, out_steps=5, channels=2)(past)
    assert future.shape == (2, 5, 2, 64, 72) and torch.equal(past, before)
    for index, field in enumerate(fields):
        np.testing.assert_array_equal(future[index // 2, :, index % 2].numpy(), extrapolate(field, steps=5))


def test_reversed_and_strided_input_is_read_right() -> None:
    frames = rain((64, 64), steps=4, velocity=(2, 1))
    wide = np.repeat(frames, 2, axis=2)[:, ::-1]
    view = wide[:, ::-1, ::2]
    np.testing.assert_array_equal(motion(view), motion(frames))
    np.testing.assert_array_equal(
        advect(view[-1], motion(frames), steps=2), advect(frames[-1], motion(frames), steps=2)
    )


def test_keeps_the_type_of_its_input() -> None:
    past = torch.zeros(1, 2, 1, 20, 20, dtype=torch.float64)
    assert Extrapolation(in_steps=2, out_steps=1)(past).dtype == torch.float64


def test_refuses_another_number_of_frames() -> None:
    with pytest.raises(ValueError, match=r"takes .*4 frames"):
        Extrapolation(in_steps=4, out_steps=1)(torch.zeros(1, 3, 1, 8, 8))


def test_says_what_it_is() -> None:
    assert Extrapolation.handles_missing and not Extrapolation.trainable
    assert Extrapolation.options() == []
    assert not list(Extrapolation(in_steps=4, out_steps=1).parameters())


def fields(frames: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(frames, st.integers(1, 40), st.integers(1, 40))
    values = st.one_of(st.floats(0, 1, width=32), st.just(0.0), st.just(float("nan")))
    return arrays.arrays(np.float32, shape, elements=values, fill=st.sampled_from([0.0, float("nan")]))


@settings(max_examples=60, deadline=None)
@given(fields(st.integers(1, 5)))
def test_no_new_extremes_and_no_data_out_of_nothing(frames: np.ndarray) -> None:
    future, known = extrapolate(frames), frames[-1][np.isfinite(frames[-1])]
    assert np.isfinite(motion(frames)).all()
    assert not np.isinf(future).any()
    values = future[np.isfinite(future)]
    if values.size:
        assert known.min() - 1e-6 <= values.min() and values.max() <= known.max() + 1e-6


@settings(max_examples=60, deadline=None)
@given(fields(st.just(1)), st.integers(-9, 9), st.integers(-9, 9))
def test_whole_pixels_move_exactly(frames: np.ndarray, columns: int, rows: int) -> None:
    frame = frames[0]
    field = advect(frame, uniform(frame.shape, velocity=(columns, rows)), steps=2)
    for step in (1, 2):
        np.testing.assert_allclose(field[step - 1], shifted(frame, step * columns, step * rows), atol=1e-6)


@needs_real("knmi")
@needs_real("fmi/pgm")
@pytest.mark.parametrize(("reader", "folder"), [("knmi", "knmi"), ("fmi-pgm", "fmi/pgm")])
def test_beats_persistence_on_real_rain(reader: str, folder: str) -> None:
    source = readers.get(reader)
    items = list(source.find(REAL_DATA / folder))[8:18]
    cubes = [source.read(item) for item in items]
    name = next(iter(cubes[0].data_vars.keys() & QUANTITIES))
    rates = [convert(cube[name].values[0], name, "rainfall_rate") for cube in cubes]
    frames = QUANTITIES["rainfall_rate"].scaling.encode(np.stack(rates))
    future, truth = extrapolate(frames[:4], steps=6), frames[4:]
    both = np.isfinite(future) & np.isfinite(truth) & np.isfinite(frames[3])
    for lead, seen in enumerate(both):
        moved, still = (np.mean((field[seen] - truth[lead][seen]) ** 2) for field in (future[lead], frames[3]))
        assert moved < still
