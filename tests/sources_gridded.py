"""Small files of readers for gridded formats: Rainfields, CF NetCDF and Zarr, GeoTIFF."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import netCDF4
import numpy as np
import zarr
from pyproj import CRS

from tests.fixtures import blob

Variables = dict[str, tuple[Sequence[str], object, dict[str, object]]]
"""Name -> dims, data as they are on disk, attributes."""


# --- Rainfields of the Bureau of Meteorology ------------------------------------------------------


def bom(
    path: Path,
    *,
    end: str = "2020-10-31T00:10",
    minutes: int = 10,
    raw: np.ndarray | None = None,
    fill: int = -1,
    licence: str | None = "http://www.bom.gov.au/other/copyright.shtml",
    units: str = "kg m-2",
    epoch: str = "seconds since 1970-01-01 00:00:00 UTC",
    size: int = 16,
    without: Sequence[str] = (),
) -> Path:
    """An accumulation on the projection of radar 66, in ``size`` pixels of 0.5 km each way."""
    if raw is None:
        raw = blob((size, size), 200).astype(np.int16)
        raw[:2] = fill
    until = int(np.datetime64(end, "s").astype(int))
    path.parent.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts(
            {
                "Conventions": "CF-1.7",
                "title": f"Bias Corrected Radar Accumulation ({minutes} min)",
                "institution": "Commonwealth of Australia, Bureau of Meteorology (ABN 92 637 533 532)",
                "source": "rainfields 3.2.2",
                "station_id": np.int32(66),
                "station_name": "MtStapl",
            }
        )
        if licence:
            file.licence = licence
        for name, value, about in (("valid_time", until, "End"), ("start_time", until - minutes * 60, "Start")):
            if name not in without:
                moment = file.createVariable(name, "i8")
                moment[...] = value
                moment.setncatts({"long_name": f"{about} of accumulation period", "units": epoch})
        for name, sign in (("y", -1), ("x", 1)):
            file.createDimension(name, size)
            line = file.createVariable(name, "f8", (name,))
            line[:] = sign * (np.arange(size) + 0.5 - size / 2) * 0.5
            line.setncatts({"standard_name": f"projection_{name}_coordinate", "units": "km"})
        if "proj" not in without:
            file.createVariable("proj", "i1").setncatts(
                {
                    "grid_mapping_name": "albers_conical_equal_area",
                    "standard_parallel": [-26.2, -29.3],
                    "longitude_of_central_meridian": 153.24,
                    "latitude_of_projection_origin": -27.7178,
                    "false_easting": 0.0,
                    "false_northing": 0.0,
                    "semi_major_axis": 6378137.0,
                    "semi_minor_axis": 6356752.31414,
                }
            )
        if "precipitation" not in without:
            rain = file.createVariable("precipitation", "i2", ("y", "x"), zlib=True, fill_value=fill)
            rain.setncatts(
                {
                    "long_name": "Accumulated precipitation",
                    "standard_name": "precipitation_amount",
                    "units": units,
                    "grid_mapping": "proj",
                    "scale_factor": 0.05,
                    "add_offset": 0.0,
                }
            )
            rain.set_auto_maskandscale(False)
            rain[:] = raw
    return path


def _bom_source(root: Path) -> Path:
    for minute in ("00", "10", "20"):
        folder = root / "prcp-c10" / "66" / "2020" / "10" / "31"
        bom(folder / f"66_20201031_00{minute}00.prcp-c10.nc", end=f"2020-10-31T00:{minute}")
    return root


# --- CF, as NetCDF and as Zarr --------------------------------------------------------------------

LAEA = CRS.from_proj4("+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +ellps=WGS84 +units=m")


def mosaic(*, frames: int = 3, shape: tuple[int, int] = (12, 10), minutes: int = 5) -> Variables:
    """Rain rates in hundredths of mm/h on a grid of 1 km; tests change what they are about."""
    rows, columns = shape
    rain = np.stack([blob(shape, 1000 + 100 * frame) for frame in range(frames)]).astype(np.int16)
    rain[:, 0, :2] = -1
    metres = {"units": "m"}
    return {
        "time": (
            ("time",),
            np.arange(frames, dtype=np.int64) * minutes,
            {"standard_name": "time", "units": "minutes since 2024-06-01 12:00:00", "calendar": "standard"},
        ),
        "y": (("y",), 900_000.0 - 1000 * np.arange(rows), {"standard_name": "projection_y_coordinate"} | metres),
        "x": (("x",), 100_000.0 + 1000 * np.arange(columns), {"standard_name": "projection_x_coordinate"} | metres),
        "crs": ((), np.int32(0), {"grid_mapping_name": "lambert_azimuthal_equal_area", "crs_wkt": LAEA.to_wkt()}),
        "rain": (
            ("time", "y", "x"),
            rain,
            {
                "standard_name": "rainfall_rate",
                "long_name": "rain rate",
                "units": "mm h-1",
                "grid_mapping": "crs",
                "scale_factor": 0.01,
                "_FillValue": np.int16(-1),
            },
        ),
    }


ABOUT = {"Conventions": "CF-1.10", "license": "CC-BY-4.0", "institution": "Institute of Examples"}


def netcdf(
    path: Path,
    variables: Variables,
    attrs: Mapping[str, object] | None = None,
    *,
    form: str = "NETCDF4",
    record: str | None = None,
    chunks: Sequence[int] | None = None,
) -> Path:
    """A NetCDF file of what the variables hold; ``record`` names the dim that may grow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(path, "w", format=form) as file:
        file.setncatts(dict(ABOUT if attrs is None else attrs))
        for dims, data, _ in variables.values():
            for dim, size in zip(dims, np.shape(data), strict=True):
                if dim not in file.dimensions:
                    file.createDimension(dim, None if dim == record else size)
        for name, (dims, data, about) in variables.items():
            values, about = np.asarray(data), dict(about)
            three = len(dims) == 3 and form.startswith("NETCDF4")
            options = {"zlib": True, "chunksizes": chunks} if three else {}
            options["fill_value"] = about.pop("_FillValue", None)
            kind = "i4" if values.dtype == np.int64 and form in CLASSIC else values.dtype.newbyteorder("=")
            variable = file.createVariable(name, kind, dims, **options)
            variable.setncatts(about)
            variable.set_auto_maskandscale(False)
            variable[...] = values
    return path


