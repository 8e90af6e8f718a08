import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from nowcast.core.cube import channels, check, digest, identity, impossible, label_runs, make
from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid

GRID = Grid.regular("EPSG:28992", (3, 4), upper_left=(0, 0), pixel=(1000, 1000))
START = np.datetime64("2010-08-26T00:00")


def times(*minutes: float) -> np.ndarray:
    return START + np.array([minute * 60 for minute in minutes]).astype("timedelta64[s]")


def cube(count: int = 2, **options: object) -> xr.Dataset:
    stamps = options.pop("time", times(*range(0, 5 * count, 5)))
    return make({"rainfall_rate": np.zeros((count, 3, 4))}, stamps, GRID, **options)


def test_make_keeps_the_promise():
    made = cube(cadence=300, quantum=0.12, attrs={"title": "rain"})
    assert check(made) is made
    assert channels(made) == ["rainfall_rate"]
    variable = made["rainfall_rate"]
    assert (variable.dims, variable.dtype) == (("time", "y", "x"), np.float32)
    assert (variable.attrs["units"], variable.attrs["standard_name"]) == ("mm h-1", "rainfall_rate")
    assert variable.attrs["grid_mapping"] == "crs"
    assert variable.encoding["quantum"] == 0.12
    unnamed = {"product": "", "accumulation_seconds": 0, "level": ""}
    assert made.attrs == {"title": "rain", "cadence_seconds": 300} | unnamed
    assert made["sequence"].values.tolist() == ["", ""]


def test_a_hint_of_no_step_still_makes_a_live_feed():
    assert cube(cadence=0).attrs["cadence_seconds"] == 0
    assert "cadence_seconds" not in cube(sequence="a").attrs


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({}, "rainfall_rate"),
        ({"product": "RW", "accumulation": 3600}, "RW, rainfall_rate, sum of 60 min"),
        ({"accumulation": 90, "level": "2 km"}, "rainfall_rate, sum of 90 s, 2 km"),
        ({"product": "rainfall_rate"}, "rainfall_rate"),
    ],
)
def test_identity_says_what_frames_are(what, words):
    made = cube(**what)
    assert str(identity(made)) == words
    assert identity(made) == identity(made.attrs, channels(made))


def test_whatever_differs_is_another_product():
    kinds = [{}, {"product": "RW"}, {"accumulation": 3600}, {"level": "2 km"}, {"product": "rw"}]
    assert len({identity(cube(**kind)) for kind in kinds}) == len(kinds)
    rate, echo = (identity(cube().attrs, [name]) for name in ("rainfall_rate", "reflectivity"))
    assert rate != echo


def test_what_was_made_before_identities_has_none():
    """There ``product`` was whatever the source called it, such as a title."""
    old = cube().assign_attrs(product="Bias Corrected Radar Accumulation (10 min)")
    del old.attrs["accumulation_seconds"]
    assert identity(old).product == ""


@pytest.mark.parametrize("choice", ["", "RW", "rw", "sum of 60 min", "rw,rainfall_rate", " RW , sum  of 60 min"])
def test_a_choice_is_any_words_of_an_identity(choice):
    assert identity(cube(product="RW", accumulation=3600)).fits(choice)


@pytest.mark.parametrize("choice", ["R", "RY", "rw, sum of 5 min", "reflectivity"])
def test_another_choice_does_not_fit(choice):
    assert not identity(cube(product="RW", accumulation=3600)).fits(choice)


UNDECLARED = (-9999.0, -9999000.0, 1e20, np.inf, -np.inf, np.finfo(np.float32).max)
"""What files hold for no data without saying so."""


@pytest.mark.parametrize("code", UNDECLARED)
@pytest.mark.parametrize("name", ["rainfall_rate", "reflectivity", "vil"])
@pytest.mark.parametrize("encoded", [False, True])
def test_values_that_cannot_be_are_no_data_and_are_counted(name, code, encoded):
    values = np.full((2, 3, 4), 7, np.float32)
    values[1, 0, :3] = code, np.nan, code
    given = values.copy()
    codes = np.zeros((2, 3, 4), np.uint8)
    codes[1, 0, :3] = 1, 2, 1
    table = Table(np.array([7, code, np.nan], np.float32))
    made = make({name: EncodedArray(codes, table) if encoded else values}, times(0, 5), GRID, cadence=300)
    wanted = np.full((2, 3, 4), 7, np.float32)
    wanted[1, 0, :3] = np.nan
    np.testing.assert_array_equal(made[name].values, wanted)
    np.testing.assert_array_equal(values, given)  # an array may be kept and shared
    assert impossible(made).tolist() == [0, 2]
    assert impossible(made.isel(time=[0])).tolist() == [0]


