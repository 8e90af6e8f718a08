"""Compare two models by their sums of scores on the same runs and pixels.

Runs close in time see the same rain, so the confidence interval of a difference is bootstrapped from whole blocks of
time. Where it excludes zero, and there are enough runs and blocks, the one model is better or worse; else the
outcome is ``cannot tell yet``.
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
from nowcast.verification.scores import LOWER_IS_BETTER, derive

BETTER, WORSE, UNKNOWN = "better", "worse", "cannot tell yet"
EVENTS = {"csi", "ets", "hss"}
"""Scores that depend on a threshold."""
MOST_RUNS = 100_000
"""Where a decision needs more runs than this, a year of five-minute cycles, the models count as equal."""
TABLE_SCORES = ("csi", "mse")
"""Scores of the table by lead time."""


@dataclass(frozen=True)
class Pair:
    """The sums (window, lead_time, threshold) of two models, zero where not scored on the same pixels."""

    first: xr.Dataset
    second: xr.Dataset
    blocks: np.ndarray
    """Block of time of every window, (window)."""
    left_out: int = 0
    """Forecast frames of common runs scored against different observations, or on different numbers of pixels."""


@dataclass(frozen=True)
class Comparison:
    """A challenger judged against another model."""

    challenger: str
    against: str
    outcome: str
    """``better``, ``worse`` or ``cannot tell yet``."""
    criterion: str
    """Score, lead times and confidence of the comparison, in words."""
    value: float
    """Score of the challenger minus that of the other model; NaN where nothing was scored."""
    low: float
    high: float
    runs: int
    blocks: int
    """Blocks of time in which the score is defined."""
    pixels: int
    left_out: int
    more: float | None
    """Estimated number of further runs until the outcome is known; None where there is no difference so far."""
    by_lead: xr.Dataset | None = None
    """Differences (estimate, lead_time[, threshold]) of CSI and MSE, and the pixels ``n`` behind them."""

    @property
    def conclusion(self) -> str:
        """The outcome, and how many runs are missing where it is not known yet."""
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
        if self.more > MOST_RUNS:
            return "they are all but equal"
        digits = 10 ** max(0, len(str(int(self.more))) - 2)
        return f"needs about {math.ceil(self.more / digits) * digits} more runs"

    @property
    def facts(self) -> dict[str, object]:
        """The figures kept in the journal, with None for NaN, which JSON does not have."""
        names = ("against", "criterion", "value", "low", "high", "runs", "blocks", "pixels", "left_out", "more")
        values = {"says": self.outcome} | {name: getattr(self, name) for name in names}
        return {name: None if value != value else value for name, value in values.items()}

    def rows(self) -> list[dict[str, str]]:
        """Return the table by lead time: every difference with its interval."""
        table = self.by_lead
        return [] if table is None else [_row(table.isel(lead_time=at)) for at in range(table.sizes["lead_time"])]


def assess(challenger: str, against: str, pair: Pair | None, *, rules: Promotion) -> Comparison:
    """Compare the second model of a pair with the first.

    Args:
        challenger: Name of the second model.
        against: Name of the first model.
        pair: Their sums; None where they have no run in common.
        rules: Score, threshold, lead times and confidence.

    Raises:
        ConfigError: If nothing was scored at the threshold or the lead times of the rules.
    """
    if pair is None:
        nan, rule = float("nan"), f"{rules.score.upper()}, no run in common"
        return Comparison(challenger, against, UNKNOWN, rule, nan, nan, nan, 0, 0, 0, 0, float(rules.least_runs))
    first, second = (_select(sums, rules) for sums in (pair.first, pair.second))
    names, over = [rules.score], ["lead_time"]
    found = differences(first, second, names, blocks=pair.blocks, over=over, level=rules.confidence)[rules.score]
    value, low, high = map(float, found.values)
    scored = np.any([derive(sums, names, over=over)[rules.score].notnull() for sums in (first, second)], axis=0)
    runs, blocks = int((first["n"].sum("lead_time") > 0).sum()), np.unique(pair.blocks[scored]).size
    more = _missing_runs(value, low, high, runs, blocks, rules)
    return Comparison(
        challenger,
        against,
        _outcome(value, more, rules),
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


def _select(sums: xr.Dataset, rules: Promotion) -> xr.Dataset:
    """Select the lead times of the rules, and the threshold where their score depends on one."""
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


def _missing_runs(value: float, low: float, high: float, runs: int, blocks: int, rules: Promotion) -> float | None:
    """Estimate how many more runs a decision needs: an interval shrinks with the square root of their number."""
    wanted = max(rules.least_runs, runs * rules.least_blocks / max(blocks, 1))
    if low > 0 or high < 0:
        return max(0.0, wanted - runs)
    if not value or math.isnan(value + low + high):
        return wanted - runs if wanted > runs else None
    reach = value - low if value > 0 else high - value
    return max(wanted, runs * (reach / value) ** 2 + 1) - runs


def _outcome(value: float, more: float | None, rules: Promotion) -> str:
    """Return the outcome of a difference, unknown as long as runs are missing."""
    if more is None or more > 0:
        return UNKNOWN
    return BETTER if (value > 0) != (rules.score in LOWER_IS_BETTER) else WORSE


def _by_lead(pair: Pair, rules: Promotion) -> xr.Dataset:
    found = differences(pair.first, pair.second, TABLE_SCORES, blocks=pair.blocks, level=rules.confidence)
    return found.assign(n=pair.first["n"].sum("window"))


def _row(table: xr.Dataset) -> dict[str, str]:
    """Format one lead time as a row of the table."""
    row = {"lead min": f"{float(table['lead_time'] / np.timedelta64(1, 'm')):g}"}
    for place, limit in enumerate(table["threshold"].values):
        row[f"CSI≥{limit:g}"] = _interval(*table["csi"].isel(threshold=place).values)
    return row | {"MSE": _interval(*table["mse"].values), "n": f"{int(table['n']):,}"}


def _interval(value: float, low: float, high: float) -> str:
    if value != value:
        return "–"
    return f"{value:+.3g}" if low != low else f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"
