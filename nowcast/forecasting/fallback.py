"""Forecasts of all products for one reference time: never dark, never lying.

A product is made by its own model; where that cannot run, by the declared fallback, named in the file; where nothing
can, it is withheld with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.config import CHAMPION, REGISTRY, Product
from nowcast.core.cube import channels, utc
from nowcast.core.errors import BadInput, ConfigError
from nowcast.core.provenance import stamp
from nowcast.forecasting.past import Past, past
from nowcast.forecasting.run import Made, as_dataset, regular_leads, run_model
from nowcast.models import MODELS
from nowcast.store import ForecastStore, FrameStore, Place

OK, FALLBACK, WITHHELD = "ok", "fallback", "withheld"
Run = Callable[[str, Past, Sequence[int]], Made]
"""Runs a model by its name, for lead times in seconds; raises what keeps it from it."""
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
    again: Mapping[str, str] | None = None,
    run: Run = run_model,
) -> list[str]:
    """Make the forecasts of all products for one reference time, in one commit; existing ones stay.

    Args:
        store: Cube store, or its path.
        forecasts: Forecast store, or its path; made if it does not exist.
        products: Products to make.
        fallback: Models tried in this order where a product's own cannot run.
        leads: Number of lead times. Those of a forecast store stay what they are when the feed changes its step.
        time: Reference time, UTC; None: that of the newest frame.
        channel: Channel to forecast; None: the store's first.
        again: Product -> why its forecast is made again, as a new version; the one before stays in the store.
        run: Runs a model; by default in this process.

    Returns:
        One line per product made, such as ``convlstm 2010-08-26T03:00Z ok``.

    Raises:
        ForecastError: If there is no frame at ``time``, or the channel is not there.
        ConfigError: If the forecast store has another number of lead times.
    """
    cube, forecasts = FrameStore.of(store).read(), ForecastStore.of(forecasts)
    frames = past(cube, time=time, channel=channel)
    lead_seconds = _lead_times(forecasts, frames, leads)
    versions = _versions(forecasts, frames, products, again or {})
    runs = {
        product.name: _product_run(cube, frames, product, fallback, lead_seconds, run)
        for product in products
        if product.name in versions
    }
    return _append(forecasts, frames, runs, versions, again or {})


def withhold(
    store: Place,
    forecasts: Place,
    products: Sequence[Product],
    *,
    leads: int,
    time: datetime,
    reason: str,
    channel: str | None = None,
) -> list[str]:
    """State for a time without a frame why there is no forecast, for all products that have nothing from it.

    Args:
        store: Cube store, or its path.
        forecasts: Forecast store, or its path.
        products: Products.
        leads: Number of lead times.
        time: Nominal time of the frame that is missing, UTC.
        reason: In words.
        channel: Channel of the forecasts; None: the store's first.
    """
    cube, forecasts = FrameStore.of(store).read(), ForecastStore.of(forecasts)
    name = channel or channels(cube)[0]
    frames = Past(cube[name][:0], np.asarray([utc(time)]), [], name, int(cube.attrs["cadence_seconds"]), None, "")
    lead_seconds = _lead_times(forecasts, frames, leads)
    versions = _versions(forecasts, frames, products, {})
    runs = {product: _withheld(cube, frames, product, reason, lead_seconds) for product in versions}
    return _append(forecasts, frames, runs, versions, {})


def _versions(
    forecasts: ForecastStore, frames: Past, products: Sequence[Product], again: Mapping[str, str]
) -> dict[str, int]:
    """Give the number of the next version of every product that is to be made."""
    there = forecasts.issued(frames.time[-1], frames.sequence)
    names = [product.name for product in products if product.name not in there or product.name in again]
    return {name: there.get(name, 0) + 1 for name in names}


def _append(
    forecasts: ForecastStore,
    frames: Past,
    runs: Mapping[str, xr.Dataset],
    versions: Mapping[str, int],
    again: Mapping[str, str],
) -> list[str]:
    """Write what was made in one commit, without what another process made meanwhile."""
    reference = frames.time[-1]
    with forecasts.writing():
        there = forecasts.issued(reference, frames.sequence)
        new = {name: run for name, run in runs.items() if there.get(name, 0) < versions[name]}
        rows = [
            run.assign_coords(version=("run", [versions[name]]), revised=("run", _texts(again.get(name, ""))))
            for name, run in new.items()
        ]
        if rows:
            batch = xr.concat(
                rows, dim="run", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
            )
            note = {"reference_time": str(reference), "models": list(new)}
            forecasts.append(batch, message=f"Forecast from {stamp(reference)}", metadata=note)
    words = [[row[name].item() for name in ("model", "state", "reason", "revised")] for row in rows]
    return [
        " ".join(filter(None, (model, stamp(reference), state, reason, revised and f"(revised: {revised})")))
        for model, state, reason, revised in words
    ]


def _product_run(
    cube: xr.Dataset, frames: Past, product: Product, fallback: Sequence[str], leads: Sequence[int], run: Run
) -> xr.Dataset:
    """Make the run of one product: by its own model, a fallback, or withheld."""
    reasons: list[str] = []
    for name in dict.fromkeys((product.model, *fallback)):
        try:
            made = run(name, frames, leads)
        except Exception as error:  # whatever fails, a fallback must run; the reason is stored
            log.warning("%s cannot forecast from %s: %s", name, stamp(frames.time[-1]), error, exc_info=True)
            reasons.append(f"{_short_name(name)}: {_reason(error)}")
            continue
        dataset = as_dataset(cube, frames, made, leads)
        return _as_run(dataset, frames.sequence, product.name, FALLBACK if reasons else OK, "; ".join(reasons))
    return _withheld(cube, frames, product.name, "; ".join(reasons), leads)


def _withheld(cube: xr.Dataset, frames: Past, product: str, reason: str, leads: Sequence[int]) -> xr.Dataset:
    """Make the run of a product that nothing could make; its input is the frame that it should have begun with."""
    nothing = np.full((len(leads), *frames.field.shape[1:]), np.nan, np.float32)
    made = Made(nothing, "", "", frames.entries(frames.inputs(1)))
    return _as_run(as_dataset(cube, frames, made, leads), frames.sequence, product, WITHHELD, reason)


def _as_run(dataset: xr.Dataset, sequence: str, product: str, state: str, reason: str) -> xr.Dataset:
    """Turn a Forecast into a row of the forecast store, with its attributes as coordinates along ``run``."""
    labels = {
        "sequence": sequence,
        "model": product,
        "producer": dataset.attrs["model"],
        "state": state,
        "reason": reason,
        **{name: dataset.attrs[name] for name in ("checkpoint", "input_frames", "bridged", "snapshot")},
    }
    created = np.datetime64(dataset.attrs["date_created"].rstrip("Z"), "ns")
    row = dataset.drop_vars("time").expand_dims("run")
    stamps = {"created": created, "forecast_reference_time": dataset["forecast_reference_time"].values}
    row = row.assign_coords(
        {name: ("run", _texts(value)) for name, value in labels.items()}
        | {name: ("run", np.asarray([value], "datetime64[ns]")) for name, value in stamps.items()}
    )
    keep = ("Conventions", "title", "license")
    row.attrs = {name: dataset.attrs[name] for name in keep}
    for name in dataset.data_vars:
        row[name].encoding = dataset[name].encoding
    return row


def _texts(*values: str) -> np.ndarray:
    return np.asarray(values, object)


def _lead_times(forecasts: ForecastStore, frames: Past, leads: int) -> list[int]:
    """List the lead times in seconds: those of the forecast store, or of a new one at the step of the feed."""
    if not forecasts.exists():
        return regular_leads(frames, leads)
    there: list[int] = forecasts.labels("lead_time")["lead_time"].tolist()
    if len(there) != leads:
        raise ConfigError(
            f"{forecasts} holds forecasts of {len(there)} leads, not {leads}; set leads: {len(there)}, "
            "or use another forecast store."
        )
    return there


def _short_name(name: str) -> str:
    if name.startswith(REGISTRY):
        return CHAMPION
    return name if name in MODELS else Path(name).name


def _reason(error: Exception) -> str:
    text = error.fault if isinstance(error, BadInput) else str(error)  # the caller names the model itself
    return (text.strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
