"""The table, the CSV file and the figure of a benchmark, from estimates of scores and costs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.benchmark import protocols
from nowcast.plotting.charts import leaderboard_chart
from nowcast.verification.bootstrap import ESTIMATES
from nowcast.verification.scores import LOWER_IS_BETTER

TABLE, NUMBERS, FIGURE = "leaderboard.md", "leaderboard.csv", "leaderboard.png"
NO_VALUE = "–"
HALF_MINUTE = 0.5
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda value: f"{value / 1e6:.3g} M" if value else "0"),
    "macs": ("GMACs", lambda value: f"{value / 1e9:.3g}"),
    "milliseconds": ("ms", lambda value: f"{value:.3g}"),
    "steps": ("best at step", lambda value: f"{value:.0f}"),
    "gpu_hours": ("GPU-h", lambda value: f"{value:.2g}"),
    "cpu_hours": ("CPU-h", lambda value: f"{value:.2g}"),
    "peak_memory_bytes": ("GPU GiB", lambda value: f"{value / 2**30:.3g}"),
}
"""Cost -> heading and format of its column, which is shown where any model has a value."""


@dataclass(frozen=True)
class Row:
    """One model in the table."""

    name: str
    learned: bool
    """False for the references."""
    by_lead: xr.Dataset | None = None
    """Estimates (estimate, lead_time[, threshold]); None where every training failed."""
    overall: xr.Dataset | None = None
    """The same, pooled over the lead times."""
    gains: Mapping[str, xr.Dataset] = field(default_factory=dict)
    """For a network: its scores minus those of each reference, (estimate, lead_time[, threshold])."""
    costs: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    """What failed and why."""
    measured: Mapping[str, xr.Dataset] = field(default_factory=dict)
    """Measurements (lead_time[, limit]) by protocol, see ``nowcast.verification.published``."""
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Figures of published tables by protocol and score."""


