from dataclasses import replace

import netCDF4
import numpy as np
import pytest
import xarray as xr
from pyproj import CRS

from nowcast.core.cube import identity, impossible
from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, SOUTH_UP, Grid
from nowcast.readers import Item, cf, netcdf, rasters
from tests import sources_gridded as gridded
from tests.sources_gridded import ABOUT, LAEA, Variables, mosaic

FORMS = ("NETCDF4", "NETCDF4_CLASSIC", "NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA")


def changed(variables: Variables, name: str = "rain", *, drop: tuple[str, ...] = (), **attrs: object) -> Variables:
    """The same with other attributes of one variable; ``_FillValue`` is ``fill`` here."""
    dims, data, about = variables[name]
    if "fill" in attrs:
        attrs["_FillValue"] = attrs.pop("fill")
    kept = {key: value for key, value in about.items() if key not in drop}
    return variables | {name: (dims, data, kept | attrs)}


def filled(variables: Variables, data: object, name: str = "rain") -> Variables:
    dims, _, about = variables[name]
    return variables | {name: (dims, data, about)}


def frame(*first: float, dtype: object = np.int16) -> np.ndarray:
    """One frame of 7 but for its first pixels."""
    raw = np.full((1, 12, 10), 7, dtype)
    raw[0, 0, : len(first)] = first
    return raw


def read(folder, variables, attrs=None, name="a.nc", **options) -> xr.Dataset:
    """The first item of a file."""
    return netcdf.read(next(netcdf.find(gridded.netcdf(folder / name, variables, attrs, **options))))


STEP = ABOUT | {"time_coverage_resolution": "PT5M"}


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_all_formats_are_the_same(tmp_path, form):
    cube = read(tmp_path, mosaic(), form=form, record="time" if form == "NETCDF3_CLASSIC" else None)
    _, raw, _ = mosaic()["rain"]
    np.testing.assert_allclose(cube["rainfall_rate"].values, np.where(raw == -1, np.nan, raw * 0.01), rtol=1e-6)
    stamps = [str(time)[:16] for time in cube["time"].values]
    assert stamps == ["2024-06-01T12:00", "2024-06-01T12:05", "2024-06-01T12:10"]
    assert cube.attrs["cadence_seconds"] == 300
    assert cube["rainfall_rate"].encoding == {"quantum": 0.01}
    assert {key: cube.attrs[key] for key in ("source", "licence", "institution", "product")} == {
        "source": "a.nc",
        "licence": "CC-BY-4.0",
        "institution": "Institute of Examples",
        "product": "rain",
    }


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        ("mm h-1", 1),
        ("mm/h", 1),
        ("mm/hr", 1),
        ("mm hr-1", 1),
        ("mm hour^-1", 1),
        ("mm.h**-1", 1),
        ("kg m-2 h-1", 1),
        ("kg m-2 s-1", 3600),
        ("kg/m^2/s", 3600),
        ("kg/(m2 s)", 3600),
        ("kg m**-2 s**-1", 3600),
        ("mm s-1", 3600),
        ("m s-1", 3.6e6),
        ("m/s", 3.6e6),
        ("mm day-1", 1 / 24),
        ("in/h", 25.4),
        ("millimeters per hour", 1),
        ("0.1 mm h-1", 0.1),
    ],
)
def test_units_of_rates(units, factor):
    assert rasters.unit(units) == ("rate", pytest.approx(factor))


@pytest.mark.parametrize(
    ("units", "kind", "factor"),
    [
        ("mm", "amount", 1),
        ("m", "amount", 1000),
        ("kg m-2", "amount", 1),
        ("kg/m2", "amount", 1),
        ("cm", "amount", 10),
        ("dBZ", "dBZ", 1),
        ("dbz", "dBZ", 1),
    ],
)
def test_other_units(units, kind, factor):
    assert rasters.unit(units) == (kind, pytest.approx(factor))


@pytest.mark.parametrize("units", ["", "1", "K", "mm 5min-1", "kg", "h-1", "mm h", "mm2 h-1", "m2 s-2", "%", "mm6 m-3"])
def test_unknown_units(units):
    assert rasters.unit(units) is None


def test_flux_in_si_units(tmp_path):
    variables = filled(mosaic(frames=1), frame(0, 1 / 3600, np.nan, dtype=np.float32))
    variables = changed(
        variables, drop=("scale_factor", "_FillValue"), standard_name="precipitation_flux", units="kg m-2 s-1"
    )
    values = read(tmp_path, variables, STEP)["rainfall_rate"].values[0, 0, :3]
    np.testing.assert_allclose(values, [0, 1, np.nan], rtol=1e-6)


def test_reflectivity_in_8_bits(tmp_path):
    variables = filled(mosaic(frames=1), frame(0, 1, 64, 254, 255, dtype=np.uint8))
    variables = changed(
        variables,
        standard_name="equivalent_reflectivity_factor",
        units="dBZ",
        scale_factor=0.5,
        add_offset=-32.0,
        fill=np.uint8(255),
    )
    field = read(tmp_path, variables, STEP)["reflectivity"]
    np.testing.assert_array_equal(field.values[0, 0, :5], [-32, -31.5, 0, 95, np.nan])
    assert field.encoding == {"quantum": 0.5, "floor": -32.0}


