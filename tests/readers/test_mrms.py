import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, mrms
from nowcast.store.packing import Packing
from tests import sources_composites
from tests.paths import REAL_DATA, needs_real

REAL = REAL_DATA / "mrms"


def codes(*first: int, dtype: type = np.uint16) -> np.ndarray:
    field = np.full((35, 70), 50, dtype)
    field[0, : len(first)] = first
    return field


def test_codes_become_rates(tmp_path):
    cube = mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2", codes=codes(0, 20, 30, 31, 130, 1548))))
    # (code - 30) / 10: -3 mm/h is no coverage, -1 missing, 0 dry
    rate = cube["rainfall_rate"]
    np.testing.assert_allclose(rate.values[0, 0, :6], [np.nan, np.nan, 0, 0.1, 10, 151.8], rtol=1e-6)
    assert (rate.values[0, 1:] == 2).all()
    assert rate.encoding == {"quantum": 0.1}
    assert (cube.attrs["product"], cube.attrs["cadence_seconds"]) == ("PrecipRate", 120)
    assert cube["time"].values[0] == np.datetime64("2019-06-10T00:02:40")


def test_lies_in_degrees_from_the_north(tmp_path):
    grid = Grid.of(mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2"))))
    assert (grid.orientation, grid.crs.to_epsg(), grid.shape) == (NORTH_UP, 4326, (35, 70))
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (-129.5, -60.5, 54.5, 20.5)
    assert grid.misfit([-130, -130, -60, -60], [20, 55, 55, 20]) < 1e-9


def test_eastern_longitudes_stay(tmp_path):
    what = {"first": (17.5, 140.5), "codes": codes()[:9, :10]}  # Guam
    grid = Grid.of(mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2", **what))))
    assert (grid.x[0], grid.x[-1], grid.y[-1]) == (140.5, 149.5, 9.5)


def test_southern_latitudes_have_a_sign(tmp_path):
    data = bytearray(sources_composites.mrms_bytes(first=(2.5, 230.5), last=(31.5, 299.5)))
    place = data.index(round(31.5e6).to_bytes(4, "big"))
    data[place] |= 0x80  # the sign is a bit: -31.5
    (tmp_path / "a.grib2").write_bytes(data)
    assert Grid.of(mrms.read(Item(tmp_path / "a.grib2"))).y[-1] == -31.5


@pytest.mark.parametrize(
    ("product", "name", "rate", "cadence"),
    [
        ((6, 2), "RadarOnly_QPE_01H", 12.0, 120),
        ((6, 45), "RadarOnly_QPE_15M", 48.0, 900),
        ((6, 4), "RadarOnly_QPE_06H", 2.0, 3600),
        ((6, 13), "GaugeCorr_QPE_24H", 0.5, 3600),
        ((6, 37), "MultiSensor_QPE_Pass2_01H", 12.0, 3600),
        ((6, 33), "MultiSensor_QPE_Pass1_12H", 1.0, 3600),
    ],
)
def test_accumulations_become_rates(tmp_path, product, name, rate, cadence):
    cube = mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2", codes=codes(0, 150), product=product)))
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :2], [np.nan, rate], rtol=1e-6)  # 12 mm
    assert (cube.attrs["product"], cube.attrs["cadence_seconds"]) == (name, cadence)
    packing = Packing.wanted(cube["rainfall_rate"])
    back = packing.unpack(packing.pack(cube["rainfall_rate"].values))
    np.testing.assert_allclose(back, cube["rainfall_rate"].values, rtol=1e-6)


def test_reflectivity_knows_three_kinds_of_nothing(tmp_path):
    what = {"product": (10, 0), "reference": -9990.0, "codes": codes(0, 9000, 9690, 9990, 10515)}
    cube = mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2", **what)))
    # -999: not covered; -99: scanned, without echo; -30, 0 and 52.5 dBZ
    np.testing.assert_allclose(cube["reflectivity"].values[0, 0, :5], [np.nan, -32, -30, 0, 52.5], atol=1e-5)
    assert cube["reflectivity"].encoding == {"quantum": 0.1}


