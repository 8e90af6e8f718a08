import bz2
import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, detect, radolan
from nowcast.readers.rasters import metric_crs
from nowcast.store.packing import Packing
from tests import fixtures, sources_composites
from tests.paths import REAL_DATA, needs_real

NAME = "raa01-ry_10000-2001011505-dwd---bin.gz"
ARCHIVE = "DE1200_RV2609161355.tar.bz2"
REAL = REAL_DATA / "radolan"


def levels(*first: int, shape: tuple[int, int] = (900, 900)) -> np.ndarray:
    """Levels of 7 everywhere but in the first pixels of the northernmost row."""
    field = np.full(shape, 7, np.uint16)
    field[0, : len(first)] = first
    return field


def read(path: Path, **what):
    return radolan.read(Item(sources_composites.radolan(path, **what)))


# --- values ---------------------------------------------------------------------------------------


def test_sums_become_rates(tmp_path):
    cube = read(tmp_path / NAME, levels=levels(0, 1, 250, 4095))
    # 0.01 mm in 5 min is 0.12 mm/h; the largest of 12 bits is 40.95 mm
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :5], [0, 0.12, 30, 491.4, 0.84], rtol=1e-6)
    assert cube["rainfall_rate"].encoding == {"quantum": 0.12}
    assert (cube.attrs["product"], cube.attrs["cadence_seconds"]) == ("RY", 300)
    assert cube["time"].values[0] == np.datetime64("2020-01-01T15:05")


def test_flags(tmp_path):
    pixels = [0x29C4, 0x2000 + 5, 0x4000 + 5, 0x8000 + 5, 0x8000, 0x8000 + 2490, 0x1000 + 5, 2490, 2500]
    rate = read(tmp_path / NAME, levels=levels(*pixels))["rainfall_rate"].values[0, 0, :9]
    # not measured twice, negative: no data; clutter with an amount in its place: data, but not with its own code;
    # secondary: data; 24.9 and 25 mm without a flag: data
    expected = [np.nan, np.nan, np.nan, 0.6, 0, np.nan, 0.6, 298.8, 300]
    np.testing.assert_allclose(rate, expected, rtol=1e-6)


def test_the_south_is_stored_first(tmp_path):
    path = sources_composites.radolan(tmp_path / "raa01-ry_10000-2001011505-dwd---bin", levels=levels())
    data = path.read_bytes()
    first = data.index(b"\x03") + 1
    path.write_bytes(data[:first] + b"\xe8\x03" + data[first + 2 :])
    rate = radolan.read(Item(path))["rainfall_rate"].values[0]
    np.testing.assert_allclose([rate[-1, 0], rate[0, 0]], [120, 0.84], rtol=1e-6)  # 1000 is 0x03e8


@pytest.mark.parametrize(
    ("what", "rate", "cadence"),
    [
        ({"product": "RW", "precision": -1, "interval": 60}, 10.0, 3600),
        ({"product": "RQ", "precision": -1, "interval": 60, "version": 5, "lead": 0}, 10.0, 900),
        ({"product": "SF", "precision": -1, "interval": 1440}, 10 / 24, 3600),
        ({"product": "W1", "precision": 0, "interval": 7, "days": True}, 100 / 168, 86400),
        ({"product": "YW", "shape": (1100, 900)}, 12.0, 300),
        ({"product": "EY", "shape": (1500, 1400)}, 12.0, 300),
    ],
)
def test_precision_and_interval_are_taken_from_the_header(tmp_path, what, rate, cadence):
    field = levels(100, 0x29C4, shape=what.get("shape", (900, 900)))
    cube = read(tmp_path / NAME, levels=field, **what)
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :2], [rate, np.nan], rtol=1e-6)
    assert cube.attrs["cadence_seconds"] == cadence
    packing = Packing.wanted(cube["rainfall_rate"])
    values = cube["rainfall_rate"].values
    np.testing.assert_allclose(packing.unpack(packing.pack(values)), values, rtol=1e-6)


@pytest.mark.parametrize(("product", "shape"), [("RX", (900, 900)), ("WX", (1100, 900)), ("EX", (1500, 1400))])
def test_reflectivity_of_one_byte(tmp_path, product, shape):
    field = levels(0, 1, 65, 178, 248, 249, 250, 255, shape=shape)
    cube = read(tmp_path / NAME, product=product, levels=field, shape=shape, precision=0)
    # level / 2 - 32.5; 249 is clutter, 250 was not measured
    expected = [-32.5, -32, 0, 56.5, 91.5, np.nan, np.nan, np.nan]
    np.testing.assert_array_equal(cube["reflectivity"].values[0, 0, :8], expected)
    assert cube["reflectivity"].encoding == {"quantum": 0.5, "floor": -32.5}


