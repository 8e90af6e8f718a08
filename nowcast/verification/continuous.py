"""Continuous scores: how far is the forecast from the observation?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

LARGE = 1e15
"""Errors beyond it are squared in double precision."""


def errors(forecast: np.ndarray, observed: np.ndarray) -> dict[str, np.ndarray]:
    """Sum the errors over the pixels where both fields are finite.

    Args:
        forecast: (lead, y, x), NaN = no data.
        observed: The same shape and unit.

    Returns:
        int64 ``n``, float64 ``squared_error``, ``absolute_error`` and ``error`` (forecast - observed),
        all of shape (lead,).
    """
    rows = [_errors(*pair) for pair in zip(forecast, observed, strict=True)]
    n, *totals = np.asarray(rows, np.float64).reshape(-1, 4).T
    names = ("squared_error", "absolute_error", "error")
    return {"n": n.astype(np.int64)} | dict(zip(names, totals, strict=True))


def _errors(forecast: np.ndarray, observed: np.ndarray) -> tuple[int, float, float, float]:
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = forecast - observed
    missing = ~np.isfinite(difference)
    difference[missing] = 0
    # Float32 sums would lose digits over a million pixels, and squares of large float32 numbers overflow.
    largest = max(-float(difference.min(initial=0)), float(difference.max(initial=0)))
    squares = np.square(difference, dtype=np.float64 if largest > LARGE else None)
    totals = (part.sum(dtype=np.float64) for part in (squares, np.abs(difference), difference))
    return difference.size - np.count_nonzero(missing), *totals


def _mean(scores: xr.Dataset, name: str, over: Sequence[str]) -> xr.DataArray:
    pooled = scores[[name, "n"]].sum(over)
    return pooled[name] / pooled["n"].where(pooled["n"] > 0)


def mse(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Mean squared error: per pixel, in the unit of the quantity squared; NaN where nothing was compared."""
    return _mean(scores, "squared_error", over)


def mae(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Mean absolute error: per pixel, in the unit of the quantity; NaN where nothing was compared."""
    return _mean(scores, "absolute_error", over)


def mean_error(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Mean error: forecast minus observed per pixel, in the unit of the quantity; positive means overforecasting."""
    return _mean(scores, "error", over)
