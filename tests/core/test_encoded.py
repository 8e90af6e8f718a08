"""Codes become values where somebody looks, and only then."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

from nowcast.core import cube
from nowcast.core.encoded import EncodedArray, Table, behind
from tests.synthetic import GRID, START, STEP

TABLE = Table(np.append(np.arange(255, dtype=np.float32) / 2, np.float32(np.nan)))
CODES = np.resize(np.arange(256, dtype=np.uint8), (2, *GRID.shape))
VALUES = TABLE.values[CODES]


def frames() -> xr.Dataset:
    return cube.make(
        {"rainfall_rate": EncodedArray(CODES, TABLE)}, [START, START + STEP], GRID, cadence=300, quantum=0.5
    )


def test_values_are_those_of_the_table() -> None:
    rain = cube.check(frames())["rainfall_rate"]
    assert rain.dtype == np.float32
    np.testing.assert_array_equal(rain, VALUES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(frames()))["rainfall_rate"], VALUES)


@pytest.mark.parametrize(
    "place",
    [
        {"time": 1},
        {"y": slice(None, None, -1)},
        {"time": [1, 0], "x": [3, 1, 7]},
        {"y": 2, "x": slice(1, 9, 3)},
    ],
)
def test_parts_are_those_of_the_values(place: dict) -> None:
    expected = xr.DataArray(VALUES, dims=("time", "y", "x")).isel(place)
    part = frames()["rainfall_rate"].isel(place)
    assert behind(part.variable) is None
    np.testing.assert_array_equal(part, expected)


def test_codes_are_there_until_somebody_looks() -> None:
    whole = frames()
    coded = behind(whole.variables["rainfall_rate"])
    assert coded is not None
    assert coded.codes is CODES
    whole["rainfall_rate"].values[0, 0, 0] = 7  # as the quality control clips
    assert behind(whole.variables["rainfall_rate"]) is None
    assert whole["rainfall_rate"].values[0, 0, 0] == 7
    assert behind(xr.Variable("x", np.zeros(3))) is None
