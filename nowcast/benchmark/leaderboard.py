"""The table, the numbers and the figure of a benchmark, made of estimates of skill and of costs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.plotting.charts import leaderboard_chart
from nowcast.verification.bootstrap import ESTIMATES

TABLE, NUMBERS, FIGURE = "leaderboard.md", "leaderboard.csv", "leaderboard.png"
NOTHING = "–"
FALLING = {"mse", "mae", "lpips"}
"""Scores of which less is better."""
COSTS = {
    "parameters": ("parameters", lambda value: f"{value / 1e6:.3g} M" if value else "0"),
    "macs": ("GMACs", lambda value: f"{value / 1e9:.3g}"),
    "milliseconds": ("ms", lambda value: f"{value:.3g}"),
    "steps": ("best at step", lambda value: f"{value:.0f}"),
    "gpu_hours": ("GPU-h", lambda value: f"{value:.2g}"),
    "cpu_hours": ("CPU-h", lambda value: f"{value:.2g}"),
    "peak_memory_bytes": ("GPU GiB", lambda value: f"{value / 2**30:.3g}"),
}
"""Heading and format; a column only where some model has it."""


@dataclass(frozen=True)
class Row:
    """A model of the table."""

    name: str
    learned: bool
    """False for the references."""
    by_lead: xr.Dataset | None = None
    """Estimates (estimate, lead_time[, threshold]); None where every training failed."""
    overall: xr.Dataset | None = None
    """The same with the lead times added up."""
    gains: Mapping[str, xr.Dataset] = field(default_factory=dict)
    """Of a network: how much higher its scores are than those of each reference, (estimate, lead_time[, threshold])."""
    costs: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    """What failed and why."""


def write(folder: Path, rows: Sequence[Row], *, title: str, protocol: Mapping[str, str], note: str) -> Path:
    """Writes table, numbers and figure.

    Args:
        folder: Where to.
        rows: Models, in any order; the table has the best at the top.
        title: Heading of the table.
        protocol: What was done, as name and sentence.
        note: What stands below the figure.

    Returns:
        The table.
    """
    ordered = ranked(rows)
    (folder / NUMBERS).write_text(_numbers(ordered))
    (folder / TABLE).write_text(markdown(ordered, title=title, protocol=protocol))
    shown = [row for row in rows if row.by_lead is not None]
    if shown:
        parts = [row.by_lead for row in shown if row.by_lead is not None]
        skill = xr.concat(parts, xr.Variable("model", [row.name for row in shown]))
        (folder / FIGURE).write_bytes(leaderboard_chart(skill, learned=[row.learned for row in shown], note=note))
    return folder / TABLE


def ranked(rows: Sequence[Row]) -> list[Row]:
    """By the CSI, averaged over the thresholds; without thresholds by the MSE. Who failed comes last."""
    return sorted(rows, key=_rank)


def _rank(row: Row) -> float:
    if row.overall is None:
        return np.inf
    best = row.overall.sel(estimate="value")
    return -float(best["csi"].mean()) if "csi" in best else float(best["mse"])


def markdown(rows: Sequence[Row], *, title: str, protocol: Mapping[str, str]) -> str:
    """The table, what failed, and the protocol."""
    measured = [row for row in rows if row.overall is not None]
    scores = [name for name, _ in _cells(measured[0])] if measured else ["skill"]
    costs = [name for name in COSTS if any(name in row.costs for row in measured)]
    header = ["model", *scores, *(COSTS[name][0] for name in costs)]
    lines = [f"# {title}", "", _line(header), _line(["---", *["--:"] * (len(header) - 1)])]
    for row in rows:
        name = row.name if row.learned else f"*{row.name}*"
        skill = [text for _, text in _cells(row)] or ["failed, see below", *[NOTHING] * (len(scores) - 1)]
        lines.append(_line([name, *skill, *(_cost(row, cost) for cost in costs)]))
    failed = [f"- {_plain(failure)}" for row in rows for failure in row.failures]
    lines += ["", "Failed:", "", *failed] if failed else []
    lines += _lead_tables(measured)
    lines += ["", "## Protocol", "", *(f"- **{name}**: {sentence}" for name, sentence in protocol.items())]
    return "\n".join(lines) + "\n"


def _lead_tables(rows: Sequence[Row]) -> list[str]:
    """A table per score, lead times across; a network's figure is bold where it is surely better than all references.

    Surely: the interval of the difference to each of them, window by window, lies on the good side.
    """
    lines: list[str] = []
    if not rows or rows[0].by_lead is None:
        return lines
    minutes = rows[0].by_lead["lead_time"].values / np.timedelta64(1, "m")
    for name, limit, _ in _scores(rows[0].by_lead):
        header = [_line(["model", *(f"{lead:g}" for lead in minutes)]), _line(["---", *["--:"] * minutes.size])]
        lines += ["", f"## {_heading(name, limit)} by minutes ahead", "", *header]
        lines += [_line([row.name, *_leads(row, name, limit)]) for row in rows]
    return [*lines, "", "Bold: surely better than every reference, by the intervals of the differences."]


def _heading(name: str, limit: float | None) -> str:
    return name.upper() + (f"≥{limit:g}" if limit is not None else "")


def _leads(row: Row, name: str, limit: float | None) -> Iterator[str]:
    assert row.by_lead is not None
    values = _of(row.by_lead, name, limit).sel(estimate="value").values
    bounds = [
        _of(gain, name, limit).sel(estimate="high" if name in FALLING else "low").values for gain in row.gains.values()
    ]
    better = [(bound < 0) if name in FALLING else (bound > 0) for bound in bounds]
    sure = np.all(better, axis=0) if better else np.zeros(values.size, bool)
    for value, bold in zip(values, sure, strict=True):
        text = NOTHING if np.isnan(value) else f"{value:{_style(name)}}"
        yield f"**{text}**" if bold else text


def _of(skill: xr.Dataset, name: str, limit: float | None) -> xr.DataArray:
    return skill[name] if limit is None else skill[name].sel(threshold=limit)


def _style(name: str) -> str:
    return ".3g" if name in ("mse", "mae") else ".3f"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return text.replace("|", "/")


def _cost(row: Row, name: str) -> str:
    return COSTS[name][1](row.costs[name]) if name in row.costs else NOTHING


def _cells(row: Row) -> Iterator[tuple[str, str]]:
    """Heading and text of every score."""
    if row.overall is None:
        return
    for name, limit, values in _scores(row.overall):
        yield _heading(name, limit), _estimate(name, values)


def _scores(skill: xr.Dataset) -> Iterator[tuple[str, float | None, xr.DataArray]]:
    """Name, threshold and (estimate[, lead_time]) of every score."""
    for name, values in skill.data_vars.items():
        limits = skill["threshold"].values.tolist() if "threshold" in values.dims else [None]
        for limit in limits:
            yield str(name), limit, values if limit is None else values.sel(threshold=limit)


def _estimate(name: str, values: xr.DataArray) -> str:
    """``0.412 (0.380–0.441) ±0.004``."""
    style = _style(name)
    value, low, high, spread = (float(values.sel(estimate=part)) for part in ESTIMATES)
    if np.isnan(value):
        return NOTHING
    interval = "" if np.isnan(low + high) else f" ({low:{style}}–{high:{style}})"
    return f"{value:{style}}{interval}" + ("" if np.isnan(spread) else f" ±{spread:.2g}")


def _numbers(rows: Sequence[Row]) -> str:
    """CSV of every number: a line per model, score, threshold and lead time; no lead time: all together."""
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
