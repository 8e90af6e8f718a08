"""Forecasts from the newest frames of a store, with fallbacks.

A product is made by its own model; if that cannot run, by a fallback, which the file names; if none can run, it is
withheld with the reason. The reference time of a forecast is the time of the newest frame that it used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from nowcast.config import CHAMPION, REGISTRY, Product
from nowcast.core.cube import channels, event_labels, utc
from nowcast.core.errors import BadInput, ConfigError, ForecastError, OptionError
from nowcast.core.files import atomic_file
from nowcast.core.grid import Grid
from nowcast.core.units import MARSHALL_PALMER, convert, get_quantity
from nowcast.core.version import __version__
from nowcast.models import MODELS, model_class
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Model, predict, predict_distribution
from nowcast.registry.registry import champion_file
from nowcast.store import ForecastStore, FrameStore, Place

OK, FALLBACK, WITHHELD = "ok", "fallback", "withheld"
STEP_TOLERANCE = 0.25
"""Share of the cadence by which frames may be early or late."""
CADENCE_TOLERANCE = 0.1
"""Share by which the cadence of a feed may differ from the one a network was trained on."""
PROBABILITY = "probability_of_"
"""Prefix of the name of a variable with probabilities."""
STORED_STEPS = 32_767
"""Largest packed value of stores and files, in steps of the quantity's resolution."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Past:
    """The unbroken frames that end at the reference time."""

    field: xr.DataArray
    """(time, y, x) physical values, not loaded yet."""
    time: np.ndarray
    digests: list[str]
    quantity: str
    cadence_seconds: int
    zr: tuple[float, float] | None
    """a, b of Z = a R^b, where the source states them."""
    sequence: str
    """Label of the event, where a store holds events that may share times; "" in a live feed."""


def forecast(
    cube: xr.Dataset,
    model: str | Path,
    *,
    time: datetime | np.datetime64 | None = None,
    leads: int = 12,
    channel: str | None = None,
) -> xr.Dataset:
    """Forecast from the newest frame of a Cube, or from the one at ``time``.

    Args:
        cube: As ``store.open_store`` returns it.
        model: Name in the model table, a checkpoint file, or ``registry:FOLDER`` for the champion there.
        time: Reference time, UTC; must be a frame of the cube.
        leads: Number of lead times, at the cube's cadence.
        channel: Channel to forecast; None: the cube's first.

    Returns:
        Forecast (lead_time, y, x) with CF metadata, in the cube's unit; its attributes name the frames and
        versions that were used. A network that gives probabilities adds ``probability_of_<quantity>_above_threshold``
        (threshold, lead_time, y, x).

    Raises:
        ForecastError: Missing frames, another cadence or quantity, a forecast that is not finite.
    """
    frames = past(cube, time=time, channel=channel)
    values, used, chances = _run(str(model), frames, leads, probabilities=True)
    return _dataset(cube, frames, values, used, leads).assign(chances)


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


def past(cube: xr.Dataset, *, time: datetime | np.datetime64 | None = None, channel: str | None = None) -> Past:
    """Find the unbroken frames that end at ``time``.

    Raises:
        ForecastError: If there is no frame at ``time``, or the channel is not there.
    """
    name = channel or channels(cube)[0]
    if name not in cube:
        raise ForecastError(f"the store has no {name}; it has {', '.join(channels(cube))}")
    stamps, events = cube["time"].values, event_labels(cube)
    end = stamps.size - 1 if time is None else _position(stamps, time)
    first = int(np.flatnonzero(events[: end + 1] == events[end])[0])
    cadence = int(cube.attrs.get("cadence_seconds", 0)) or _step(stamps[first : end + 1])
    steps = np.diff(stamps[first : end + 1]) / np.timedelta64(1, "s")
    gaps = np.flatnonzero(np.abs(steps - cadence) > STEP_TOLERANCE * cadence)
    start = first + (gaps[-1] + 1 if gaps.size else 0)
    chosen = cube.isel(time=slice(start, end + 1))
    zr = (float(cube.attrs["zr_a"]), float(cube.attrs["zr_b"])) if "zr_a" in cube.attrs else None
    digests = [str(text) for text in chosen["digest"].values] if "digest" in chosen.coords else []
    return Past(chosen[name], chosen["time"].values, digests, name, cadence, zr, str(events[end]))