def write(folder: Path, rows: Sequence[Row], *, title: str, protocol: Mapping[str, str], note: str) -> Path:
    """Write the table, the CSV file and the figure.

    Args:
        folder: Where they are written.
        rows: Models, in any order; the table lists the best first.
        title: Heading of the table.
        protocol: Aspect of the protocol -> sentence.
        note: Text below the figure.

    Returns:
        Path of the table.
    """
    ordered = ranked(rows)
    (folder / NUMBERS).write_text(_csv(ordered))
    if any(row.measured for row in rows):
        (folder / protocols.NUMBERS).write_text(protocols.numbers(_measured(rows)))
    (folder / TABLE).write_text(markdown(ordered, title=title, protocol=protocol))
    shown = [row for row in rows if row.by_lead is not None]
    if shown:
        parts = [row.by_lead for row in shown if row.by_lead is not None]
        skill = xr.concat(parts, xr.Variable("model", [row.name for row in shown]))
        (folder / FIGURE).write_bytes(leaderboard_chart(skill, learned=[row.learned for row in shown], note=note))
    return folder / TABLE


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Sort by CSI averaged over the thresholds, or by MSE without thresholds; failed models come last."""
    return sorted(rows, key=_rank)


def _rank(row: Row) -> float:
    if row.overall is None:
        return np.inf
    best = row.overall.sel(estimate="value")
    return -float(best["csi"].mean()) if "csi" in best else float(best["mse"])


def markdown(rows: Sequence[Row], *, title: str, protocol: Mapping[str, str]) -> str:
    """Write the table, the failures and the protocol as Markdown."""
    measured = [row for row in rows if row.overall is not None]
    scores = [name for name, _ in _score_cells(measured[0])] if measured else ["skill"]
    costs = [name for name in COSTS if any(name in row.costs for row in measured)]
    header = ["model", *scores, *(COSTS[name][0] for name in costs)]
    lines = [f"# {title}", "", _table_line(header), _table_line(["---", *["--:"] * (len(header) - 1)])]
    for row in rows:
        name = row.name if row.learned else f"*{row.name}*"
        skill = [text for _, text in _score_cells(row)] or ["failed, see below", *[NO_VALUE] * (len(scores) - 1)]
        lines.append(_table_line([name, *skill, *(_cost_cell(row, cost) for cost in costs)]))
    failed = [f"- {_without_pipes(failure)}" for row in rows for failure in row.failures]
    lines += ["", "Failed:", "", *failed] if failed else []
    lines += _lead_time_tables(measured)
    lines += by_protocol(rows)
    lines += ["", "## Protocol", "", *(f"- **{name}**: {sentence}" for name, sentence in protocol.items())]
    return "\n".join(lines) + "\n"


def by_protocol(rows: Sequence[Row]) -> list[str]:
    """Write the tables of protocols as lines of Markdown."""
    return protocols.markdown(_measured(rows))


def _measured(rows: Sequence[Row]) -> list[protocols.Measured]:
    """Collect what was measured by protocols, references first, then the networks in the order of the table."""
    return [(row.name, row.measured, row.figures) for row in sorted(rows, key=lambda row: row.learned)]


def _lead_time_tables(rows: Sequence[Row]) -> list[str]:
    """Write a table per score, one column per lead time; a network's value is bold where it beats all references.

    It does where the whole confidence interval of its difference to each of them lies on the better side.
    """
    lines: list[str] = []
    if not rows or rows[0].by_lead is None:
        return lines
    leads = rows[0].by_lead["lead_time"].values / np.timedelta64(1, "m")
    unit = "minutes" if leads[0] >= HALF_MINUTE else "frames"  # clips without a real step
    leads = leads if unit == "minutes" else np.arange(1.0, leads.size + 1)
    for name, limit, _ in _scores(rows[0].by_lead):
        header = [
            _table_line(["model", *(f"{lead:g}" for lead in leads)]),
            _table_line(["---", *["--:"] * leads.size]),
        ]
        lines += ["", f"## {_heading(name, limit)} by {unit} ahead", "", *header]
        lines += [_table_line([row.name, *_lead_time_cells(row, name, limit)]) for row in rows]
    bold = ["", "Bold: surely better than every reference, by the intervals of the differences."]
    return lines + bold * any(row.gains for row in rows)


def _heading(name: str, limit: float | None) -> str:
    return name.upper() + (f"≥{limit:g}" if limit is not None else "")


def _lead_time_cells(row: Row, name: str, limit: float | None) -> Iterator[str]:
    assert row.by_lead is not None
    values = _select(row.by_lead, name, limit).sel(estimate="value").values
    bounds = [
        _select(gain, name, limit).sel(estimate="high" if name in LOWER_IS_BETTER else "low").values
        for gain in row.gains.values()
    ]
    better = [(bound < 0) if name in LOWER_IS_BETTER else (bound > 0) for bound in bounds]
    sure = np.all(better, axis=0) if better else np.zeros(values.size, bool)
    for value, bold in zip(values, sure, strict=True):
        text = NO_VALUE if np.isnan(value) else f"{value:{_number_format(name)}}"
        yield f"**{text}**" if bold else text


def _select(skill: xr.Dataset, name: str, limit: float | None) -> xr.DataArray:
    return skill[name] if limit is None else skill[name].sel(threshold=limit)


def _number_format(name: str) -> str:
    return ".3g" if name in ("mse", "mae") else ".3f"


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _without_pipes(text: str) -> str:
    return text.replace("|", "/")


def _cost_cell(row: Row, name: str) -> str:
    return COSTS[name][1](row.costs[name]) if name in row.costs else NO_VALUE


def _score_cells(row: Row) -> Iterator[tuple[str, str]]:
    """Iterate over heading and text of every score."""
    if row.overall is None:
        return
    for name, limit, values in _scores(row.overall):
        yield _heading(name, limit), _estimate_cell(name, values)


def _scores(skill: xr.Dataset) -> Iterator[tuple[str, float | None, xr.DataArray]]:
    """Iterate over name, threshold and values (estimate[, lead_time]) of every score."""
    for name, values in skill.data_vars.items():
        limits = skill["threshold"].values.tolist() if "threshold" in values.dims else [None]
        for limit in limits:
            yield str(name), limit, values if limit is None else values.sel(threshold=limit)


def _estimate_cell(name: str, values: xr.DataArray) -> str:
    """Format value, interval and spread over seeds as ``0.412 (0.380–0.441) ±0.004``."""
    style = _number_format(name)
    value, low, high, spread = (float(values.sel(estimate=part)) for part in ESTIMATES)
    if np.isnan(value):
        return NO_VALUE
    interval = "" if np.isnan(low + high) else f" ({low:{style}}–{high:{style}})"
    return f"{value:{style}}{interval}" + ("" if np.isnan(spread) else f" ±{spread:.2g}")


def _csv(rows: Sequence[Row]) -> str:
    """Write all values as CSV: a line per model, score, threshold and lead time, which is empty where pooled."""
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    table.writerow(["model", "score", "threshold", "lead_seconds", *ESTIMATES])
    for row in rows:
        for skill in (row.overall, row.by_lead):
            for name, limit, values in _scores(skill) if skill is not None else ():
                leads = values["lead_time"].values / np.timedelta64(1, "s") if "lead_time" in values.dims else [""]
                columns = values.transpose(..., "estimate").values.reshape(-1, len(ESTIMATES))
                for lead, numbers in zip(leads, columns, strict=True):
                    kept = ["" if np.isnan(number) else repr(number) for number in numbers.tolist()]
                    table.writerow([row.name, name, "" if limit is None else limit, lead, *kept])
        for name, value in row.costs.items():
            table.writerow([row.name, name, "", "", value])
    return content.getvalue()
