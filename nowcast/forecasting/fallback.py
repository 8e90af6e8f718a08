"""Forecasts of all products for one reference time: never dark, never lying.

A product is made by its own model; where that cannot run, by the declared fallback, named in the file; where nothing
can, it is withheld with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.config import CHAMPION, REGISTRY, Product
from nowcast.core.errors import BadInput, ConfigError
from nowcast.forecasting.run import Past, as_dataset, past, run_model, stamp
from nowcast.models import MODELS
from nowcast.store import ForecastStore, FrameStore, Place

OK, FALLBACK, WITHHELD = "ok", "fallback", "withheld"
log = logging.getLogger(__name__)


def issue(
    store: Place,
    forecasts: Place,
    products: Sequence[Product],
    *,
    fallback: Sequence[str],
    leads: int,
    time: datetime | np.datetime64 | None = None,
    channel: str | None = None,
) -> list[str]:
    """Make the forecasts of all products for one reference time, in one commit; existing ones stay.

    Args:
        store: Cube store, or its path.
        forecasts: Forecast store, or its path; made if it does not exist.
        products: Products to make.
        fallback: Models tried in this order where a product's own cannot run.
        leads: Number of lead times.
        time: Reference time, UTC; None: that of the newest frame.
        channel: Channel to forecast; None: the store's first.

    Returns:
        One line per product made, such as ``convlstm 2010-08-26T03:00Z ok``.

    Raises:
        ForecastError: If there is no frame at ``time``, or the channel is not there.
        ConfigError: If the forecast store has another number of lead times.
    """
    cube, forecasts = FrameStore.of(store).read(), ForecastStore.of(forecasts)
    frames = past(cube, time=time, channel=channel)
    reference = frames.time[-1]
    with forecasts.writing():
        _check_leads(forecasts, leads)
        done = forecasts.issued(reference, frames.sequence)
        missing = [product for product in products if product.name not in done]
        runs = [_product_run(cube, frames, product, fallback, leads) for product in missing]
        if runs:
            batch = xr.concat(
                runs, dim="run", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
            )
            note = {"reference_time": str(reference), "models": [product.name for product in missing]}
            forecasts.append(batch, message=f"Forecast from {stamp(reference)}", metadata=note)
    words = [[run[name].item() for name in ("model", "state", "reason")] for run in runs]
    return [f"{model} {stamp(reference)} {state} {reason}".rstrip() for model, state, reason in words]


def _product_run(cube: xr.Dataset, frames: Past, product: Product, fallback: Sequence[str], leads: int) -> xr.Dataset:
    """Make the run of one product: by its own model, a fallback, or withheld."""
    reasons: list[str] = []
    for name in dict.fromkeys((product.model, *fallback)):
        try:
            values, used, _ = run_model(name, frames, leads)
        except Exception as error:  # whatever fails, a fallback must run; the reason is stored
            log.warning("%s cannot forecast from %s: %s", name, stamp(frames.time[-1]), error, exc_info=True)
            reasons.append(f"{_short_name(name)}: {_reason(error)}")
            continue
        run = as_dataset(cube, frames, values, used, leads)
        return _as_run(run, frames.sequence, product.name, used.name, FALLBACK if reasons else OK, "; ".join(reasons))
    nothing = np.full((leads, *frames.field.shape[1:]), np.nan, np.float32)
    run = as_dataset(cube, frames, nothing, None, leads)
    return _as_run(run, frames.sequence, product.name, "", WITHHELD, "; ".join(reasons))


def _as_run(dataset: xr.Dataset, sequence: str, product: str, producer: str, state: str, reason: str) -> xr.Dataset:
    """Turn a Forecast into a row of the forecast store, with its attributes as coordinates along ``run``."""
    labels = {
        "sequence": sequence,
        "model": product,
        "producer": producer,
        "state": state,
        "reason": reason,
        **{name: dataset.attrs[name] for name in ("checkpoint", "input_frames", "snapshot")},
    }
    created = np.datetime64(dataset.attrs["date_created"].rstrip("Z"), "ns")
    row = dataset.drop_vars("time").expand_dims("run")
    stamps = {"created": created, "forecast_reference_time": dataset["forecast_reference_time"].values}
    row = row.assign_coords(
        {name: ("run", np.asarray([value], object)) for name, value in labels.items()}
        | {name: ("run", np.asarray([value], "datetime64[ns]")) for name, value in stamps.items()}
    )
    keep = ("Conventions", "title", "license")
    row.attrs = {name: dataset.attrs[name] for name in keep}
    for name in dataset.data_vars:
        row[name].encoding = dataset[name].encoding
    return row


def _check_leads(forecasts: ForecastStore, leads: int) -> None:
    if forecasts.exists() and (there := forecasts.labels("lead_time")["lead_time"].size) != leads:
        raise ConfigError(
            f"{forecasts} holds forecasts of {there} leads, not {leads}; set leads: {there}, "
            "or use another forecast store."
        )


def _short_name(name: str) -> str:
    if name.startswith(REGISTRY):
        return CHAMPION
    return name if name in MODELS else Path(name).name


def _reason(error: Exception) -> str:
    text = error.fault if isinstance(error, BadInput) else str(error)  # the caller names the model itself
    return (text.strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