CLASSIC = ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF4_CLASSIC")


def zarr_store(
    path: Path,
    variables: Variables,
    attrs: Mapping[str, object] | None = None,
    *,
    version: int = 3,
    fills: Mapping[str, object] | None = None,
    shards: Sequence[int] | None = None,
    frames: Sequence[int] | None = None,
    consolidated: bool = False,
) -> Path:
    """A Zarr store of one chunk a frame; only the ``frames`` named are written. ``_FillValue`` stays an attribute."""
    group = zarr.open_group(path, mode="w", zarr_format=version, attributes=dict(ABOUT if attrs is None else attrs))  # type: ignore[arg-type]
    for name, (dims, data, about) in variables.items():
        values = np.asarray(data)
        chunks = (1, *values.shape[1:]) if values.ndim == 3 else values.shape
        about = {key: value.item() if isinstance(value, np.generic) else value for key, value in about.items()}
        fill = (fills or {}).get(name, np.nan if values.dtype.kind == "f" else 0)
        names = {"dimension_names": list(dims)} if version == 3 else {}
        about |= {} if version == 3 else {"_ARRAY_DIMENSIONS": list(dims)}
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunks,
            fill_value=fill,
            attributes=about,
            shards=shards if values.ndim == 3 else None,
            **names,
        )
        if values.ndim == 3:
            for frame in range(len(values)) if frames is None else frames:
                array[frame] = values[frame]
        else:
            array[...] = values
    if consolidated:
        zarr.consolidate_metadata(path, zarr_format=version)
    return path


def floats(variables: Variables, name: str = "rain") -> Variables:
    """The same with one variable unpacked: float32, NaN = no data, as MLCast asks."""
    dims, raw, about = variables[name]
    codes, about = np.asarray(raw), dict(about)
    missing, scale = about.pop("_FillValue"), about.pop("scale_factor")
    values = np.where(codes == missing, np.nan, codes * scale).astype(np.float32)
    return variables | {name: (dims, values, about)}


