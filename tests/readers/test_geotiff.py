import sys

import numpy as np
import pytest
from pyproj import CRS

from nowcast.core.cube import identity
from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, SOUTH_UP, Grid
from nowcast.readers import Item, detect, geotiff, rasters, stamps
from tests import sources_gridded as gridded
from tests.sources_gridded import FINLAND, fmi_xml


def rain(*first: float, dtype: object = np.float32) -> np.ndarray:
    """A raster of 7 but for its first pixels."""
    values = np.full((20, 24), 7, dtype)
    values[0, : len(first)] = first
    return values


def read(folder, values=None, *, name="rr_202406011200.tif", beside="x_202406011205.tif", **options):
    """One raster, with another one beside it to tell the step."""
    gridded.tiff(folder / beside, rain())
    return geotiff.read(Item(gridded.tiff(folder / name, rain() if values is None else values, **options)))


# --- values ---------------------------------------------------------------------------------------


def test_floats(tmp_path):
    cube = read(tmp_path, rain(0, 0.25, -9999, np.nan), nodata=-9999)
    np.testing.assert_array_equal(cube["rainfall_rate"].values[0, 0, :5], [0, 0.25, np.nan, np.nan, 7])
    assert cube["rainfall_rate"].encoding == {}
    assert cube.attrs == {
        "title": geotiff.TITLE,
        "source": "rr_202406011200.tif",
        "licence": geotiff.LICENCE,
        "product": "rr",
        "accumulation_seconds": 0,
        "level": "",
        "cadence_seconds": 300,
    }


def test_scale_and_offset_of_the_band(tmp_path):
    field = read(
        tmp_path, rain(0, 1, 64, 255, dtype=np.uint8), name="dbz_202406011200.tif", nodata=255, scale=0.5, offset=-32.0
    )["reflectivity"]
    np.testing.assert_array_equal(field.values[0, 0, :4], [-32, -31.5, 0, np.nan])
    assert field.encoding == {"quantum": 0.5, "floor": -32.0}


def test_scale_and_offset_of_the_tags(tmp_path):
    tags = {"Gain": "0.1", "Offset": "-20", "Nodata": "255", "Undetect": "0", "units": "dBZ"}
    field = read(tmp_path, rain(0, 1, 200, 255, dtype=np.uint8), tags=tags)["reflectivity"]
    np.testing.assert_allclose(field.values[0, 0, :4], [-32, -19.9, 0, np.nan], atol=1e-6)
    assert field.encoding == {"quantum": 0.1}  # what did not echo lies apart: too far for 8 bits


def test_units_of_the_band(tmp_path):
    field = read(tmp_path, rain(1 / 3600), units="kg m-2 s-1")["rainfall_rate"]
    assert field.values[0, 0, 0] == pytest.approx(1)


def test_sixteen_bits(tmp_path):
    field = read(tmp_path, rain(0, 100, -1, dtype=np.int16), nodata=-1, scale=0.01)["rainfall_rate"]
    np.testing.assert_allclose(field.values[0, 0, :3], [0, 1, np.nan], rtol=1e-6)
    assert field.encoding == {"quantum": 0.01}


# --- bands, and what is no measurement -------------------------------------------------------------


def bands(*first: float) -> np.ndarray:
    """Values, and a quality of 0.5."""
    return np.stack([rain(*first), np.full((20, 24), 0.5, np.float32)])


@pytest.mark.parametrize(
    ("kind", "quantity", "factor", "period"),
    [("DBZH", "reflectivity", 1, 0), ("RATE", "rainfall_rate", 1, 0), ("ACRR", "rainfall_rate", 1, 3600)],
)
@pytest.mark.parametrize("suffix", ["tif", "tiff"])
def test_opera_adds_a_quality_and_has_codes_of_its_own(tmp_path, kind, quantity, factor, period, suffix):
    name = f"OPERA@20240601T1200@0@{kind}.{suffix}"
    path = gridded.tiff(tmp_path / name, bands(-9999000, -8888000, 3), nodata=-9999000)
    cube = geotiff.read(Item(path))
    dry = -32 if quantity == "reflectivity" else 0
    np.testing.assert_array_equal(cube[quantity].values[0, 0, :4], [np.nan, dry, 3 * factor, 7 * factor])
    assert cube["time"].values[0] == np.datetime64("2024-06-01T12:00")
    assert (cube.attrs["product"], cube.attrs["accumulation_seconds"]) == (kind.lower(), period)
    assert geotiff.recognises(path) and detect(path) == "geotiff"


