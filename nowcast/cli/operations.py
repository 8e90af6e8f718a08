"""Commands of the operator: demo, cycle, Prefect server and flows, doctor."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from nowcast.cli import forecasts
from nowcast.cli.options import AsJson, Overrides
from nowcast.cli.output import console, print_json, print_report, progress_bar, score_table

if TYPE_CHECKING:
    from nowcast.operations.cycle import Report
    from nowcast.operations.doctor import Finding

log = logging.getLogger(__name__)


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to work.")] = Path("demo"),
    serve: Annotated[bool, typer.Option(help="Serve the page at the end.")] = True,
    port: Annotated[int, typer.Option(help="Port of the page.")] = 8000,
) -> None:
    """Run the whole chain on three hours of real radar data: files, forecasts, scores, maps, page.

    Example: [bold]nowcast demo --no-serve[/]
    """
    from nowcast.operations.demo import run as play

    with progress_bar() as progress:
        result = play(folder, progress=progress)
    console.print(score_table(result.scores))
    print_report(result.lines)
    console.print(f"Maps, loop and charts: [bold]{result.pictures}[/]   NetCDF: [bold]{result.netcdf}[/]")
    console.print(f"Page: [bold]{result.site / 'index.html'}[/], served with [bold]nowcast serve {result.site}[/]")
    if serve:
        forecasts.serve(result.site, port=port)


def cycle(
    config: Annotated[str, typer.Argument(help="Operations YAML.")],
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Run one operational cycle without Prefect: ingest, forecast, verify, publish; exit 1 if nothing can be taken.

    Example: [bold]nowcast cycle operations/knmi.yaml feed.source=/data/knmi[/]
    """
    from nowcast.operations.cycle import cycle as once
    from nowcast.operations.cycle import load

    with progress_bar() as progress:
        report = once(load(config, overrides or ()), progress=progress)
    if json:
        print_json(vars(report) | {"idle": report.idle})
    else:
        _print_cycle(report)
    if report.failures:
        raise typer.Exit(1)


def _print_cycle(report: Report) -> None:
    """Print what a cycle did; what failed comes last."""
    frames = f"newest {report.newest}: taken {report.taken}, revised {report.revised}, refused {len(report.refused)}"
    done = f"{report.scored} forecast frames scored, page {report.published}, {report.seconds:.1f} s"
    shadow = [f"in the shadow: {line}" for line in report.shadowed]
    alarms = [f"alarm: {line}" for line in report.alarms]
    failed = [f"failed: {line}" for line in report.failures]
    print_report([frames, *report.refused, *report.contradictions, *report.issued, done, *shadow, *alarms, *failed])


def up(
    config: Annotated[str, typer.Argument(help="Operations YAML.")],
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address that server and page listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the Prefect server.")] = 4200,
    page_port: Annotated[
        int | None, typer.Option(help="Port of the page; by default that of the settings, or a free one from 8000.")
    ] = None,
) -> None:
    """Run the Prefect server, all deployments and the page, in one command.

    Example: [bold]nowcast up operations/knmi.yaml feed.source=/data/knmi[/]
    """
    from nowcast.flows.up import up as start_all

    start_all(config, overrides=overrides or (), host=host, port=port, page_port=page_port)


def run(
    flow: Annotated[str, typer.Argument(help="cycle, verify, backfill, train-convlstm, ...; cycle/knmi: of a domain.")],
    parameters: Annotated[list[str] | None, typer.Argument(help="key=value (YAML values).")] = None,
    watch: Annotated[bool, typer.Option(help="Wait for the end; exit 2 if it fails.")] = False,
) -> None:
    """Start a flow on the running Prefect server.

    Example: [bold]nowcast run train-convlstm --watch[/]
    """
    from nowcast.config import pairs
    from nowcast.flows.up import run_deployment_by_name

    started = run_deployment_by_name(flow, pairs(parameters or ()), watch=watch)
    console.print(f"{flow}: run [bold]{started.name}[/] is {started.state.name if started.state else 'scheduled'}")


def doctor(
    config: Annotated[str | None, typer.Argument(help="Operations YAML to check as well.")] = None,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Check versions, GPU, disks, settings, feed, stores, page and flows, and say what to fix.

    Example: [bold]nowcast doctor operations/knmi.yaml feed.source=/data/knmi[/]
    """
    from nowcast.operations.doctor import examine

    findings = [*examine(config, overrides or ()), *(_flows(config, overrides or ()) if config else ())]
    if json:
        print_json([vars(finding) for finding in findings])
    else:
        table = Table("", "what", "found", "what to do", box=None)
        for finding in findings:
            mark = "[green]ok[/]" if finding.ok else "[red]fix[/]"
            table.add_row(mark, finding.what, finding.found, "" if finding.ok else finding.remedy)
        console.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _flows(config: str, overrides: Sequence[str]) -> list[Finding]:
    """Check the flows of a domain, where Prefect is installed and the settings are valid."""
    from importlib.util import find_spec

    from nowcast.core.errors import ConfigError
    from nowcast.operations.cycle import load
    from nowcast.operations.doctor import Finding

    if not find_spec("prefect"):
        return [Finding("flows", "not looked at: Prefect is not installed")]
    from nowcast.flows.health import examine

    try:
        settings = load(config, overrides)
    except ConfigError:
        log.debug("%s is refused, which another finding says", config, exc_info=True)
        return []
    return examine(settings, settings.domain(config))