def test_no_echo_as_minus_infinity(tmp_path):
    variables = filled(mosaic(frames=1), frame(-np.inf, 20, np.nan, dtype=np.float32))
    variables = changed(
        variables, drop=("scale_factor", "_FillValue"), standard_name="equivalent_reflectivity_factor", units="dBZ"
    )
    np.testing.assert_array_equal(read(tmp_path, variables, STEP)["reflectivity"].values[0, 0, :3], [-32, 20, np.nan])


@pytest.mark.parametrize(
    ("attrs", "missing"),
    [
        ({"missing_value": np.int16(3)}, [3]),
        ({"missing_value": np.array([3, 5], np.int16)}, [3, 5]),
        ({"valid_range": np.array([0, 400], np.int16)}, [401, 500]),
        ({"valid_min": np.int16(0), "valid_max": np.int16(400)}, [401, 500]),
        ({"valid_range": np.array([0.0, 4.0])}, [401, 500]),  # of another type: of the values
    ],
)
def test_other_ways_to_be_missing(tmp_path, attrs, missing):
    codes = [0, 3, 5, 400, 401, 500, -1]
    variables = changed(filled(mosaic(frames=1), frame(*codes)), **attrs)
    values = read(tmp_path, variables, STEP)["rainfall_rate"].values[0, 0, : len(codes)]
    expected = [np.nan if code in (*missing, -1) else code / 100 for code in codes]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_what_was_never_written_is_missing(tmp_path):
    path = gridded.netcdf(tmp_path / "a.nc", changed(mosaic(), drop=("_FillValue",)))
    with netCDF4.Dataset(path, "a") as file:
        late = file.createVariable("rain_rate", "f4", ("time", "y", "x"))
        late.setncatts({"standard_name": "lwe_precipitation_rate", "units": "mm h-1", "grid_mapping": "crs"})
        late[0] = 1
        file["rain"].standard_name = "something_else"
    values = netcdf.read(next(netcdf.find(path)))["rainfall_rate"].values
    assert (values[0] == 1).all() and np.isnan(values[1:]).all()


def test_unsigned_numbers_of_classic_files(tmp_path):
    raw = np.array([0, 100, 200, 255], np.uint8).view(np.int8)
    variables = filled(mosaic(frames=1), frame(*raw, dtype=np.int8))
    variables = changed(variables, _Unsigned="true", fill=np.int8(-1), scale_factor=0.5)
    values = read(tmp_path, variables, STEP, form="NETCDF3_CLASSIC")["rainfall_rate"].values[0, 0, :4]
    np.testing.assert_array_equal(values, [0, 50, 100, np.nan])


@pytest.mark.parametrize(
    ("scale", "packed"),
    [
        (np.float32(0.01), True),  # written in single precision, still a hundredth
        (0.0021384712, False),  # fits the range of this file's values; the next file has another
    ],
)
def test_only_chosen_steps_are_packed(tmp_path, scale, packed):
    field = read(tmp_path, changed(mosaic(), scale_factor=scale))["rainfall_rate"]
    assert field.encoding == ({"quantum": 0.01} if packed else {})


@pytest.mark.parametrize(
    ("dtype", "fill", "scale", "offset", "packing"),
    [
        (np.uint8, 255, 0.5, -32.0, {"quantum": 0.5, "floor": -32.0}),
        (np.uint8, 0, 0.5, -32.0, {"quantum": 0.5, "floor": -31.5}),
        (np.int8, -128, 1.0, 0.0, {"quantum": 1.0, "floor": -127.0}),
        (np.uint8, 100, 0.5, -32.0, {"quantum": 0.5}),  # 256 places in 8 bits, one of which must stay free
        (np.uint8, 100, 0.5, -32.2, {}),  # nor are they whole steps
        (np.int16, -32768, 0.01, 0.0, {"quantum": 0.01}),
        (np.int16, -32768, 0.001, 0.0, {"quantum": 0.001}),
        (np.int16, -32768, 0.001, 5.0, {}),  # reaches beyond 16 bits without its offset
        (np.uint16, 65535, 0.01, 0.0, {"quantum": 0.01}),  # 327 dBZ are enough
        (np.uint16, 65535, 0.001, 0.0, {}),  # 32 dBZ are not
        (np.int32, -1, 0.01, 0.0, {"quantum": 0.01}),
        (np.float32, -999, 1.0, 0.0, {}),
    ],
)
def test_packing(dtype, fill, scale, offset, packing):
    attrs = {"_FillValue": dtype(fill), "scale_factor": scale, "add_offset": offset}
    codes = rasters.codes(attrs, np.dtype(dtype), "reflectivity", 1.0)
    assert codes.packing == packing


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "units", "quantity"),
    [
        ("RR", "mm/h", "rainfall_rate"),
        ("rainrate", "mm/h", "rainfall_rate"),
        ("precip_rate", "mm/h", "rainfall_rate"),
        ("DBZH", "dBZ", "reflectivity"),
        ("reflectivity", "dBZ", "reflectivity"),
        ("dbz", "dBZ", "reflectivity"),
    ],
)
def test_names_instead_of_standard_names(tmp_path, name, units, quantity):
    variables = changed(mosaic(), drop=("standard_name",), units=units)
    variables[name] = variables.pop("rain")
    assert quantity in read(tmp_path, variables)