@pytest.mark.parametrize(
    ("name", "values"),
    [("rainfall_rate", (0.0, 8646.0)), ("reflectivity", (-99.0, -32.0, 0.0, 95.0)), ("vil", (0.0, 150.0))],
)
def test_what_is_possible_stays(name, values):
    """Clutter of 8,646 mm/h is found in real composites; whether that is weather is for the quality control."""
    field = np.resize(np.float32(values), (1, 3, 4))
    made = make({name: field}, times(0), GRID, cadence=300)
    np.testing.assert_array_equal(made[name].values, field)
    assert not impossible(made).any()


def test_what_rounding_leaves_of_dry_is_dry():
    made = make({"rainfall_rate": np.full((1, 3, 4), -1e-6)}, times(0), GRID, cadence=300)
    assert (made["rainfall_rate"] == 0).all() and not impossible(made).any()


def test_make_labels_each_frame():
    made = cube(sequence=["a", "b"], time=times(0, 0))
    assert check(made)["sequence"].values.tolist() == ["a", "b"]


def test_unknown_quantity_lists_the_known():
    with pytest.raises(ValueError, match="Unknown quantity 'rain'; known: rainfall_rate, reflectivity"):
        make({"rain": np.zeros((1, 3, 4))}, times(0), GRID)


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (lambda c: c.drop_vars("rainfall_rate"), r"data must have dims \(time, y, x\)"),
        (lambda c: c.transpose("y", "x", "time"), r"data must have dims \(time, y, x\)"),
        (lambda c: c.isel(time=slice(0, 0)), "no frames"),
        (lambda c: c.assign(rainfall_rate=c["rainfall_rate"].assign_attrs(units="mm")), "rainfall_rate is in 'mm'"),
        (lambda c: c.assign_coords(time=[0, 1]), "time is int64"),
        (lambda c: c.drop_vars("time"), "time is int64"),
        (lambda c: c.drop_vars("crs"), "no grid mapping"),
        (lambda c: c.drop_vars("sequence"), r"no sequence\(time\) label"),
        (lambda c: c.drop_vars("y"), "y is missing"),
        (lambda c: c.assign_coords(x=[0.0, 2.0, 1.0, 3.0]), "x is missing or does not run one way"),
        (lambda c: c.isel(time=[1, 0]), "time does not increase"),
        (lambda c: c.isel(time=[0, 0]), "time does not increase"),
        (lambda c: c.assign_coords(time=[START, np.datetime64("NaT")]), "a frame has no time"),
    ],
)
def test_check_names_the_broken_promise(broken, fault):
    with pytest.raises(BadInput, match=f"here: {fault}"):
        check(broken(cube()), "here")


def test_time_may_fall_where_the_sequence_changes():
    check(make({"vil": np.zeros((4, 3, 4))}, times(10, 15, 0, 5), GRID, sequence=["a", "a", "b", "b"]))


def test_bad_input_is_one_sentence_and_survives_processes():
    error = BadInput("a.h5", "is empty", "fetch it again")
    assert str(error) == "a.h5: is empty; fetch it again."
    assert str(BadInput("a.h5", "is empty")) == "a.h5: is empty."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --- runs -----------------------------------------------------------------------------------------


def test_runs_break_at_gaps():
    assert label_runs(times(0, 5, 10, 20, 25), 300).tolist() == ["2010-08-26T00:00"] * 3 + ["2010-08-26T00:20"] * 2
    assert label_runs(times(0, 5, 10, 20, 25), 300, tolerated_gap=1).tolist() == ["2010-08-26T00:00"] * 5
    assert label_runs(times(0, 12, 31), 360, tolerated_gap=2).tolist() == ["2010-08-26T00:00"] * 3
    assert label_runs(times(), 300).tolist() == []


def test_runs_forgive_a_late_scan_but_not_a_missing_one():
    assert len(set(label_runs(times(0, 7), 300))) == 1  # limit: 1.5 steps
    assert len(set(label_runs(times(0, 7.6), 300))) == 2


@given(steps=st.lists(st.integers(1, 40), max_size=40), gap=st.integers(0, 3))
def test_runs_are_exactly_the_stretches_without_a_long_step(steps: list[int], gap: int):
    stamps = times(*np.cumsum([0, *steps]))
    labels = label_runs(stamps, 300, tolerated_gap=gap)
    changes = [index for index in range(len(steps)) if labels[index] != labels[index + 1]]
    assert changes == [index for index, step in enumerate(steps) if step * 60 > 300 * (gap + 1.5)]
    for label in set(labels):
        assert label == str(stamps[list(labels).index(label)])[:16]


# --- digests --------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100, width=32) | st.just(float("nan")), min_size=4, max_size=4), st.integers(0, 3))
def test_digest_tells_frames_apart(values: list[float], place: int):
    frame = np.array(values, np.float32)
    assert digest(frame) == digest(frame.copy()) == digest(frame.astype(np.float64))
    other = frame.copy()
    other[place] = 1.0 if np.isnan(frame[place]) else frame[place] + 1
    assert digest(other) != digest(frame)


def test_digest_does_not_depend_on_memory_order():
    frame = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest(np.asfortranarray(frame)) == digest(frame)