def test_reflectivity_of_twelve_bits(tmp_path):
    field = levels(0, 650, 1771, 0x29C4, 0x8000 + 700, 0x8000 + 2490, shape=(1200, 1100))
    cube = read(
        tmp_path / "WN2609161355_000", product="WN", levels=field, shape=(1200, 1100), version=5, precision=-1, lead=0
    )
    expected = [-32.5, 0, 56.05, np.nan, np.nan, np.nan]  # tenths of half a dB; clutter, with or without a value
    np.testing.assert_allclose(cube["reflectivity"].values[0, 0, :6], expected, atol=1e-5)
    assert cube["reflectivity"].encoding == {"quantum": 0.05}
    packing, values = Packing.wanted(cube["reflectivity"]), cube["reflectivity"].values
    np.testing.assert_allclose(packing.unpack(packing.pack(values)), values, atol=1e-5)


# --- place and time -------------------------------------------------------------------------------

CORNERS = {  # lower left, then clockwise, as DWD's descriptions of the format state them
    (3, 900, 900): ((3.5889, 2.0715, 15.7208, 14.6209), (46.9526, 54.5877, 54.7405, 47.0705)),
    (3, 1100, 900): ((4.6759, 3.0889, 17.1128, 15.4801), (46.1929, 55.5482, 55.5342, 46.1827)),
    (3, 1500, 1400): ((2.3419, np.nan, np.nan, np.nan), (43.9336, np.nan, np.nan, np.nan)),
    (5, 900, 900): ((3.604, 2.096, 15.697, 14.605), (46.954, 54.585, 54.738, 47.072)),
    (5, 1200, 1100): (
        (3.5669946350078914, 1.463301510256666, 18.73161645466747, 16.580869348598274),
        (45.696425377390064, 55.862087108249824, 55.845438563255755, 45.68460578137082),
    ),
}


@pytest.mark.parametrize(("version", "rows", "columns"), CORNERS)
def test_lies_where_dwd_states_its_corners(tmp_path, version, rows, columns):
    product = {1100: "YW", 1500: "EY", 1200: "RV"}.get(rows, "RY")
    cube = read(
        tmp_path / NAME, product=product, levels=levels(shape=(rows, columns)), shape=(rows, columns), version=version
    )
    grid = Grid.of(cube)
    assert (grid.shape, grid.orientation) == ((rows, columns), NORTH_UP)
    digits = 1e-6 if rows == 1200 else 0.1 if version == 5 else 0.02  # pixels that the decimals leave open
    assert grid.misfit(*CORNERS[version, rows, columns]) < digits


@pytest.mark.parametrize("ellipsoid", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(900, 900), (1100, 900), (1200, 1100), (1500, 1400)])
def test_lies_where_wradlib_puts_it(ellipsoid, rows, columns):
    wradlib = pytest.importorskip("wradlib")
    crs = wradlib.georef.create_crs("dwd-radolan-wgs84" if ellipsoid else "dwd-radolan-sphere")
    x, y = wradlib.georef.get_radolan_coordinates(rows, columns, crs=crs, mode="center")
    grid = radolan.national_grid(ellipsoid, rows, columns)
    # wradlib counts from the pole, DWD from the first pixel: compare distances from the reference point
    here, there = grid.project(9.0, 51.0), Grid(crs, y, x).project(9.0, 51.0)
    np.testing.assert_allclose(grid.x - here[0], x - there[0], atol=1e-3)
    np.testing.assert_allclose(grid.y[::-1] - here[1], y - there[1], atol=1e-3)


def test_is_the_grid_of_dwd_in_odim(tmp_path):
    shape = (1200, 1100)
    cube = read(tmp_path / NAME, product="RV", levels=levels(shape=shape), shape=shape, version=5, lead=0)
    odim = Grid.regular(metric_crs(str(fixtures.DE1200["projdef"])), shape, upper_left=(-500, 500), pixel=(1000, 1000))
    assert Grid.of(cube).digest == odim.digest


def test_the_earth_changes_with_the_format(tmp_path):
    older, newer = (Grid.of(read(tmp_path / NAME, version=version)) for version in (4, 5))
    assert (older.crs.ellipsoid.semi_major_metre, newer.crs.ellipsoid.semi_major_metre) == (6_370_040, 6_378_137)


def test_an_hour_ends_at_ten_to(tmp_path):
    cube = read(tmp_path / NAME, product="RW", time="2018-11-22T00:50", precision=-1, interval=60)
    assert cube["time"].values[0] == np.datetime64("2018-11-22T00:50")


