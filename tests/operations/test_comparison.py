"""Better, worse, cannot tell yet: worked by hand, and on sums whose difference is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from nowcast.config import Promotion
from nowcast.core.errors import ConfigError
from nowcast.operations.comparison import BETTER, UNKNOWN, WORSE, Comparison, Pair, assess
from nowcast.verification.bootstrap import differences

RULES = Promotion(least_runs=1, least_blocks=2)


def sums(hits: np.ndarray, *, total: int = 100, squared_error: np.ndarray | float = 1.0) -> xr.Dataset:
    """Sums (window, lead_time, threshold) of a model that has ``hits`` of ``total`` at 1 and at 5 mm/h, rest misses."""
    hits = np.asarray(hits, np.int64)
    both = np.stack([hits, hits], -1)
    counts = {"hits": both, "misses": total - both, "false_alarms": 0 * both, "correct_negatives": 0 * both}
    leads = np.arange(1, hits.shape[1] + 1) * np.timedelta64(300, "s")
    table = {name: (("window", "lead_time", "threshold"), values) for name, values in counts.items()}
    flat = {"n": np.full(hits.shape, total), "squared_error": np.broadcast_to(squared_error, hits.shape) * total}
    table |= {name: (("window", "lead_time"), values) for name, values in flat.items()}
    return xr.Dataset(
        table,
        {"lead_time": leads.astype("timedelta64[ns]"), "threshold": ("threshold", [1.0, 5.0], {"units": "mm h-1"})},
    )


def comparison(
    first: np.ndarray,
    second: np.ndarray,
    *,
    rules: Promotion = RULES,
    blocks: np.ndarray | None = None,
    **options: float,
) -> Comparison:
    pair = Pair(sums(first), sums(second, **options), np.arange(len(first)) if blocks is None else blocks)
    return assess("new", "old", pair, rules=rules)


def test_a_difference_of_two_blocks_by_hand() -> None:
    """CSI 0.25 -> 0.50 in the one block, 0.25 -> 0.75 in the other: a draw is one of them twice, or both."""
    found = comparison([[25], [25]], [[50], [75]])
    assert (found.value, found.low, found.high) == (0.375, 0.25, 0.5)
    assert (found.outcome, found.runs, found.blocks, found.pixels, found.more) == (BETTER, 2, 2, 200, 0)
    assert str(found) == (
        "new against old: better; CSI≥1 mm/h of 5 to 5 min, sums over runs and leads, then ratios, "
        "95 % from blocks of 180 min: +0.375 [+0.25, +0.5], 2 runs in 2 blocks, 200 pixels"
    )


def test_the_worse_is_called_worse_and_less_error_is_better() -> None:
    assert comparison([[50], [75]], [[25], [25]]).outcome == WORSE
    error = RULES.model_copy(update={"score": "mse"})
    assert comparison([[50], [50]], [[50], [50]], rules=error, squared_error=0.5).outcome == BETTER
    assert comparison([[50], [50]], [[50], [50]], rules=error, squared_error=2.0).outcome == WORSE


def test_weather_that_is_hard_for_both_widens_nothing() -> None:
    """CSI of 0.1 to 0.9 from block to block, and always 0.02 better: certain, though either alone varies wildly."""
    hard = np.arange(10, 91, 10)[:, None]
    found = comparison(hard, hard + 2)
    assert found.outcome == BETTER
    assert (found.low, found.high) == (pytest.approx(0.02), pytest.approx(0.02))


def test_runs_of_one_block_count_once() -> None:
    first, second = np.full((12, 1), 50), np.where(np.arange(12)[:, None] < 6, 40, 70)
    assert comparison(first, second, blocks=np.arange(12)).blocks == 12
    found = comparison(first, second, blocks=np.arange(12) // 6)
    assert (found.outcome, found.blocks, found.runs) == (UNKNOWN, 2, 12)
    assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(0.2))


def test_how_many_more_runs_it_takes() -> None:
    """0.05 with an interval from -0.1: its lower arm is 0.15, three times too long, so nine times the runs."""
    first, second = np.full((2, 1), 50), np.array([[40], [70]])
    found = comparison(first, second)
    assert (found.value, found.low, found.high) == (pytest.approx(0.05), pytest.approx(-0.1), pytest.approx(0.2))
    assert found.more == pytest.approx(2 * 9 + 1 - 2)
    assert "cannot tell yet, needs about 17 more runs; CSI" in str(found)


def test_few_runs_or_few_blocks_prove_nothing() -> None:
    first, second = np.full((4, 1), 50), np.full((4, 1), 60)
    assert comparison(first, second).outcome == BETTER
    few = comparison(first, second, rules=RULES.model_copy(update={"least_runs": 10}))
    assert (few.outcome, few.more) == (UNKNOWN, 6)
    few = comparison(first, second, rules=RULES.model_copy(update={"least_blocks": 12}))
    assert (few.outcome, few.more) == (UNKNOWN, 8)


def test_equal_models_do_not_differ() -> None:
    found = comparison([[50], [60]], [[50], [60]])
    assert (found.outcome, found.more) == (UNKNOWN, None)
    assert "they do not differ so far" in str(found)


def test_dry_blocks_are_no_evidence_of_events() -> None:
    """Hits of 0 of 0: nothing to score, whatever the number of runs."""
    dry = sums(np.zeros((5, 1)), total=0).assign(n=(("window", "lead_time"), np.full((5, 1), 100)))
    found = assess("new", "old", Pair(dry, dry, np.arange(5)), rules=RULES)
    assert (found.outcome, found.runs, found.blocks) == (UNKNOWN, 5, 0)
    assert "–" in str(found)
    json.dumps(found.facts, allow_nan=False)


def test_without_a_common_run() -> None:
    found = assess("new", "old", None, rules=Promotion())
    assert (found.outcome, found.runs) == (UNKNOWN, 0)
    assert "needs about 100 more runs; CSI, no run in common" in str(found)
    assert found.rows() == []


def test_lead_times_and_threshold_are_chosen() -> None:
    first, second = np.full((3, 2), 50), np.tile([[90, 10]], (3, 1))
    early = RULES.model_copy(update={"last_lead_minutes": 5.0, "threshold": 5.0})
    late = RULES.model_copy(update={"first_lead_minutes": 10.0})
    assert comparison(first, second, rules=early).outcome == BETTER
    assert "CSI≥5 mm/h of 5 to 5 min" in str(comparison(first, second, rules=early))
    assert comparison(first, second, rules=late).outcome == WORSE
    with pytest.raises(ConfigError, match=r"promotion.threshold: 2.0 is not scored; scored are 1, 5"):
        comparison(first, second, rules=RULES.model_copy(update={"threshold": 2.0}))
    with pytest.raises(ConfigError, match="no lead time from 90 to inf minutes is scored; scored are 5 to 10"):
        comparison(first, second, rules=RULES.model_copy(update={"first_lead_minutes": 90.0}))


def test_the_table_by_lead_time() -> None:
    rows = comparison(np.full((3, 2), 50), np.tile([[90, 10]], (3, 1))).rows()
    assert [row["lead min"] for row in rows] == ["5", "10"]
    assert rows[0]["CSI≥1"] == rows[0]["CSI≥5"] == "+0.4 [+0.4, +0.4]"
    assert rows[1]["CSI≥1"].startswith("-0.4")
    assert rows[0]["MSE"] == "+0 [+0, +0]"
    assert rows[0]["n"] == "300"


def test_a_known_difference_is_found_and_its_interval_is_that_of_a_mean() -> None:
    """Differences of 0.02 +- 0.1 from block to block, 400 blocks: 1.96 x 0.1 / 20 to either side."""
    noise = np.random.default_rng(1).normal(0.02, 0.1, 400)
    noise += 0.02 - noise.mean()
    pair = [
        sums(np.full((400, 1), 500_000), total=1_000_000),
        sums(np.rint(1e6 * (0.5 + noise))[:, None], total=1_000_000),
    ]
    value, low, high = differences(*pair, ["csi"], blocks=np.arange(400), over=["lead_time"])["csi"].values[:, 0]
    assert value == pytest.approx(0.02, abs=1e-6)
    assert (high - low) / 2 == pytest.approx(1.96 * noise.std() / 20, rel=0.08)


@pytest.mark.slow
def test_of_equal_models_few_are_called_better() -> None:
    """At 95 %, one in forty either way; drawn blocks are a little too sure of themselves when there are few."""
    random = np.random.default_rng(2)
    said = [
        comparison(50 + random.integers(-9, 10, (40, 1)), 50 + random.integers(-9, 10, (40, 1))).outcome
        for _ in range(100)
    ]
    assert said.count(BETTER) <= 9
    assert said.count(WORSE) <= 9


def test_how_sure_one_must_be_is_a_rule() -> None:
    """Seven blocks are better by 0.05, one is worse by 0.1: that is enough for one who takes one chance in five."""
    first, second = np.full((8, 1), 50), np.array([[55]] * 7 + [[40]])
    wary = comparison(first, second, rules=RULES.model_copy(update={"confidence": 0.95}))
    bold = comparison(first, second, rules=RULES.model_copy(update={"confidence": 0.6}))
    assert (wary.outcome, bold.outcome) == (UNKNOWN, BETTER)
    assert wary.value == bold.value == pytest.approx(0.03125)
    assert wary.low < 0 < bold.low < bold.high
    assert "60 % from blocks" in bold.criterion
    assert bold.rows()[0]["CSI≥1"] != wary.rows()[0]["CSI≥1"]
    drawn = bold.by_lead["csi"].isel(lead_time=0, threshold=0).values  # type: ignore[index]
    assert drawn.tolist() == pytest.approx([bold.value, bold.low, bold.high])


def test_lead_times_that_are_no_whole_minutes_keep_their_fraction() -> None:
    """A step of 345 seconds is 5.75 minutes."""
    lead = {"lead_time": np.array([345], "timedelta64[s]").astype("timedelta64[ns]")}
    pair = Pair(*(sums(hits).assign_coords(lead) for hits in ([[25], [25]], [[50], [75]])), np.arange(2))
    found = assess("new", "old", pair, rules=RULES)
    assert found.rows()[0]["lead min"] == "5.75"
    assert "of 5.75 to 5.75 min" in found.criterion
