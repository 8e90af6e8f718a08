"""Forecast from the newest frames of a Cube, by one model.

The reference time of a forecast is the time of the newest frame it used. A network works at its own step; lead times
are those that are asked for, by default at the step of the feed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from nowcast.config import REGISTRY
from nowcast.core import provenance
from nowcast.core.errors import ForecastError, OptionError
from nowcast.core.grid import Grid
from nowcast.core.provenance import Entry, stamp
from nowcast.core.units import MARSHALL_PALMER, convert, get_quantity
from nowcast.core.version import code_version
from nowcast.forecasting.bridging import bridge
from nowcast.forecasting.past import MOST_BRIDGED, Input, Past, past
from nowcast.models import MODELS, model_class
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Model, predict, predict_distribution
from nowcast.registry.registry import champion_file

CADENCE_TOLERANCE = 0.1
"""Share by which the cadence of a feed may differ from the one a network was trained on."""
PROBABILITY = "probability_of_"
"""Prefix of the name of a variable with probabilities."""
STORED_STEPS = 32_767
"""Largest packed value of stores and files, in steps of the quantity's resolution."""


@dataclass(frozen=True)
class Made:
    """What a model made, and of what."""

    values: np.ndarray
    """(leads, y, x) in the cube's unit, NaN = no data."""
    model: str
    digest: str
    """Digest of the checkpoint, or of the code of a reference."""
    inputs: list[Entry]
    """See ``core.provenance``."""
    chances: dict[str, xr.DataArray] = field(default_factory=dict)
    """Probabilities by name."""


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
    lead_seconds = regular_leads(frames, leads)
    made = run_model(str(model), frames, lead_seconds, probabilities=True)
    return as_dataset(cube, frames, made, lead_seconds).assign(made.chances)


def regular_leads(frames: Past, leads: int) -> list[int]:
    """List so many lead times at the step of the feed, in seconds."""
    return [frames.cadence_seconds * (lead + 1) for lead in range(leads)]


