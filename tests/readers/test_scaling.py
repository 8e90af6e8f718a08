"""Gains and offsets that make no sense: a valid meaning where there is one, else a sentence, in all readers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.readers import Item, get
from tests import fixtures, sources_gridded
from tests.sources_gridded import FMI_TAGS, mosaic

STEP = {"time_coverage_resolution": "PT5M"}


def odim(folder: Path, gain: float, codes: np.ndarray) -> Path:
    return fixtures.odyssey(folder / "a.h5", data=codes, gain=gain, nodata=255.0, undetect=0.0)


def knmi(folder: Path, gain: float, codes: np.ndarray) -> Path:
    path = fixtures.knmi(folder / "a.h5")
    with h5py.File(path, "r+") as file:
        data = file["image1/image_data"]
        data[...] = np.resize(codes, data.shape)
        file["image1/calibration"].attrs["calibration_formulas"] = np.bytes_(
            f"GEO={gain:g}*PV+0.0".replace("inf", "1e999")
        )
    return path


def cf(folder: Path, gain: float, codes: np.ndarray, form: str = "NETCDF4") -> Path:
    variables = mosaic(frames=1)
    dims, raw, about = variables["rain"]
    limits = {"scale_factor": gain, "valid_range": np.array([0.0, 500.0])}
    rain = (dims, np.resize(codes, np.shape(raw)).astype(np.int16), about | limits)
    return sources_gridded.netcdf(folder / "a.nc", variables | {"rain": rain}, STEP, form=form)


def bom(folder: Path, gain: float, codes: np.ndarray) -> Path:
    path = sources_gridded.bom(folder / "a.prcp-c10.nc", raw=np.resize(codes, (16, 16)).astype(np.int16))
    with netCDF4.Dataset(path, "r+") as file:
        file["precipitation"].scale_factor = gain
    return path


def geotiff(folder: Path, gain: float, codes: np.ndarray) -> Path:
    for minute in ("00", "05"):
        name = folder / f"rr_2024060112{minute}.tif"
        sources_gridded.tiff(name, codes, units="mm/h", tags={"Gain": str(gain), "Nodata": "255"})
    return name


def fmi(folder: Path, gain: float, codes: np.ndarray) -> Path:
    return sources_gridded.fmi_tiff(folder / "a.tif", levels=codes, codes=FMI_TAGS | {"Gain": str(gain)})


MAKERS: dict[str, tuple[str, Callable[[Path, float, np.ndarray], Path]]] = {
    "odim": ("odim", odim),
    "knmi": ("knmi", knmi),
    "netcdf": ("netcdf", cf),
    "netcdf, classic": ("netcdf", lambda *what: cf(*what, form="NETCDF3_CLASSIC")),
    "bom": ("bom", bom),
    "geotiff": ("geotiff", geotiff),
    "fmi-geotiff": ("fmi-geotiff", fmi),
}
SAME = np.full((44, 38), 7, np.uint8)
DIFFERENT = np.arange(44 * 38).reshape(44, 38).astype(np.uint8) % 100
makers = pytest.mark.parametrize("which", MAKERS)


@makers
def test_of_a_gain_of_0_a_frame_that_is_the_same_everywhere_is_its_offset(which: str, tmp_path: Path) -> None:
    name, make = MAKERS[which]
    cube = get(name).read(Item(make(tmp_path, 0.0, SAME)))
    for variable in cube.data_vars.values():
        assert len(np.unique(variable.values[np.isfinite(variable.values)])) == 1


@makers
@pytest.mark.parametrize(
    ("gain", "codes"), [(0.0, DIFFERENT), (math.inf, SAME), (math.nan, SAME)], ids=["0", "inf", "nan"]
)
def test_nonsense_is_refused_in_a_sentence(which: str, gain: float, codes: np.ndarray, tmp_path: Path) -> None:
    name, make = MAKERS[which]
    path = make(tmp_path, gain, codes)
    with pytest.raises(BadInput) as refused:
        get(name).read(Item(path))
    assert "gain" in refused.value.fault or "formula" in refused.value.fault
    assert path.name in str(refused.value) and "fetch it again" not in refused.value.remedy
