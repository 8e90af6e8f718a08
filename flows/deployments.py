"""All deployments in one table, from which ``nowcast up`` serves and ``prefect.yaml`` is made.

python -m nowcast.flows.deployments                                 # writes prefect.yaml
python -m nowcast.flows.deployments yaml operations/mine.yaml       # prints the same for another domain
python -m nowcast.flows.deployments serve knmi,default operations/knmi.yaml     # what `nowcast up` keeps running
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments import run_deployment
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Interval
from prefect.states import Crashed

from nowcast import config
from nowcast.flows.cycle import ANCHOR
from nowcast.flows.train import GPU
from nowcast.flows.up import DEFAULT
from nowcast.models import MODELS, model_class

RUNS_AT_ONCE = {"cycle": None, "cpu": 5, "gpu": 1}
"""Most processes for the runs of each pool on one machine. Cycles never wait for others; their deployment allows one. A
training that waits for its turn has no process."""
SHIPPED = "operations/knmi.yaml"
"""Operations file that ``prefect.yaml`` deploys."""
BENCHMARK = "benchmarks/radar-debug.yaml"
"""Default benchmark file of the flow ``benchmark``."""
GRACE_SECONDS = 120
"""A run that has not started by then frees its slot of the concurrency limit."""
log = logging.getLogger(__name__)
PREFECT_YAML = Path(__file__).parents[2] / "prefect.yaml"
HEADER = """\
# Made by `python -m nowcast.flows.deployments` from flows/deployments.py: change the table there.
#
#   export NOWCAST_HOME=/srv/nowcast                # where runs/, var/ and relative paths lie
#   prefect work-pool create --type process cycle   # a place of its own: nothing else delays a cycle
#   prefect work-pool create --type process cpu
#   prefect work-pool create --type process gpu
#   prefect gcl create gpu --limit 1                # trainings at once
#   prefect --no-prompt deploy --all
#   prefect worker start --pool cycle               # and one each of: --pool cpu, --pool gpu --limit 1
# For another domain: python -m nowcast.flows.deployments yaml operations/mine.yaml > mine.yaml
"""


@dataclass(frozen=True)
class Deployment:
    """A deployment: a flow, its parameters and its schedule."""

    flow: str
    entrypoint: str
    parameters: dict[str, Any]
    tags: tuple[str, ...]
    pool: Literal["cycle", "cpu", "gpu"] = "cpu"
    every_minutes: float | None = None
    """Interval of the schedule; None: started by hand."""
    limit: int | None = None
    """Most runs at the same time."""
    collision: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    """Whether a run beyond the limit waits or is cancelled."""


def deployments(operations: str, overrides: Sequence[str] = ()) -> list[Deployment]:
    """List the deployments of one operational chain.

    Args:
        operations: Operations file, or the name of a shipped one.
        overrides: Changes to it, as ``key=value``.

    Raises:
        ConfigError: If the operations file is refused.
    """
    settings = config.load(config.Operations, operations, overrides)
    every, archive = settings.every_minutes, {"archive": settings.store}
    chain: dict[str, Any] = {"config": operations} | ({"overrides": list(overrides)} if overrides else {})
    tags, recipes = ("operations",), _recipes()
    return [
        # Whichever cycle runs works on the newest frame, and looks again if another was due meanwhile.
        Deployment(
            "cycle",
            "nowcast.flows.cycle.cycle",
            chain,
            tags,
            pool="cycle",
            every_minutes=every,
            limit=1,
            collision="CANCEL_NEW",
        ),
        Deployment("verify", "nowcast.flows.verify.verify", chain, tags, limit=1),
        Deployment("backfill", "nowcast.flows.backfill.backfill", chain, tags, limit=1),
        Deployment("register-model", "nowcast.flows.models.register", chain, tags),
        Deployment("compare-models", "nowcast.flows.models.compare", chain, tags),
        Deployment("promote-model", "nowcast.flows.models.promote", chain, tags),
        Deployment("rollback-model", "nowcast.flows.models.rollback", chain, tags),
        Deployment("ingest", "nowcast.flows.ingest.ingest", {}, ("data",)),
        Deployment(
            "benchmark", "nowcast.flows.benchmark.benchmark", {"config": BENCHMARK} | archive, ("training",), pool="gpu"
        ),
        *(_training(model, recipes.get(model), archive) for model in trainable()),
        *(
            Deployment(f"finetune-{model}", f"nowcast.flows.finetune.{model}", archive, ("training",), pool="gpu")
            for model in trainable()
            if len(model_class(model).tunings) > 1
        ),
    ]


def trainable() -> list[str]:
    """List the networks with weights to train; persistence and extrapolation have none."""
    return [name for name in MODELS if model_class(name).trainable]


def _training(model: str, recipe: str | None, archive: dict[str, str]) -> Deployment:
    """Make the deployment that trains a network; without a shipped recipe, every run must name one."""
    parameters = ({"recipe": recipe} if recipe else {}) | archive
    return Deployment(f"train-{model}", f"nowcast.flows.train.{model}", parameters, ("training",), pool="gpu")


def _recipes() -> dict[str, str]:
    """Map each network to its shipped recipe, the first by name: debug before small."""
    folder = config.shipped_folder()
    files = sorted(folder.glob("training/*.yaml"), reverse=True)
    return {config.load(config.Recipe, file).model.partition(":")[0]: str(file.relative_to(folder)) for file in files}


# --- one machine: served by this process ----------------------------------------------------------


def serve(operations: str, overrides: Sequence[str] = (), *, names: Sequence[str] = (DEFAULT,)) -> None:
    """Register all deployments, start a first cycle, and execute runs until SIGINT.

    Args:
        operations: Operations file, or the name of a shipped one.
        overrides: Changes to it, as ``key=value``.
        names: Names of every deployment; the first one's cycle is scheduled.
    """
    limit_gpu()
    # Schedules stay active when this process stops: the next one goes on with them.
    runners = {pool: Runner(pause_on_shutdown=False, limit=limit) for pool, limit in RUNS_AT_ONCE.items()}
    made = {}
    for name in names:
        for row in deployments(operations, overrides):
            made[row.flow, name] = runners[row.pool].add_deployment(
                served(row if name == names[0] else replace(row, every_minutes=None), name)
            )
    _end_lost_runs([found for found in made.values() if isinstance(found, UUID)])
    run_deployment(f"cycle/{names[0]}", timeout=0)
    asyncio.run(_work(list(runners.values())))


def _end_lost_runs(deployments: list[UUID]) -> None:
    """End the runs whose processes were killed with the last runner: they hold the place of the next cycle."""
    states = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    going = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=deployments),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=going):
            log.warning("run %s was lost with the process that executed it", run.name)
            client.set_flow_run_state(
                run.id, Crashed(message="The process that executed this run is gone."), force=True
            )


async def _work(runners: Sequence[Runner]) -> None:
    """Execute runs until SIGINT, then end them and report it, which frees their slots.

    Prefect's own SIGTERM handler would leave them in the state Running for ever.
    """
    loop = asyncio.get_running_loop()

    asked = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, asked.set)

    async def stop() -> None:
        await asked.wait()
        await asyncio.gather(*(runner.astop() for runner in runners))

    await asyncio.gather(stop(), *(runner.start() for runner in runners))


def limit_gpu(trainings: int = 1) -> None:
    """Create the concurrency limit that trainings wait for: without it they refuse to start."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(GPU, trainings)


