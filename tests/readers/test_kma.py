import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, detect, kma
from nowcast.store.packing import Packing
from tests import sources_services

NAME = sources_services.KMA_NAME.format("HSR", "202407180300")
RAIN = sources_services.KMA_NAME.format("HSP", "202407180300")


def codes(*first: int) -> np.ndarray:
    field = np.full((2881, 2305), 150, np.int16)
    field[0, : len(first)] = first
    return field


def make(folder: Path, name: str = NAME, **what: object) -> Item:
    return Item(sources_services.kma(folder / name, **what))


@pytest.fixture(scope="module")
def nothings(tmp_path_factory) -> Path:
    """Beyond all radars, an unknown code, no echo, below the least value, the least values, and an echo."""
    first = codes(-30000, -27000, -25000, -22000, -20000, -19999, -3300, -100, 0, 1, 4550)
    return sources_services.kma(tmp_path_factory.mktemp("kma") / NAME, codes=first)


def test_reflectivity(nothings):
    cube = kma.read(Item(nothings))
    expected = [np.nan, np.nan, -32, np.nan, -32, -32, -32, -1, 0, 0.01, 45.5]
    np.testing.assert_allclose(cube["reflectivity"].values[0, 0, :11], expected, rtol=1e-5)
    assert cube["reflectivity"].encoding == {"quantum": 0.01}
    packing = Packing.wanted(cube["reflectivity"])
    first = cube["reflectivity"].values[:, :2]
    np.testing.assert_allclose(packing.unpack(packing.pack(first)), first, rtol=1e-5, atol=1e-5)
    assert cube.attrs["cadence_seconds"] == 300 and cube.attrs["product"] == "HSR"


def test_rain_rate(nothings):
    path = nothings.parent / RAIN
    path.write_bytes(nothings.read_bytes())
    expected = [np.nan, np.nan, 0, np.nan, 0, 0, 0, 0, 0, 0.01, 45.5]
    np.testing.assert_allclose(kma.read(Item(path))["rainfall_rate"].values[0, 0, :11], expected, rtol=1e-5)


def test_times_are_korean(nothings):
    assert kma.read(Item(nothings))["time"].values[0] == np.datetime64("2024-07-17T18:00")


def test_corners_are_those_of_its_list_of_coordinates(nothings):
    """Pixel centres that KMA's own file of coordinates of this grid ends at, to its six digits."""
    grid = Grid.of(kma.read(Item(nothings)))
    assert (grid.orientation, grid.shape) == (NORTH_UP, (2881, 2305))
    assert grid.lonlat(grid.x[1120], grid.y[2880 - 1680]) == pytest.approx((126, 38), abs=1e-9)
    y, x = np.meshgrid(grid.y[[0, -1]], grid.x, indexing="ij")
    lon, lat = grid.lonlat(x, y)
    assert (lat.min(), lon.max()) == pytest.approx((30.107119, 133.560669), abs=3e-6)
    corners = lon[1, 0], lat[1, 0], lon[1, -1], lat[1, -1], lon[0, 0], lat[0, 0], lon[0, -1], lat[0, -1]
    expected = (120.180206, 30.128691, 132.151081, 30.107118, 118.84578, 43.339386, 133.560671, 43.312039)
    assert corners == pytest.approx(expected, abs=1e-6)


def test_rows_begin_in_the_south(tmp_path):
    field = codes()
    field[0] = 1000
    item = make(tmp_path, codes=field)
    assert np.frombuffer(item.path.read_bytes(), "<i2")[-1] == 1000  # the north ends the file
    cube = kma.read(item)
    assert (cube["reflectivity"].values[0, 0] == 10).all() and cube["y"].values[0] == 600_000


def test_is_known_by_name_and_header(tmp_path, nothings):
    assert detect(nothings) == "kma"
    path = sources_services.archive(tmp_path / "RDR_CMP_20240718.tar", {NAME + ".gz": nothings.read_bytes()})
    assert detect(path) == "kma"
    (item,) = kma.find(path)
    assert kma.read(item).attrs["source"] == NAME + ".gz"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kind": 10}, "is an accumulation"),
        ({"area": 2}, "has 2881x2305 pixels of 500 m on map 2"),
        ({"metres": 1000}, "has 2881x2305 pixels of 1000 m on map 1; give the composite of"),
        ({"shape": (32767, 32767)}, "has 32767x32767 pixels"),
        ({"heights": 3}, "has 3 heights"),
        ({"codes": np.zeros((9, 9))}, "does not hold its 2881x2305 pixels"),
        ({"time": "2024-13-18T03:00"}, "damaged or not a radar composite of KMA"),
        ({"time": "9024-07-18T03:00"}, "damaged or not a radar composite of KMA"),
    ],
)
def test_refuses_without_taking_memory(tmp_path, change, fault):
    item = make(tmp_path, **({"codes": np.zeros((2, 2))} | change))
    tracemalloc.start()
    with pytest.raises(BadInput, match=fault):
        kma.read(item)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_several_fields_are_refused(nothings, tmp_path):
    data = nothings.read_bytes()
    (tmp_path / NAME).write_bytes(data + data[1024:] * 2)
    with pytest.raises(BadInput, match="holds more than one field"):
        kma.read(Item(tmp_path / NAME))


def test_a_name_must_say_what_it_holds(nothings, tmp_path):
    (tmp_path / "composite.bin").write_bytes(nothings.read_bytes())
    with pytest.raises(BadInput, match="does not say by its name whether"):
        kma.read(Item(tmp_path / "composite.bin"))


def test_the_fixture_is_laid_out_as_published_files(nothings):
    data = nothings.read_bytes()
    assert len(data) == 13_282_434
    assert struct.unpack_from("<hh", data, 20) == (2305, 2881) and struct.unpack_from("<h", data, 26) == (500,)
