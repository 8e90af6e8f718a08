"""What is no observation is refused where it is read, however it was found: a row for each way to say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.ingestion.run import ingest
from nowcast.readers import Item, get
from nowcast.readers.forecasts import lead
from tests import fixtures, sources_composites, sources_gridded
from tests.sources_gridded import Variables, mosaic


def rates(**others: tuple) -> Variables:
    return mosaic(frames=1) | others


def scalar(value: float, **about: object) -> tuple:
    return ((), np.float64(value), about)


NOON = "minutes since 2024-06-01 12:00:00"
LEAD_DIM = {
    "lead_time": (("lead_time",), np.array([10.0]), {"units": "minutes"}),
    "rain": (("lead_time", "y", "x"), mosaic(frames=1)["rain"][1], mosaic(frames=1)["rain"][2]),
}
OURS = {
    "lead_time": (("lead_time",), np.array([300.0, 600.0]), {"units": "seconds", "standard_name": "forecast_period"}),
    "forecast_reference_time": scalar(0, standard_name="forecast_reference_time", units=NOON),
    "time": (("lead_time",), np.array([5.0, 10.0]), {"standard_name": "time", "units": NOON}),
    "rain": (("lead_time", "y", "x"), mosaic(frames=2)["rain"][1], mosaic(frames=1)["rain"][2]),
}
"""As this product publishes them."""
FORECASTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "DWD, HDF5": ("odim", lambda folder: fixtures.odyssey(folder / "composite_rv_20180824_1800_005-hd5")),
    "DWD, HDF5, capitals": ("odim", lambda folder: fixtures.odyssey(folder / "composite_rs_20180824_1800_060-HD5")),
    "ODIM, by its period": (
        "odim",
        lambda folder: fixtures.odyssey(folder / "a.h5", starttime="181000", endtime="181500", quantity="ACRR"),
    ),
    "RADOLAN, by its name": ("radolan", lambda folder: sources_composites.radolan(folder / "DE1200_RV2001011505_005")),
    "RADOLAN, by its header": (
        "radolan",
        lambda folder: sources_composites.radolan(folder / "raa01-rv_10000-2001011505-dwd---bin", lead=5),
    ),
    "KNMI, several images": ("knmi", lambda folder: several(fixtures.knmi(folder / "RAD_NL25_RAC_FM_202406011200.h5"))),
    "MRMS": ("mrms", lambda folder: sources_composites.mrms(folder / "a.grib2", ahead=2)),
    "CF, forecast_period": (
        "netcdf",
        lambda folder: sources_gridded.netcdf(
            folder / "a.nc", rates(period=scalar(600, standard_name="forecast_period", units="s"))
        ),
    ),
    "CF, forecast_reference_time": (
        "netcdf",
        lambda folder: sources_gridded.netcdf(
            folder / "a.nc", rates(made=scalar(-10, standard_name="forecast_reference_time", units=NOON))
        ),
    ),
    "CF, lead times as a dim": ("netcdf", lambda folder: sources_gridded.netcdf(folder / "a.nc", rates(**LEAD_DIM))),
    "CF, ours": ("netcdf", lambda folder: sources_gridded.netcdf(folder / "a.nc", mosaic() | OURS)),
    "CF, classic": (
        "netcdf",
        lambda folder: sources_gridded.netcdf(
            folder / "a.nc", rates(lead_time=scalar(5, units="minutes")), form="NETCDF3_CLASSIC"
        ),
    ),
    "Zarr": (
        "zarr",
        lambda folder: (
            sources_gridded.zarr_store(folder / "a.zarr", rates(leadtime=scalar(5, units="minutes"))) / "zarr.json"
        ),
    ),
    "GeoTIFF, by a tag": ("geotiff", lambda folder: tiff(folder / "rr_202406011205.tif", {"lead_time": "5"})),
    "GeoTIFF, of GRIB": (
        "geotiff",
        lambda folder: tiff(folder / "rr_202406011205.tif", {"GRIB_FORECAST_SECONDS": "300 sec"}),
    ),
    "GeoTIFF, by its name": ("geotiff", lambda folder: tiff(folder / "rr_202406011200_+05.tif", {})),
    "GeoTIFF, by its name, minutes": ("geotiff", lambda folder: tiff(folder / "rr_202406011200+005min.tif", {})),
    "FMI": ("fmi-geotiff", lambda folder: sources_gridded.fmi_tiff(folder / "201609281445_lead15_FINUTM.tif")),
}


def tiff(path: Path, tags: dict[str, str]) -> Path:
    return sources_gridded.tiff(path, np.zeros((8, 9), np.float32), units="mm/h", tags=tags)


def several(path: Path) -> Path:
    with h5py.File(path, "r+") as file:
        file["overview"].attrs["number_image_groups"] = np.array([25], np.int32)
    return path


@pytest.mark.parametrize("case", FORECASTS)
def test_a_forecast_is_refused_however_it_is_found(case: str, tmp_path: Path) -> None:
    name, make = FORECASTS[case]
    feed = tmp_path / "feed"
    path = make(feed)
    for source in (path, feed / "*" if path.parent == feed else path):
        summary = ingest(name, [source], tmp_path / "frames")
        assert summary.taken == 0 and len(summary.refused) == 1
        assert "\n" not in summary.refused[0]
    with pytest.raises(BadInput) as refused:
        get(name).read(Item(path, "a.zarr 0:1" if name == "zarr" else ""))
    assert "forecast" in refused.value.fault and refused.value.remedy


ANALYSES = {
    "forecast_period": scalar(0, standard_name="forecast_period", units="s"),
    "made": scalar(0, standard_name="forecast_reference_time", units=NOON),
    "lead_time": scalar(0, units="minutes"),
}


@pytest.mark.parametrize("what", ANALYSES)
def test_an_analysis_is_read(what: str, tmp_path: Path) -> None:
    about = {"time_coverage_resolution": "PT5M"}
    path = sources_gridded.netcdf(tmp_path / "a.nc", rates(**{what: ANALYSES[what]}), about)
    assert get("netcdf").read(Item(path)).sizes["time"] == 1


def test_in_a_folder_analyses_alone_are_found(tmp_path: Path) -> None:
    for minutes in ("000", "005", "010"):
        fixtures.odyssey(tmp_path / f"composite_rv_20180824_1800_{minutes}-hd5")
    assert [item.path.name for item in get("odim").find(tmp_path)] == ["composite_rv_20180824_1800_000-hd5"]
    (tmp_path / "composite_rv_20180824_1800_000-hd5").unlink()
    with pytest.raises(BadInput, match="holds no observed composite; give analyses"):
        list(get("odim").find(tmp_path))


@pytest.mark.parametrize(
    ("name", "minutes"),
    [
        ("composite_rv_20180824_1800_000-hd5", 0),
        ("composite_rv_20180824_1800_120-hd5", 120),
        ("RV1807010000_005.gz", 5),
        ("DE1200_RV1807010000_000", 0),
        ("raa01-ry_10000-2001011505-dwd---bin.gz", 0),
        ("202406011205+0200_rr.tif", 0),
        ("AQC151351545F_00005.801.gif", 0),
        ("RAD_NL25_RAP_5min_201008260005.h5", 0),
        ("66_20201031_001000.prcp-c10.nc", 0),
        ("MergedReflectivityQCComposite_00.50_20190610-000240.grib2", 0),
        ("radar_lead-30.nc", 30),
        ("radar_T+90.nc", 90),
    ],
)
def test_leads_in_names(name: str, minutes: int) -> None:
    assert lead(name) == minutes