def test_rates_come_before_reflectivities(tmp_path):
    variables = mosaic()
    dbz = changed(variables, standard_name="equivalent_reflectivity_factor", units="dBZ")["rain"]
    cube = read(tmp_path, {"dbz": dbz} | variables)
    assert list(cube.data_vars) == ["rainfall_rate"]


# --- times ----------------------------------------------------------------------------------------


def amounts(frames: int = 3) -> Variables:
    return changed(mosaic(frames=frames), standard_name="rainfall_amount", units="mm")


def test_amounts_become_rates_over_the_step(tmp_path):
    field = read(tmp_path, amounts())["rainfall_rate"]
    assert field.encoding == {"quantum": 0.12}
    assert field.values[1, 3, 3] == pytest.approx(amounts()["rain"][1][1, 3, 3] * 0.12)


def test_a_gap_is_no_longer_period(tmp_path):
    variables = filled(amounts(), np.array([0, 5, 20]), "time")
    assert read(tmp_path, variables)["rainfall_rate"].encoding == {"quantum": 0.12}


def test_amounts_become_rates_over_their_bounds(tmp_path):
    variables = changed(amounts(), "time", bounds="time_bnds")
    variables["time_bnds"] = (("time", "nv"), np.array([[0, 10], [10, 20], [20, 30]]), {})
    cube = read(tmp_path, filled(variables, np.array([0, 10, 20]), "time"))
    assert cube["rainfall_rate"].encoding == {"quantum": 0.06}
    assert str(cube["time"].values[0])[:16] == "2024-06-01T12:10"  # the end, where the file tells the start


def test_periods_that_differ(tmp_path):
    variables = changed(amounts(), "time", bounds="time_bnds")
    variables["time_bnds"] = (("time", "nv"), np.array([[0, 5], [5, 15], [15, 20]]), {})
    field = read(tmp_path, variables)["rainfall_rate"]
    raw = variables["rain"][1][:, 3, 3] * 0.01
    np.testing.assert_allclose(field.values[:, 3, 3], raw * [12, 6, 12], rtol=1e-6)
    assert field.encoding == {}


def test_stated_period(tmp_path):
    cube = read(tmp_path, changed(amounts(1), accumulation_period="PT15M"))
    assert (cube["rainfall_rate"].encoding, cube.attrs["cadence_seconds"]) == ({"quantum": 0.04}, 900)


@pytest.mark.parametrize(
    "units",
    [
        "seconds since 2024-06-01 12:00:00 UTC",
        "seconds since 2024-06-01T12:00:00Z",
        "seconds since 2024-06-01 14:00:00 +02:00",
    ],
)
def test_reference_times(tmp_path, units):
    variables = filled(changed(mosaic(), "time", units=units), np.array([0, 300, 600]), "time")
    assert str(read(tmp_path, variables)["time"].values[0])[:19] == "2024-06-01T12:00:00"


def test_days_as_floats_are_rounded_to_seconds(tmp_path):
    days = (np.datetime64("2024-06-01T12:05") - np.datetime64("1900-01-01")) / np.timedelta64(1, "D")
    variables = changed(mosaic(frames=1), "time", units="days since 1900-01-01")
    cube = read(tmp_path, filled(variables, np.array([days - 1e-9]), "time"), STEP)
    assert cube["time"].values[0] == np.datetime64("2024-06-01T12:05")


def plane(variables: Variables) -> Variables:
    """Without a time dim."""
    dims, data, about = variables["rain"]
    rest = {name: entry for name, entry in variables.items() if name != "time"}
    return rest | {"rain": (dims[1:], data[0], about)}


def test_scalar_time(tmp_path):
    variables = plane(mosaic(frames=1))
    variables["valid_time"] = ((), np.int64(7), {"standard_name": "time", "units": "minutes since 2024-06-01"})
    cube = read(tmp_path, variables, STEP)
    assert (cube.sizes["time"], str(cube["time"].values[0])[:16]) == (1, "2024-06-01T00:07")


def test_stamp_in_the_name(tmp_path):
    cube = read(tmp_path, plane(mosaic(frames=1)), STEP, name="rain_20240601T121500Z.nc")
    assert str(cube["time"].values[0])[:16] == "2024-06-01T12:15"


def test_step_from_the_files_beside_it(tmp_path):
    for minute in ("00", "10", "30"):  # one is missing
        gridded.netcdf(tmp_path / f"rain_2024060112{minute}.nc", plane(mosaic(frames=1)))
    cubes = [netcdf.read(item) for item in netcdf.find(tmp_path)]
    assert [cube.attrs["cadence_seconds"] for cube in cubes] == [600, 600, 600]


