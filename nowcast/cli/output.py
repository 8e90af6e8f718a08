"""What commands print: tables, reports, JSON, and a progress bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:
    import xarray as xr

console = Console()
errors = Console(stderr=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar on a terminal; yield the function that moves it, called with (done, total, name)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("", total=None, rate="")

        def advance(done: int, total: int, name: str) -> None:
            speed = bars.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bars.update(task, completed=done, total=total, description=name[:34], rate=rate)

        yield advance


def table(rows: Sequence[Mapping[str, object]]) -> Table:
    """Make a table of rows with equal keys, which are the columns."""
    first, *others = rows[0]
    view = Table(Column(first, no_wrap=True), *others, box=None)
    for row in rows:
        view.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    return view


def score_table(sums: xr.Dataset, *, by_lead: bool = False) -> Table:
    """Make a table of pooled scores: sums over all runs (and lead times) first, then the ratio."""
    from nowcast.core.units import UNIT_SIGNS
    from nowcast.verification.tables import table as pooled

    rows = [
        {key: value for key, value in row.items() if key not in ("MAE", "frames")}
        for row in pooled(sums, by_lead=by_lead)
    ]
    unit = sums["threshold"].attrs.get("units", "")
    over = "sums over runs" if by_lead else "sums over runs and lead times"
    rule = f"{over}, then ratios; thresholds in {UNIT_SIGNS.get(unit, unit)}"
    view = Table(title=f"Scores ({rule})", title_justify="left")
    for name in rows[0] if rows else ():
        view.add_column(name, no_wrap=True, justify="left" if name == "model" else "right")
    for row in rows:
        view.add_row(*(_cell(value) for value in row.values()))
    return view


def _cell(value: object) -> str:
    """Format ratios with three digits, counts of pixels in thousands or millions."""
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3f}"
    if isinstance(value, int) and value >= 10_000:
        return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"
    return str(value)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values as a table; a list takes one line per item."""
    view = Table(show_header=False, box=None)
    for key, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        view.add_row(f"[bold]{key}[/]", "\n".join(escape(str(line)) for line in lines) or "none")
    console.print(view)


def print_report(lines: list[str]) -> None:
    """Print lines without highlighting numbers and paths."""
    for line in lines:
        console.print(line, highlight=False)


def print_json(value: object) -> None:
    """Print JSON for programs."""
    print(json.dumps(value, default=str, indent=1))
