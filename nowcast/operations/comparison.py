"""Is one model better than another? From sums of scores on the same runs and pixels, in words.

Runs close in time see the same rain, so the interval of a difference is drawn from whole blocks of time; where it
holds no zero, and rests on enough runs and blocks, the one model is better or worse, else it cannot be told yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from nowcast.config import Promotion
from nowcast.core.errors import ConfigError
from nowcast.core.units import UNIT_SIGNS
from nowcast.verification.bootstrap import differences
from nowcast.verification.scores import derive

BETTER, WORSE, UNKNOWN = "better", "worse", "cannot tell yet"
ERRORS = {"mse", "mae"}
"""Scores of which less is better."""
EVENTS = {"csi", "ets", "hss"}
"""Scores that depend on a threshold."""
OUT_OF_SIGHT = 100_000
"""More runs than this are as good as never: a year of five-minute cycles."""
SHOWN = ("csi", "mse")
"""Scores of the table by lead time."""


@dataclass(frozen=True)
class Pair:
    """The sums (window, lead_time, threshold) of two models, zero where they were not scored alike."""

    first: xr.Dataset
    second: xr.Dataset
    blocks: np.ndarray
    """(window) the block of time that each lies in."""
    left_out: int = 0
    """Forecast frames of common runs that were not scored alike."""


@dataclass(frozen=True)
class Comparison:
    """A challenger judged against another model."""

    challenger: str
    against: str
    outcome: str
    """``better``, ``worse`` or ``cannot tell yet``."""
    criterion: str
    """What was compared, in words."""
    value: float
    """Challenger minus the other; NaN where nothing was scored."""
    low: float
    high: float
    runs: int
    blocks: int
    """Blocks of time with something to score."""
    pixels: int
    left_out: int
    more: float | None
    """Runs that it takes besides, about; None where there is no difference to go by."""
    by_lead: xr.Dataset | None = None
    """Differences (estimate, lead_time[, threshold]) of CSI and MSE, and the pixels ``n`` behind them."""

    @property
    def conclusion(self) -> str:
        """What it says, and what is missing where it cannot tell."""
        return f"{UNKNOWN}, {self._needs}" if self.outcome == UNKNOWN else self.outcome

    def __str__(self) -> str:
        support = f"{self.runs} runs in {self.blocks} blocks, {self.pixels:,} pixels"
        return (
            f"{self.challenger} against {self.against}: {self.conclusion}; {self.criterion}: "
            f"{_interval(self.value, self.low, self.high)}, {support}"
        )

    @property
    def _needs(self) -> str:
        if self.more is None:
            return "they do not differ so far"
        if self.more > OUT_OF_SIGHT:
            return "they are all but equal"
        digits = 10 ** max(0, len(str(int(self.more))) - 2)
        return f"needs about {math.ceil(self.more / digits) * digits} more runs"

    @property
    def facts(self) -> dict[str, object]:
        """What is kept of it as JSON, which has no NaN."""
        names = ("against", "criterion", "value", "low", "high", "runs", "blocks", "pixels", "left_out", "more")
        values = {"says": self.outcome} | {name: getattr(self, name) for name in names}
        return {name: None if value != value else value for name, value in values.items()}

    def rows(self) -> list[dict[str, str]]:
        """The table by lead time: every difference with its interval."""
        table = self.by_lead
        return [] if table is None else [_row(table.isel(lead_time=at)) for at in range(table.sizes["lead_time"])]


def assess(challenger: str, against: str, pair: Pair | None, *, rules: Promotion) -> Comparison:
    """Weighs the second model of a pair against the first.

    Args:
        challenger: Name of the second.
        against: Name of the first.
        pair: Their sums; None where they have no run in common.
        rules: Score, threshold, lead times, and how sure one must be.

    Raises:
        ConfigError: If nothing was scored at the threshold or the lead times of the rules.
    """
    if pair is None:
        nan, rule = float("nan"), f"{rules.score.upper()}, no run in common"
        return Comparison(challenger, against, UNKNOWN, rule, nan, nan, nan, 0, 0, 0, 0, float(rules.least_runs))
    first, second = (_chosen(sums, rules) for sums in (pair.first, pair.second))
    names, over = [rules.score], ["lead_time"]
    found = differences(first, second, names, blocks=pair.blocks, over=over, level=rules.confidence)[rules.score]
    value, low, high = map(float, found.values)
    scored = np.any([derive(sums, names, over=over)[rules.score].notnull() for sums in (first, second)], axis=0)
    runs, blocks = int((first["n"].sum("lead_time") > 0).sum()), np.unique(pair.blocks[scored]).size
    more = _more(value, low, high, runs, blocks, rules)
    outcome = UNKNOWN if more is None or more > 0 else BETTER if (value > 0) != (rules.score in ERRORS) else WORSE
    return Comparison(
        challenger,
        against,
        outcome,
        _criterion(first, rules),
        value,
        low,
        high,
        runs,
        blocks,
        int(first["n"].sum()),
        pair.left_out,
        more,
        _by_lead(pair, rules),
    )


def _chosen(sums: xr.Dataset, rules: Promotion) -> xr.Dataset:
    """The lead times of the rules, and the threshold where their score has one."""
    minutes = sums["lead_time"].values / np.timedelta64(1, "m")
    last = np.inf if rules.last_lead_minutes is None else rules.last_lead_minutes
    inside = np.flatnonzero((minutes >= rules.first_lead_minutes) & (minutes <= last))
    if not inside.size:
        raise ConfigError(
            f"promotion: no lead time from {rules.first_lead_minutes:g} to {last:g} minutes is scored; "
            f"scored are {minutes[0]:g} to {minutes[-1]:g}."
        )
    sums = sums.isel(lead_time=inside)
    if rules.score not in EVENTS:
        return sums
    limits = sums["threshold"].values
    wanted = limits[:1] if rules.threshold is None else [rules.threshold]
    place = np.flatnonzero(np.isclose(limits, wanted)) if limits.size else limits
    if not place.size:
        known = ", ".join(f"{limit:g}" for limit in limits) or "none"
        raise ConfigError(f"promotion.threshold: {rules.threshold} is not scored; scored are {known}.")
    return sums.isel(threshold=place[0])


def _criterion(sums: xr.Dataset, rules: Promotion) -> str:
    first, last = sums["lead_time"].values[[0, -1]] / np.timedelta64(1, "m")
    unit = sums["threshold"].attrs.get("units", "")
    limit = f"≥{float(sums['threshold']):g} {UNIT_SIGNS.get(unit, unit)}".rstrip() if rules.score in EVENTS else ""
    return (
        f"{rules.score.upper()}{limit} of {first:g} to {last:g} min, sums over runs and leads, then ratios, "
        f"{100 * rules.confidence:g} % from blocks of {rules.block_minutes:g} min"
    )


def _more(value: float, low: float, high: float, runs: int, blocks: int, rules: Promotion) -> float | None:
    """An interval shrinks with the square root of the number of runs."""
    wanted = max(rules.least_runs, runs * rules.least_blocks / max(blocks, 1))
    if low > 0 or high < 0:
        return max(0.0, wanted - runs)
    if not value or math.isnan(value + low + high):
        return wanted - runs if wanted > runs else None
    reach = value - low if value > 0 else high - value
    return max(wanted, runs * (reach / value) ** 2 + 1) - runs


def _by_lead(pair: Pair, rules: Promotion) -> xr.Dataset:
    found = differences(pair.first, pair.second, SHOWN, blocks=pair.blocks, level=rules.confidence)
    return found.assign(n=pair.first["n"].sum("window"))


def _row(table: xr.Dataset) -> dict[str, str]:
    """One lead time as text."""
    row = {"lead min": f"{float(table['lead_time'] / np.timedelta64(1, 'm')):g}"}
    for place, limit in enumerate(table["threshold"].values):
        row[f"CSI≥{limit:g}"] = _interval(*table["csi"].isel(threshold=place).values)
    return row | {"MSE": _interval(*table["mse"].values), "n": f"{int(table['n']):,}"}


def _interval(value: float, low: float, high: float) -> str:
    if value != value:
        return "–"
    return f"{value:+.3g}" if low != low else f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"
