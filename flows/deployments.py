"""All deployments in one table, from which ``nowcast up`` serves and ``prefect.yaml`` is made.

python -m nowcast.flows.deployments                                 # writes prefect.yaml
python -m nowcast.flows.deployments serve operations/knmi.yaml      # what `nowcast up` keeps running
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments import run_deployment
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Interval

from nowcast import config
from nowcast.flows.train import GPU
from nowcast.models import MODELS, model_class

NAME = "default"
"""Name of every deployment, which the plug-in appends to the name of the flow."""
SHIPPED = "operations/knmi.yaml"
"""Operations file that ``prefect.yaml`` deploys."""
BENCHMARK = "benchmarks/radar-debug.yaml"
"""Default benchmark file of the flow ``benchmark``."""
ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
"""Start of all schedules, so that every 5 minutes means at :00, :05, ..."""
GRACE_SECONDS = 120
"""A run that has not started by then frees its slot of the concurrency limit."""
PREFECT_YAML = Path(__file__).parents[2] / "prefect.yaml"
HEADER = """\
# Made by `python -m nowcast.flows.deployments` from flows/deployments.py: change the table there.
#
#   export NOWCAST_HOME=/srv/nowcast                # where runs/, var/ and relative paths lie
#   prefect work-pool create --type process cpu
#   prefect work-pool create --type process gpu
#   prefect gcl create gpu --limit 1                # trainings at once
#   prefect --no-prompt deploy --all
#   prefect worker start --pool cpu                 # and one of: --pool gpu --limit 1
"""


@dataclass(frozen=True)
class Deployment:
    """A deployment: a flow, its parameters and its schedule."""

    flow: str
    entrypoint: str
    parameters: dict[str, Any]
    tags: tuple[str, ...]
    pool: Literal["cpu", "gpu"] = "cpu"
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
    every = config.load(config.Operations, operations, overrides).every_minutes
    chain: dict[str, Any] = {"config": operations} | ({"overrides": list(overrides)} if overrides else {})
    tags, recipes = ("operations",), _recipes()
    return [
        # A cycle works on the newest frame: a run that cannot start now would have nothing to do later.
        Deployment(
            "cycle", "nowcast.flows.cycle.cycle", chain, tags, every_minutes=every, limit=1, collision="CANCEL_NEW"
        ),
        Deployment("verify", "nowcast.flows.verify.verify", chain, tags, limit=1),
        Deployment("backfill", "nowcast.flows.backfill.backfill", chain, tags, limit=1),
        Deployment("register-model", "nowcast.flows.models.register", chain, tags),
        Deployment("compare-models", "nowcast.flows.models.compare", chain, tags),
        Deployment("promote-model", "nowcast.flows.models.promote", chain, tags),
        Deployment("rollback-model", "nowcast.flows.models.rollback", chain, tags),
        Deployment("ingest", "nowcast.flows.ingest.ingest", {}, ("data",)),
        Deployment("benchmark", "nowcast.flows.benchmark.benchmark", {"config": BENCHMARK}, ("training",), pool="gpu"),
        *(_training(model, recipes.get(model)) for model in trainable()),
        *(
            Deployment(f"finetune-{model}", f"nowcast.flows.finetune.{model}", {}, ("training",), pool="gpu")
            for model in trainable()
            if len(model_class(model).tunings) > 1
        ),
    ]


def trainable() -> list[str]:
    """List the networks with weights to train; persistence and extrapolation have none."""
    return [name for name in MODELS if model_class(name).trainable]


def _training(model: str, recipe: str | None) -> Deployment:
    """Make the deployment that trains a network; without a shipped recipe, every run must name one."""
    parameters = {"recipe": recipe} if recipe else {}
    return Deployment(f"train-{model}", f"nowcast.flows.train.{model}", parameters, ("training",), pool="gpu")


def _recipes() -> dict[str, str]:
    """Map each network to its shipped recipe, the first by name: debug before small."""
    folder = config.shipped_folder()
    files = sorted(folder.glob("training/*.yaml"), reverse=True)
    return {config.load(config.Recipe, file).model.partition(":")[0]: str(file.relative_to(folder)) for file in files}


# --- one machine: served by this process ----------------------------------------------------------


def serve(operations: str, overrides: Sequence[str] = ()) -> None:
    """Register all deployments, start a first cycle, and execute runs until SIGINT.

    Args:
        operations: Operations file, or the name of a shipped one.
        overrides: Changes to it, as ``key=value``.
    """
    limit_gpu()
    # Schedules stay active when this process stops: the next one goes on with them.
    runner = Runner(pause_on_shutdown=False)
    for row in deployments(operations, overrides):
        runner.add_deployment(served(row))
    run_deployment(f"cycle/{NAME}", timeout=0)
    asyncio.run(_work(runner))


async def _work(runner: Runner) -> None:
    """Execute runs until SIGINT, then end them and report it, which frees their slots.

    Prefect's own SIGTERM handler would leave them in the state Running for ever.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: loop.create_task(runner.astop()))
    await runner.start()


def limit_gpu(trainings: int = 1) -> None:
    """Create the concurrency limit that trainings wait for: without it they refuse to start."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(GPU, trainings)


def served(row: Deployment) -> RunnerDeployment:
    """Convert a deployment to the form that Prefect's runner serves."""
    limit = schedule = None
    if row.every_minutes:
        schedule = Interval(row.every_minutes * 60, anchor_date=ANCHOR, slug=row.flow)
    if row.limit:
        strategy = ConcurrencyLimitStrategy(row.collision)
        limit = ConcurrencyLimitConfig(limit=row.limit, collision_strategy=strategy, grace_period_seconds=GRACE_SECONDS)
    return RunnerDeployment.from_entrypoint(
        row.entrypoint,
        NAME,
        schedule=schedule,
        concurrency_limit=limit,
        parameters=row.parameters,
        tags=list(row.tags),
    )


# --- a team: work pools and workers ---------------------------------------------------------------


def prefect_yaml() -> str:
    """Write the deployments as YAML for ``prefect --no-prompt deploy --all``."""
    home = {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $NOWCAST_HOME }}"}}
    document = {"pull": [home], "deployments": [_entry(row) for row in deployments(SHIPPED)]}
    text: str = yaml.safe_dump(document, sort_keys=False, width=120)
    return HEADER + text


def _entry(row: Deployment) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": NAME,
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
        case ["serve", operations, *overrides]:
            serve(operations, overrides)
        case _:
            sys.exit(__doc__)
