import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, fmi_pgm
from tests import fixtures
from tests.paths import REAL_DATA, needs_real


def levels(*first: int) -> np.ndarray:
    field = np.zeros((61, 38), np.uint8)
    field[0, : len(first)] = first
    return field


def test_levels_become_dbz(tmp_path):
    cube = fmi_pgm.read(Item(fixtures.fmi(tmp_path / "a.pgm", levels=levels(0, 1, 64, 162, 254, 255))))
    # 0.5 v - 32: level 64 is 0 dBZ; 0 is measured, without echo; 255 was not measured
    np.testing.assert_array_equal(cube["reflectivity"].values[0, 0, :6], [-32, -31.5, 0, 49, 95, np.nan])
    assert cube["time"].values[0] == np.datetime64("2016-09-28T14:45")
    assert cube.attrs["product"] == "CAPPI LOWEST"


def test_plain_and_gzipped_are_the_same(tmp_path):
    plain, packed = (fmi_pgm.read(Item(fixtures.fmi(tmp_path / name))) for name in ("a.pgm", "a.pgm.gz"))
    plain.attrs["source"] = packed.attrs["source"]
    assert plain.identical(packed)


def test_lies_where_its_corners_say(tmp_path):
    grid = Grid.of(fmi_pgm.read(Item(fixtures.fmi(tmp_path / "a.pgm"))))
    assert grid.orientation == NORTH_UP
    lon, lat = np.array([18.6, np.nan, 34.903, np.nan]), np.array([57.93, np.nan, 69.005, np.nan])
    assert grid.misfit(lon, lat) < 1e-6


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"magic": "P2"}, "type P5"),
        ({"kind": "mercator"}, "on a mercator projection"),
        ({"topright": "30.0 69.005"}, "corners that do not fit"),
        ({"levels": np.zeros(100)}, "holds 100 of 61x38 pixels"),
        ({"obstime": "yesterday"}, "damaged or not an FMI"),
    ],
)
def test_refuses(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        fmi_pgm.read(Item(fixtures.fmi(tmp_path / "a.pgm", **change)))


@needs_real("fmi")
def test_real_files():
    items = list(fmi_pgm.find(REAL_DATA / "fmi"))
    assert len(items) == 40
    cubes = [fmi_pgm.read(item) for item in items[:3]]
    assert [str(cube["time"].values[0])[11:16] for cube in cubes] == ["14:45", "14:50", "14:55"]
    grid = Grid.of(cubes[0])
    assert grid.shape == (1226, 760)
    # the radius that the files leave out reproduces the pixel sizes that they state, to the digit
    assert np.diff(grid.x).mean() == pytest.approx(999.674053, abs=1e-6)
    assert -np.diff(grid.y).mean() == pytest.approx(999.62859, abs=2e-6)
    dbz = cubes[0]["reflectivity"].values
    assert (np.nanmin(dbz), np.nanmax(dbz)) == (-32, 49)
    assert (np.isnan(dbz).mean(), (dbz == -32).mean()) == pytest.approx((0.24346, 0.44285), abs=1e-4)