# --- files and archives ---------------------------------------------------------------------------


def test_compressed_or_not_is_the_same(tmp_path):
    stem = "raa01-ry_10000-2001011505-dwd---bin"
    cubes = [read(tmp_path / (stem + end)) for end in ("", ".gz", ".bz2")]
    for cube in cubes:
        del cube.attrs["source"]
    assert cubes[0].identical(cubes[1]) and cubes[0].identical(cubes[2])
    assert all(radolan.recognises(path) for path in tmp_path.iterdir())


@pytest.mark.parametrize("end", ["", ".gz", ".bz2"])
def test_the_analysis_of_an_archive_is_read(tmp_path, end):
    path = sources_composites.radolan_archive(tmp_path / f"DE1200_RV2609161355.tar{end}")
    assert radolan.recognises(path)
    (item,) = radolan.find(tmp_path)
    assert item == Item(path, "DE1200_RV2609161355_000")
    cube = radolan.read(item)
    assert (cube.attrs["product"], cube["time"].values[0]) == ("RV", np.datetime64("2026-09-16T13:55"))
    with pytest.raises(BadInput, match="a forecast for 5 minutes ahead; give the analysis, of lead 000"):
        radolan.read(Item(path, "DE1200_RV2609161355_005"))
    with pytest.raises(BadInput, match="holds no DE1200_RV2609161355_999"):
        radolan.read(Item(path, "DE1200_RV2609161355_999"))


def test_an_archive_of_many_composites(tmp_path):
    path = tmp_path / "RW202001.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for hour in (0, 1):
            data = gzip.compress(sources_composites.radolan_bytes(product="RW", time=f"2020-01-01T0{hour}:50"), 1)
            member = tarfile.TarInfo(f"RW/raa01-rw_10000-20010100{hour}50-dwd---bin.gz")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        archive.addfile(tarfile.TarInfo("RW/README"))
    items = list(radolan.find(tmp_path))
    assert [item.key for item in items] == [f"RW/raa01-rw_10000-20010100{hour}50-dwd---bin.gz" for hour in (0, 1)]
    times = [radolan.read(item)["time"].values[0] for item in items]
    assert times == [np.datetime64("2020-01-01T00:50"), np.datetime64("2020-01-01T01:50")]


def test_forecasts_are_left_out(tmp_path):
    for lead in (0, 5, 120):
        what = {"product": "RV", "shape": (1200, 1100), "version": 5, "lead": lead}
        sources_composites.radolan(tmp_path / f"DE1200_RV2609161355_{lead:03}", **what)
    assert [item.path.name for item in radolan.find(tmp_path)] == ["DE1200_RV2609161355_000"]
    ahead = tmp_path / "DE1200_RV2609161355_120"
    with pytest.raises(BadInput, match="a forecast for 120 minutes ahead"):
        radolan.read(*radolan.find(ahead))
    (tmp_path / "DE1200_RV2609161355_000").unlink()
    with pytest.raises(BadInput, match="holds no observed composite; give analyses"):
        list(radolan.find(tmp_path))


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = bomb(tmp_path / ARCHIVE, name="README", size=0)
    assert not radolan.recognises(path)
    with pytest.raises(BadInput, match="holds no observed composite"):
        list(radolan.find(path))


def test_a_damaged_archive_does_not_hide_the_others(tmp_path):
    sources_composites.radolan_archive(tmp_path / ARCHIVE)
    (tmp_path / "DE1200_RV2609161400.tar.bz2").write_bytes(b"BZh9 not really")
    good, bad = radolan.find(tmp_path)
    assert good.key and not bad.key
    with pytest.raises(BadInput, match="damaged or not a RADOLAN composite"):
        radolan.read(bad)