def served(row: Deployment, name: str = DEFAULT) -> RunnerDeployment:
    """Convert a deployment to the form that Prefect's runner serves."""
    limit = schedule = None
    if row.every_minutes:
        schedule = Interval(row.every_minutes * 60, anchor_date=ANCHOR, slug=row.flow)
    if row.limit:
        strategy = ConcurrencyLimitStrategy(row.collision)
        limit = ConcurrencyLimitConfig(limit=row.limit, collision_strategy=strategy, grace_period_seconds=GRACE_SECONDS)
    return RunnerDeployment.from_entrypoint(
        row.entrypoint,
        name,
        schedule=schedule,
        concurrency_limit=limit,
        parameters=row.parameters,
        tags=list(row.tags),
    )


# --- a team: work pools and workers ---------------------------------------------------------------


def prefect_yaml(operations: str = SHIPPED, name: str = DEFAULT) -> str:
    """Write the deployments as YAML for ``prefect --no-prompt deploy --all``.

    Args:
        operations: Operations file, or the name of a shipped one.
        name: Name of every deployment.
    """
    home = {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $NOWCAST_HOME }}"}}
    document = {"pull": [home], "deployments": [_entry(row, name) for row in deployments(operations)]}
    text: str = yaml.safe_dump(document, sort_keys=False, width=120)
    return HEADER + text


def _entry(row: Deployment, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name,
        "flow_name": row.flow,
        "entrypoint": row.entrypoint,
        "parameters": dict(row.parameters),
        "tags": list(row.tags),
        "schedules": [],
        "work_pool": {"name": row.pool},
    }
    if row.every_minutes:
        seconds = row.every_minutes * 60
        entry["schedules"] = [{"interval": seconds, "anchor_date": ANCHOR.isoformat(), "slug": row.flow}]
    if row.limit:
        grace = {"grace_period_seconds": GRACE_SECONDS}
        entry["concurrency_limit"] = {"limit": row.limit, "collision_strategy": row.collision} | grace
    return entry


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            PREFECT_YAML.write_text(prefect_yaml())
        case ["yaml", operations]:
            print(prefect_yaml(operations, config.load(config.Operations, operations).domain(operations)), end="")
        case ["serve", names, operations, *overrides]:
            serve(operations, overrides, names=names.split(","))
        case _:
            sys.exit(__doc__)