def _netcdf_source(root: Path) -> Path:
    netcdf(root / "2024" / "rain_20240601.nc", mosaic(frames=4), chunks=(1, 12, 10))
    return root


MLCAST = ABOUT | {
    "mlcast_created_on": "2026-01-01T00:00:00",
    "mlcast_created_by": "A. Writer <a@example.org>",
    "mlcast_created_with": "https://github.com/mlcast-community/mlcast-dataset-XX-example@v0.1.0",
    "mlcast_dataset_version": "0.1.0",
    "mlcast_dataset_identifier": "XX-example-rainfall_flux",
}


def _zarr_source(root: Path) -> Path:
    variables = floats(mosaic(frames=4))
    variables["rain"][2].update(standard_name="rainfall_flux", units="kg m-2 h-1")
    zarr_store(root / "XX-example.zarr", variables, MLCAST)
    return root


# --- GeoTIFF --------------------------------------------------------------------------------------

FINLAND = (250.00401887360616, 0.0, -196593.0043142296, 0.0, -250.0139839309012, 8084432.005259146)
"""Width of a pixel, 0, left edge, 0, negative height, upper edge of FMI's composite."""
FMI_TAGS = {"Gain": "0.500000", "Offset": "-32.000000", "Nodata": "255", "Undetect": "0"}


def tiff(
    path: Path,
    values: np.ndarray,
    *,
    crs: object = "EPSG:3067",
    transform: Sequence[float] | None = FINLAND,
    nodata: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
    units: str | None = None,
    description: str | Sequence[str | None] | None = None,
    tags: Mapping[str, str] | None = None,
    **options: object,
) -> Path:
    """A GeoTIFF of one band, or of as many as ``values`` has layers."""
    import rasterio  # of the extra geotiff

    bands = values if values.ndim == 3 else values[None]
    place = {} if transform is None else {"transform": rasterio.Affine(*transform)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=bands.shape[2],
        height=bands.shape[1],
        count=len(bands),
        dtype=bands.dtype,
        crs=crs,
        nodata=nodata,
        **place,
        **options,
    ) as file:
        file.write(bands)
        if scale is not None:
            file.scales, file.offsets = (scale,), (offset or 0.0,)
        if units:
            file.units = (units,)
        if description:
            file.descriptions = (description,) if isinstance(description, str) else description
        file.update_tags(**(tags or {}))
    return path


def _geotiff_source(root: Path) -> Path:
    for minute in ("00", "05", "10"):
        rain = blob((20, 24), 30).astype(np.float32)
        rain[:2] = -9999
        tiff(root / f"rainrate_20240601T12{minute}.tif", rain, nodata=-9999, units="mm/h")
    return root


def fmi_xml(
    time: str, *, quantity: str = "Corrected reflectivity", unit: str = "dBZ", codes: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The tag that holds all others, as FMI writes it: XML in the XML that GDAL takes apart."""
    items = "".join(f'<Item name="{name}">{value}</Item>\n' for name, value in (codes or FMI_TAGS).items())
    return {
        "GDAL_METADATA": f"""<GDALMetadata>
<Item name="Observation time" format="YYYYMMDDhhmm">{time}</Item>
<Item name="Quantity" unit="{unit}">{quantity}</Item>
{items}</GDALMetadata>
"""
    }


def fmi_tiff(path: Path, *, time: str = "201609281445", levels: np.ndarray | None = None, **words: str) -> Path:
    """A composite of Finland, its upper left corner."""
    if levels is None:
        levels = blob((40, 32), 150).astype(np.uint8)
        levels[:4] = 255
    return tiff(path, levels, tags=fmi_xml(time, **words), tiled=True, blockxsize=16, blockysize=16, compress="deflate")


def _fmi_source(root: Path) -> Path:
    for minute in ("45", "50", "55"):
        fmi_tiff(root / f"2016092814{minute}_FINUTM.tif", time=f"2016092814{minute}")
    return root


SOURCES: dict[str, Callable[[Path], Path]] = {
    "bom": _bom_source,
    "netcdf": _netcdf_source,
    "zarr": _zarr_source,
    "geotiff": _geotiff_source,
    "fmi-geotiff": _fmi_source,
}
"""Reader -> maker of a folder that it can read."""