def stamp(time: np.datetime64) -> str:
    """Format a time as ``2010-08-26T03:00Z``."""
    return f"{np.datetime_as_string(time, unit='m')}Z"


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
    labels = ("sequence", "model", "producer", "state", "reason", "checkpoint", "input_frames", "snapshot")
    attrs = {name: str(run[name].item()) for name in labels}
    times = run["forecast_reference_time"] + run["lead_time"]
    run = run.assign_coords(time=("lead_time", times.values, {"standard_name": "time"}))
    run["forecast_reference_time"].attrs["standard_name"] = "forecast_reference_time"
    created = f"{np.datetime_as_string(run['created'].values, unit='s')}Z"
    run.attrs = dict(runs.attrs) | attrs | {"date_created": created}
    run.attrs["source"] = f"{attrs['producer'] or 'withheld'} (nowcast {__version__})"
    run.attrs["history"] = f"{created} made by {run.attrs['source']}"
    return run.drop_vars([*labels, "created"])


def export(forecasts: Place, reference: datetime, folder: Path) -> list[Path]:
    """Write the runs of one reference time as NetCDF, ``YYYY/MM/DD/<quantity>_<model>_<time>.nc``."""
    runs = ForecastStore.of(forecasts).read()
    paths = []
    for model, row in _rows(runs, reference).items():
        run = _one_run(runs, row)
        path = folder / f"{reference:%Y/%m/%d}" / f"{channels(run)[0]}_{model}_{reference:%Y%m%dT%H%MZ}.nc"
        paths.append(path if path.exists() else write_netcdf(run, path))
    return paths


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
    with atomic_file(path) as aside:
        plain.to_netcdf(aside, engine="netcdf4", encoding=encoding)
    return path


# --- one product ----------------------------------------------------------------------------------


def _product_run(cube: xr.Dataset, frames: Past, product: Product, fallback: Sequence[str], leads: int) -> xr.Dataset:
    """Make the run of one product: by its own model, a fallback, or withheld."""
    reasons: list[str] = []
    for name in dict.fromkeys((product.model, *fallback)):
        try:
            values, used, _ = _run(name, frames, leads)
        except Exception as error:  # whatever fails, a fallback must run; the reason is stored
            log.warning("%s cannot forecast from %s: %s", name, stamp(frames.time[-1]), error, exc_info=True)
            reasons.append(f"{_short_name(name)}: {_reason(error)}")
            continue
        run = _dataset(cube, frames, values, used, leads)
        return _as_run(run, frames.sequence, product.name, used.name, FALLBACK if reasons else OK, "; ".join(reasons))
    nothing = np.full((leads, *frames.field.shape[1:]), np.nan, np.float32)
    run = _dataset(cube, frames, nothing, None, leads)
    return _as_run(run, frames.sequence, product.name, "", WITHHELD, "; ".join(reasons))


def _run(
    name: str, frames: Past, leads: int, *, probabilities: bool = False
) -> tuple[np.ndarray, Model, dict[str, xr.DataArray]]:
    """Run a model: physical fields (leads, y, x) in the cube's unit, the model, and its probabilities if wanted."""
    model = _load(name, frames.time.size, leads)
    steps = model.network.in_steps
    if frames.time.size < steps:
        have = frames.time.size
        raise ForecastError(f"needs {steps} unbroken frames, {have} end at {stamp(frames.time[-1])}")
    check_fits(model, quantity=frames.quantity, cadence_seconds=frames.cadence_seconds)
    target, zr = model.quantity or frames.quantity, frames.zr or MARSHALL_PALMER
    fields = convert(frames.field[-steps:].values, frames.quantity, target, zr=zr)
    chances: dict[str, xr.DataArray] = {}
    if probabilities and model.network.gives_probabilities:
        made = predict_distribution(model, fields, quantity=target, leads=leads)
        values, limits = made.values, convert(made.thresholds, target, frames.quantity, zr=zr)
        chances = _exceedance(made.exceedance, limits, frames.quantity)
    else:
        values = predict(model, fields, quantity=target, leads=leads)
    known = np.isfinite(values)
    if not known.any() or not (known | np.isnan(fields[-1]) | model.network.handles_missing).all():
        raise ForecastError("returned values that are not finite")
    limit = np.float32(STORED_STEPS * get_quantity(frames.quantity).resolution)  # beyond it there is no weather
    converted = np.clip(convert(values, target, frames.quantity, zr=zr), -limit, limit)
    return np.where(known, converted, np.float32(np.nan)), model, chances


def _exceedance(chance_KLHW: np.ndarray, thresholds: np.ndarray, name: str) -> dict[str, xr.DataArray]:
    """Label probabilities with thresholds in the cube's unit, named as in IMPROVER, since CF has no name for them."""
    known = get_quantity(name)
    limits = [float(f"{limit:.2g}") for limit in thresholds]
    relation = {"units": known.unit, "spp__relative_to_threshold": "greater_than_or_equal_to"}
    about = {
        "units": "1",
        "long_name": f"Probability that {known.long_name.lower()} reaches the threshold",
        "grid_mapping": "crs",
    }
    return {
        f"{PROBABILITY}{name}_above_threshold": xr.DataArray(
            chance_KLHW,
            dims=("threshold", "lead_time", "y", "x"),
            attrs=about,
            coords={"threshold": ("threshold", limits, relation)},
        )
    }