@pytest.mark.parametrize(
    ("descriptions", "place"),
    [(("rainfall_rate", "quality"), 0), (("quality", "rainfall rate"), 1), ((None, "DBZH"), 1), (("rr", "dbzh"), 0)],
)
def test_of_several_bands_the_first_known_one_is_taken(tmp_path, descriptions, place):
    path = gridded.tiff(tmp_path / "202406011200.tif", bands(), description=descriptions)
    cube = geotiff.read(Item(path))
    assert (next(iter(cube.data_vars.values())) == (7, 0.5)[place]).all()


@pytest.mark.parametrize(
    ("choice", "value"), [("", 7), ("rr", 7), ("dbzh", 0.5), ("reflectivity", 0.5), ("sum of 60 min", 7)]
)
def test_a_band_can_be_chosen(tmp_path, choice, value):
    path = gridded.tiff(tmp_path / "202406011200.tif", bands(), description=("rr", "dbzh"))
    cube = geotiff.read(Item(path, product=choice))
    assert (next(iter(cube.data_vars.values())) == value).all()


def test_a_sum_becomes_a_rate_over_its_period(tmp_path):
    cube = read(tmp_path, rain(1), units="mm", tags={"accumulation_period": "PT10M"})
    assert cube["rainfall_rate"].values[0, 0, 0] == 6
    assert str(identity(cube)) == "rr, rainfall_rate, sum of 10 min"


def test_a_mask_in_the_file_is_kept_to(tmp_path):
    import rasterio

    path = gridded.tiff(tmp_path / "rr_202406011200.tif", rain(1, 2))
    mask = np.full((20, 24), 255, np.uint8)
    mask[0, 0] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    np.testing.assert_array_equal(geotiff.read(Item(path))["rainfall_rate"].values[0, 0, :2], [np.nan, 2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_integers_of_which_nothing_is_said_are_no_physics(tmp_path, dtype):
    with pytest.raises(BadInput, match=r"with neither scale nor unit; add them, such as gdal_edit\.py -scale"):
        read(tmp_path, rain(dtype=dtype), name="dbz_202406011200.tif")
    for said in ({"units": "dBZ"}, {"scale": 0.5}, {"tags": {"gain": "1"}}):
        read(tmp_path, rain(dtype=dtype), name="dbz_202406011200.tif", **said)


def test_colours_are_no_physics(tmp_path):
    import rasterio

    path = gridded.tiff(tmp_path / "dbz_202406011200.tif", rain(dtype=np.uint8), units="dBZ")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {level: (level, 0, 255 - level) for level in range(256)})
    with pytest.raises(BadInput, match="is a picture in colours, not what was measured"):
        geotiff.read(Item(path))


@pytest.mark.parametrize("name", ["20240601T1200Z_MSC_Radar-Composite_MMHR_1km.tif", "RADAR_1KM_RRAI_202406011200.tif"])
def test_canadian_names(tmp_path, name):
    cube = geotiff.read(Item(gridded.tiff(tmp_path / name, rain(0, 1.5))))
    assert cube["time"].values[0] == np.datetime64("2024-06-01T12:00")
    assert cube["rainfall_rate"].values[0, 0, 1] == 1.5


# --- what and when --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "quantity"),
    [
        ("202406011200_dbz.tif", {}, "reflectivity"),
        ("rainrate_202406011200.tif", {}, "rainfall_rate"),
        ("rain_rate_202406011200.tif", {}, "rainfall_rate"),
        ("2024-06-01-12-00_ROMA_SRI.tif", {}, "rainfall_rate"),
        ("202406011200.tif", {"units": "dBZ"}, "reflectivity"),
        ("202406011200.tif", {"description": "Rainfall rate"}, "rainfall_rate"),
        ("202406011200.tif", {"tags": {"standard_name": "equivalent_reflectivity_factor"}}, "reflectivity"),
        ("202406011200_rr.tif", {"tags": {"Quantity": "DBZH"}}, "reflectivity"),  # tags come first
    ],
)
def test_quantity(tmp_path, name, options, quantity):
    cube = read(tmp_path, name=name, **options)
    assert list(cube.data_vars) == [quantity]
    assert geotiff.recognises(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("rr_202406011200.tif", {}),
        ("rr_20240601T120000Z.tif", {}),
        ("rr_2024-06-01_12.00.tif", {}),
        ("rr_202401010000.tif", {"time": "2024-06-01T12:00:00Z"}),
        ("rr_202406011200.tif", {"TIFFTAG_DATETIME": "2024:06:03 08:00:00"}),  # when it was written
        ("rr.tif", {"TIFFTAG_DATETIME": "2024:06:01 12:00:00"}),
    ],
)
def test_time(tmp_path, name, tags):
    assert read(tmp_path, name=name, tags=tags)["time"].values[0] == np.datetime64("2024-06-01T12:00")


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("66_20201031_001000.prcp-c10.nc", "2020-10-31T00:10:00"),
        ("201609281445_FINUTM.tif", "2016-09-28T14:45:00"),
        ("a-2024.06.01.23.59.tif", "2024-06-01T23:59:00"),
        ("202406011200_10min_rr.tif", "2024-06-01T12:00:00"),
        ("T_PAAH21_C_EUOC_20180824180015.hdf", "2018-08-24T18:00:15"),
        ("202402300000_202406011200", "2024-06-01T12:00:00"),
        ("20240601", None),
        ("1234567890123456", None),
        ("rr_202406012460", None),
        ("", None),
    ],
)
def test_stamps(text, time):
    assert stamps.in_name(text) == (time and np.datetime64(time))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("PT5M", 300),
        ("PT1H", 3600),
        ("P1DT30S", 86430),
        ("PT0.5S", 0),
        ("5 min", 0),
        (None, 0),
        ("P", 0),
    ],
)
def test_durations(text, seconds):
    assert rasters.duration(text) == seconds


