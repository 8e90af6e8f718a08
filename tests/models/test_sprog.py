"""S-PROG and STEPS: what pysteps makes of rain, and that nothing else it does gets out."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from nowcast.models import build
from nowcast.models.sprog import SPROG
from nowcast.models.steps import STEPS
from tests.models.test_extrapolation import rain

needs_pysteps = pytest.mark.skipif(not find_spec("pysteps"), reason="needs pysteps (pip install '.[pysteps]')")
each_kind = pytest.mark.parametrize(("kind", "options"), [(SPROG, {}), (STEPS, {"members": 3})])
SHOWERS = rain((96, 120), steps=4, velocity=(2, -1))


def run(model: torch.nn.Module, frames: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(np.float32(frames))[None, :, None])[0, :, 0].numpy()


def forecast(kind: type, frames: np.ndarray, steps: int = 4, **options: object) -> np.ndarray:
    return run(kind(in_steps=len(frames), out_steps=steps, **options), frames)


def carried(frames: np.ndarray, steps: int = 4) -> np.ndarray:
    return run(build("extrapolation", in_steps=len(frames), out_steps=steps), frames)


def single(size: int, frames: int = 4) -> np.ndarray:
    speck = np.zeros((frames, 64, 64))
    speck[:, 20 : 20 + size, 30 : 30 + size] = 0.5
    return speck


@needs_pysteps
@each_kind
def test_rain_changes_where_it_is_carried_and_is_known_as_far(kind, options):
    made, plain = forecast(kind, SHOWERS, **options), carried(SHOWERS)
    np.testing.assert_array_equal(np.isnan(made), np.isnan(plain))
    known = np.isfinite(plain)
    assert (made[known] != plain[known]).mean() > 0.1
    assert np.corrcoef(made[known], plain[known])[0, 1] > 0.7


@needs_pysteps
def test_smooth_forecasts_vary_less_with_every_lead():
    made = forecast(SPROG, SHOWERS, steps=6, matching="none")
    roughness = np.abs(np.diff(made[:, 20:-20, 20:-20], axis=2)).mean((1, 2))
    assert roughness[-1] < roughness[0]


@needs_pysteps
@each_kind
def test_repeats_bit_for_bit_prints_nothing_and_leaves_the_generator_alone(kind, options, capsys):
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    first = forecast(kind, SHOWERS, **options)
    assert np.random.random() == expected
    np.testing.assert_array_equal(forecast(kind, SHOWERS, **options), first)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


@needs_pysteps
@each_kind
@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 64, 64)),
        np.full((4, 64, 64), np.nan),
        np.ones((4, 64, 64)),
        single(1),
        single(12),  # stands still, so its frames are perfectly correlated
        np.concatenate([np.zeros((3, 64, 64)), single(12, 1)]),
        np.pad(np.full((4, 4, 40), 0.5), ((0, 0), (0, 60), (0, 24))),  # at the rim alone
        SHOWERS[:2],
        SHOWERS[:, :20],
    ],
    ids=["dry", "missing", "constant", "speck", "still", "sudden", "rim", "two frames", "narrow"],
)
def test_where_the_cascade_cannot_work_rain_is_carried(kind, options, frames):
    np.testing.assert_array_equal(forecast(kind, frames, **options), carried(frames))


@needs_pysteps
@each_kind
def test_missing_pixels_stay_missing_and_do_not_spread(kind, options):
    frames = SHOWERS.copy()
    frames[:, :, :30] = np.nan
    made = forecast(kind, frames, **options)
    np.testing.assert_array_equal(np.isnan(made), np.isnan(carried(frames)))


@needs_pysteps
def test_mean_of_the_members_is_what_it_says():
    members = [forecast(STEPS, SHOWERS, members=3, member=k) for k in range(3)]
    mean = forecast(STEPS, SHOWERS, members=3)
    assert not np.allclose(members[0], members[1], equal_nan=True)
    inside = (slice(None), slice(20, -20), slice(20, -20))
    np.testing.assert_allclose(mean[inside], np.mean(members, axis=0)[inside], atol=1e-5)
    assert not np.allclose(forecast(STEPS, SHOWERS, members=3, seed=1), mean, equal_nan=True)


def test_without_pysteps_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysteps", None)
    with pytest.raises(ImportError, match=r"SPROG needs pysteps.*pip install 'nowcast-radar\[pysteps\]'"):
        forecast(SPROG, SHOWERS)
    np.testing.assert_array_equal(forecast(SPROG, SHOWERS[:2]), carried(SHOWERS[:2]))


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("sprog", {"levels": 2}, "levels >= 3, got 0.02 and 2"),
        ("sprog", {"matching": "median"}, "Unknown matching 'median'; known: cdf, mean, none"),
        ("steps", {"members": 5, "member": 5}, "got 5 and 5"),
        ("steps", {"pixel_km": 0}, "must be > 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, fault):
    with pytest.raises(ValueError, match=fault):
        build(name, in_steps=3, out_steps=1, **options)
