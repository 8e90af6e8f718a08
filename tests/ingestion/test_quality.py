"""What is wrong with a frame is noted; the values stay as they are."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nowcast.config import QualitySettings, override
from nowcast.core.cube import make
from nowcast.core.errors import BadInput, ConfigError
from nowcast.core.grid import Grid
from nowcast.ingestion import quality
from nowcast.ingestion.quality import FLAGS, Before, clip, compare, describe, measure
from nowcast.store.packing import packed

GRID = Grid.regular("EPSG:28992", (40, 50), upper_left=(0, 0), pixel=(1000, 1000))
START = np.datetime64("2020-01-01T00:00", "ns")
SETTINGS = QualitySettings()


def frame(
    value: float = 0.0, *, name: str = "rainfall_rate", cells: dict | None = None, missing: float = 0
) -> xr.Dataset:
    """One even frame; ``cells`` are single pixels, the first rows have no data."""
    field = np.full(GRID.shape, value, np.float32)
    for place, number in (cells or {}).items():
        field[place] = number
    field[: round(missing * GRID.shape[0])] = np.nan
    return make({name: field[None]}, [START], GRID, cadence=300)


def status(cube: xr.Dataset, settings: QualitySettings = SETTINGS) -> set[str]:
    clipped = clip(cube, settings)
    bits = int(measure(cube, settings)["status"][0] | clipped[0])
    return {name for name, bit in FLAGS.items() if bits & bit}


CHECKERS = {(row, column): 5.0 for row in range(0, 40, 4) for column in range(0, 50, 5)}


@pytest.mark.parametrize(
    ("cube", "flags"),
    [
        (frame(2.0), set()),
        (frame(0.0), {"dry"}),
        (frame(0.05), {"dry"}),
        (frame(2.0, missing=0.5), set()),
        (frame(2.0, missing=0.975), {"mostly_missing"}),
        (frame(0.0, missing=0.975), {"mostly_missing", "dry"}),
        (frame(2.0, cells={(20, 20): 8646.0}), {"out_of_range"}),
        (frame(2.0, cells={(20, 20): -1.0}), {"impossible_values"}),
        (frame(0.0, cells=CHECKERS), {"speckle"}),
        (frame(0.0, cells={(5, 5): 3.0, (20, 20): 3.0}), set()),  # two lone pixels are no speckle
        (frame(-32.0, name="reflectivity"), {"dry"}),
        (frame(90.0, name="reflectivity"), {"out_of_range"}),
        (frame(0.0, name="intensity"), set()),  # a black picture is not dry
    ],
)
def test_flags(cube: xr.Dataset, flags: set[str]):
    assert status(cube) == flags


@pytest.mark.parametrize("value", [-9999.0, -1.0, 1e20, np.inf])
def test_impossible_values_are_flagged_and_are_not_out_of_range(value: float):
    assert status(frame(2.0, cells={(3, 3): value})) == {"impossible_values"}


def test_a_frame_of_impossible_values_is_refused():
    with pytest.raises(BadInput, match="no measured pixel"):
        measure(frame(-9999.0), SETTINGS)


def test_labels_by_hand():
    labels = measure(frame(0.0, cells={(30, 0): 4.0, (30, 1): 6.0}, missing=0.5), SETTINGS)
    assert labels["missing_share"].tolist() == [0.5]
    assert labels["wet_share"].tolist() == [pytest.approx(2 / 1000)]
    assert labels["mean_value"].tolist() == [pytest.approx(10 / 1000)]


def test_settings_decide():
    assert status(frame(2.0, missing=0.5), QualitySettings(most_missing=0.4)) == {"mostly_missing"}
    assert status(frame(2.0), QualitySettings(limits={"rainfall_rate": (0, 1)})) == {"out_of_range"}


def test_values_change_only_where_they_are_to_be_clipped():
    cube = frame(2.0, cells={(20, 20): 8646.0})
    before = cube["rainfall_rate"].values.copy()
    measure(cube, SETTINGS)
    np.testing.assert_array_equal(cube["rainfall_rate"].values, before)
    assert status(cube, QualitySettings(clip={"rainfall_rate": 300})) == {"clipped"}
    assert cube["rainfall_rate"].values.max() == 300
    assert (cube["rainfall_rate"].values != before).sum() == 1


def test_an_unknown_quantity_is_refused():
    with pytest.raises(ConfigError, match="unknown quantity 'rain'; known: rainfall_rate"):
        override(QualitySettings, ["clip.rain=300"])


def test_nothing_measured_is_refused():
    with pytest.raises(BadInput, match="no measured pixel"):
        measure(frame(np.nan), SETTINGS)


@pytest.mark.parametrize(("minutes", "fine"), [(-9, True), (-11, False), (600, True)])
def test_the_future_is_refused(minutes: int, fine: bool):
    now = datetime.fromtimestamp(START.astype("datetime64[s]").astype(int) + 60 * minutes, UTC)
    if fine:
        measure(frame(2.0), SETTINGS, now=now)
    else:
        with pytest.raises(BadInput, match="is from the future"):
            measure(frame(2.0), SETTINGS, now=now)


# --- against the frame before ---------------------------------------------------------------------


def labels(seconds: list[int], wet: list[float] | None = None, missing: list[float] | None = None) -> dict:
    count = len(seconds)
    return {
        "time": START.astype("datetime64[s]") + np.array(seconds, "timedelta64[s]"),
        "sequence": np.full(count, "", object),
        "wet_share": np.array(wet or [0.3] * count, np.float32),
        "missing_share": np.array(missing or [0.1] * count, np.float32),
        "mean_value": np.ones(count, np.float32),
        "status": np.zeros(count, np.int16),
    }


def flags(frames: dict, *, cadence: float | None = 300) -> list[str]:
    return [describe(int(bits)) for bits in compare(frames, {}, SETTINGS, cadence=cadence)]


def test_a_jump():
    assert flags(labels([0, 300, 600], wet=[0.1, 0.15, 0.6])) == ["good", "good", "jump"]


def test_no_jump_after_a_gap():
    assert flags(labels([0, 1800], wet=[0.1, 0.6])) == ["good", "good"]


def test_partial_coverage():
    assert flags(labels([0, 300, 600], missing=[0.25, 0.25, 0.4])) == ["good", "good", "partial coverage"]


def test_a_live_feed_off_its_cadence():
    assert flags(labels([0, 300, 480, 900])) == ["good", "good", "off cadence", "off cadence"]


def test_an_event_whose_step_changes():
    """As Shanghai-2020's, whose targets are twice as far apart as its inputs."""
    assert flags(labels([0, 345, 690, 1380, 2070]), cadence=None) == ["good", "good", "good", "off cadence", "good"]