def test_step_from_the_times_of_the_files_beside_it(tmp_path):
    for number, minute in enumerate((0, 15, 30)):
        gridded.netcdf(tmp_path / f"{number}.nc", filled(mosaic(frames=1), np.array([minute]), "time"))
    assert [netcdf.read(item).attrs["cadence_seconds"] for item in netcdf.find(tmp_path)] == [900, 900, 900]


def test_step_is_that_of_most_frames(tmp_path):
    variables = filled(mosaic(frames=4), np.array([0, 5, 10, 40]), "time")
    assert read(tmp_path, variables).attrs["cadence_seconds"] == 300


# --- place ----------------------------------------------------------------------------------------


def test_lies_where_its_axes_say(tmp_path):
    grid = Grid.of(read(tmp_path, mosaic()))
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == (100_000, 109_000, 900_000, 889_000)
    assert (grid.orientation, grid.crs) == (NORTH_UP, LAEA)
    # 55 N, 10 E is at the false easting and northing
    assert grid.lonlat(1_950_000, -2_100_000) == pytest.approx((10, 55))


def test_rows_stay_as_they_are(tmp_path):
    variables = filled(mosaic(), mosaic()["y"][1][::-1], "y")
    cube = read(tmp_path, variables)
    assert Grid.of(cube).orientation == SOUTH_UP
    assert np.isnan(cube["rainfall_rate"].values[0, 0, 0])  # the first row of the file


def test_any_order_of_dims(tmp_path):
    variables = mosaic()
    _, data, about = variables["rain"]
    turned = variables | {"rain": (("x", "height", "time", "y"), data.transpose(2, 0, 1)[:, None], about)}
    assert read(tmp_path, turned).identical(read(tmp_path, variables))


def test_kilometres(tmp_path):
    variables = mosaic()
    for name in ("x", "y"):
        variables = changed(filled(variables, variables[name][1] / 1000, name), name, units="km")
    assert Grid.of(read(tmp_path, variables)).digest == Grid.of(read(tmp_path, mosaic())).digest


RADOLAN = {
    "grid_mapping_name": "polar_stereographic",
    "straight_vertical_longitude_from_pole": 10.0,
    "latitude_of_projection_origin": 90.0,
    "standard_parallel": 60.0,
    "false_easting": 0.0,
    "false_northing": 0.0,
    "earth_radius": 6370040.0,
}


@pytest.mark.parametrize(
    "mapping",
    [
        {"spatial_ref": LAEA.to_wkt()},
        {"crs_wkt": "no WKT", "spatial_ref": LAEA.to_wkt()},
        {"proj4": "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +ellps=WGS84 +units=m"},
        {"proj4": "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +ellps=WGS84 +units=km"},
        {
            "grid_mapping_name": "lambert_azimuthal_equal_area",
            "latitude_of_projection_origin": 55.0,
            "longitude_of_projection_origin": 10.0,
            "false_easting": 1950000.0,
            "false_northing": -2100000.0,
            "semi_major_axis": 6378137.0,
            "inverse_flattening": 298.257223563,
        },
    ],
)
def test_ways_to_state_a_projection(tmp_path, mapping):
    variables = mosaic() | {"crs": ((), np.int32(0), mapping)}
    grid = Grid.of(read(tmp_path, variables))
    assert grid.lonlat(1_950_000, -2_100_000) == pytest.approx((10, 55))
    assert grid.x[0] == 100_000


@pytest.mark.parametrize("radius", [6370040.0, 6370.04])
def test_radii_in_kilometres(tmp_path, radius):
    variables = mosaic() | {"crs": ((), np.int32(0), RADOLAN | {"earth_radius": radius})}
    for name in ("x", "y"):
        variables = changed(filled(variables, variables[name][1] / 1000, name), name, units="km")
    grid = Grid.of(read(tmp_path, variables))
    assert grid.crs.ellipsoid.semi_major_metre == 6_370_040
    # RADOLAN's own corner: 46.9526 N, 3.5889 E lies at -523.4622 km, -4658.6447 km
    assert grid.lonlat(-523_462.2, -4_658_644.7) == pytest.approx((3.5889, 46.9526), abs=1e-4)


def degrees(west: float, *, dtype: object = np.float64) -> Variables:
    _, data, about = mosaic()["rain"]
    about = {key: value for key, value in about.items() if key != "grid_mapping"}
    return {
        "time": mosaic()["time"],
        "lat": (("lat",), (54.995 - 0.01 * np.arange(12)).astype(dtype), {"units": "degrees_north"}),
        "lon": (("lon",), (west + 0.01 * np.arange(10)).astype(dtype), {"units": "degrees_east"}),
        "rain": (("time", "lat", "lon"), data, about),
    }


def test_longitude_and_latitude(tmp_path):
    grid = Grid.of(read(tmp_path, degrees(230.005)))
    assert grid.crs.to_epsg() == 4326
    assert (grid.x[0], grid.x[-1], grid.y[0]) == (-129.995, -129.905, 54.995)


