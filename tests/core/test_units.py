import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nowcast.core.units import (
    QUANTITIES,
    Scaling,
    by_table,
    convert,
    get_quantity,
    level_from_vil,
    rate_from_reflectivity,
    reflectivity_from_rate,
    vil_from_level,
)

unit_interval = st.floats(0, 1, width=32)


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_is_complete(name):
    known = get_quantity(name)
    assert known.name == name and known.unit and known.long_name
    assert list(known.thresholds) == sorted(known.thresholds)
    assert known.resolution * 32767 >= known.scaling.high  # a forecast must fit into its packing


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="Unknown quantity 'rain'; known: rainfall_rate, reflectivity, vil"):
        get_quantity("rain")
    with pytest.raises(ValueError, match="Unknown scaling 'log'; choose linear or decibel"):
        Scaling("log", 0, 1)


@pytest.mark.parametrize(("kind", "low", "high"), [("linear", 1, 1), ("linear", 2, 1), ("decibel", 0, 1)])
def test_a_scaling_needs_an_interval(kind, low, high):
    with pytest.raises(ValueError, match="needs low < high"):
        Scaling(kind, low, high)


# --- scaling --------------------------------------------------------------------------------------


def test_linear_by_hand():
    scaling = Scaling("linear", -10, 60)
    np.testing.assert_allclose(scaling.encode([-10, 25, 60, -99, 99, np.nan]), [0, 0.5, 1, 0, 1, np.nan])
    np.testing.assert_allclose(scaling.decode([0, 0.5, 1, -1, 2, np.nan]), [-10, 25, 60, -10, 60, np.nan])


def test_decibel_by_hand():
    scaling = Scaling("decibel", 0.1, 100)  # three decades
    np.testing.assert_allclose(
        scaling.encode([0, 0.1, 1, 10, 100, 1e6, np.nan]), [0, 0, 1 / 3, 2 / 3, 1, 1, np.nan], rtol=1e-6
    )
    np.testing.assert_allclose(scaling.decode([0, 1 / 3, 1, np.nan]), [0, 1, 100, np.nan], rtol=1e-5)


@pytest.mark.parametrize("name", QUANTITIES)
@given(scaled=unit_interval)
def test_scaling_there_and_back(name: str, scaled: float):
    scaling = get_quantity(name).scaling
    value = scaling.decode(np.float32(scaled))
    assert value.dtype == scaling.encode(value).dtype == np.float32
    assert scaling.encode(value) == pytest.approx(scaled, abs=1e-5)


@pytest.mark.parametrize("name", QUANTITIES)
@given(first=st.floats(-200, 2000, width=32), second=st.floats(-200, 2000, width=32))
def test_scaling_keeps_order_and_stays_inside(name: str, first: float, second: float):
    low, high = get_quantity(name).scaling.encode(np.sort(np.array([first, second], np.float32)))
    assert 0 <= low <= high <= 1


# --- reflectivity and rate ------------------------------------------------------------------------


def test_marshall_palmer_by_hand():
    # 10 log10(200) = 23.0103 dBZ is 1 mm/h; 16 dB more is ten times the rain
    dbz = [23.0103, 39.0103, 7.0103, np.nan]
    np.testing.assert_allclose(rate_from_reflectivity(dbz), [1, 10, 0.1, np.nan], rtol=1e-5)
    np.testing.assert_allclose(reflectivity_from_rate([1, 10, 0, np.nan]), [23.0103, 39.0103, -32, np.nan], rtol=1e-5)


def test_hong_kong_by_hand():
    # HKO-7: p = (15.6 log10 R + 10 log10 58.53 + 10) / 70
    p = (reflectivity_from_rate([0.5, 2, 5, 10, 30], zr=(58.53, 1.56)) + 10) / 70
    np.testing.assert_allclose(p, [0.3283, 0.4624, 0.5511, 0.6182, 0.7245], atol=1e-4)
    np.testing.assert_allclose(rate_from_reflectivity([-10, 60], zr=(58.53, 1.56)), [0.01683, 516.7], rtol=1e-3)


@given(rate=st.floats(np.float32(0.01), 500, width=32), a=st.floats(30, 500), b=st.floats(1.2, 2))
def test_rate_there_and_back(rate: float, a: float, b: float):
    dbz = reflectivity_from_rate(np.float32(rate), zr=(a, b))
    assert rate_from_reflectivity(dbz, zr=(a, b)) == pytest.approx(rate, rel=1e-4)


def test_convert():
    field = np.array([1.0], np.float32)
    assert convert(field, "vil", "vil") is field
    assert convert(field, "rainfall_rate", "reflectivity", zr=(200, 1.6)) == pytest.approx(23.0103)
    assert convert(np.array([23.0103]), "reflectivity", "rainfall_rate") == pytest.approx(1)
    with pytest.raises(ValueError, match="No formula turns vil into rainfall_rate; use data that holds rainfall_rate"):
        convert(field, "vil", "rainfall_rate")


# --- vertically integrated liquid -----------------------------------------------------------------


def test_vil_by_hand():
    level = np.array([0, 5, 6, 18, 19, 84, 254, 255])
    want = [0, 0, 4 / 90.66, 16 / 90.66, np.exp(-64.9 / 38.9), np.exp(0.1 / 38.9), np.exp(170.1 / 38.9), np.nan]
    np.testing.assert_allclose(vil_from_level(level), want, rtol=1e-6)
    assert vil_from_level(np.zeros((2, 3), np.uint8)).shape == (2, 3)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i4"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (7,), (4, 5), (2, 300, 4), (3, 0, 2)])
def test_a_table_gives_what_indexing_gives(dtype: str, shape: tuple[int, ...]):
    table = np.random.default_rng(0).random(256 ** np.dtype(dtype).itemsize if dtype != "i4" else 90, np.float32)
    codes = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % len(table)).astype(dtype)
    for some in (codes, codes[..., ::-1] if shape else codes):
        np.testing.assert_array_equal(by_table(some, table), table[some])


def test_levels_there_and_back():
    level = np.arange(6, 255)
    np.testing.assert_allclose(level_from_vil(vil_from_level(level)), level, atol=1e-3)
    assert (level_from_vil(vil_from_level(np.arange(6))) == 0).all()
    np.testing.assert_array_equal(level_from_vil([0, -1, np.nan]), [0, 0, np.nan])


def test_thresholds_are_levels():
    want = 0.154423, 0.775305, 3.533224, 7.073095, 12.135608, 32.233546
    assert get_quantity("vil").thresholds == pytest.approx(want, rel=1e-5)
    level = np.arange(255)
    for threshold, limit in zip(get_quantity("vil").thresholds, (16, 74, 133, 160, 181, 219), strict=True):
        np.testing.assert_array_equal(vil_from_level(level) >= threshold, level >= limit)


@given(first=st.floats(0, 90, width=32), second=st.floats(0, 90, width=32))
def test_level_never_falls_as_vil_rises(first: float, second: float):
    low, high = level_from_vil(np.sort(np.array([first, second], np.float32)))
    assert low <= high
