"""Scores: sums are stored, ratios are derived on reading.

``sums`` compares arrays and returns what a Scores store keeps: counts and sums that may be added over
runs, days or regions. ``derive`` turns a Scores Dataset into ratios, after adding up the dimensions it
is given, so that many dry runs do not outweigh one wet run.

To add a score, write one function and one line in ``SCORES``: ``name(scores, *, over) -> xr.DataArray``, NaN where
it is undefined. The first words of its docstring, up to the colon, are its name on charts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import xarray as xr

from nowcast.core.errors import OptionError, ShapeError
from nowcast.core.units import Scaling
from nowcast.verification.categorical import counts
from nowcast.verification.continuous import errors
from nowcast.verification.ssim import similarity

SCORES = {
    "csi": "categorical:csi",
    "pod": "categorical:pod",
    "far": "categorical:far",
    "bias": "categorical:bias",
    "ets": "categorical:ets",
    "hss": "categorical:hss",
    "mse": "continuous:mse",
    "mae": "continuous:mae",
    "mean_error": "continuous:mean_error",
    "ssim": "ssim:ssim",
    "lpips": "lpips:mean_lpips",
}

LOWER_IS_BETTER = {"mse", "mae", "lpips"}
"""Scores of which lower values are better."""

__all__ = ["LOWER_IS_BETTER", "SCORES", "derive", "floored", "per_model", "score", "sums", "title"]


def sums(
    forecast: np.ndarray, observed: np.ndarray, *, thresholds: Sequence[float], scaling: Scaling
) -> dict[str, np.ndarray]:
    """Compute everything that a Scores store keeps of some frames, over the pixels where neither field is missing.

    Args:
        forecast: (y, x) or (lead, y, x) in physical units; NaN, and whatever is not finite, is no data.
        observed: The same, valid at the same times.
        thresholds: In the unit of the fields, increasing; an event is a value at or above one.
        scaling: Maps the fields to [0, 1] for SSIM.

    Returns:
        int64 ``hits``, ``misses``, ``false_alarms``, ``correct_negatives`` ([lead,] threshold); int64 ``n``
        and float64 ``squared_error``, ``absolute_error``, ``error`` ([lead]); float64 ``ssim``, 0 where no
        window is complete, and int64 ``frames``, 1 where one is ([lead]).

    Raises:
        ShapeError: If the shapes differ or have another number of dimensions.
        OptionError: If the thresholds do not increase.
    """
    forecast, observed = np.asarray(forecast, np.float32), np.asarray(observed, np.float32)
    if forecast.ndim not in (2, 3) or forecast.shape != observed.shape:
        shapes = f"{forecast.shape} and {observed.shape}"
        raise ShapeError(f"Expected two ([lead,] y, x) arrays of one shape, got {shapes}.")
    forecast, observed = (np.where(np.isfinite(field), field, np.float32(np.nan)) for field in (forecast, observed))
    leads, frame = forecast.shape[:-2], forecast.shape[-2:]
    fields = forecast.reshape(-1, *frame), observed.reshape(-1, *frame)
    scaled = (scaling.encode(field) for field in fields)
    table = counts(*fields, thresholds=thresholds) | errors(*fields) | similarity(*scaled, data_range=1.0)
    return {name: values.reshape(leads + values.shape[1:]) for name, values in table.items()}


def floored(field: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Clip a field at the low end of a linear scale: the value below it that means "no echo" depends on the source."""
    return np.maximum(field, np.float32(scaling.low)) if scaling.kind == "linear" else field


def score(name: str) -> Callable[..., xr.DataArray]:
    """Return the function that computes a score.

    Raises:
        OptionError: If it is unknown; the message lists the known ones.
    """
    if name not in SCORES:
        raise OptionError(f"Unknown score {name!r}; known: {', '.join(SCORES)}.")
    module, _, function = SCORES[name].partition(":")
    found: Callable[..., xr.DataArray] = getattr(import_module(f"nowcast.verification.{module}"), function)
    return found


def title(name: str) -> str:
    """Return the name of a score on charts, such as ``Critical success index``."""
    return (score(name).__doc__ or name).partition(":")[0]


def derive(scores: xr.Dataset, names: Sequence[str], *, over: Sequence[str]) -> xr.Dataset:
    """Add up counts and sums over some dimensions, then divide.

    Args:
        scores: A Scores Dataset.
        names: Keys of ``SCORES``.
        over: Dimensions to add up first, for example ``("run",)``; ``()`` adds up nothing.

    Returns:
        One variable per name and ``n``, the pixels compared; the attribute ``pooling`` states the rule.
    """
    values = {name: score(name)(scores, over=over) for name in names}
    values["n"] = scores["n"].sum([dim for dim in over if dim in scores["n"].dims])
    rule = f"sums over {', '.join(over)}, then ratios" if over else "no pooling"
    return xr.Dataset(values, attrs={"pooling": rule})


def per_model(scores: xr.Dataset) -> xr.Dataset:
    """Add up the runs of each model: the dimension ``run`` becomes ``model``.

    Runs that a fallback made count neither for the product's own model nor for the fallback, which
    is scored on its own runs. The new variable ``runs`` (model, lead_time) says how many were scored.
    """
    own = scores.isel(run=np.flatnonzero(scores["state"].values == "ok"))
    return own.assign(runs=(own["n"] > 0).astype(np.int64)).groupby("model").sum("run")
