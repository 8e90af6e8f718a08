"""Flow that makes the forecasts and scores of a past period that the schedule missed."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import AwareDatetime

from nowcast.flows.report import outcome, progress_bar


@flow(name="backfill")
def backfill(
    config: str, start: AwareDatetime, end: AwareDatetime, overrides: tuple[str, ...] = (), dry_run: bool = False
) -> State[None]:
    """Run the chain over archived frames; forecasts that exist are not made again.

    Args:
        config: Operations file, or the name of a shipped one: operations/knmi.yaml.
        start: First reference time, with its zone: 2010-08-26T03:00Z.
        end: End of the reference times, exclusive.
        overrides: Changes to the operations file: leads=6.
        dry_run: Report which forecasts would be made, and write nothing.
    """
    from nowcast.operations import cycle as chain

    settings = chain.load(config, overrides)
    report = chain.backfill(settings, start=start, end=end, dry_run=dry_run, progress=progress_bar("backfill-progress"))
    return outcome(report, key="backfill")
