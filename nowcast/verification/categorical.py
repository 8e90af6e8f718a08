"""Categorical scores: was a threshold reached, and was it forecast to be?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from nowcast.core.errors import OptionError

COUNTS = ["hits", "misses", "false_alarms", "correct_negatives"]


def counts(forecast: np.ndarray, observed: np.ndarray, *, thresholds: Sequence[float]) -> dict[str, np.ndarray]:
    """Count the contingency tables of every lead time and threshold, int64 (lead, threshold).

    Args:
        forecast: float32 (lead, y, x), NaN = no data.
        observed: The same shape; only pixels where neither is missing count.
        thresholds: Increasing; an event is a value at or above one. They are compared in float32, as
            the fields are: 0.7 stored as float32 reaches the threshold 0.7.

    Raises:
        OptionError: If the thresholds do not increase.
    """
    limits = np.asarray(thresholds, np.float32)
    if (np.diff(limits) <= 0).any():
        raise OptionError(f"Thresholds must increase: {list(thresholds)}.")
    joint = np.stack([_joint(*pair, limits) for pair in zip(forecast, observed, strict=True)])
    # reached[i, j]: pixels observed at or above limit i and forecast at or above limit j (0 = any value).
    reached = joint[:, ::-1, ::-1].cumsum(1).cumsum(2)[:, ::-1, ::-1]
    hits = np.diagonal(reached, axis1=1, axis2=2)[:, 1:]
    seen, warned, total = reached[:, 1:, 0], reached[:, 0, 1:], reached[:, :1, 0]
    tables = (hits, seen - hits, warned - hits, total - seen - warned + hits)
    return dict(zip(COUNTS, tables, strict=True))


def _joint(forecast: np.ndarray, observed: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Count the pixels of each (observed class, forecast class); one pass serves all thresholds."""
    size = limits.size + 1
    pair = _classes(observed, limits) * np.int32(size) + _classes(forecast, limits)
    pair[np.isnan(forecast) | np.isnan(observed)] = size * size
    return np.bincount(pair.ravel(), minlength=size * size + 1)[:-1].reshape(size, size)


def _classes(field: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Count the limits that each pixel reaches; for so few, comparing one by one is faster than a search."""
    reached = np.zeros(field.shape, np.int32)
    for limit in limits:
        reached += field >= limit
    return reached


def _pooled(scores: xr.Dataset, over: Sequence[str]) -> tuple[xr.DataArray, ...]:
    """Add up hits, misses, false alarms and correct negatives, in float64 because products of counts overflow."""
    pooled = scores[COUNTS].sum(over).astype(np.float64)
    return tuple(pooled[name] for name in COUNTS)


def _ratio(part: xr.DataArray, whole: xr.DataArray) -> xr.DataArray:
    return part / whole.where(whole > 0)


def csi(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Critical success index: of all events observed or forecast, the share that was both.

    Args:
        scores: A Scores Dataset.
        over: Dimensions to add up before dividing.

    Returns:
        Values in [0, 1], 1 is perfect; NaN where no event was observed or forecast.

    Reference: Schaefer (1990), doi:10.1175/1520-0434(1990)005<0570:TCSIAA>2.0.CO;2.
    """
    hits, misses, false_alarms, _ = _pooled(scores, over)
    return _ratio(hits, hits + misses + false_alarms)


def pod(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Probability of detection: of all events observed, the share that was forecast; [0, 1], 1 is perfect."""
    hits, misses, _, _ = _pooled(scores, over)
    return _ratio(hits, hits + misses)


def far(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """False alarm ratio: of all events forecast, the share that was not observed; [0, 1], 0 is perfect."""  # noqa: D401
    hits, _, false_alarms, _ = _pooled(scores, over)
    return _ratio(false_alarms, hits + false_alarms)


def bias(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Frequency bias: events forecast over events observed; 1 is perfect, more is overforecasting."""
    hits, misses, false_alarms, _ = _pooled(scores, over)
    return _ratio(hits + false_alarms, hits + misses)


def ets(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Equitable threat score: the CSI without the hits expected by chance; [-1/3, 1], 1 is perfect.

    Reference: Hogan et al. (2010), doi:10.1175/2009WAF2222350.1.
    """
    hits, misses, false_alarms, correct_negatives = _pooled(scores, over)
    rain = hits + misses + false_alarms
    chance = _ratio((hits + misses) * (hits + false_alarms), rain + correct_negatives)
    return _ratio(hits - chance, rain - chance)


def hss(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Heidke skill score: accuracy above that of chance, as a share of the possible gain; [-1, 1], 1 is perfect.

    Reference: Hogan et al. (2010), doi:10.1175/2009WAF2222350.1.
    """
    hits, misses, false_alarms, negatives = _pooled(scores, over)
    chance = (hits + misses) * (misses + negatives) + (hits + false_alarms) * (false_alarms + negatives)
    return _ratio(2 * (hits * negatives - false_alarms * misses), chance)
