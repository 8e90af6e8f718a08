import numpy as np
import pytest
from PIL import Image
from pyproj import Transformer

from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, Grid
from nowcast.readers import Item, fmi_geotiff, fmi_pgm
from tests import sources_gridded as gridded
from tests.paths import REAL_DATA, needs_real
from tests.sources_gridded import FMI_TAGS, fmi_tiff


def levels(*first: int, dtype: object = np.uint8) -> np.ndarray:
    field = np.zeros((40, 32), dtype)
    field[0, : len(first)] = first
    return field


def test_levels_become_dbz(tmp_path):
    cube = fmi_geotiff.read(Item(fmi_tiff(tmp_path / "a_FINUTM.tif", levels=levels(0, 1, 64, 162, 254, 255))))
    # 0.5 v - 32: level 64 is 0 dBZ; 0 is measured, without echo; 255 was not measured
    np.testing.assert_array_equal(cube["reflectivity"].values[0, 0, :6], [-32, -31.5, 0, 49, 95, np.nan])
    assert cube["reflectivity"].encoding == {"quantum": 0.5, "floor": -32.0}
    assert cube["time"].values[0] == np.datetime64("2016-09-28T14:45")  # of the tag
    assert cube.attrs == {
        "title": fmi_geotiff.TITLE,
        "licence": fmi_geotiff.LICENCE,
        "institution": "FMI",
        "source": "a_FINUTM.tif",
        "product": "Corrected reflectivity",
        "accumulation_seconds": 0,
        "level": "",
        "cadence_seconds": 300,
    }


def test_lies_where_its_transform_says(tmp_path):
    grid = Grid.of(fmi_geotiff.read(Item(fmi_tiff(tmp_path / "a.tif"))))
    assert (grid.crs.to_epsg(), grid.orientation) == (3067, NORTH_UP)
    assert (grid.x[0], grid.y[0]) == pytest.approx((-196_468.0023, 8_084_306.9983), abs=1e-4)


def test_rain_rate_of_the_tag(tmp_path):
    path = tmp_path / "a.tif"
    raw = levels(0, 1, 250, 65535, dtype=np.uint16)
    tags = {"Gain": "0.01", "Offset": "0", "Nodata": "65535", "Undetect": "0"}
    fmi_tiff(path, levels=raw, quantity="Rain rate", unit="mm/h", codes=tags)
    np.testing.assert_allclose(fmi_geotiff.read(Item(path))["rainfall_rate"].values[0, 0, :4], [0, 0.01, 2.5, np.nan])


def test_rain_rate_of_the_web_service(tmp_path):
    path = gridded.tiff(tmp_path / "202406011205_suomi_rr_eureffin.tif", levels(0, 1, 250, 65535, dtype=np.uint16))
    cube = fmi_geotiff.read(Item(path))
    np.testing.assert_allclose(cube["rainfall_rate"].values[0, 0, :4], [0, 0.01, 2.5, np.nan])
    assert cube["time"].values[0] == np.datetime64("2024-06-01T12:05")


def test_reflectivity_of_the_web_service(tmp_path):
    path = gridded.tiff(tmp_path / "202406011205_Radar-suomi_dbz_eureffin.tif", levels(0, 64, 255))
    np.testing.assert_array_equal(fmi_geotiff.read(Item(path))["reflectivity"].values[0, 0, :3], [-32, 0, np.nan])


def test_tags_that_gdal_took_apart(tmp_path):
    tags = FMI_TAGS | {"Observation time": "201609281445", "Quantity": "Corrected reflectivity"}
    path = gridded.tiff(tmp_path / "a.tif", levels(0, 64, 255), tags=tags)
    np.testing.assert_array_equal(fmi_geotiff.read(Item(path))["reflectivity"].values[0, 0, :3], [-32, 0, np.nan])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({"quantity": "Radial velocity", "unit": "m/s"}, "holds Radial velocity in m/s; give reflectivity"),
        ({"quantity": "Accumulated precipitation", "unit": "mm"}, "holds Accumulated precipitation in mm"),
        ({"codes": {"Gain": "0.5", "Offset": "-32"}}, "has no tags that tell what its uint8 pixels mean"),
        ({"codes": FMI_TAGS | {"Gain": "half"}}, "is damaged or not a GeoTIFF"),
        ({"time": "yesterday"}, "does not say when it was measured"),
    ],
)
def test_refuses(tmp_path, words, fault):
    with pytest.raises(BadInput, match=fault):
        fmi_geotiff.read(Item(fmi_tiff(tmp_path / "a.tif", **words)))