def test_a_late_frame_is_not_compared():
    before: dict[str, Before] = {}
    compare(labels([600], wet=[0.1]), before, SETTINGS, cadence=300)
    assert compare(labels([300], wet=[0.9]), before, SETTINGS, cadence=300).tolist() == [0]
    assert before[""].time == START + np.timedelta64(600, "s")


@given(hnp.arrays(np.float32, (2, 6, 7), elements=st.floats(-50, 900, width=32) | st.just(np.nan)))
def test_any_values_give_shares(values: np.ndarray):
    grid = Grid.regular("EPSG:28992", (6, 7), upper_left=(0, 0), pixel=(1000, 1000))
    cube = make({"rainfall_rate": values}, [START, START + np.timedelta64(5, "m")], grid, cadence=300)
    values = np.where(values < -1e-3, np.float32(np.nan), np.maximum(values, 0))  # negative rain is no data
    if np.isnan(values).all():
        return
    measured = measure(cube, SETTINGS)
    np.testing.assert_allclose(measured["missing_share"], np.isnan(values).mean(axis=(1, 2)), atol=1e-6)
    for index, field in enumerate(values):
        known = field[~np.isnan(field)]
        if known.size:
            assert measured["mean_value"][index] == pytest.approx(known.mean(dtype=np.float64), rel=1e-4, abs=1e-3)
            assert measured["wet_share"][index] == pytest.approx((known >= np.float32(0.1)).mean(), abs=1e-6)
            wild = bool(measured["status"][index] & FLAGS["out_of_range"])
            assert wild == bool((known > 500).any())


@pytest.mark.parametrize(
    "packing",
    [
        {"quantum": 0.01},
        {"quantum": 0.05, "floor": 0.0},
        {"levels": np.array([0, 0.1, 0.5, 7, 600], np.float32)},
    ],
)
def test_codes_are_measured_as_the_values_they_stand_for(packing: dict):
    values = np.resize(np.array([0, 0.1, 7, 0.5, 0, np.nan], np.float32), (3, *GRID.shape))
    values[1] = np.nan
    values[2, 3, 4] = 600 if "levels" in packing else 12
    cube = make({"rainfall_rate": values}, START + np.arange(3) * np.timedelta64(5, "m"), GRID, cadence=300, **packing)
    by_code = measure(cube, SETTINGS, pixels={"rainfall_rate": packed(cube.variables["rainfall_rate"], "rain")})
    for name, expected in measure(cube, SETTINGS).items():
        np.testing.assert_allclose(by_code[name], expected, rtol=1e-6, err_msg=name)


def test_labelled_follows_cf():
    cube = frame(2.0)
    found = quality.labelled(cube, measure(cube, SETTINGS))
    assert found["status"].attrs["flag_meanings"].split() == list(FLAGS)
    assert found["status"].attrs["flag_masks"].tolist() == list(FLAGS.values())


def test_a_share_is_mostly_missing_from_above_the_limit():
    """Half of the pixels are just not more than half of them."""
    settings = QualitySettings(most_missing=0.5)
    assert status(frame(2.0, missing=0.5), settings) == set()
    assert status(frame(2.0, missing=0.525), settings) == {"mostly_missing"}


def test_coverage_is_measured_by_the_least_share_missing_so_far():
    """It goes little by little, each time by less than the limit; it comes back, and its loss is noted again."""
    shares = [0.25, 0.28, 0.31, 0.25, 0.31, 0.2, 0.26]
    found = flags(labels([300 * index for index in range(len(shares))], missing=shares))
    assert found == ["good", "good", "partial coverage", "good", "partial coverage", "good", "partial coverage"]


def test_the_channel_with_the_most_missing_counts():
    field = np.full((1, *GRID.shape), 2.0, np.float32)
    holed = field.copy()
    holed[:, :10] = np.nan
    cube = make({"rainfall_rate": field, "reflectivity": holed}, [START], GRID, cadence=300)
    assert measure(cube, SETTINGS)["missing_share"].tolist() == [0.25]
