"""Uncertainty of pooled scores: from a block bootstrap over windows, and from the spread over training seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from nowcast.verification.scores import derive

DRAWS = 1000
LEVEL = 0.95
"""Confidence level of the intervals."""
ESTIMATES = ("value", "low", "high", "spread")


def estimates(scores: xr.Dataset, names: Sequence[str], *, blocks: np.ndarray, over: Sequence[str] = ()) -> xr.Dataset:
    """Pool scores over all windows and seeds, with their uncertainty.

    Neighbouring windows are correlated, so whole blocks of them are drawn with replacement, ``DRAWS`` times; each
    draw adds sums up before dividing. The draws are the same for every model.

    Args:
        scores: Sums (seed, window, ...) of one model, see ``nowcast.verification.scores.sums``.
        names: Keys of ``SCORES``.
        blocks: (window) which block each belongs to.
        over: Other dimensions to add up before dividing.

    Returns:
        The scores with a dimension ``estimate``: ``value``; ``low`` and ``high``, NaN where there are fewer
        than two blocks or a draw holds no event; ``spread``, the standard deviation over seeds, NaN for one.
    """
    totals = scores.sum("seed")
    value = derive(totals, names, over=("window", *over))
    drawn = derive(_resampled(totals, blocks), names, over=over)
    low, high = (drawn.quantile(share, "draw", skipna=False) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    each = derive(scores, names, over=("window", *over))
    spread = each.std("seed", ddof=1) if scores.sizes["seed"] > 1 else value * np.nan
    parts = [part.drop_vars("quantile", errors="ignore")[list(names)] for part in (value, low, high, spread)]
    return xr.concat(parts, xr.Variable("estimate", list(ESTIMATES)), coords="minimal", compat="override")


def differences(
    first: xr.Dataset,
    second: xr.Dataset,
    names: Sequence[str],
    *,
    blocks: np.ndarray,
    over: Sequence[str] = (),
    level: float = LEVEL,
) -> xr.Dataset:
    """Subtract the pooled scores of one model from those of a second one on the same windows.

    Both use the same draws, so that weather that is difficult for both does not widen the interval.

    Args:
        first: Sums (window, ...) of one model.
        second: Sums of the other, over the same windows and pixels.
        names: Keys of ``SCORES``.
        blocks: (window) which block each belongs to.
        over: Other dimensions to add up before dividing.
        level: Confidence level of the interval.

    Returns:
        Second minus first, with a dimension ``estimate``: ``value``, ``low``, ``high``, see ``estimates``.
    """
    value, drawn = (
        derive(two, names, over=dims) - derive(one, names, over=dims)
        for one, two, dims in (
            (first, second, ("window", *over)),
            (_resampled(first, blocks), _resampled(second, blocks), over),
        )
    )
    low, high = (drawn.quantile(share, "draw", skipna=False) for share in ((1 - level) / 2, (1 + level) / 2))
    parts = [part.drop_vars("quantile", errors="ignore")[list(names)] for part in (value, low, high)]
    return xr.concat(parts, xr.Variable("estimate", list(ESTIMATES[:3])), coords="minimal", compat="override")


def _resampled(totals: xr.Dataset, blocks: np.ndarray) -> xr.Dataset:
    """Draw as many blocks as there are, with replacement, and add their sums up (draw, ...)."""
    number = np.unique(blocks, return_inverse=True)[1]
    count = int(number.max()) + 1
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
    if count == 1:
        times[:] = np.nan  # one block alone says nothing about the variance
    weights = xr.DataArray(times, dims=("draw", "block"))
    return totals.map(lambda sums: weights.dot(_per_block(sums, number, count), dim="block"))


def _per_block(sums: xr.DataArray, number: np.ndarray, count: int) -> xr.DataArray:
    ordered = sums.transpose("window", ...)
    added = np.zeros((count, *ordered.shape[1:]))
    np.add.at(added, number, ordered.values)
    return xr.DataArray(added, ordered[0].coords, ("block", *ordered.dims[1:]))