def test_vil(tmp_path):
    cube = mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2", product=(3, 41), codes=codes(0, 30, 285))))
    np.testing.assert_allclose(cube["vil"].values[0, 0, :3], [np.nan, 0, 25.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("what", "value", "quantum"),
    [
        ({"reference": -3.0, "decimal": 0, "bits": 8}, 47.0, 1.0),
        ({"decimal": 2}, 0.2, None),  # 16 bits of 0.01 mm/h would end at 327
        ({"binary": 1}, 7.0, None),
        ({"binary": -1}, -0.5, None),
        ({"reference": -30.5}, 1.95, None),
        ({"reference": 3.0, "decimal": -1, "bits": 8}, 530.0, 10.0),
    ],
)
def test_packing_is_taken_from_the_message(tmp_path, what, value, quantum):
    cube = mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2", codes=codes(), **what)))
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 5, 5], value if value > 0 else np.nan, rtol=1e-6)
    assert cube["rainfall_rate"].encoding.get("quantum") == quantum


def test_a_field_of_one_value_has_no_picture(tmp_path):
    cube = mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2", bits=0, reference=0.0)))
    assert (cube["rainfall_rate"].values == 0).all()


def test_plain_and_gzipped_are_the_same(tmp_path):
    plain, packed = (mrms.read(Item(sources_composites.mrms(tmp_path / name))) for name in ("a.grib2", "a.grib2.gz"))
    plain.attrs["source"] = packed.attrs["source"]
    assert plain.identical(packed)
    assert mrms.recognises(tmp_path / "a.grib2") and mrms.recognises(tmp_path / "a.grib2.gz")


def test_another_grib_is_not_recognised(tmp_path):
    assert not mrms.recognises(sources_composites.mrms(tmp_path / "a.grib2", discipline=0))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"discipline": 0}, "is of discipline 0, not MRMS's 209"),
        ({"product": (6, 0)}, "holds the product 209-6-0; give a precipitation rate"),
        ({"ahead": 60}, "no analysis of one time"),
        ({"scanning": 64}, "not on a regular grid of degrees from north to south"),
        ({"last": (20.5, 298.5)}, "corners that do not fit"),
        ({"first": (91.5, 230.5), "last": (20.5, 299.5)}, "corners that do not fit"),
        ({"template": 40}, "packs its field by template 40"),
        ({"bitmap": 0}, "with a bitmap"),
        ({"bits": 12}, "packs its field in 12 bits"),
        ({"binary": 31}, "packs its field in 16 bits"),
        ({"time": "2019-13-10T00:02:40"}, "damaged or not an MRMS field"),
        ({"time": "9019-01-10T00:02:40"}, "is of the year 9019"),
    ],
)
def test_refuses(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        mrms.read(Item(sources_composites.mrms(tmp_path / "a.grib2", **change)))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b"7777", b"7778", "does not hold one message of"),
        (b"\x02\x00\x00\x00\x00\x00", b"\x02\xff\x00\x00\x00\x00", "states a message of 1"),
        (b"\x00\x00\x00\x15\x01", b"\x00\x00\x00\x15\x02", "has no section 1"),
        (b"\x00\x00\x00\x15\x01", b"\x00\x00\x00\x01\x01", "damaged section 1"),
        (b"\x00\x00\x00\x22\x04", b"\x7f\xff\xff\xff\x04", "damaged section 4"),
        (b"\x00\x00\x00\x22\x04", b"\x00\x00\x00\x22\x03", "holds section 3 twice"),
        (b"\x00\x00\x00\x46\x00\x00\x00\x23", b"\xff\xff\xff\xff\xff\xff\xff\xff", "states 4294967295x4294967295 pix"),
        (b"\x00\x00\x00\x46\x00\x00\x00\x23", b"\x00\x00\x00\x46\x00\x00\x00\x01", "states 1x70 pixels"),
        (b"IHDR\x00\x00\x00\x46", b"IHDR\x00\x00\x40\x46", "damaged or not an MRMS field"),
        (b"IDATx", b"IDAT\x00", "damaged or not an MRMS field"),
    ],
)
def test_refuses_damage_without_taking_memory(tmp_path, old, new, fault):
    data = sources_composites.mrms_bytes()
    assert old in data
    (tmp_path / "a.grib2").write_bytes(data.replace(old, new, 1))
    tracemalloc.start()
    with pytest.raises(BadInput, match=fault):
        mrms.read(Item(tmp_path / "a.grib2"))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_two_messages_in_a_file_are_refused(tmp_path):
    (tmp_path / "a.grib2").write_bytes(sources_composites.mrms_bytes() * 2)
    with pytest.raises(BadInput, match="one field a file"):
        mrms.read(Item(tmp_path / "a.grib2"))


