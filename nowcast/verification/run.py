"""Matching of forecasts with observations, and the store of their scores.

A forecast frame is scored once its valid time has been observed, on the pixels where neither is missing.
Sums per run, lead time and threshold are stored; ratios are computed on reading (``nowcast.verification.scores``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import xarray as xr

from nowcast.core.cadence import ON_TIME
from nowcast.core.cube import channels, event_labels, utc
from nowcast.core.errors import ConfigError
from nowcast.core.units import get_quantity, possible
from nowcast.store import ForecastStore, FrameStore, Place, ScoreStore
from nowcast.verification import scores as score

RUNS_PER_COMMIT = 64
Pair = tuple[int, int, str]
"""Lead step, position of the observed frame, digest of that frame."""
COUNTS = ("hits", "misses", "false_alarms", "correct_negatives")
SUMS = ("n", "squared_error", "absolute_error", "error", "ssim", "frames", "lpips", "lpips_frames")
INTEGERS = ("n", "frames", "lpips_frames")


def verify(
    store: Place,
    forecasts: Place,
    scores: Place,
    *,
    thresholds: Sequence[float] | None = None,
    since: datetime | None = None,
    lpips: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Score every forecast frame that can be scored and is not yet.

    Args:
        store: Cube store, or its path.
        forecasts: Forecast store, or its path.
        scores: Score store, or its path; made if it does not exist.
        thresholds: In the quantity's unit; None: the quantity's own. A score store keeps those it was made with.
        since: Only runs from this reference time on, UTC; None: all.
        lpips: Compute the perceptual distance too; needs its weights, and a second per frame on a CPU.
        progress: Called with runs done, runs in all, name of the score store.

    Returns:
        Number of forecast frames scored now.

    Raises:
        StoreError: If there are no frames or no forecasts, or scores cannot be written.
        ConfigError: If the score store has other thresholds.
    """
    observed, runs, scores = FrameStore.of(store).read(), ForecastStore.of(forecasts).read(), ScoreStore.of(scores)
    name = channels(runs)[0]
    with scores.writing():
        limits = _limits(scores, name, thresholds)
        _add_rows(runs, scores, limits, since)
        total = 0
        if scores.exists():
            _forget_older_versions(runs, scores)
        rows = _pending(runs, observed, scores.read()) if scores.exists() else []
        for start in range(0, len(rows), RUNS_PER_COMMIT):
            batch = rows[start : start + RUNS_PER_COMMIT]
            total += _score_batch(batch, runs[name], observed[name], scores, limits, lpips=lpips)
            if progress:
                progress(min(start + RUNS_PER_COMMIT, len(rows)), len(rows), str(scores))
    return total


def _limits(scores: ScoreStore, name: str, thresholds: Sequence[float] | None) -> np.ndarray:
    if scores.exists():
        there = scores.labels("threshold")["threshold"]
        if thresholds is not None and not np.array_equal(there, thresholds):
            raise ConfigError(
                f"{scores} counts events at {there.tolist()}, not {list(thresholds)}; use another score store."
            )
        return there
    return np.asarray(get_quantity(name).thresholds if thresholds is None else thresholds, np.float64)


def _add_rows(runs: xr.Dataset, scores: ScoreStore, limits: np.ndarray, since: datetime | None) -> None:
    """Add an empty row for every run that has none; withheld runs have nothing to score."""
    known = set(keys(scores.read())) if scores.exists() else set()
    started = runs["forecast_reference_time"].values
    recent = np.ones(started.size, bool) if since is None else started >= utc(since)
    made = recent & (runs["producer"].values != "")
    wanted = [index for index, key in enumerate(keys(runs)) if key not in known and made[index]]
    if wanted:
        scores.append(_empty(runs.isel(run=wanted), limits), message=f"Expect {len(wanted)} runs")


def _empty(runs: xr.Dataset, limits: np.ndarray) -> xr.Dataset:
    shape = (runs.sizes["run"], runs.sizes["lead_time"], limits.size)
    table: dict[str, tuple[Any, ...]] = {
        name: (("run", "lead_time", "threshold"), np.zeros(shape, np.int64)) for name in COUNTS
    }
    for name in SUMS:
        kind = np.int64 if name in INTEGERS else np.float64
        table[name] = (("run", "lead_time"), np.zeros(shape[:2], kind))
    table["observed_digest"] = (("run", "lead_time"), np.full(shape[:2], "", object))
    coords = _labels(runs)
    unit = get_quantity(channels(runs)[0]).unit
    return xr.Dataset(
        table,
        coords=coords
        | {"lead_time": runs["lead_time"].drop_vars("time", errors="ignore").variable}
        | {"threshold": ("threshold", limits, {"units": unit})},
        attrs={
            "title": "Verification sums",
            "quantity": channels(runs)[0],
            "event": "value >= threshold",
            "ssim_on": "the quantity scaled to [0, 1]",
        },
    )