def test_refuses_another_depth(tmp_path):
    path = gridded.tiff(tmp_path / "202406011205_suomi_rr_eureffin.tif", levels(0, 1))
    with pytest.raises(BadInput, match="has no tags that tell what its uint8 pixels mean; use the reader geotiff"):
        fmi_geotiff.read(Item(path))


def test_recognises_by_its_tags(tmp_path):
    assert fmi_geotiff.recognises(fmi_tiff(tmp_path / "a.tif"))
    assert fmi_geotiff.recognises(gridded.tiff(tmp_path / "202406011205_suomi_rr_eureffin.tif", levels()))
    assert not fmi_geotiff.recognises(gridded.tiff(tmp_path / "rr_202406011205.tif", levels(), units="mm/h"))


REAL = REAL_DATA / "fmi"


@needs_real("fmi")
def test_real_files():
    digests = set()
    for item, minute in zip(fmi_geotiff.find(REAL / "geotiff"), ("45", "50", "55"), strict=True):
        cube = fmi_geotiff.read(item)
        assert cube["time"].values[0] == np.datetime64(f"2016-09-28T14:{minute}")
        digests.add(Grid.of(cube).digest)
        with Image.open(REAL / "geotiff" / cube.attrs["source"]) as image:  # decoded by libtiff, not by GDAL
            raw = np.asarray(image)[::7, ::7]
            width, height, _ = image.tag_v2[33550]
            *_, left, top, _ = image.tag_v2[33922]
        values = cube["reflectivity"].values[0, ::7, ::7]
        np.testing.assert_array_equal(np.isnan(values), raw == 255)
        np.testing.assert_array_equal(values[raw != 255], raw[raw != 255] * 0.5 - 32)
        grid = Grid.of(cube)
        assert (grid.shape, grid.orientation) == ((7316, 4963), NORTH_UP)
        edges = (grid.x[-1] + width / 2, grid.y[-1] - height / 2)
        assert (grid.x[0] - width / 2, grid.y[0] + height / 2) == pytest.approx((left, top))
        assert edges == pytest.approx((left + 4963 * width, top - 7316 * height))
    assert len(digests) == 1


@needs_real("fmi")
def test_agrees_with_the_pgm_of_the_same_time():
    """The same echoes on another grid, compared where the coarser one has its pixel centres."""
    pairs = zip(fmi_geotiff.find(REAL / "geotiff"), fmi_pgm.find(REAL / "pgm"), strict=False)
    row, column = (axis.ravel() for axis in np.meshgrid(np.arange(50, 1200, 5), np.arange(50, 720, 5), indexing="ij"))
    for fine, other in ((fmi_geotiff.read(first), fmi_pgm.read(second)) for first, second in pairs):
        assert fine["time"].values[0] == other["time"].values[0]
        lon, lat = Grid.of(other).lonlat(other["x"].values[column], other["y"].values[row])
        x, y = Transformer.from_crs(4326, 3067, always_xy=True).transform(lon, lat)
        grid = Grid.of(fine)
        place = np.rint((y - grid.y[0]) / (grid.y[1] - grid.y[0])), np.rint((x - grid.x[0]) / (grid.x[1] - grid.x[0]))
        first, second = (
            fine["reflectivity"].values[0][tuple(axis.astype(int) for axis in place)],
            other["reflectivity"].values[0, row, column],
        )
        assert np.mean(np.isnan(first) == np.isnan(second)) > 0.999
        echo = (first > 0) & (second > 0)
        assert echo.sum() > 5000
        assert np.median(np.abs(first - second)[echo]) == 0
        assert np.corrcoef(first[echo], second[echo])[0, 1] > 0.95