def run_model(name: str, frames: Past, leads: Sequence[int], *, probabilities: bool = False) -> Made:
    """Run a model.

    Args:
        name: Name in the model table, a checkpoint file, or ``registry:FOLDER``.
        frames: See ``past``.
        leads: Lead times in seconds, ascending.
        probabilities: Give those of a network that has them too.

    Raises:
        ForecastError: Too few frames, another cadence or quantity, a forecast that is not finite.
    """
    count = max(1, -(-leads[-1] // frames.cadence_seconds))
    model = _load(name, frames, count)
    check_fits(model, quantity=frames.quantity, cadence_seconds=frames.cadence_seconds)
    step, inputs = _inputs(model, frames)
    target, zr = model.quantity or frames.quantity, frames.zr or MARSHALL_PALMER
    fields = convert(frames.values(inputs), frames.quantity, target, zr=zr)
    own = max(1, -(-leads[-1] // step))
    limits = np.empty(0, np.float32)
    if probabilities and model.network.gives_probabilities:
        made = predict_distribution(model, fields, quantity=target, leads=own)
        values, limits = made.values, convert(made.thresholds, target, frames.quantity, zr=zr)
    else:
        values = predict(model, fields, quantity=target, leads=own)
    known = np.isfinite(values)
    if not known.any() or not (known | np.isnan(fields[-1]) | model.network.handles_missing).all():
        raise ForecastError("returned values that are not finite")
    values = _at_leads(values, fields[-1], step, leads, target)
    known = np.isfinite(values)
    limit = np.float32(STORED_STEPS * get_quantity(frames.quantity).resolution)  # beyond it there is no weather
    converted = np.clip(convert(values, target, frames.quantity, zr=zr), -limit, limit)
    chances = {}
    if limits.size:
        nearest = [max(0, round(lead / step) - 1) for lead in leads]
        chances = _exceedance(made.exceedance[:, nearest], limits, frames.quantity)
    values = np.where(known, converted, np.float32(np.nan))
    return Made(values, model.name, model.digest, frames.entries(inputs), chances)


def _inputs(model: Model, frames: Past) -> tuple[int, list[Input]]:
    """Choose the step that a model works at, in seconds, and its input: that of the feed, or a network's own."""
    step, wanted = model.cadence_seconds or frames.cadence_seconds, model.network.in_steps
    if abs(step - frames.cadence_seconds) <= CADENCE_TOLERANCE * step:
        step = frames.cadence_seconds
    inputs = frames.inputs(wanted, step)
    if len(inputs) < wanted:
        raise ForecastError(
            f"needs {wanted} frames at steps of {step / 60:g} min with no more than {MOST_BRIDGED} missing in a row, "
            f"{len(inputs)} end at {stamp(frames.time[-1])}"
        )
    return step, inputs


def _at_leads(made: np.ndarray, newest: np.ndarray, step: int, leads: Sequence[int], quantity: str) -> np.ndarray:
    """Give the fields at lead times between those that a model made, along the motion from one to the next.

    Args:
        made: (time, y, x) one, two, ... steps after the newest frame.
        newest: (y, x) the frame.
        step: Seconds.
        leads: Lead times wanted, in seconds.
        quantity: Name of the quantity.
    """
    places = [divmod(lead, step) for lead in leads]
    if all(rest == 0 for _, rest in places):
        whole = [place - 1 for place, _ in places]
        return made if whole == list(range(len(made))) else made[whole]
    fields = [newest, *made]
    return np.stack(
        [
            bridge(fields[place], fields[place + 1], rest / step, quantity=quantity) if rest else fields[place]
            for place, rest in places
        ]
    )


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
    if not model.network.any_step and abs(step - cadence_seconds) > CADENCE_TOLERANCE * step:
        raise ForecastError(f"was trained on a step of {step} s, the feed has {cadence_seconds} s")
    try:
        convert(np.zeros((1, 1, 1), np.float32), quantity, model.quantity or quantity)
    except OptionError:
        raise ForecastError(f"was trained on {model.quantity}, the feed has {quantity}") from None


def _load(name: str, frames: Past, leads: int) -> Model:
    if name not in MODELS:
        path = champion_file(name) if name.startswith(REGISTRY) else checkpoint.find(name)
        return _load_file(path, path.stat().st_mtime_ns)
    if model_class(name).trainable:
        raise ForecastError("is a network: name its checkpoint file")
    least, best = model_class(name).history
    steps = max(least, len(frames.inputs(best)))
    return checkpoint.reference(name, in_steps=steps, out_steps=leads)


@lru_cache(maxsize=8)
def _load_file(path: Path, modified: int) -> Model:
    return checkpoint.load(path, device="cuda" if torch.cuda.is_available() else "cpu", shared=True)


def as_dataset(cube: xr.Dataset, frames: Past, made: Made, leads: Sequence[int]) -> xr.Dataset:
    """Build a Forecast with CF coordinates and its provenance; ``made.model`` is "" where nothing was made."""
    source = cube[frames.quantity]
    reference = frames.time[-1]
    lead_time = np.asarray(leads).astype("timedelta64[s]").astype("timedelta64[ns]")
    dataset = xr.Dataset(
        {frames.quantity: (("lead_time", "y", "x"), made.values, dict(source.attrs) | {"grid_mapping": "crs"})},
        coords={
            "lead_time": ("lead_time", lead_time, {"standard_name": "forecast_period"}),
            "time": ("lead_time", reference + lead_time, {"standard_name": "time"}),
            "forecast_reference_time": ((), reference, {"standard_name": "forecast_reference_time"}),
            **Grid.of(cube).coordinates(),
        },
    )
    dataset[frames.quantity].encoding["quantum"] = get_quantity(frames.quantity).resolution
    created = np.datetime64(datetime.now(UTC).replace(tzinfo=None), "s")
    inputs = provenance.write(made.inputs)
    dataset.attrs = {
        "Conventions": "CF-1.10, ACDD-1.3",
        "title": f"{get_quantity(frames.quantity).long_name} nowcast",
        "source": f"{made.model} (nowcast {code_version()})" if made.model else "withheld",
        "model": made.model,
        "checkpoint": made.digest,
        "input_frames": inputs,
        "bridged": " ".join(provenance.bridged(inputs)),
        "snapshot": str(cube.attrs.get("snapshot", "")),
        "date_created": f"{created}Z",
        "license": str(cube.attrs.get("licence", "")),
        "history": f"{created}Z made from {cube.attrs.get('title', 'radar frames')}",
    }
    return dataset
