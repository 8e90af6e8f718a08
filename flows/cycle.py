"""Flow of one cycle of an operational chain: new frame, forecasts, scores, page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect import flow, runtime
from prefect.client.schemas.objects import State

from nowcast.core.errors import BusyError
from nowcast.flows.report import outcome, skipped


@flow(name="cycle")
def cycle(config: str, overrides: tuple[str, ...] = ()) -> State[None]:
    """Ingest new frames, forecast, verify what became verifiable, and publish.

    Args:
        config: Operations file, or the name of a shipped one: operations/knmi.yaml.
        overrides: Changes to it: leads=6.
    """
    from nowcast.operations import cycle as chain

    settings = chain.load(config, overrides)
    late = datetime.now(UTC) - runtime.flow_run.scheduled_start_time
    if late > timedelta(minutes=settings.every_minutes):
        return skipped(f"Due {late.total_seconds() / 60:.0f} minutes ago; a newer cycle does its work.")
    try:
        return outcome(chain.cycle(settings), key="cycle")
    except BusyError as busy:
        return skipped(str(busy))
