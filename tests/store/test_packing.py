"""What a store keeps in place of a value gives that value back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nowcast.core.cube import make
from nowcast.core.encoded import EncodedArray, Table
from nowcast.core.errors import BadInput
from nowcast.core.units import vil_from_level
from nowcast.store import FrameStore, open_store
from nowcast.store.packing import Packing, packed
from tests.synthetic import GRID, START, STEP

VIL = vil_from_level(np.arange(255, dtype=np.uint8))[5:]
KINDS = {
    "16 bits": ({"quantum": 0.12}, np.int16, np.arange(0, 2000) * np.float32(0.12)),
    "8 bits": ({"quantum": 0.5, "floor": -32.0}, np.uint8, np.arange(255) * np.float32(0.5) - 32),
    "levels": ({"levels": VIL}, np.uint8, VIL),
    "floats": ({}, np.float32, np.linspace(0, 7, 999, dtype=np.float32)),
}


def cube(values: np.ndarray, **packing: object):
    fields = np.resize(values.astype(np.float32), (2, *GRID.shape))
    return make({"rainfall_rate": fields}, [START, START + STEP], GRID, cadence=300, **packing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_gives_back_what_it_got(tmp_path: Path, kind: str) -> None:
    packing, dtype, values = KINDS[kind]
    frames = cube(np.append(values, np.nan), **packing)
    FrameStore(tmp_path / "s").append(frames, message="m")
    opened = open_store(tmp_path / "s")
    np.testing.assert_allclose(opened["rainfall_rate"], frames["rainfall_rate"], rtol=1e-6, atol=1e-5)
    assert opened["rainfall_rate"].dtype == np.float32
    np.testing.assert_array_equal(opened["rainfall_rate"][1, 3:9, ::2], opened["rainfall_rate"].values[1, 3:9, ::2])
    import zarr

    session = FrameStore(tmp_path / "s")._session()
    assert zarr.open_group(session.store, mode="r")["rainfall_rate"].dtype == dtype


def test_levels_come_back_bit_for_bit(tmp_path: Path) -> None:
    FrameStore(tmp_path / "s").append(cube(VIL, levels=VIL), message="m")
    np.testing.assert_array_equal(open_store(tmp_path / "s")["rainfall_rate"][0], np.resize(VIL, GRID.shape))


@pytest.mark.parametrize("kind", ["16 bits", "8 bits", "levels"])
@pytest.mark.parametrize("value", [5000.0, -5000.0])
def test_what_does_not_fit_is_refused(tmp_path: Path, kind: str, value: float) -> None:
    frames = cube(np.array([0.0]), **KINDS[kind][0])
    frames["rainfall_rate"].values[:] = value  # not by way of ``make``, which takes out what cannot be
    with pytest.raises(BadInput, match="reach beyond what this store can hold"):
        FrameStore(tmp_path / "s").append(frames, message="m")


def from_source(table: np.ndarray, codes: np.ndarray, **packing: object):
    coded = EncodedArray(np.resize(codes, (2, *GRID.shape)), Table(table.astype(np.float32)))
    return make({"rainfall_rate": coded}, [START, START + STEP], GRID, cadence=300, **packing).variables[
        "rainfall_rate"
    ]


@pytest.mark.parametrize("kind", ["16 bits", "8 bits", "levels"])
def test_codes_of_a_source_are_packed_as_its_values_are(kind: str) -> None:
    """Those of 16 bits in reverse, most of which stand for more than a store can hold but do not come up."""
    how, dtype, values = KINDS[kind]
    size = 2**16 if kind == "16 bits" else 256
    table = np.full(size, np.nan, np.float32)
    table[size - len(values) :] = values[::-1]
    codes = np.arange(size - len(values) - 1, size)
    if kind == "16 bits":
        table[: size // 2] = 9999
    variable = from_source(table, codes.astype(np.uint16 if size > 256 else np.uint8), **how)
    by_code, packing = packed(variable, "rain")
    assert packing is not None
    assert by_code.dtype == dtype
    np.testing.assert_array_equal(by_code, packing.pack(variable.values))


@pytest.mark.parametrize("how", [{"quantum": 0.1}, {"quantum": 0.5, "floor": 0.0}])
def test_a_code_beyond_the_store_is_refused_where_it_comes_up(how: dict) -> None:
    table = np.append(np.arange(255) / 2, 5000.0)
    packed(from_source(table, np.arange(255, dtype=np.uint8), **how), "rain")
    with pytest.raises(BadInput, match="values 0 to 5000 reach beyond what this store can hold"):
        packed(from_source(table, np.arange(256, dtype=np.uint8), **how), "rain")


def test_a_source_without_missing_values_uses_all_codes() -> None:
    grey = Packing.wanted(cube(np.zeros(1), levels=np.arange(256) / 255)["rainfall_rate"])
    values = (np.arange(256) / 255).astype(np.float32)
    np.testing.assert_array_equal(grey.unpack(grey.pack(values)), values)
    with pytest.raises(BadInput, match="has pixels without data"):
        grey.pack(np.array([np.nan]))


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=255, unique=True))
def test_any_levels_are_kept_apart(levels: list[float]) -> None:
    values = np.sort(np.asarray(levels, np.float32))
    packing = Packing(np.dtype(np.uint8), levels=values, missing=255)
    middles_apart = np.diff((values[1:] + values[:-1]) / 2) > 0
    if middles_apart.all():
        back = packing.unpack(packing.pack(values))
        assert np.abs(back - values).max() <= np.spacing(np.abs(values).max())
    again = Packing.of(packing.dtype, packing.attrs)
    np.testing.assert_array_equal(again.table, packing.table)
