"""Forecasts as CF NetCDF files, and runs read back from the forecast store."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nowcast.core.cube import channels, utc
from nowcast.core.errors import ForecastError
from nowcast.core.files import atomic_file
from nowcast.core.libraries import writing_netcdf
from nowcast.core.provenance import stamp
from nowcast.core.units import get_quantity
from nowcast.core.version import code_version
from nowcast.forecasting.run import PROBABILITY
from nowcast.store import ForecastStore, Place

LABELS = (
    *("sequence", "model", "producer", "state", "reason", "checkpoint", "input_frames", "snapshot"),
    *("bridged", "version", "revised"),
)
"""Labels of a run that are attributes of its file."""


def read_run(forecasts: Place, reference: datetime | np.datetime64, model: str) -> xr.Dataset:
    """Read one Forecast back from the forecast store, with its provenance as attributes.

    Raises:
        ForecastError: If the store has no such run.
    """
    runs = ForecastStore.of(forecasts).read()
    rows = _rows(runs, reference)
    if model not in rows:
        raise ForecastError(f"{forecasts} has no {model} from {stamp(utc(reference))}")
    return _one_run(runs, rows[model])


def _rows(runs: xr.Dataset, reference: datetime | np.datetime64) -> dict[str, int]:
    """Map each product to its last run from this reference time."""
    rows = np.flatnonzero(runs["forecast_reference_time"].values == utc(reference))
    return dict(zip(runs["model"].values[rows].tolist(), rows.tolist(), strict=True))


def _one_run(runs: xr.Dataset, row: int) -> xr.Dataset:
    """Turn a row of the forecast store into a Forecast."""
    run = runs.isel(run=row)
    labels = [name for name in LABELS if name in run.coords]  # those of stores of older versions are fewer
    attrs = {name: str(run[name].item()) for name in labels}
    times = run["forecast_reference_time"] + run["lead_time"]
    run = run.assign_coords(time=("lead_time", times.values, {"standard_name": "time"}))
    run["forecast_reference_time"].attrs["standard_name"] = "forecast_reference_time"
    created = f"{np.datetime_as_string(run['created'].values, unit='s')}Z"
    run.attrs = dict(runs.attrs) | attrs | {"date_created": created}
    run.attrs["source"] = f"{attrs['producer'] or 'withheld'} (nowcast {code_version()})"
    run.attrs["history"] = f"{created} made by {run.attrs['source']}"
    return run.drop_vars([*labels, "created"])


def export(forecasts: Place, reference: datetime, folder: Path) -> list[Path]:
    """Write the runs of one reference time as NetCDF, ``YYYY/MM/DD/<quantity>_<model>_<time>.nc``."""
    runs = ForecastStore.of(forecasts).read()
    paths = []
    for model, row in _rows(runs, reference).items():
        run = _one_run(runs, row)
        path = folder / f"{reference:%Y/%m/%d}" / f"{channels(run)[0]}_{model}_{reference:%Y%m%dT%H%MZ}.nc"
        paths.append(path if _is_current(path, run) else write_netcdf(run, path))
    return paths


def _is_current(path: Path, run: xr.Dataset) -> bool:
    """Tell whether a file is there and holds this version of the run; first versions are not opened for that."""
    if not path.exists() or int(run.attrs.get("version", 0)) <= 1:
        return path.exists()
    with xr.open_dataset(path, decode_timedelta=True) as there:
        return bool(there.attrs.get("version") == run.attrs["version"])


def write_netcdf(dataset: xr.Dataset, path: Path) -> Path:
    """Write a Forecast as CF NetCDF, atomically."""
    name = channels(dataset)[0]
    stamps = {"dtype": "int64", "units": "seconds since 1970-01-01"}
    encoding: dict[str, Any] = {
        name: {
            "dtype": "int16",
            "scale_factor": get_quantity(name).resolution,
            "_FillValue": np.int16(-32768),
            "grid_mapping": "crs",
            "zlib": True,
            "complevel": 2,
        },
        "time": stamps,
        "forecast_reference_time": stamps,
        "lead_time": {"dtype": "int64", "units": "seconds"},
        "y": {"_FillValue": None},
        "x": {"_FillValue": None},
    }
    plain = dataset.set_coords("crs")
    chances = [each for each in channels(dataset) if each.startswith(PROBABILITY)]
    for variable in chances:
        encoding[variable] = {
            "dtype": "uint8",
            "scale_factor": 0.005,
            "_FillValue": np.uint8(255),
            "grid_mapping": "crs",
            "zlib": True,
            "complevel": 2,
        }
    for variable in (name, *chances):
        plain[variable].attrs.pop("grid_mapping", None)
    with atomic_file(path) as aside, writing_netcdf():
        plain.to_netcdf(aside, engine="netcdf4", encoding=encoding)
    return path
