"""Forecast from the newest frames of a Cube, by one model.

The reference time of a forecast is the time of the newest frame it used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from nowcast.config import REGISTRY
from nowcast.core.cube import channels, event_labels, utc
from nowcast.core.errors import ForecastError, OptionError
from nowcast.core.grid import Grid
from nowcast.core.units import MARSHALL_PALMER, convert, get_quantity
from nowcast.core.version import code_version
from nowcast.models import MODELS, model_class
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Model, predict, predict_distribution
from nowcast.registry.registry import champion_file

STEP_TOLERANCE = 0.25
"""Share of the cadence by which frames may be early or late."""
CADENCE_TOLERANCE = 0.1
"""Share by which the cadence of a feed may differ from the one a network was trained on."""
PROBABILITY = "probability_of_"
"""Prefix of the name of a variable with probabilities."""
STORED_STEPS = 32_767
"""Largest packed value of stores and files, in steps of the quantity's resolution."""


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
    values, used, chances = run_model(str(model), frames, leads, probabilities=True)
    return as_dataset(cube, frames, values, used, leads).assign(chances)


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


def run_model(
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


def as_dataset(cube: xr.Dataset, frames: Past, values: np.ndarray, model: Model | None, leads: int) -> xr.Dataset:
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
        "source": f"{model.name} (nowcast {code_version()})" if model else "withheld",
        "model": model.name if model else "",
        "checkpoint": model.digest if model else "",
        "input_frames": json.dumps(inputs),
        "snapshot": str(cube.attrs.get("snapshot", "")),
        "date_created": f"{created}Z",
        "license": str(cube.attrs.get("licence", "")),
        "history": f"{created}Z made from {cube.attrs.get('title', 'radar frames')}",
    }
    return dataset


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