def _labels(runs: xr.Dataset) -> dict[str, tuple[str, np.ndarray]]:
    """Return what a row of scores says of its run."""
    names = ("forecast_reference_time", "sequence", "model", "producer", "state")
    return {name: ("run", runs[name].values) for name in names} | {"version": ("run", versions(runs))}


def versions(table: xr.Dataset) -> np.ndarray:
    """Give the version of every run; what was made before they were counted is the first."""
    there = table["version"].values if "version" in table.coords else np.zeros(table.sizes["run"], np.int64)
    counted: np.ndarray = np.maximum(there, 1).astype(np.int64)
    return counted


def _forget_older_versions(runs: xr.Dataset, scores: ScoreStore) -> None:
    """Empty the rows of forecasts that were made again since: scores belong to the newest version."""
    if (versions(runs) == 1).all():
        return
    table, newest = scores.read(), dict(zip(keys(runs), versions(runs).tolist(), strict=True))
    place = {key: row for row, key in enumerate(keys(runs))}
    for row, (key, version) in enumerate(zip(keys(table), versions(table).tolist(), strict=True)):
        if newest.get(key, version) > version:
            empty = _empty(runs.isel(run=[place[key]]), table["threshold"].values)
            scores.replace(empty, at=row, message="A forecast was made again")


def _pending(runs: xr.Dataset, observed: xr.Dataset, table: xr.Dataset) -> list[tuple[int, int, list[Pair]]]:
    """Find what can be scored now: (row in scores, row in runs, pairs of forecast and observed frames).

    A frame that was corrected since it was scored is scored again.
    """
    place = {key: index for index, key in enumerate(keys(runs))}
    find = _finder(observed)
    leads, scored = runs["lead_time"].values, table["observed_digest"].values
    seen = observed["digest"].values if "digest" in observed.coords else observed["time"].values.astype(str)
    rows = []
    for row, key in enumerate(keys(table)):
        valid = [(lead, find((key[0] + step, key[1]))) for lead, step in enumerate(leads)]
        pairs = [
            (lead, index, seen[index])
            for lead, index in valid
            if index is not None and scored[row, lead] != seen[index]
        ]
        if pairs and key in place:
            rows.append((row, place[key], pairs))
    return rows


def _finder(observed: xr.Dataset) -> Callable[[tuple[np.datetime64, str]], int | None]:
    """Make the function that finds the observed frame of a (time, event).

    Frames of a live feed may be early or late by a share of their step, as those that forecasts start from.
    """
    stamps = observed["time"].values
    exact = {key: index for index, key in enumerate(zip(stamps, event_labels(observed), strict=True))}
    if "step" not in observed.coords:
        return exact.get
    slack = (1e9 * ON_TIME * observed["step"].values).astype("timedelta64[ns]")

    def nearest(key: tuple[np.datetime64, str]) -> int | None:
        if key in exact:
            return exact[key]
        after = int(np.searchsorted(stamps, key[0]))
        near = [index for index in (after - 1, after) if 0 <= index < stamps.size]
        best = min(near, key=lambda index: abs(stamps[index] - key[0]), default=None)
        return best if best is not None and abs(stamps[best] - key[0]) <= slack[best] else None

    return nearest


def _score_batch(
    rows: list[tuple[int, int, list[Pair]]],
    forecast: xr.DataArray,
    observed: xr.DataArray,
    scores: ScoreStore,
    limits: np.ndarray,
    *,
    lpips: bool,
) -> int:
    """Score some runs, write them in one commit, and count the frames."""
    first, last = min(row for row, *_ in rows), max(row for row, *_ in rows)
    table = scores.read().isel(run=slice(first, last + 1)).load()
    count = 0
    for row, run, pairs in rows:
        for lead, sums in _frame_sums(run, pairs, forecast, observed, limits, lpips=lpips):
            count += 1
            for name, value in sums.items():
                table[name].values[row - first, lead] = value
    scores.replace(table, at=slice(first, last + 1), message=f"Score {count} frames")
    return count


def _frame_sums(
    run: int, pairs: list[Pair], forecast: xr.DataArray, observed: xr.DataArray, limits: np.ndarray, *, lpips: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    scaling = get_quantity(str(forecast.name)).scaling
    for lead, frame, digest in pairs:
        made, seen = forecast[run, lead].values, observed[frame].values
        # archives that were made before readers took such values out may hold them
        made, seen = (possible(field[None], str(forecast.name))[0][0] for field in (made, seen))
        made, seen = (score.floored(field, scaling) for field in (made, seen))
        sums: dict[str, Any] = dict(score.sums(made, seen, thresholds=limits.tolist(), scaling=scaling))
        sums["observed_digest"] = digest
        if lpips:
            from nowcast.verification.lpips import distance_sums  # imports torch, so only on request

            sums |= distance_sums(made, seen, scaling=scaling)
        yield lead, sums


def keys(table: xr.Dataset) -> list[tuple[np.datetime64, str, str]]:
    """List the key of every run: (reference time, sequence, model)."""
    names = ("forecast_reference_time", "sequence", "model")
    return list(zip(*(table[name].values for name in names), strict=True))
