"""What a Prefect server knows of a domain, for ``nowcast doctor``: late runs, stuck ones, processes left behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from nowcast.config import Operations
from nowcast.flows import processes
from nowcast.flows.up import DEFAULT_API, answers
from nowcast.operations.doctor import Finding

LATE_SECONDS = 60
"""A run due longer ago than this waits for something."""
STUCK_INTERVALS = 2
"""A cycle that runs longer than so many intervals hangs."""
LISTED = 3
"""Runs named in a finding."""


def examine(settings: Operations, domain: str) -> list[Finding]:
    """Check the processes and the runs of a domain.

    Args:
        settings: The chain.
        domain: Name that its deployments bear.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    api = PREFECT_API_URL.value() or DEFAULT_API
    found = list(_left_behind(settings))
    if not answers(api):
        return [*found, Finding("flows", f"not looked at: no Prefect server answers at {api}")]
    with temporary_settings({PREFECT_API_URL: api}):
        return [*found, *_runs(settings, domain)]


def _left_behind(settings: Operations) -> Iterator[Finding]:
    site = str(settings.site.resolve())
    if left := [process.pid for process, mark in processes.marked() if mark.site == site and mark.orphaned]:
        numbers = ", ".join(map(str, left))
        yield Finding("processes", f"left behind by a killed `nowcast up`: {numbers}", False, "nowcast up ends them")


def _runs(settings: Operations, domain: str) -> Iterator[Finding]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterState
    from prefect.client.schemas.filters import FlowRunFilterStateType as Kinds
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"cycle/{domain}")
        except ObjectNotFound:
            yield Finding("flows", f"no deployment cycle/{domain} on this server", False, "nowcast up")
            return
        states = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
        going = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
                state=FlowRunFilterState(type=Kinds(any_=states)),
            )
        )
    now = datetime.now(UTC)
    due = [run for run in going if run.state_type == StateType.SCHEDULED]
    late = [run.name for run in due if now - (run.expected_start_time or now) > timedelta(seconds=LATE_SECONDS)]
    longest = timedelta(minutes=STUCK_INTERVALS * settings.every_minutes)
    begun = [run for run in going if run.state_type != StateType.SCHEDULED]
    stuck = [run.name for run in begun if now - (run.start_time or run.expected_start_time or now) > longest]
    yield _listed("late cycles", late, "nobody executes them: nowcast up")
    yield _listed("stuck cycles", stuck, "look at the log of this run, then cancel it: prefect flow-run cancel")


def _listed(what: str, names: list[str], remedy: str) -> Finding:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return Finding(what, f"{', '.join(names[:LISTED])}{more}" if names else "none", not names, remedy)
