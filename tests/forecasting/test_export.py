"""Runs of a store as files, one per product and reference time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.config import Product
from nowcast.forecasting import fallback as fallbacks
from nowcast.forecasting import netcdf
from tests import synthetic


def test_runs_of_one_time_are_files_named_by_it(tmp_path: Path) -> None:
    frames, forecasts = synthetic.make_store(tmp_path / "frames", range(4)), str(tmp_path / "f")
    products = [Product(name=name, model="persistence") for name in ("first", "second")]
    for index in (2, 3):
        time = synthetic.START + index * synthetic.STEP
        fallbacks.issue(frames, forecasts, products, fallback=(), leads=2, time=time)
    reference = datetime(2010, 8, 26, 0, 15, tzinfo=UTC)
    paths = netcdf.export(forecasts, reference, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        "2010/08/26/rainfall_rate_first_20100826T0015Z.nc",
        "2010/08/26/rainfall_rate_second_20100826T0015Z.nc",
    ]
    with xr.open_dataset(paths[1], decode_timedelta=True) as read:
        assert read.attrs["model"] == "second"
        assert read["forecast_reference_time"] == np.datetime64("2010-08-26T00:15")
        np.testing.assert_allclose(read["rainfall_rate"][0, 8:, 8:], synthetic.rain(3)[8:, 8:], atol=0.0051)
    before = [path.stat().st_mtime_ns for path in paths]
    assert netcdf.export(forecasts, reference, tmp_path / "out") == paths
    assert [path.stat().st_mtime_ns for path in paths] == before, "what is there stays"
    assert len(list((tmp_path / "out").rglob("*"))) == 3 + 2, "folders and files, nothing half-written"