def test_eccodes_decodes_the_fixtures_alike(tmp_path):
    eccodes = pytest.importorskip("eccodes")
    for what in ({}, {"decimal": 2, "binary": -1}, {"bits": 8, "codes": codes(dtype=np.uint8)}):
        data = sources_composites.mrms_bytes(time="2019-06-10T00:02:00", **what)
        (tmp_path / "a.grib2").write_bytes(data)
        values = mrms.read(Item(tmp_path / "a.grib2"))["rainfall_rate"].values[0]
        handle = eccodes.codes_new_from_message(data)
        expected = eccodes.codes_get_values(handle).reshape(35, 70)
        eccodes.codes_release(handle)
        np.testing.assert_allclose(values, np.where(expected < 0, np.nan, expected), rtol=1e-6)


@needs_real("mrms")
@pytest.mark.parametrize("numbers", [(0, 13), pytest.param(range(1, 13), marks=pytest.mark.slow)])
def test_real_files(numbers):
    items = list(mrms.find(REAL))
    assert len(items) == 14
    for item in (items[number] for number in numbers):
        cube = mrms.read(item)
        compare_with_eccodes(item.path, cube["rainfall_rate"].values[0], cube["time"].values[0])
        assert cube["rainfall_rate"].encoding == {"quantum": 0.1}
        grid = Grid.of(cube)
        assert (grid.shape, grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (
            (3500, 7000),
            -129.995,
            -60.005,
            54.995,
            20.005,
        )
        day, clock = item.path.stem.split("_")[-1].split("-")
        stamp = f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}"
        assert cube["time"].values[0] == np.datetime64(stamp)


def compare_with_eccodes(path: Path, rate: np.ndarray, time: np.datetime64) -> None:
    eccodes = pytest.importorskip("eccodes")
    handle = eccodes.codes_new_from_message(path.read_bytes())
    expected = eccodes.codes_get_values(handle).reshape(rate.shape)
    stated = eccodes.codes_get_string(handle, "dataDate"), eccodes.codes_get_string(handle, "dataTime")
    corners = [
        eccodes.codes_get(handle, f"{axis}Of{end}GridPointInDegrees")
        for end in ("First", "Last")
        for axis in ("latitude", "longitude")
    ]
    eccodes.codes_release(handle)
    np.testing.assert_array_equal(np.isnan(rate), expected < 0)
    wet = expected > 0
    np.testing.assert_allclose(rate[wet], expected[wet], rtol=1e-6)
    assert (rate[expected == 0] == 0).all()
    assert str(time)[:16] == f"{stated[0][:4]}-{stated[0][4:6]}-{stated[0][6:]}T{stated[1][:2]}:{stated[1][2:]}"
    assert corners == pytest.approx([54.995, 230.005, 20.005, 299.995], abs=1e-5)