def test_step_is_the_shortest_of_the_folder(tmp_path):
    for minute in ("00", "10", "15", "45"):
        gridded.tiff(tmp_path / f"rr_2024060112{minute}.tif", rain())
    gridded.tiff(tmp_path / "rr_202406011201.png", rain())
    assert {geotiff.read(item).attrs["cadence_seconds"] for item in geotiff.find(tmp_path)} == {300}


def test_step_from_tags_of_the_files_beside_it(tmp_path):
    for number in range(3):
        gridded.tiff(tmp_path / f"rr_{number}.tif", rain(), tags={"time": f"2024-06-01T0{number}:00"})
    assert {geotiff.read(item).attrs["cadence_seconds"] for item in geotiff.find(tmp_path)} == {3600}


# --- where ----------------------------------------------------------------------------------------


def test_lies_where_its_transform_says(tmp_path):
    grid = Grid.of(read(tmp_path))
    assert (grid.crs.to_epsg(), grid.orientation, grid.shape) == (3067, NORTH_UP, (20, 24))
    assert grid.x[0] == -196593.0043142296 + 250.00401887360616 / 2
    assert grid.y[0] == 8084432.005259146 - 250.0139839309012 / 2


def test_rows_stay_as_they_are(tmp_path):
    cube = read(tmp_path, rain(1), transform=(1000, 0, 0, 0, 1000, 7e6))
    assert Grid.of(cube).orientation == SOUTH_UP
    assert cube["rainfall_rate"].values[0, 0, 0] == 1


def test_degrees(tmp_path):
    grid = Grid.of(read(tmp_path, crs="EPSG:4326", transform=(0.01, 0, 230.0, 0, -0.01, 55.0)))
    assert (grid.crs.to_epsg(), grid.x[0], grid.y[0]) == (4326, -129.995, 54.995)


