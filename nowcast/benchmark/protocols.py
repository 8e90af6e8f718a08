"""Tables of a benchmark by the protocols of published tables, with the published figure beside ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

from nowcast.verification import published
from nowcast.verification.protocols import PROTOCOLS

NUMBERS = "protocols.csv"
NO_VALUE = "–"

Measured = tuple[str, Mapping[str, xr.Dataset], Mapping[str, Mapping[str, float]]]
"""Name of a model, its measurements by protocol, and the published figures by protocol and score."""


def markdown(models: Sequence[Measured]) -> list[str]:
    """Write a table per protocol: networks x scores, and the published figures where there are any."""
    names = dict.fromkeys(name for _, measured, figures in models for name in (*measured, *figures))
    lines: list[str] = []
    for name in names:
        found = PROTOCOLS[name]
        lines += ["", f"## Scores as published: protocol {name}", ""]
        lines += [f"As in tables of {found.source}: {found.rule}. For comparison with those tables alone.", ""]
        lines += _table(name, models)
    return lines


def _table(protocol: str, models: Sequence[Measured]) -> list[str]:
    ours = {model: _figures(measured, protocol) for model, measured, _ in models}
    theirs = {model: figures.get(protocol, {}) for model, _, figures in models}
    scores = list(dict.fromkeys(score for row in (*ours.values(), *theirs.values()) for score in row))
    header = ["model"]
    for score in scores:
        header += [_heading(protocol, score), *(["published"] if _any(score, theirs) else [])]
    lines = [f"| {' | '.join(header)} |", f"| --- |{' --: |' * (len(header) - 1)}"]
    for model in ours:
        cells = [model]
        for score in scores:
            cells.append(_cell(protocol, score, ours[model]))
            if _any(score, theirs):
                cells.append(_cell(protocol, score, theirs[model]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _any(score: str, figures: Mapping[str, Mapping[str, float]]) -> bool:
    return any(score in row for row in figures.values())


def _figures(measured: Mapping[str, xr.Dataset], protocol: str) -> dict[str, float]:
    """Return the figures of a model in the table of a protocol, none if it was not measured."""
    if protocol not in measured:
        return {}
    return published.figures(published.overall(measured[protocol], protocol), protocol)


def _heading(protocol: str, score: str) -> str:
    name, sign, limit = score.partition("≥")
    return PROTOCOLS[protocol].scores[name].heading + sign + limit


def _cell(protocol: str, score: str, figures: Mapping[str, float]) -> str:
    value = figures.get(score, np.nan)
    return NO_VALUE if np.isnan(value) else f"{value:{PROTOCOLS[protocol].scores[score.partition('≥')[0]].style}}"


def numbers(models: Sequence[Measured]) -> str:
    """Write all values as CSV: a line per protocol, model, score and lead time, which is empty for the table's own."""
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    table.writerow(["protocol", "model", "score", "lead_seconds", "value", "published"])
    for model, measured, figures in models:
        for protocol in dict.fromkeys((*measured, *figures)):
            theirs = figures.get(protocol, {})
            ours = _figures(measured, protocol)
            for score in dict.fromkeys((*ours, *theirs)):
                table.writerow([protocol, model, score, "", ours.get(score, ""), theirs.get(score, "")])
            for lead, row in _by_lead(measured, protocol):
                table.writerows([protocol, model, score, lead, value, ""] for score, value in row.items())
    return content.getvalue()


def _by_lead(measured: Mapping[str, xr.Dataset], protocol: str) -> Iterator[tuple[float, dict[str, float]]]:
    """Iterate over seconds and figures of every lead time."""
    if protocol not in measured:
        return
    scores = published.derive(measured[protocol], protocol)
    for lead in scores["lead_time"].values:
        seconds = float(lead / np.timedelta64(1, "s"))
        yield seconds, published.figures(scores.sel(lead_time=lead), protocol)
