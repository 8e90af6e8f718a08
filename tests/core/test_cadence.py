import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nowcast.core.cadence import contradictions, find_changes, newest_step, step_of_frames

START = np.datetime64("2024-06-01T00:00", "s")


def times(*minutes: float) -> np.ndarray:
    return START + (60 * np.asarray(minutes)).astype("timedelta64[s]")


def every(minutes: float, count: int, start: float = 0) -> list[float]:
    return [start + minutes * index for index in range(count)]


@pytest.mark.parametrize(
    ("minutes", "hint", "step"),
    [
        ([0], 0, 0),
        ([0], 300, 300),
        ([0, 15], 0, 900),
        ([0, 15], 300, 300),  # two missing frames, or another step: the hint decides
        ([0, 15, 30], 300, 300),
        ([0, 15, 30, 45], 300, 900),  # the hint came from a name that two products share
        ([0, 5], 900, 300),  # no outage makes gaps shorter
        ([0, 5, 10], 3600, 300),
        ([0, 6, 12], 300, 360),
        ([0, 4, 8], 300, 240),
        ([0, 7, 14], 300, 420),
        (every(5, 9), 0, 300),
        ([0, 15, 20, 25], 0, 300),  # began with an outage
        ([0, 5, 20, 35], 0, 300),
        ([0, 5, 10, 15, 55, 60, 65], 300, 300),  # outage
        ([*every(5, 6), 35, 45, 50, 55], 300, 300),  # every second one missing for a while
        ([0, 5, 10, 17, 20, 25], 300, 300),  # one late frame
        ([*every(5, 5), 22.5, *every(5, 5, 25)], 300, 300),  # one frame between two
        (every(2.5, 9), 0, 150),
        (every(1440, 3), 0, 86_400),
        ([0, 4320], 0, 259_200),
    ],
)
def test_step(minutes, hint, step):
    assert newest_step(times(*minutes), hint=hint) == step


@pytest.mark.parametrize(
    ("before", "after"),
    [((15, 40), (5, 40)), ((10, 40), (5, 40)), ((5, 40), (10, 12)), ((5, 40), (6, 12)), ((6, 40), (5, 12))],
)
def test_a_service_changes_its_step(before, after):
    old = every(*before)
    stamps = times(*old, *every(*after, old[-1] + after[0]))
    steps = step_of_frames(stamps, hint=before[0] * 60)
    assert (steps[: len(old)] == before[0] * 60).all()
    assert (steps[len(old) :] == after[0] * 60).all()
    assert len(find_changes(stamps, hint=before[0] * 60)) == 2
    assert "the step changed from" in contradictions(stamps, hint=before[0] * 60)[0]


def test_an_outage_of_a_day_proves_nothing():
    minutes = [first + minute for day in range(6) for first in [2 * 1440 * day] for minute in (0, 5, 10)]
    assert newest_step(times(*minutes), hint=300) == 300


@given(st.lists(st.integers(-30, 30), min_size=3, max_size=60), st.sampled_from([0, 300]))
def test_trembling_stamps_keep_the_step(jitter, hint):
    stamps = START + np.arange(len(jitter)) * np.timedelta64(300, "s") + np.asarray(jitter, "timedelta64[s]")
    steps = step_of_frames(stamps, hint=hint)
    assert np.abs(steps - 300).max() <= 60
    if hint:
        assert len(set(steps.tolist())) == 1


@given(
    st.sampled_from([120, 150, 300, 360, 600, 900]),
    st.sampled_from([0, 300, 600, 900]),
    st.sets(st.integers(3, 199), max_size=8),
)
def test_few_missing_frames_change_nothing(step, hint, missing):
    kept = [index for index in range(200) if index not in missing]
    stamps = START + np.array(kept) * np.timedelta64(step, "s")
    assert len(find_changes(stamps, hint=hint)) <= 3
    if not any({index, index + 2, index + 4, index + 6} <= missing for index in missing):
        assert set(step_of_frames(stamps, hint=hint).tolist()) == {step}


@given(st.lists(st.integers(1, 100_000), max_size=50), st.sampled_from([0, 60, 300, 3600]))
def test_whatever_the_times_there_is_a_step(gaps, hint):
    stamps = START + np.cumsum([0, *gaps]).astype("timedelta64[s]")
    steps = step_of_frames(stamps, hint=hint)
    assert steps.shape == stamps.shape
    assert (steps > 0).all() or (not gaps and not hint)


def test_the_operator_knows_better():
    stamps = times(*every(15, 9))
    assert set(step_of_frames(stamps, hint=900, override=300).tolist()) == {300}
    assert contradictions(stamps, hint=900, override=300) == [
        "frames come every 900 s, and cadence_seconds is set to 300 s; correct or remove it"
    ]


def test_a_wrong_hint_is_said():
    assert contradictions(times(0, 15, 30, 45), hint=300) == [
        "frames come every 900 s, and their files say 300 s; their times are used"
    ]
    assert not contradictions(times(*every(5, 9)), hint=300)
    assert not contradictions(times(*every(5, 9)), hint=0)
    assert not contradictions(times(0, 15), hint=300)
