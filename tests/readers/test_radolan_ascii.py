import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, detect, radolan, radolan_ascii
from tests import sources_composites, sources_services
from tests.fixtures import blob

NAME = "RW_20221015-0050.asc"


def field(*first: float, shape: tuple[int, int] = (900, 900)) -> np.ndarray:
    values = np.full(shape, 4.0 if any(isinstance(value, float) for value in first) else 4)
    values = values.astype(float if any(isinstance(value, float) for value in first) else int)
    values[0, : len(first)] = first
    return values


def make(folder: Path, values: np.ndarray | None = None, name: str = NAME, **what: object) -> Item:
    return Item(sources_services.write(folder / name, sources_services.grid_text(values, **what)))


def test_tenths_become_rates(tmp_path):
    cube = radolan_ascii.read(make(tmp_path, field(-1, 0, 1, 125)))
    rate = cube["rainfall_rate"]
    np.testing.assert_allclose(rate.values[0, 0, :4], [np.nan, 0, 0.1, 12.5], rtol=1e-6)
    np.testing.assert_allclose(rate.values[0, 1:], 0.4, rtol=1e-6)
    assert rate.encoding == {"quantum": 0.1}
    assert cube["time"].values[0] == np.datetime64("2022-10-15T00:50")
    assert [cube.attrs[key] for key in ("product", "accumulation_seconds", "cadence_seconds")] == ["RW", 3600, 3600]


def test_millimetres_of_the_climatology(tmp_path):
    values = field(-9999.0, 0.0, 0.3, 12.5, shape=(1100, 900))
    cube = radolan_ascii.read(make(tmp_path, values, missing="-9999.0", lower_left=(-443462, -4758645)))
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :4], [np.nan, 0, 0.3, 12.5], rtol=1e-6)
    assert cube["rainfall_rate"].encoding == {}
    # the composite of Germany as it was extended: 1100 x 900 km
    assert Grid.of(cube).digest == radolan.national_grid(False, 1100, 900).digest


def test_a_daily_sum_is_a_rate_over_its_day(tmp_path):
    cube = radolan_ascii.read(make(tmp_path, field(-1, 240), "SF_20221015-0050.asc"))
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, 1], 1.0, rtol=1e-6)
    assert cube.attrs["accumulation_seconds"] == 86400


def test_lies_where_the_binary_composite_lies(tmp_path):
    grid = Grid.of(radolan_ascii.read(make(tmp_path)))
    binary = radolan.read(
        Item(sources_composites.radolan(tmp_path / "raa01-rw_10000-2210150050-dwd---bin", product="RW"))
    )
    assert grid.orientation == NORTH_UP and grid.digest == Grid.of(binary).digest


def test_wradlib_decodes_the_fixture_alike(tmp_path):
    wradlib = pytest.importorskip("wradlib")
    item = make(tmp_path, blob((900, 900), 150).astype(int))  # it mistakes what is no data for whole rows
    expected, attrs = wradlib.io.read_radolan_composite(str(item.path))
    cube = radolan_ascii.read(item)
    rate = np.flip(np.asarray(expected), 0)  # it begins in the south
    np.testing.assert_allclose(cube["rainfall_rate"].values[0], rate, rtol=1e-6)
    assert attrs["datetime"].strftime("%Y-%m-%dT%H:%M:%S") == str(cube["time"].values[0])[:19]


@pytest.mark.parametrize("name", ["RW-20221015.tar.gz", "RW-202210.tar", "RW2017.002_201701_asc.tar.gz"])
def test_an_archive_is_a_row_of_grids(tmp_path, name):
    members = {f"./RW_20221015-{hour}50.asc": sources_services.grid_text() for hour in ("00", "01")}
    path = sources_services.archive(tmp_path / name, {"readme.txt": b"text", **members})
    assert detect(path) == "radolan-ascii"
    cubes = [radolan_ascii.read(item) for item in radolan_ascii.find(tmp_path)]
    assert [str(cube["time"].values[0])[11:16] for cube in cubes] == ["00:50", "01:50"]
    assert cubes[0].attrs["source"] == NAME


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ({"values": field(shape=(900, 800))}, "has 900x800 pixels from -523462, -4658645"),
        ({"lower_left": (-523400, -4658645)}, "has 900x900 pixels from -523400"),
        ({"missing": "-99"}, "has -99 for no data"),
        ({"cell": "500"}, "does not begin like a grid of 1 km"),
    ],
)
def test_refuses(tmp_path, what, fault):
    with pytest.raises(BadInput, match=fault):
        radolan_ascii.read(make(tmp_path, **what))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b" 0 0 ", b" 0 ", "holds 809999 of 900x900 pixels"),
        (b" 0 0 ", b" 0 x ", "damaged or not a RADOLAN grid as text"),
        (b"nrows 900", b"nrows 90000", "has 90000x900 pixels"),
    ],
)
def test_refuses_damage(tmp_path, old, new, fault):
    data = sources_services.grid_text()
    assert old in data
    with pytest.raises(BadInput, match=fault):
        radolan_ascii.read(Item(sources_services.write(tmp_path / NAME, data.replace(old, new, 1))))


def test_a_name_without_product_or_time_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not say by its name what it is"):
        radolan_ascii.read(make(tmp_path, name="grid.asc"))
    with pytest.raises(BadInput, match="damaged or not a RADOLAN grid"):
        radolan_ascii.read(make(tmp_path, name="RW_20221315-0050.asc"))


def test_what_a_packed_archive_holds_beyond_a_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nowcast.readers.archives.MOST_UNPACKED", 0)
    monkeypatch.setattr("nowcast.readers.archives.PIECE", 2**20)
    members = {f"RW_20221015-{hour:02}50.asc": sources_services.grid_text() for hour in range(2)}
    path = sources_services.archive(tmp_path / "RW-20221015.tar.gz", members)
    kept, item = radolan_ascii.find(path)
    assert kept.key == "RW_20221015-0050.asc"
    tracemalloc.start()
    with pytest.raises(BadInput, match="holds more than 0 MiB; unpack it and give the folder"):
        radolan_ascii.read(item)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