def test_single_precision_makes_no_other_grid(tmp_path):
    single, double = (Grid.of(read(tmp_path, degrees(20.005, dtype=dtype))) for dtype in (np.float32, np.float64))
    np.testing.assert_allclose(single.x, double.x, atol=1e-12)
    np.testing.assert_allclose(single.y, double.y, atol=1e-12)


def test_packed_axes(tmp_path):
    variables = filled(mosaic(), np.arange(10, dtype=np.int16), "x")
    variables = changed(variables, "x", scale_factor=1000.0, add_offset=100_000.0)
    assert Grid.of(read(tmp_path, variables)).digest == Grid.of(read(tmp_path, mosaic())).digest


# --- items ----------------------------------------------------------------------------------------


def test_many_frames_are_cut_along_chunks(tmp_path, monkeypatch):
    path = gridded.netcdf(tmp_path / "a.nc", mosaic(frames=10), chunks=(3, 12, 10))
    monkeypatch.setattr("nowcast.readers.cf.ITEM_BYTES", 4 * 4 * 120)  # of four frames
    items = list(netcdf.find(path))
    assert [item.key for item in items] == ["0:3", "3:6", "6:9", "9:10"]
    cubes = [netcdf.read(item) for item in items]
    whole = xr.concat([cube["rainfall_rate"] for cube in cubes], "time")
    with xr.open_dataset(path, engine="netcdf4") as expected:
        np.testing.assert_allclose(whole.values, expected["rain"].values, rtol=1e-6)
        assert (whole["time"].values == expected["time"].values).all()
    assert {cube.attrs["cadence_seconds"] for cube in cubes} == {300}


def test_reads_no_more_than_the_item(tmp_path):
    path = gridded.netcdf(tmp_path / "a.nc", mosaic(frames=10))
    taken = []

    def watched(name: str, array: cf.Array) -> cf.Array:
        return replace(array, read=lambda key: taken.append((name, key)) or array.read(key))

    with netcdf._opened(path) as (arrays, attrs):
        field = cf.field(path, {name: watched(name, array) for name, array in arrays.items()}, attrs, source="a.nc")
        field.cube(slice(4, 6), title="", licence="")
    assert [key for name, key in taken if name == "rain"] == [(slice(4, 6), slice(None), slice(None))]


def test_of_a_folder_only_the_first_file_is_opened(tmp_path, monkeypatch):
    for minute in ("00", "05", "10"):
        gridded.netcdf(tmp_path / f"rain_2024060112{minute}.nc", plane(mosaic(frames=1)))
    opened = []
    monkeypatch.setattr(netcdf, "_opened", lambda path, get=netcdf._opened: opened.append(path.name) or get(path))
    names = [str(item) for item in netcdf.find(tmp_path)]
    assert names == ["rain_202406011200.nc", "rain_202406011205.nc", "rain_202406011210.nc"]
    assert opened == names[:1]


def test_a_bad_file_does_not_hide_the_others(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"radar")
    gridded.netcdf(tmp_path / "b.nc", mosaic())
    bad, good = netcdf.find(tmp_path)
    assert netcdf.read(good).sizes["time"] == 3
    with pytest.raises(BadInput, match=r"a\.nc: is not a NetCDF file"):
        netcdf.read(bad)


def test_an_unlike_file_is_not_taken_whole(tmp_path, monkeypatch):
    gridded.netcdf(tmp_path / "a.nc", mosaic(frames=1))
    gridded.netcdf(tmp_path / "b.nc", mosaic(frames=5))
    monkeypatch.setattr(netcdf, "LARGEST", 4 * 4 * 120)
    _, item = netcdf.find(tmp_path)
    with pytest.raises(BadInput, match=r"b\.nc: holds 5 frames, unlike the first file of its folder; take it by"):
        netcdf.read(item)
    assert next(netcdf.find(tmp_path / "b.nc")).key == "0:5"


# --- refusals -------------------------------------------------------------------------------------


def curved() -> Variables:
    variables = mosaic()
    lat, lon = np.meshgrid(np.linspace(50, 51, 12), np.linspace(5, 6, 10), indexing="ij")
    rest = {name: entry for name, entry in variables.items() if name not in ("x", "y", "crs")}
    return rest | {
        "lat": (("y", "x"), lat, {"standard_name": "latitude", "units": "degrees_north"}),
        "lon": (("y", "x"), lon, {"standard_name": "longitude", "units": "degrees_east"}),
    }


def layered() -> Variables:
    _, data, about = mosaic()["rain"]
    return mosaic() | {"rain": (("time", "height", "y", "x"), np.stack([data, data], 1), about)}


def without(*names: str) -> Variables:
    return {name: entry for name, entry in mosaic().items() if name not in names}