def test_kilometres(tmp_path):
    metres = "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +ellps=WGS84 +units=m"
    first = Grid.of(read(tmp_path, crs=metres, transform=(2000, 0, 0, 0, -2000, 0)))
    other = Grid.of(read(tmp_path, crs=metres.replace("=m", "=km"), transform=(2, 0, 0, 0, -2, 0)))
    np.testing.assert_allclose(other.x, first.x)
    assert other.lonlat(1_950_000, -2_100_000) == pytest.approx((10, 55))


def test_pixels_are_points(tmp_path):
    """Then the tags place centres, which GDAL turns into corners by itself."""
    path = gridded.tiff(tmp_path / "rr_202406011200.tif", rain(), tags={"AREA_OR_POINT": "Point"})
    gridded.tiff(tmp_path / "rr_202406011205.tif", rain())
    assert Grid.of(geotiff.read(Item(path))).x[0] == pytest.approx(-196593.0043142296 + 250.00401887360616 / 2)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": "202406011200.tif"}, "does not say that it holds rain rate or reflectivity; add a tag standard_name"),
        ({"name": "rr.tif"}, "does not say when it was measured; add yyyymmddHHMM"),
        ({"units": "K"}, "states the unit 'K' for rr"),
        ({"units": "mm"}, "does not say how long rr fell; add the tag accumulation_period"),
        ({"name": "acrr_202406011200.tif"}, "does not say how long acrr fell"),  # no rate, by its name
        ({"units": "mm/h", "tags": {"Quantity": "DBZH"}}, "calls dbzh a reflectivity in 'mm/h'"),
        ({"crs": None}, "has no projection or place"),
        ({"transform": None}, "has no projection or place"),
        ({"transform": (1000, 10, 0, 10, -1000, 0)}, "is rotated against its projection"),
        ({"transform": (-1000, 0, 0, 0, -1000, 0)}, "is rotated against its projection"),
        ({"values": np.zeros((3, 20, 24), np.uint8)}, "has 3 bands of 20x24 pixels"),
        ({"values": rain().astype(np.complex64)}, "holds numbers of type complex64"),
        ({"crs": "EPSG:4326", "transform": (1.0, 0, 170.0, 0, -1.0, 60.0)}, "crosses the 180th meridian"),
        ({"tags": {"Gain": "much"}}, "is damaged or not a GeoTIFF"),
    ],
)
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_refuses(tmp_path, change, fault):
    with pytest.raises(BadInput, match=fault):
        read(tmp_path, **change)


def test_a_file_alone_has_no_hint_of_its_step(tmp_path):
    cube = geotiff.read(Item(gridded.tiff(tmp_path / "rr_202406011200.tif", rain())))
    assert cube.attrs["cadence_seconds"] == 0


def test_reads_nothing_else_that_gdal_could(tmp_path):
    """A .tif may hold any other format, and one of them names other files."""
    target = gridded.tiff(tmp_path / "rr_202406011200.tif", rain())
    path = tmp_path / "rr_202406011205.tif"
    path.write_text(
        f'<VRTDataset rasterXSize="24" rasterYSize="20"><VRTRasterBand dataType="Float32" band="1">'
        f"<SimpleSource><SourceFilename>{target}</SourceFilename></SimpleSource>"
        f"</VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(BadInput, match="is damaged or not a GeoTIFF"):
        geotiff.read(Item(path))


def test_says_what_to_install(tmp_path, monkeypatch):
    path = gridded.tiff(tmp_path / "rr_202406011200.tif", rain())
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nowcast-radar\[geotiff\]'"):
        geotiff.read(Item(path))


def test_finland_is_the_same_with_both_readers(tmp_path):
    """What FMI keeps in its tag is understood here, too, if less exactly named."""
    cube = read(
        tmp_path,
        rain(0, 255, dtype=np.uint8),
        name="201609281445.tif",
        tags=fmi_xml("201609281445"),
        beside="201609281450.tif",
    )
    np.testing.assert_array_equal(cube["reflectivity"].values[0, 0, :3], [-32, np.nan, -28.5])
    assert Grid.of(cube).crs == CRS(3067)
    assert Grid.of(cube).x[0] == FINLAND[2] + FINLAND[0] / 2
