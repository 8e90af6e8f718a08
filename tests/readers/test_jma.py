import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, detect, jma
from nowcast.store.packing import Packing
from tests import sources_services

NAME = sources_services.JMA_NAME.format("20210703001000")


def levels(*first: int) -> np.ndarray:
    field = np.full((84, 64), 5, np.uint8)
    field[0, : len(first)] = first
    return field


def make(folder: Path, name: str = NAME, **what: object) -> Item:
    return Item(sources_services.jma(folder / name, **what))


def test_levels_become_rates(tmp_path):
    cube = jma.read(make(tmp_path, levels=levels(0, 0, 1, 2, 3, 4, 244)))
    rate = cube["rainfall_rate"]
    # level 0: not measured; 1: 0 mm/h; then hundredths of the list
    np.testing.assert_allclose(rate.values[0, 0, :7], [np.nan, np.nan, 0, 0.1, 0.25, 0.5, 240], rtol=1e-6)
    np.testing.assert_array_equal(rate.values[0, 1:], 1)
    assert rate.encoding == {"quantum": 0.01}
    packing = Packing.wanted(rate)
    np.testing.assert_allclose(packing.unpack(packing.pack(rate.values)), rate.values, rtol=1e-6)
    assert cube["time"].values[0] == np.datetime64("2021-07-03T00:10")
    assert cube.attrs["cadence_seconds"] == 600


def test_runs_are_digits_from_the_lowest(tmp_path):
    """By hand, with levels up to 3, so that the base is 252 and bytes from 4 on are digits."""
    data = bytes([0, 4 + 59, 1, 4 + 4, 4 + 1, 2, 3, 3, 1, 4 + 228, 4 + 19])
    # 60 of level 0, 1 + 4 + 252 of level 1, one of 2, two of 3, 1 + 228 + 19 * 252 of 1: 5337 ... of 84 * 64 = 5376
    lengths = [60, 257, 1, 1, 1, 1 + 228 + 19 * 252]
    rest = 84 * 64 - sum(lengths)
    data += bytes([2, 4 + rest - 1])
    item = make(tmp_path, data=data, used=3, values=(0, 100, 200), scale=1)
    flat = jma.read(item)["rainfall_rate"].values.ravel()
    expected = np.repeat([np.nan, 0, 10, 20, 20, 0, 10], [*lengths, rest])
    np.testing.assert_array_equal(flat, expected.astype(np.float32))


def test_analysed_rainfall_is_the_amount_of_an_hour(tmp_path):
    name = "Z__C_RJTD_20210703003000_SRF_GPV_Ggis1km_Prr60lv_ANAL_grib2.bin"
    cube = jma.read(make(tmp_path, name, product=(1, 200), scale=1, values=(0, 4, 10, 20), levels=levels(3, 4) // 2))
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :2], [0, 0.4], rtol=1e-6)
    assert (cube.attrs["product"], cube.attrs["accumulation_seconds"]) == ("analysed rainfall", 3600)
    assert cube.attrs["cadence_seconds"] == 1800


def test_step_is_that_of_the_name(tmp_path):
    assert jma.read(make(tmp_path, NAME.replace("Prr10", "Prr05"))).attrs["cadence_seconds"] == 300


def test_lies_between_whole_degrees(tmp_path):
    """2560 by 3360 pixels from 118 to 150 degrees east and 48 to 20 degrees north: 1/80 by 1/120 degree."""
    grid = Grid.of(jma.read(make(tmp_path, levels=np.ones((3360, 2560), np.uint8))))
    assert (grid.orientation, grid.crs.to_epsg(), grid.shape) == (NORTH_UP, 4326, (3360, 2560))
    assert grid.misfit([118, 118, 150, 150], [20, 48, 48, 20]) < 1e-9
    np.testing.assert_allclose([grid.x[0], grid.y[0], grid.y[-1]], [118.00625, 48 - 1 / 240, 20 + 1 / 240], atol=1e-9)


def test_row_0_is_north(tmp_path):
    field = levels()
    field[0] = 6
    cube = jma.read(make(tmp_path, levels=field))
    assert (cube["rainfall_rate"].values[0, 0] == 2).all() and cube["y"].values[0] > 47


def test_an_archive_gives_rain_alone(tmp_path):
    source = sources_services.SOURCES["jma"](tmp_path)
    (tar,) = source.glob("*.tar")
    assert detect(tar) == "jma"
    (item,) = jma.find(tar)
    assert item.key == sources_services.JMA_NAME.format("20210703003000")
    assert jma.read(item)["time"].values[0] == np.datetime64("2021-07-03T00:30")
    assert len(list(jma.find(source))) == 3


