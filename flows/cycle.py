"""Flow of one cycle of an operational chain: new frame, forecasts, scores, page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect import flow, runtime
from prefect.client.schemas.objects import State

from nowcast.core.errors import BusyError
from nowcast.flows.report import SKIPPED, outcome, skipped

if TYPE_CHECKING:
    from nowcast.config import Operations

ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
"""Start of all schedules, so that every 5 minutes means at :00, :05, ..."""
AHEAD = timedelta(seconds=10)
"""Before a run is due, Prefect decides whether it may start."""


@flow(name="cycle")
def cycle(config: str, overrides: tuple[str, ...] = ()) -> State[None]:
    """Ingest new frames, forecast, verify what became verifiable, and publish.

    Args:
        config: Operations file, or the name of a shipped one: operations/knmi.yaml.
        overrides: Changes to it: leads=6.
    """
    from nowcast.operations import cycle as chain

    settings = chain.load(config, overrides)
    started = max(datetime.now(UTC), runtime.flow_run.scheduled_start_time)  # Prefect starts runs early
    state = _once(settings)
    if _due_between(started, datetime.now(UTC), settings.every_minutes):  # and cancelled, since this one held its place
        again = _once(settings)
        state = state if again.name == SKIPPED else again
    return state


def _once(settings: Operations) -> State[None]:
    """Run one cycle on the newest frame there is."""
    from nowcast.operations import cycle as chain

    try:
        return outcome(chain.cycle(settings), key="cycle")
    except BusyError as busy:
        return skipped(str(busy))


def _due_between(start: datetime, end: datetime, every_minutes: float) -> bool:
    """Whether the schedule has a cycle between two times; Prefect decides about it up to ``AHEAD`` earlier."""
    every = timedelta(minutes=every_minutes)
    return (start - ANCHOR) // every < (end + AHEAD - ANCHOR) // every