def check_fits(model: Model, *, quantity: str, cadence_seconds: int) -> None:
    """Refuse a model that was made for other frames.

    Args:
        model: A network or a reference model.
        quantity: Quantity of the frames.
        cadence_seconds: Time between the frames.

    Raises:
        ForecastError: Another cadence, or a quantity that cannot be converted.
    """
    step = model.cadence_seconds or cadence_seconds
    if abs(step - cadence_seconds) > CADENCE_TOLERANCE * step:
        raise ForecastError(f"was trained on a step of {step} s, the feed has {cadence_seconds} s")
    try:
        convert(np.zeros((1, 1, 1), np.float32), quantity, model.quantity or quantity)
    except OptionError:
        raise ForecastError(f"was trained on {model.quantity}, the feed has {quantity}") from None


def _load(name: str, available: int, leads: int) -> Model:
    if name not in MODELS:
        path = champion_file(name) if name.startswith(REGISTRY) else checkpoint.find(name)
        return _load_file(path, path.stat().st_mtime_ns)
    if model_class(name).trainable:
        raise ForecastError("is a network: name its checkpoint file")
    least, best = model_class(name).history
    steps = max(least, min(best, available))
    return checkpoint.reference(name, in_steps=steps, out_steps=leads)


@lru_cache(maxsize=8)
def _load_file(path: Path, modified: int) -> Model:
    return checkpoint.load(path, device="cuda" if torch.cuda.is_available() else "cpu", shared=True)


def _dataset(cube: xr.Dataset, frames: Past, values: np.ndarray, model: Model | None, leads: int) -> xr.Dataset:
    """Build a Forecast with CF coordinates and its provenance."""
    source = cube[frames.quantity]
    reference = frames.time[-1]
    lead_time = (np.arange(1, leads + 1) * frames.cadence_seconds).astype("timedelta64[s]").astype("timedelta64[ns]")
    used = model.network.in_steps if model else 0
    inputs = (
        list(zip([stamp(time) for time in frames.time[-used:]], frames.digests[-used:], strict=False)) if used else []
    )
    dataset = xr.Dataset(
        {frames.quantity: (("lead_time", "y", "x"), values, dict(source.attrs) | {"grid_mapping": "crs"})},
        coords={
            "lead_time": ("lead_time", lead_time, {"standard_name": "forecast_period"}),
            "time": ("lead_time", reference + lead_time, {"standard_name": "time"}),
            "forecast_reference_time": ((), reference, {"standard_name": "forecast_reference_time"}),
            **Grid.of(cube).coordinates(),
        },
    )
    dataset[frames.quantity].encoding["quantum"] = get_quantity(frames.quantity).resolution
    created = np.datetime64(datetime.now(UTC).replace(tzinfo=None), "s")
    dataset.attrs = {
        "Conventions": "CF-1.10, ACDD-1.3",
        "title": f"{get_quantity(frames.quantity).long_name} nowcast",
        "source": f"{model.name} (nowcast {__version__})" if model else "withheld",
        "model": model.name if model else "",
        "checkpoint": model.digest if model else "",
        "input_frames": json.dumps(inputs),
        "snapshot": str(cube.attrs.get("snapshot", "")),
        "date_created": f"{created}Z",
        "license": str(cube.attrs.get("licence", "")),
        "history": f"{created}Z made from {cube.attrs.get('title', 'radar frames')}",
    }
    return dataset


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


def _position(stamps: np.ndarray, time: datetime | np.datetime64) -> int:
    wanted = utc(time)
    found = np.flatnonzero(stamps == wanted)
    if found.size > 1:
        raise ForecastError(
            f"{found.size} events have a frame at {stamp(wanted)}; put one event into a store of its own"
        )
    if not found.size:
        raise ForecastError(f"there is no frame at {stamp(wanted)}; the newest is {stamp(stamps[-1])}")
    return int(found[0])


def _step(stamps: np.ndarray) -> int:
    if stamps.size < 2:
        raise ForecastError("one frame and no stated cadence: the step is unknown")
    return int(np.median(np.diff(stamps[-10:]) / np.timedelta64(1, "s")))


def _short_name(name: str) -> str:
    if name.startswith(REGISTRY):
        return CHAMPION
    return name if name in MODELS else Path(name).name


def _reason(error: Exception) -> str:
    text = error.fault if isinstance(error, BadInput) else str(error)  # the caller names the model itself
    return (text.strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