ROTATED = {
    "grid_mapping_name": "rotated_latitude_longitude",
    "grid_north_pole_latitude": 39.25,
    "grid_north_pole_longitude": -162.0,
}


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        (changed(mosaic(), units="K"), "states the unit 'K' for rain; give it one of mm h-1, mm/h, .* or dBZ"),
        (changed(mosaic(), drop=("units",)), "states no unit for rain"),
        (changed(mosaic(), units="dBZ"), "calls rain a rainfall_rate in 'dBZ'"),
        (
            changed(mosaic(), standard_name="air_temperature"),
            "holds no rain or reflectivity on a grid .time, y, x, crs",
        ),
        (
            changed(mosaic(), "time", calendar="360_day"),
            "counts time in the calendar '360_day'; convert it to 'standard'",
        ),
        (changed(mosaic(), "time", units="fortnights since 2000-01-01"), "damaged or not a CF NetCDF"),
        (changed(amounts(1)), "does not say how long rain fell; add time bounds"),
        (filled(amounts(), np.array([0, 5, 12]), "time"), "does not say how long rain fell"),
        (filled(mosaic(), np.array([0, 0, 0]), "time"), "times that do not increase"),
        (filled(mosaic(), np.array([0, 10, 5]), "time"), "time does not increase"),
        (plane(mosaic(frames=1)), "does not say when it was measured"),
        (without("time"), "has 3 time of rain; give one of them only"),
        (layered(), "has 2 height of rain; give one of them only"),
        (curved(), "places its pixels by the 2-D lat only; regrid it, or add the 1-D x and y"),
        (without("x"), "has no coordinates of rain along time and y and x"),
        (without("crs"), "names no projection; add a grid_mapping"),
        (
            mosaic() | {"crs": ((), np.int32(0), {"grid_mapping_name": "flat"})},
            "a grid mapping, crs, that cannot be used",
        ),
        (mosaic() | {"crs": ((), np.int32(0), ROTATED)}, "a grid mapping, crs, that cannot be used"),
        (mosaic() | {"crs": ((), np.int32(0), {"crs_wkt": CRS(4326).to_wkt()})}, "gives y in 'm'; give it in degrees"),
        (changed(mosaic(), "x", units="rad"), "gives x in 'rad'; give it in m or km"),
        (filled(mosaic(), mosaic()["x"][1][::-1], "x"), "has columns that run westward"),
        (filled(mosaic(), np.geomspace(1, 2, 10), "x"), "has x that are not evenly spaced"),
        (degrees(179.955), "crosses the 180th meridian"),
    ],
)
def test_refuses(tmp_path, variables, fault):
    path = gridded.netcdf(tmp_path / "a.nc", variables)
    with pytest.raises(BadInput, match=fault):
        netcdf.read(next(netcdf.find(path)))


@pytest.mark.parametrize("key", ["0:4", "3:4", "2:2", "x"])
def test_refuses_parts_that_are_not_there(tmp_path, key):
    path = gridded.netcdf(tmp_path / "a.nc", mosaic())
    with pytest.raises(BadInput, match=r"a\.nc: has (3 frames, not|no part)"):
        netcdf.read(Item(path, key))


@pytest.mark.parametrize("form", FORMS)
def test_refuses_sizes_that_a_file_cannot_have(tmp_path, form):
    """Damaged headers ask for gigabytes; nothing of that size may be made."""
    path = gridded.netcdf(tmp_path / "a.nc", mosaic(), form=form)
    good = path.read_bytes()
    for place in range(0, min(len(good), 2000), 5):
        path.write_bytes(good[:place] + b"\x7f\xff\xff\xff" + good[place + 4 :])
        try:
            netcdf.read(Item(path, "0:3"))
        except BadInput as refusal:
            assert "\n" not in str(refusal)


CLASSIC = tuple(form for form in FORMS if form.startswith("NETCDF3"))


@pytest.mark.parametrize("form", CLASSIC)
def test_refuses_a_truncated_classic_file(tmp_path, form):
    """What is lacking is never read as zero, as the NetCDF library does."""
    path = gridded.netcdf(tmp_path / "a.nc", mosaic(), form=form, record="time")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match="is damaged or not complete"):
        netcdf.read(Item(path, "0:3"))


@pytest.mark.parametrize("form", CLASSIC)
def test_classic_file_that_leaves_its_number_of_records_open(tmp_path, form):
    whole = read(tmp_path, mosaic(), form=form, record="time")
    data = bytearray((tmp_path / "a.nc").read_bytes())
    wide = 8 if form.endswith("DATA") else 4
    assert int.from_bytes(data[4 : 4 + wide], "big") == 3
    data[4 : 4 + wide] = b"\xff" * wide
    (tmp_path / "a.nc").write_bytes(data)
    xr.testing.assert_identical(netcdf.read(Item(tmp_path / "a.nc", "0:3")), whole)


@pytest.mark.parametrize("name", ["mode", "variables", "fp"])
def test_classic_file_with_any_attribute(tmp_path, name):
    cube = read(tmp_path, mosaic(), ABOUT | {name: "w"}, form="NETCDF3_CLASSIC")
    assert cube.sizes["time"] == 3


def test_recognises_by_its_contents(tmp_path):
    assert netcdf.recognises(gridded.netcdf(tmp_path / "a.nc", mosaic()))
    assert not netcdf.recognises(gridded.netcdf(tmp_path / "b.nc", changed(mosaic(), standard_name="air_temperature")))
    (tmp_path / "c.nc").write_bytes(b"GRIB")
    with pytest.raises(BadInput, match="is not a NetCDF file"):
        netcdf.recognises(tmp_path / "c.nc")