def test_forecasts_and_echo_tops_are_left_out(tmp_path):
    make(tmp_path)
    for name in ("Gll2p5km_Phhlv_ANAL", "Ggis1km_Prr05lv_FH0000-0100"):
        make(tmp_path, f"Z__C_RJTD_20210703001000_NOWC_GPV_{name}_grib2.bin")
    assert [item.path.name for item in jma.find(tmp_path)] == [NAME]


def test_a_folder_of_forecasts_is_refused(tmp_path):
    make(tmp_path, "Z__C_RJTD_20210703001000_NOWC_GPV_Ggis1km_Prr05lv_FH0000-0100_grib2.bin")
    with pytest.raises(BadInput, match="holds no analysis of rain"):
        list(jma.find(tmp_path))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"centre": 7}, "is not of the Japan Meteorological Agency"),
        ({"discipline": 209}, "is not of the Japan Meteorological Agency"),
        ({"product": (1, 8)}, "holds the product 0-1-8 of template 50008; give a rain intensity"),
        ({"template": 0}, "holds the product 0-1-201 of template 0"),
        ({"of": "2021-07-03T00:00"}, "is a forecast of 2021-07-03T00:00 for 2021-07-03T00:10"),
        ({"scanning": 64}, "not on a regular grid of degrees from north to south"),
        ({"packing": 0}, "packs its field by template 0"),
        ({"bits": 4}, "packs its field by template 200 in 4 bits"),
        ({"bitmap": 0}, "has a bitmap"),
        ({"used": 245}, "states 245 of 244 levels"),
        ({"data": b"\x05\xff"}, "does not hold its 84x64 pixels"),
        ({"data": b""}, "damaged or not a field of JMA"),
        ({"data": b"\xff\x05"}, "damaged or not a field of JMA"),
        ({"data": b"\x05" + b"\xff" * 40}, "damaged or not a field of JMA"),
        ({"time": "2021-13-03T00:10"}, "damaged or not a field of JMA"),
        ({"time": "9021-07-03T00:10"}, "is of the year 9021"),
    ],
)
def test_refuses(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        jma.read(make(tmp_path, **change))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b"7777", b"7778", "does not hold one message of"),
        (b"\x00\x00\x00\x40\x00\x00\x00\x54", b"\xff\xff\xff\xff\xff\xff\xff\xff", "states 4294967295x4294967295 pix"),
        (b"\x00\x00\x00\x40\x00\x00\x00\x54", b"\x00\x00\x10\x00\x00\x00\x10\x00", "corners that do not fit"),
        (b"\x00\x00\x00\x40\x00\x00\x00\x54", b"\x00\x00\x00\x40\x00\x00\x00\x01", "states 1x64 pixels"),
        (b"\x00\x00\x00\x15\x01", b"\x00\x00\x00\x15\x02", "has no section 1"),
        (b"\x00\x00\x00\x06\x06", b"\x00\x00\x00\x06\x05", "holds section 5 twice; give files of one field"),
    ],
)
def test_refuses_damage_without_taking_memory(tmp_path, old, new, fault):
    data = sources_services.jma_bytes()
    assert old in data
    (tmp_path / NAME).write_bytes(data.replace(old, new, 1))
    tracemalloc.start()
    with pytest.raises(BadInput, match=fault):
        jma.read(Item(tmp_path / NAME))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_eccodes_expands_the_runs_alike(tmp_path):
    """Of template 8, which eccodes knows; the distributed files append to it which radars took part."""
    eccodes = pytest.importorskip("eccodes")
    for what in ({}, {"levels": sources_services.jma_levels() // 60, "scale": 1}):
        data = sources_services.jma_bytes(template=8, **what)
        (tmp_path / NAME).write_bytes(data)
        values = jma.read(Item(tmp_path / NAME))["rainfall_rate"].values[0]
        handle = eccodes.codes_new_from_message(data)
        eccodes.codes_set(handle, "missingValue", -1)
        expected = eccodes.codes_get_values(handle).reshape(84, 64)
        first = eccodes.codes_get(handle, "latitudeOfFirstGridPointInDegrees")
        eccodes.codes_release(handle)
        assert (expected == -1).any() and first == pytest.approx(48 - 1 / 6)
        np.testing.assert_allclose(values, np.where(expected < 0, np.nan, expected), rtol=1e-6)


def test_sections_are_as_long_as_those_of_distributed_files():
    data, place, lengths = sources_services.jma_bytes(), 16, {}
    while data[place : place + 4] != b"7777":
        length, number = struct.unpack_from(">IB", data, place)
        lengths[number] = length
        place += length
    assert [lengths[number] for number in (1, 3, 4, 6)] == [21, 72, 82, 6]