def bomb(
    path: Path, *, name: str = "DE1200_RV2609161355_000", size: int = 2**40, kind: bytes = tarfile.REGTYPE
) -> Path:
    """An archive of a few KB whose first member is said to be a TB, and which unpacks to a GB of zeros."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    path.write_bytes(bz2.compress(member.tobuf()) + bz2.compress(bytes(2**20)) * 1024)
    return path


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"name": "README"},
        {"kind": tarfile.XHDTYPE},
        {"kind": tarfile.GNUTYPE_LONGNAME},
        {"size": 2**28, "name": "x"},
    ],
)
def test_an_archive_that_explodes_is_refused(tmp_path, what):
    path = bomb(tmp_path / ARCHIVE, **what)
    tracemalloc.start()
    for item in radolan.find(path):
        with pytest.raises(BadInput):
            radolan.read(item)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_file_that_explodes_is_refused(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(gzip.compress(bytes(2**27)))
    tracemalloc.start()
    with pytest.raises(BadInput, match="does not begin like"):
        radolan.read(Item(path))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_broken_checksum_is_refused(tmp_path):
    path = sources_composites.radolan(tmp_path / NAME)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="damaged or not a RADOLAN composite"):
        radolan.read(Item(path))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"product": "PG"}, "is the product PG; give one of"),
        ({"product": "RE"}, "is the product RE"),
        ({"shape": (460, 460), "levels": np.zeros((460, 460))}, "has 460x460 pixels; give a composite of 900x900"),
        ({"interval": 0}, "is a sum over no time"),
        ({"levels": np.zeros((899, 900))}, "ends after 809100 of 900x900 pixels"),
        ({"time": "2020-13-01T15:05"}, "damaged or not a RADOLAN composite"),
        ({"site": 10132}, "does not begin like a RADOLAN composite"),
    ],
)
def test_refuses(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        read(tmp_path / NAME, **change)


def test_another_file_is_not_recognised(tmp_path):
    station = sources_composites.radolan(tmp_path / NAME, site=10132)
    empty = tmp_path / "DE1200_RV2609161355.tar"
    with tarfile.open(empty, "w"):
        pass
    assert not radolan.recognises(station) and not radolan.recognises(empty)


# --- real files -----------------------------------------------------------------------------------


@needs_real("radolan")
@pytest.mark.parametrize(("folder", "count", "quantum"), [("yw", 12, 0.12), ("ry", 13, 0.12), ("rw", 24, 0.1)])
def test_real_files(folder, count, quantum):
    wradlib = pytest.importorskip("wradlib")
    items = list(radolan.find(REAL / f"radolan_{folder}"))
    assert len(items) == count
    stamps = []
    for item in items:
        cube = radolan.read(item)
        expected, header = wradlib.io.read_radolan_composite(str(item.path), missing=np.nan)
        factor = 3600 / header["intervalseconds"]
        np.testing.assert_allclose(cube["rainfall_rate"].values[0], expected[::-1] * factor, rtol=1e-5)
        assert cube["rainfall_rate"].encoding == {"quantum": quantum}
        stamps.append(cube["time"].values[0])
        assert stamps[-1] == np.datetime64(header["datetime"])
        stamp = item.path.name.split("-")[-5]
        assert str(stamps[-1])[2:16].translate({ord(mark): None for mark in "-:T"}) == stamp
        assert cube.attrs["cadence_seconds"] == header["intervalseconds"]
    assert set(np.diff(stamps)) == {np.timedelta64(cube.attrs["cadence_seconds"], "s")}


@needs_real("radolan")
def test_what_stands_for_clutter_follows_its_neighbours():
    path = sorted((REAL / "radolan_yw").iterdir())[0]
    raw = np.frombuffer(gzip.decompress(path.read_bytes()).partition(b"\x03")[2], "<u2").reshape(1100, 900)
    clutter, missing = raw & 0x8000 != 0, raw & 0x2000 != 0
    around = np.where(clutter | missing, np.nan, raw & 0x0FFF)
    rows, columns = np.nonzero(clutter)
    windows = [around[row - 2 : row + 3, column - 2 : column + 3] for row, column in zip(rows, columns, strict=True)]
    means = np.array([np.nanmean(window) if np.isfinite(window).any() else np.nan for window in windows])
    known, amounts = np.isfinite(means), (raw & 0x0FFF)[clutter]
    assert clutter.sum() == 4028
    assert np.corrcoef(means[known], amounts[known])[0, 1] > 0.95
    assert (amounts[known][means[known] == 0] == 0).all()


@pytest.mark.parametrize(
    ("name", "product", "fault"),
    [
        ("raa01-re_10000-2001011505-dwd---bin", "RE", "is the product RE, the share of precipitation that is solid"),
        ("HG2001011505", "HG", "is the product HG, the type of precipitation, not its amount; give sums"),
    ],
)
def test_products_that_hold_no_amount_are_refused_by_name_and_left_out_of_folders(tmp_path, name, product, fault):
    path = sources_composites.radolan(tmp_path / name, product=product)
    assert detect(path) == "radolan"
    with pytest.raises(BadInput, match=fault):
        radolan.read(Item(path))
    rain = sources_composites.radolan(tmp_path / "raa01-ry_10000-2001011505-dwd---bin")
    assert [item.path for item in radolan.find(tmp_path)] == [rain]