def test_licence_of_the_reader_where_the_file_states_none(tmp_path):
    assert read(tmp_path, mosaic(), {"Conventions": "CF-1.8"}).attrs["licence"] == netcdf.LICENCE


def test_as_xarray_writes_it(tmp_path):
    rate = np.round(np.random.default_rng(0).gamma(0.5, 4, (4, 20, 30)), 2).astype(np.float32)
    rate[0, :5] = np.nan
    times = np.datetime64("2024-06-01T00:00", "ns") + np.arange(4) * np.timedelta64(10, "m")
    coords = {"time": times, "y": ("y", np.arange(20.0) * 500 + 5e5), "x": ("x", np.arange(30.0) * 500 - 2e5)}
    about = {"units": "mm h-1", "grid_mapping": "spatial_ref"}
    dataset = xr.Dataset({"rainfall_rate": (("time", "y", "x"), rate, about)}, coords=coords)
    dataset["spatial_ref"] = xr.DataArray(0, attrs=CRS(3035).to_cf())
    for engine in ("netcdf4", "h5netcdf", "scipy"):
        path = tmp_path / f"{engine}.nc"
        dataset.to_netcdf(path, engine=engine, encoding={"rainfall_rate": {"_FillValue": -9.0}})
        cube = netcdf.read(next(netcdf.find(path)))
        np.testing.assert_array_equal(cube["rainfall_rate"].values, rate)
        assert (cube["time"].values == times).all()
        grid = Grid.of(cube)
        assert (grid.crs.to_epsg(), grid.orientation) == (3035, SOUTH_UP)


def test_a_frame_alone_has_no_hint_of_its_step(tmp_path):
    assert read(tmp_path, mosaic(frames=1)).attrs["cadence_seconds"] == 0


# --- products -------------------------------------------------------------------------------------


def several() -> Variables:
    """A rate, a mean rate over 5 minutes, two sums, and a reflectivity at 2 km."""
    variables = mosaic()
    dims, rain, about = variables["rain"]
    edges = np.stack([np.arange(3) * 5 - 5, np.arange(3) * 5], axis=1)
    variables["time"][2]["bounds"] = "bounds"
    amount = {"standard_name": "precipitation_amount", "units": "kg m-2"}
    return variables | {
        "bounds": (("time", "edge"), edges, {}),
        "mean": (dims, rain, about | {"cell_methods": "time: mean"}),
        "sum": (dims, rain, about | amount),
        "dbz": (
            ("time", "height", "y", "x"),
            rain[:, None],
            about | {"standard_name": "equivalent_reflectivity_factor", "units": "dBZ"},
        ),
        "height": (("height",), np.array([2000.0]), {"standard_name": "height", "units": "m"}),
    }


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        ("", "rain, rainfall_rate"),
        ("rain", "rain, rainfall_rate"),
        ("mean", "mean, rainfall_rate, sum of 5 min"),
        ("sum", "sum, rainfall_rate, sum of 5 min"),
        ("reflectivity", "dbz, reflectivity, 2000 m"),
        ("2000 m", "dbz, reflectivity, 2000 m"),
        ("another", "rain, rainfall_rate"),
    ],
)
def test_one_of_several_variables_is_chosen(tmp_path, choice, want):
    item = next(netcdf.find(gridded.netcdf(tmp_path / "a.nc", several())))
    assert str(identity(netcdf.read(replace(item, product=choice)))) == want


@pytest.mark.parametrize("seconds", [299, 300, 301])
def test_a_period_that_misses_by_a_second_is_what_is_meant(tmp_path, seconds):
    variables = mosaic()
    dims, rain, about = variables["rain"]
    stamps = np.arange(3) * 300 + 300
    variables["time"] = (("time",), stamps, {"standard_name": "time", "units": "seconds since 2024-06-01 12:00:00"})
    variables["time"][2]["bounds"] = "bounds"
    variables["bounds"] = (("time", "edge"), np.stack([stamps - seconds, stamps], axis=1), {})
    variables["rain"] = (dims, rain, about | {"standard_name": "precipitation_amount", "units": "kg m-2"})
    cube = read(tmp_path, variables)
    assert cube.attrs["accumulation_seconds"] == 300
    assert cube["rainfall_rate"].encoding == {"quantum": 0.12}


@pytest.mark.parametrize("code", [-9999.0, 1e20, np.inf, -5.0])
def test_an_undeclared_code_is_no_data(tmp_path, code):
    cube = read(tmp_path, filled(mosaic(frames=1), frame(0, code, dtype=np.float32)))
    np.testing.assert_array_equal(cube["rainfall_rate"].values[0, 0, :2], [0, np.nan])
    assert impossible(cube).tolist() == [1]


# --- MET Norway -----------------------------------------------------------------------------------

