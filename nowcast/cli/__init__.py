"""The command line, by group of commands. Every command calls one function of the library and imports it inside."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

import typer

from nowcast.cli import data, forecasts, models, operations, research
from nowcast.cli.failures import Commands
from nowcast.core import log
from nowcast.core.log import LogFormat

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # a traceback that can be copied
    help="Precipitation nowcasting: radar files in, verified forecasts and maps out.",
)
GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "Data": (data.ingest, data.inspect, data.show),
    "Forecasts": (forecasts.forecast, forecasts.verify, forecasts.publish, forecasts.serve),
    "Research": (research.train, research.tune, research.test, research.benchmark),
    "Operations": (operations.demo, operations.cycle, operations.up, operations.run, operations.doctor),
}
"""Title in the help -> commands."""
for title, commands in GROUPS.items():
    for command in commands:
        app.command(rich_help_panel=title)(command)
app.add_typer(models.app, name="models", rich_help_panel="Research")


def main() -> None:
    """Run the command that the shell names."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        from nowcast import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every step.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more, and show the traceback of every error.")] = False,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", envvar="NOWCAST_LOG", help="Lines for people, or JSON for programs.")
    ] = LogFormat.TEXT,
) -> None:
    """Set up the log."""
    log.configure(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING, log_format)
