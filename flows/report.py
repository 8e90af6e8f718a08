"""States, tables and progress bars that Prefect shows."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

if TYPE_CHECKING:
    from nowcast.ingestion.append import Summary
    from nowcast.operations.cycle import Report

DATA = "data:image/png;base64,"
INCOMPLETE = "Incomplete"
"""Name of the state of a cycle of which a step failed, while the others went on."""
SKIPPED = "Skipped"
"""Name of the state of a flow that had nothing to do."""
UPDATE_SECONDS = 1.0
"""Least seconds between two updates of a progress bar."""


def outcome(report: Report, *, key: str) -> State[None]:
    """Make the final state of a cycle or a backfill, and an artifact unless nothing was done.

    What failed makes the state, whatever else was done: also files that landed and none of which was taken.

    Args:
        report: What a cycle or a backfill did.
        key: Name of the artifact: lower-case letters, digits and dashes.
    """
    if report.idle:
        return skipped(
            f"No new frame; newest {_time(report.newest)}, {len(report.refused) + report.remembered} refused."
        )
    create_markdown_artifact(key=key, markdown=markdown(report))
    done = {"frames taken": report.taken + report.revised, "forecasts": len(report.issued), "scored": report.scored}
    message = ", ".join(f"{name}: {count}" for name, count in done.items())
    if report.failures:
        return Failed(name=INCOMPLETE, message=f"{'; '.join(report.failures)}. The rest was done: {message}")
    return Completed(message=message)


def skipped(reason: str) -> State[None]:
    """Make the final state of a flow that had nothing to do: completed, but named Skipped."""
    return Completed(name=SKIPPED, message=reason)


def markdown(report: Report) -> str:
    """Format a report as a Markdown table, with the forecasts and the refused files listed below."""
    rows = {
        "Newest frame": _time(report.newest),
        "Frames taken": report.taken,
        "Frames revised": report.revised,
        "Frames known before": report.known,
        "Files refused before": report.remembered,
        "Frames of other products": report.left_out,
        "Forecast frames scored": report.scored,
        "Published": report.published or "nothing",
        "Seconds": f"{report.seconds:.1f}",
    }
    table = ["| Step | Result |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    lists = {
        "Failed": report.failures,
        "Replaced by a fallback": report.alarms,
        "Forecasts": report.issued,
        "In the shadow": report.shadowed,
        "Step": report.contradictions,
        "Refused": report.refused,
    }
    return "\n".join([*table, *(line for title, lines in lists.items() for line in _listed(title, lines))])


def ingested(summary: Summary) -> str:
    """Format the summary of an ingest as a Markdown table, with flags and refused files listed below."""
    rows = {
        "Frames taken": summary.taken,
        "Frames revised": summary.revised,
        "Frames known before": summary.known,
        "Files refused before": summary.remembered,
        "Frames of other products": summary.left_out,
        "Newest frame": _time(summary.newest),
    }
    flags = [f"{name.replace('_', ' ')}: {count} frames" for name, count in summary.flagged.items()]
    table = ["| Step | Result |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(
        [
            *table,
            *_listed("Flagged", flags),
            *_listed("Step", summary.contradictions),
            *_listed("Refused", summary.refused),
        ]
    )


def page(path: Path) -> str:
    """Read a Markdown file with its PNG pictures embedded, since a browser cannot reach the run folder."""

    def embedded(found: re.Match[str]) -> str:
        picture = path.with_name(found["file"])
        return f"]({DATA}{base64.b64encode(picture.read_bytes()).decode()})" if picture.is_file() else found[0]

    return re.sub(r"\]\((?P<file>[^/()\s]+\.png)\)", embedded, path.read_text())


def progress_bar(key: str) -> Callable[[int, int, str], None]:
    """Create a progress artifact; return the function that updates it, called with (done, total, what).

    Args:
        key: Name of the artifact: lower-case letters, digits and dashes.
    """
    artifact: Any = create_progress_artifact(progress=0.0, key=key)
    shown = -UPDATE_SECONDS

    def advance(done: int, total: int, what: str) -> None:
        nonlocal shown
        if done == total or monotonic() - shown >= UPDATE_SECONDS:  # every call is a request to the server
            shown = monotonic()
            update_progress_artifact(artifact, progress=100 * done / total, description=what)

    return advance


def _listed(title: str, lines: list[str]) -> list[str]:
    return ["", f"**{title}**", "", *(f"- {line}" for line in lines)] if lines else []


def _time(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC" if time else "none"