FILL = netCDF4.default_fillvals["f4"]
MET_NAME = "yrwms-nordic.mos.pcappi-0-dbz.noclass-clfilter-novpr-clcorr-block.nordiclcc-1000.20240610.nc"


def met_norway(quantity: str = "equivalent_reflectivity_factor", units: str = "dBZ", **flags: object) -> Variables:
    """Two frames of a day's file as MET Norway lays it out; the first pixels are made for the test."""
    space = ("time", "Yc", "Xc")
    shape = (2, 5, 6)
    values = np.full(shape, 20, np.float32)
    values[:, 0, :5] = [FILL, FILL, FILL, -5, 35]
    stated = {
        "is_nodata": [0, 1, 0, 0, 1],
        "is_seaclutter": [0, 0, 1, 0, 0],
        "is_groundclutter": [0, 0, 0, 1, 0],
    } | flags
    variables: Variables = {
        "time": (
            ("time",),
            np.array([1717977600, 1717977900], np.float64),
            {"units": "seconds since 1970-01-01 00:00:00 +00:00", "standard_name": "time"},
        ),
        "Yc": (
            ("Yc",),
            1125000.0 - 1000 * np.arange(5),
            {"units": "m", "standard_name": "projection_y_coordinate", "axis": "Y"},
        ),
        "Xc": (
            ("Xc",),
            -796000.0 + 1000 * np.arange(6),
            {"units": "m", "standard_name": "projection_x_coordinate", "axis": "X"},
        ),
        "projection_lambert": (
            (),
            np.int32(0),
            {
                "grid_mapping_name": "lambert_conformal_conic",
                "standard_parallel": 63.0,
                "latitude_of_projection_origin": 63.0,
                "longitude_of_central_meridian": 15.0,
                "proj4": "+proj=lcc +lat_0=63 +lon_0=15 +lat_1=63 +lat_2=63 +no_defs +R=6.371e+06",
            },
        ),
        quantity: (
            space,
            values,
            {"standard_name": quantity, "units": units, "_FillValue": FILL, "grid_mapping": "projection_lambert"},
        ),
    }
    for name, first in stated.items():
        flag = np.zeros(shape, np.int8)
        flag[:, 0, :5] = first
        variables[name] = (space, flag, {"long_name": name})
    return variables


def test_met_norway_tells_dry_from_blind(tmp_path):
    cube = read(tmp_path, met_norway(), name=MET_NAME)
    # no echo; blind; clutter; an echo beside clutter; an echo where the radar is said to be blind; rain
    expected = [-32, np.nan, np.nan, -5, np.nan, 20]
    np.testing.assert_array_equal(cube["reflectivity"].values, [[expected, *[[20] * 6] * 4]] * 2)
    assert cube["reflectivity"].encoding == {}
    np.testing.assert_array_equal(cube["time"].values, np.array(["2024-06-10T00:00", "2024-06-10T00:05"], "M8[ns]"))
    assert cube.attrs["cadence_seconds"] == 300


def test_met_norway_in_mm_per_hour(tmp_path):
    cube = read(tmp_path, met_norway("lwe_precipitation_rate", "mm/h"), name=MET_NAME)
    np.testing.assert_array_equal(cube["rainfall_rate"].values[0, 0], [0, np.nan, np.nan, np.nan, np.nan, 20])  # -5


def test_without_a_mask_what_is_missing_stays_so(tmp_path):
    variables = met_norway()
    del variables["is_nodata"]
    cube = read(tmp_path, variables, name=MET_NAME)
    np.testing.assert_array_equal(cube["reflectivity"].values[0, 0], [np.nan, np.nan, np.nan, -5, 35, 20])


def test_a_mask_of_another_shape_is_none(tmp_path):
    variables = met_norway()
    variables["is_nodata"] = (("Yc", "Xc"), np.zeros((5, 6), np.int8), {})
    assert np.isnan(read(tmp_path, variables, name=MET_NAME)["reflectivity"].values[0, 0, 0])


def test_met_norway_lies_on_a_sphere(tmp_path):
    """CF's parameters leave out the size of the Earth, which the PROJ string states."""
    grid = Grid.of(read(tmp_path, met_norway(), name=MET_NAME))
    assert grid.orientation == NORTH_UP
    assert grid.crs.ellipsoid.semi_major_metre == grid.crs.ellipsoid.semi_minor_metre == 6_371_000
    # by hand: n = sin 63, F = cos 63 tan(76.5)^n / n; rho(lat) = R F / tan(45 + lat / 2)^n
    n, radius = np.sin(np.radians(63)), 6_371_000
    scale = radius * np.cos(np.radians(63)) * np.tan(np.radians(76.5)) ** n / n
    rho_0, x, y = scale / np.tan(np.radians(76.5)) ** n, -796_000, 1_125_000
    rho = np.hypot(x, rho_0 - y)
    lat = np.degrees(2 * np.arctan((scale / rho) ** (1 / n))) - 90
    lon = 15 + np.degrees(np.arctan2(x, rho_0 - y)) / n
    assert grid.lonlat(x, y) == pytest.approx((lon, lat), abs=1e-6)
