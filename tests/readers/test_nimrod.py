import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, detect, nimrod
from nowcast.store.packing import Packing
from tests import sources_services

NAME = sources_services.NIMROD_NAME.format("201906100005")


def codes(*first: int) -> np.ndarray:
    field = np.full((40, 30), 64, np.int16)
    field[0, : len(first)] = first
    return field


def make(folder: Path, **what: object) -> Item:
    return Item(sources_services.nimrod(folder / (NAME + ".gz"), **what))


def test_codes_become_rates(tmp_path):
    cube = nimrod.read(make(tmp_path, codes=codes(-1, -32767, 0, 1, 32, 4096, 32767)))
    rate = cube["rainfall_rate"]
    np.testing.assert_array_equal(rate.values[0, 0, :7], [np.nan, np.nan, 0, 0.03125, 1, 128, 1023.96875])
    assert (rate.values[0, 1:] == 2).all()
    assert rate.encoding == {"quantum": 1 / 32}
    packing = Packing.wanted(rate)
    np.testing.assert_array_equal(packing.unpack(packing.pack(rate.values)), rate.values)
    assert cube["time"].values[0] == np.datetime64("2019-06-10T00:05")
    assert cube.attrs["cadence_seconds"] == 300


def test_a_stated_missing_value_is_no_data(tmp_path):
    cube = nimrod.read(make(tmp_path, codes=codes(-1, 32767, 32), missing=32767))
    np.testing.assert_array_equal(cube["rainfall_rate"].values[0, 0, :3], [np.nan, np.nan, 1])


def test_lies_on_the_national_grid(tmp_path):
    """Corners of the 1 km composite: 405 km west and 625 km south of the false origin, 1725 by 2175 km."""
    grid = Grid.of(nimrod.read(make(tmp_path, codes=np.zeros((2175, 1725), np.int16))))
    assert (grid.orientation, grid.crs.to_epsg(), grid.shape) == (NORTH_UP, 27700, (2175, 1725))
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (-404500, 1319500, 1549500, -624500)
    x, y = Transformer.from_crs(4326, 27700, always_xy=True).transform(-0.1276, 51.5072)  # London: TQ 300 804
    assert (abs(grid.x - x).argmin(), abs(grid.y - y).argmin()) == ((530 + 405), 1550 - 180 - 1)


def test_row_0_is_north(tmp_path):
    field = codes()
    field[0] = 320
    cube = nimrod.read(make(tmp_path, codes=field))
    assert (cube["rainfall_rate"].values[0, 0] == 10).all() and cube["y"].values[0] == 1549500


def test_another_program_reads_the_fixture_alike(tmp_path):
    """As the layout is read elsewhere: two records of Fortran, the second of big-endian integers."""
    data = sources_services.nimrod_bytes()
    (length,) = struct.unpack_from(">i", data)
    whole = np.frombuffer(data, ">i2", 31, 4)
    real = np.frombuffer(data, ">f4", 28, 4 + 62)
    pixels = np.frombuffer(data, ">i2", whole[15] * whole[16], 4 + length + 8).reshape(whole[15], whole[16])
    assert (length, data[358:365], real[2], real[4]) == (512, b"mm/h*32", 1549500, -404500)
    cube = nimrod.read(make(tmp_path))
    np.testing.assert_array_equal(cube["rainfall_rate"].values[0], np.where(pixels < 0, np.nan, pixels / 32))


def test_a_day_is_one_archive(tmp_path):
    day = sources_services.nimrod_day(tmp_path / (sources_services.NIMROD_NAME.format("20190610") + ".gz (1).tar"))
    assert detect(day) == "nimrod"
    cubes = [nimrod.read(item) for item in nimrod.find(tmp_path)]
    assert [str(cube["time"].values[0])[11:16] for cube in cubes] == ["00:00", "00:05", "00:10"]
    assert cubes[1].attrs["source"] == NAME + ".gz"


@pytest.mark.parametrize("name", [NAME, NAME + ".gz", "201906100005_nimrod_ng_radar_rainrate_composite_1km_UK"])
def test_is_known_by_its_names(tmp_path, name):
    assert detect(sources_services.nimrod(tmp_path / name)) == "nimrod"


@pytest.mark.parametrize("unit", [b"mm/h*32", b"mm/hr*32", b"mm/h*32 "])
def test_takes_all_spellings_of_the_unit(tmp_path, unit):
    assert nimrod.read(make(tmp_path, unit=unit))["rainfall_rate"].max() > 19


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"unit": b"mm"}, "holds field 213 in 'mm'; give rain rates"),
        ({"unit": b"mm/h*0"}, r"holds field 213 in 'mm/h\*0'"),
        ({"unit": b""}, "holds field 213 in 'no unit'"),
        ({"field": 63}, "holds field 63"),
        ({"kind": (0, 4)}, "has pixels of type 0, 4 bytes"),
        ({"minutes": 60}, "is a sum or mean over 60 minutes"),
        ({"grid": 4}, "is not on the National Grid"),
        ({"origin": 2}, "is not on the National Grid"),
        ({"time": "2019-13-10T00:05"}, "damaged or not a Nimrod field"),
        ({"time": "9019-06-10T00:05"}, "damaged or not a Nimrod field"),
        ({"pixel": 0.0}, "damaged or not a Nimrod field"),
        ({"pixel": float("nan")}, "damaged or not a Nimrod field"),
        ({"codes": np.zeros((1, 8))}, "states 1x8 pixels"),
    ],
)
def test_refuses(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        nimrod.read(make(tmp_path, **change))


def test_refuses_a_forecast(tmp_path):
    what = {"time": "2019-06-10T01:00", "of": "2019-06-10T00:00"}
    path = sources_services.nimrod(tmp_path / "201906100000_u1096_ng_ek00_precip_2km", **what)
    with pytest.raises(BadInput, match="is a forecast of 2019-06-10T00:00 for 2019-06-10T01:00"):
        nimrod.read(Item(path))


@pytest.mark.parametrize(
    ("place", "new", "fault"),
    [
        (0, b"\x00\x00\x03\x00", "does not begin like"),
        (4 + 30, b"\x7f\xff\x7f\xff", "states 32767x32767 pixels"),
        (4 + 30, b"\x00\x02", "does not hold its 2x30 pixels"),
        (520, b"\x7f\xff\xff\xff", "does not hold its 40x30 pixels"),
    ],
)
def test_refuses_damage_without_taking_memory(tmp_path, place, new, fault):
    data = bytearray(sources_services.nimrod_bytes())
    data[place : place + len(new)] = new
    (tmp_path / NAME).write_bytes(data)
    tracemalloc.start()
    with pytest.raises(BadInput, match=fault):
        nimrod.read(Item(tmp_path / NAME))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path):
    path = sources_services.write(tmp_path / (NAME + ".gz"), bytes(nimrod.LARGEST + 1))
    with pytest.raises(BadInput, match=f"holds more than {nimrod.LARGEST} bytes"):
        nimrod.read(Item(path))
